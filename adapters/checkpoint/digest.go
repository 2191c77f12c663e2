package checkpoint

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// HashFiles is a digest of files by content and base name, wherever they lie. One file: its sha256. Several: the sha256 of what
// `sha256sum` prints for them inside their folder, in the order of their names, so that anyone can check it with a shell.
func HashFiles(paths []string) (string, error) {
	paths = slices.Clone(paths)
	slices.SortFunc(paths, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	list := sha256.New()
	for _, path := range paths {
		sum, err := hashFile(path)
		if err != nil {
			return "", fmt.Errorf("hash %s: %w", path, err)
		}
		if len(paths) == 1 {
			return text(sum), nil
		}
		fmt.Fprintf(list, "%s  %s\n", text(sum), filepath.Base(path))
	}
	return text(list), nil
}

func hashFile(path string) (hash.Hash, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(path, err)
	}
	defer func() { _ = f.Close() }() // only read
	h := sha256.New()
	_, err = io.CopyBuffer(h, f, make([]byte, 1<<20))
	return h, err
}

func text(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
