package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Store is a place for files that never change.
type Store interface {
	// Put stores what r gives under the key. Storing the same key again is no error: keys hold digests.
	Put(ctx context.Context, key string, r io.Reader) error
	// Open reads a blob. The ReaderAt stays usable until Close.
	Open(ctx context.Context, key string) (Blob, error)
	// Local returns the path of a file with the blob's bytes, whose sha256 is as given. The file must not be changed.
	Local(ctx context.Context, key, sha256 string) (string, error)
	// Delete removes a blob; one that is not there is no error.
	Delete(ctx context.Context, key string) error
	// List returns the keys that begin with prefix, in order.
	List(ctx context.Context, prefix string) ([]string, error)
	Close() error
}

// Blob is an open blob.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// ErrUnavailable is wrapped by what may pass when it is tried again: a store that does not answer, or not now.
var ErrUnavailable = errors.New("the store is away")

// FileKey is the key of a file that is known by its digest alone.
func FileKey(sha256 string) string { return "files/" + sha256[:2] + "/" + sha256 }

// Files keeps blobs in a folder of this machine.
type Files struct{ root string }

// OpenFiles uses the folder, and makes it if it is not there.
func OpenFiles(root string) (*Files, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("blob folder: %w", err)
	}
	return &Files{root: root}, nil
}

func (f *Files) path(key string) (string, error) {
	if !fs.ValidPath(key) || key == "." || strings.HasSuffix(key, temporary) {
		return "", fmt.Errorf("blob key %q: want a clean relative path", key)
	}
	return filepath.Join(f.root, filepath.FromSlash(key)), nil
}

const temporary = ".partial"

// Put implements Store.
func (f *Files) Put(ctx context.Context, key string, r io.Reader) (err error) {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".*"+temporary)
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("store %s: %w", key, errors.Join(err, tmp.Close(), os.Remove(tmp.Name())))
		}
	}()
	if _, err = io.Copy(tmp, contextReader{ctx, r}); err != nil {
		return err
	}
	if err = tmp.Sync(); err != nil {
		return err
	}
	if err = tmp.Chmod(0o444); err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	_ = tmp.Close() // synced above: nothing can be lost any more
	if serr := f.syncFolders(dir); serr != nil {
		return fmt.Errorf("store %s: %w", key, serr)
	}
	return nil
}

// syncFolders makes the new name, and the folders on the way to it, survive a power cut.
func (f *Files) syncFolders(dir string) error {
	for {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
		if dir == f.root || len(dir) <= len(f.root) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }

// Open implements Store.
func (f *Files) Open(_ context.Context, key string) (Blob, error) {
	path, err := f.path(key)
	if err != nil {
		return nil, err
	}
	h, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", key, err)
	}
	st, err := h.Stat()
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return file{h, st.Size()}, nil
}

// Local implements Store: the file itself. Its digest was checked when it was stored.
func (f *Files) Local(_ context.Context, key, _ string) (string, error) {
	path, err := f.path(key)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("blob %s: %w", key, err)
	}
	return path, nil
}

// Delete implements Store.
func (f *Files) Delete(_ context.Context, key string) error {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob %s: %w", key, err)
	}
	return nil
}

// List implements Store.
func (f *Files) List(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	err := filepath.WalkDir(f.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, temporary) {
			return err
		}
		rel, err := filepath.Rel(f.root, path)
		if key := filepath.ToSlash(rel); err == nil && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
		return errors.Join(err, ctx.Err())
	})
	return keys, err
}

// Close implements Store.
func (f *Files) Close() error { return nil }

// PutFile stores a file of this machine under the key of its digest and returns its size and sha256.
// The bytes are hashed twice, before and while they are copied: a file that changes in between is refused.
func PutFile(ctx context.Context, s Store, path string) (size int64, digest string, err error) {
	h, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	size, digest, err = hash(ctx, h)
	if err != nil {
		return 0, "", err
	}
	key := FileKey(digest)
	if b, err := s.Open(ctx, key); err == nil {
		same := b.Size() == size
		if err := b.Close(); err != nil || same {
			return size, digest, err
		}
	}
	if _, err := h.Seek(0, io.SeekStart); err != nil {
		return 0, "", err
	}
	again := sha256.New()
	if err := s.Put(ctx, key, io.TeeReader(h, again)); err != nil {
		return 0, "", err
	}
	if got := hex.EncodeToString(again.Sum(nil)); got != digest {
		return 0, "", errors.Join(fmt.Errorf("%s changed while it was read: stop what writes to it and import it again", path), s.Delete(ctx, key))
	}
	return size, digest, nil
}

func hash(ctx context.Context, r io.Reader) (int64, string, error) {
	d := sha256.New()
	n, err := io.Copy(d, contextReader{ctx, r})
	return n, hex.EncodeToString(d.Sum(nil)), err
}

// contextReader ends a copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
