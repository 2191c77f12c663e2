package library

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/problem"
)

// Library reads and stores what is imported.
type Library struct {
	store blob.Store
	roots []string // absolute, symlinks resolved; empty = every path
	cache string   // where folders of sets are made
	own   bool     // paths are this program's own: see trusting
}

// trusting returns the library for folders that this program itself has made of links to checked files: no import root
// is asked for, and a link keeps its name, which says what kind of file it is.
func (l *Library) trusting() *Library {
	other := *l
	other.own, other.roots = true, nil
	return &other
}

// New returns a library on a store. Only paths below roots may be imported; none = every path that this
// user can read.
func New(store blob.Store, cache string, roots []string) (*Library, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	l := &Library{store: store, cache: cache}
	for _, r := range roots {
		resolved, err := filepath.EvalSymlinks(r)
		if err != nil {
			return nil, fmt.Errorf("import root %s: %w", r, err)
		}
		if resolved, err = filepath.Abs(resolved); err != nil {
			return nil, err
		}
		l.roots = append(l.roots, resolved)
	}
	return l, nil
}

// resolve returns the real path, or says why it may not or cannot be read.
func (l *Library) resolve(path string) (string, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return "", problem.InvalidFields("invalid_request", problem.Field{Name: "file_path", Detail: "must name a file or folder on the machine of the API"})
	}
	abs, err := filepath.Abs(path)
	if err != nil || l.own {
		return abs, err
	}
	real, err := filepath.EvalSymlinks(abs)
	allowed := err == nil && l.below(real)
	if errors.Is(err, fs.ErrNotExist) { // a name that is not there, in a folder that may be read
		folder, folderErr := filepath.EvalSymlinks(filepath.Dir(abs))
		allowed = folderErr == nil && l.below(folder)
	}
	allowed = allowed || len(l.roots) == 0
	switch {
	case err == nil && allowed:
		return real, nil
	case len(l.roots) > 0 && !allowed: // whether it exists outside the roots is nobody's business
		return "", problem.New(problem.Invalid, "path_not_allowed", "%s is not a file or folder below a configured import root (%s)", path, strings.Join(l.roots, ", "))
	case errors.Is(err, fs.ErrNotExist):
		return "", problem.New(problem.Invalid, "file_not_found", "there is no file or folder %s on the machine of the API", path)
	}
	return "", problem.New(problem.Invalid, "file_unreadable", "%s cannot be read: %v", path, err)
}

// below reports whether a real path is in one of the roots.
func (l *Library) below(real string) bool {
	for _, r := range l.roots {
		if rel, err := filepath.Rel(r, real); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return true
		}
	}
	return len(l.roots) == 0
}

// put stores files by digest and returns them as a set, named relative to base.
func (l *Library) put(ctx context.Context, base string, paths []string) (fileset.Set, error) {
	var files []fileset.File
	for _, p := range slices.Compact(slices.Sorted(slices.Values(paths))) {
		name, err := filepath.Rel(base, p)
		if err != nil || strings.HasPrefix(name, "..") {
			name = filepath.Base(p)
		}
		if real, err := filepath.EvalSymlinks(p); err != nil || !l.below(real) {
			return nil, problem.New(problem.Invalid, "path_not_allowed", "%s is a link to what is not below a configured import root (%s)", p, strings.Join(l.roots, ", "))
		}
		size, digest, err := blob.PutFile(ctx, l.store, p)
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", p, err)
		}
		files = append(files, fileset.File{Name: filepath.ToSlash(name), Bytes: size, SHA256: digest})
	}
	return fileset.New(files)
}

// Folder returns a folder on this machine that holds the files of a set under their names, fetching
// what is not here. The files must not be changed.
func (l *Library) Folder(ctx context.Context, set fileset.Set) (string, error) {
	dir := filepath.Join(l.cache, "sets", set.Digest())
	if whole(dir, set) {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "making-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	for _, f := range set {
		path, err := l.store.Local(ctx, blob.FileKey(f.SHA256), f.SHA256)
		if err != nil {
			return "", err
		}
		link := filepath.Join(tmp, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
			return "", err
		}
		if err := os.Symlink(path, link); err != nil {
			return "", err
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		// Another process made it first, or an old one points at files that have moved.
		if whole(dir, set) {
			return dir, nil
		}
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
		if err := os.Rename(tmp, dir); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func whole(dir string, set fileset.Set) bool {
	for _, f := range set {
		if st, err := os.Stat(filepath.Join(dir, filepath.FromSlash(f.Name))); err != nil || st.Size() != f.Bytes {
			return false
		}
	}
	return true
}

// unreadable says what is wrong with imported files.
func unreadable(kind, path string, err error) error {
	var p *problem.Error
	if errors.As(err, &p) {
		return err
	}
	out := problem.New(problem.Invalid, "unreadable_"+kind, "%s", err.Error())
	out.Err = err
	return out.With("path", path)
}
