// Package fileset names files by what is in them. A model, an SAE and a dataset are sets of files;
// the set's digest is their identity, wherever the bytes lie. Everything may import this package.
package fileset

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
)

// File is one file: its path inside the set, its size, and the sha256 of its bytes in hexadecimal.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Set is a set of files in the order of their names.
type Set []File

// New orders the files and refuses names that are empty, doubled, absolute, or leave the set.
func New(files []File) (Set, error) {
	s := slices.Clone(files)
	slices.SortFunc(s, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	for i, f := range s {
		switch {
		case f.Name == "" || path.IsAbs(f.Name) || path.Clean(f.Name) != f.Name || f.Name == ".." || strings.HasPrefix(f.Name, "../") || strings.ContainsAny(f.Name, "\\\x00"):
			return nil, fmt.Errorf("file name %q: want a clean relative path", f.Name)
		case i > 0 && s[i-1].Name == f.Name:
			return nil, fmt.Errorf("file %q is there twice", f.Name)
		case len(f.SHA256) != 64:
			return nil, fmt.Errorf("file %q: sha256 %q: want 64 hexadecimal digits", f.Name, f.SHA256)
		}
		if _, err := hex.DecodeString(f.SHA256); err != nil {
			return nil, fmt.Errorf("file %q: sha256: %w", f.Name, err)
		}
	}
	return s, nil
}

// Digest is the sha256 of the lines "sha256  name\n", in hexadecimal: what sha256sum prints, hashed.
func (s Set) Digest() string {
	h := sha256.New()
	for _, f := range s {
		fmt.Fprintf(h, "%s  %s\n", f.SHA256, f.Name)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Bytes is the size of all files.
func (s Set) Bytes() int64 {
	var n int64
	for _, f := range s {
		n += f.Bytes
	}
	return n
}
