package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
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
	// DeleteOlder removes a blob that was stored before a time, and reports whether it did.
	DeleteOlder(ctx context.Context, key string, than time.Time) (bool, error)
	// List goes through the blobs whose keys begin with prefix, in the order of keys; an error ends it.
	List(ctx context.Context, prefix string) iter.Seq2[Item, error]
	// Leftovers returns the files of this machine that puts and fetches left behind, or are at work on.
	Leftovers(ctx context.Context) ([]Leftover, error)
	// Clear removes a leftover that nobody has touched since, and reports whether it did.
	Clear(ctx context.Context, l Leftover) (bool, error)
	Close() error
}

// Blob is an open blob.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
	Modified() time.Time // when it was stored
}

// Item is a blob in a list.
type Item struct {
	Key      string
	Bytes    int64
	Modified time.Time
}

// Leftover is a file that is no blob yet, or will never be one.
type Leftover struct {
	Path     string
	Bytes    int64
	Modified time.Time
}

// Young is how recently a blob must have been stored for somebody to rely on finding it there while what names it is not
// recorded yet: what is older, and named by nobody, may be collected. It is half of the collector's shortest time.
const Young = 12 * time.Hour

// Kept reports whether a blob of this size is there and stays there until what names it is recorded. Where it is not, it
// has to be put again.
func Kept(ctx context.Context, s Store, key string, size int64) (bool, error) {
	return look(ctx, s, key, func(b Blob) bool { return b.Size() == size && time.Since(b.Modified()) < Young })
}

// Has reports whether a blob of this size is there.
func Has(ctx context.Context, s Store, key string, size int64) (bool, error) {
	return look(ctx, s, key, func(b Blob) bool { return b.Size() == size })
}

func look(ctx context.Context, s Store, key string, is func(Blob) bool) (bool, error) {
	b, err := s.Open(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return is(b), b.Close()
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
	if err := os.MkdirAll(root, private); err != nil {
		return nil, fmt.Errorf("blob folder: %w", err)
	}
	if _, err := os.Stat(filepath.Join(root, marker)); err == nil {
		return &Files{root: root}, nil
	}
	// An older installation, which had no marker, let everybody in. Afterwards it is its owner's to say who may.
	if st, err := os.Stat(root); err == nil && st.Mode().Perm() == 0o755 {
		_ = os.Chmod(root, private)
	}
	m, err := os.OpenFile(filepath.Join(root, marker), os.O_CREATE|os.O_RDONLY, unchanging)
	if err != nil {
		return nil, fmt.Errorf("blob folder: %w", err)
	}
	return &Files{root: root}, m.Close()
}

// What is stored may be private, whatever the umask: a dataset that only its owner could read stays so.
const (
	private    = 0o700 // of folders
	unchanging = 0o400 // of files
)

// marker is an empty file in the folder that is there as long as the folder is the one that was opened. A disk that is not
// mounted any more leaves an empty folder of the same name behind: nothing is missing from it, and nothing may go into it.
const marker = ".store"

// Bare reports whether an address is that of a folder in which no store has ever been.
func Bare(address string) (bool, error) {
	if strings.Contains(address, "://") && !strings.HasPrefix(address, "file://") {
		return false, nil
	}
	entries, err := os.ReadDir(strings.TrimPrefix(address, "file://"))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return len(entries) == 0, err
}

// away returns the error of a folder that is not the one that was opened.
func (f *Files) away() error {
	if _, err := os.Stat(filepath.Join(f.root, marker)); err != nil {
		return fmt.Errorf("%w: %s is not the folder that was opened (its file %s is gone): is its disk mounted?", ErrUnavailable, f.root, marker)
	}
	return nil
}

// gone says what an error about a blob's file means: fs.ErrNotExist only while the folder itself is there.
func (f *Files) gone(key string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if err := f.away(); err != nil {
			return fmt.Errorf("blob %s: %w", key, err)
		}
	}
	return fmt.Errorf("blob %s: %w", key, err)
}

func (f *Files) path(key string) (string, error) {
	if !fs.ValidPath(key) || key == "." || key == marker || strings.HasSuffix(key, temporary) {
		return "", fmt.Errorf("blob key %q: want a clean relative path", key)
	}
	return filepath.Join(f.root, filepath.FromSlash(key)), nil
}

const (
	temporary = ".partial"
	deleting  = ".deleting" + temporary // what DeleteOlder is about to look at
)

// Put implements Store.
func (f *Files) Put(ctx context.Context, key string, r io.Reader) (err error) {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	if err := f.away(); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, private); err != nil {
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
	if err = tmp.Chmod(unchanging); err != nil {
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
	size     int64
	modified time.Time
}

func (f file) Size() int64         { return f.size }
func (f file) Modified() time.Time { return f.modified }

// Open implements Store.
func (f *Files) Open(_ context.Context, key string) (Blob, error) {
	path, err := f.path(key)
	if err != nil {
		return nil, err
	}
	h, err := os.Open(path)
	if err != nil {
		return nil, f.gone(key, err)
	}
	st, err := h.Stat()
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return file{h, st.Size(), st.ModTime()}, nil
}

// Local implements Store: the file itself. Its digest was checked when it was stored.
func (f *Files) Local(_ context.Context, key, _ string) (string, error) {
	path, err := f.path(key)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", f.gone(key, err)
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

// DeleteOlder implements Store. The blob is taken from its name before it is looked at, so that one that is stored again at
// the same time is either what is looked at, or stays.
func (f *Files) DeleteOlder(_ context.Context, key string, than time.Time) (bool, error) {
	path, err := f.path(key)
	if err != nil {
		return false, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.ModTime().Before(than) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete blob %s: %w", key, err)
	}
	taken := path + deleting
	if err := os.Rename(path, taken); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // somebody else collects
		}
		return false, fmt.Errorf("delete blob %s: %w", key, err)
	}
	if st, err = os.Stat(taken); err == nil && !st.ModTime().Before(than) {
		return false, os.Rename(taken, path) // the bytes are those that its name says, whoever stored them
	}
	if err == nil {
		err = os.Remove(taken)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // Leftovers of another process has given it its name back
	}
	if err != nil {
		return false, fmt.Errorf("delete blob %s: %w", key, err)
	}
	return true, nil
}

// List implements Store.
func (f *Files) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if err := f.away(); err != nil {
			yield(Item{}, fmt.Errorf("list blobs: %w", err))
			return
		}
		err := f.walk(ctx, func(path string, info fs.FileInfo) error {
			rel, err := filepath.Rel(f.root, path)
			key := filepath.ToSlash(rel)
			if err != nil || key == marker || strings.HasSuffix(path, temporary) || !strings.HasPrefix(key, prefix) {
				return err
			}
			if !yield(Item{Key: key, Bytes: info.Size(), Modified: info.ModTime()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			yield(Item{}, fmt.Errorf("list blobs: %w", err))
		}
	}
}

// Leftovers implements Store. A blob that DeleteOlder took from its name and did not come to judge, because its process was
// killed, gets its name back.
func (f *Files) Leftovers(ctx context.Context) (out []Leftover, err error) {
	err = f.walk(ctx, func(path string, info fs.FileInfo) error {
		if whole, ok := strings.CutSuffix(path, deleting); ok {
			err := os.Link(path, whole)
			switch {
			case err == nil, errors.Is(err, fs.ErrExist): // it may have been stored again meanwhile
				err = os.Remove(path)
			case !errors.Is(err, fs.ErrNotExist): // a file system without links
				err = os.Rename(path, whole)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // whoever took it has come to judge it
			}
			return err
		}
		if strings.HasSuffix(path, temporary) {
			out = append(out, Leftover{Path: path, Bytes: info.Size(), Modified: info.ModTime()})
		}
		return nil
	})
	return out, err
}

// Clear implements Store. Who fetches into a file holds its lock, and who writes to it makes it younger.
func (f *Files) Clear(_ context.Context, l Leftover) (bool, error) {
	h, err := os.Open(l.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("leftover: %w", err)
	}
	defer func() { _ = h.Close() }() // and with it the lock
	// Shared, which also a file may be that is open for reading only, and refused while somebody fetches.
	if err := syscall.Flock(int(h.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("leftover %s: %w", l.Path, err)
	}
	if st, err := h.Stat(); err != nil || st.ModTime().After(l.Modified) {
		return false, err
	}
	if err := os.Remove(l.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("leftover: %w", err)
	}
	return true, nil
}

// walk visits all files; what goes away meanwhile is passed over.
func (f *Files) walk(ctx context.Context, visit func(path string, info fs.FileInfo) error) error {
	return filepath.WalkDir(f.root, func(path string, d fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil && !d.IsDir() {
			info, err = d.Info()
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case info == nil:
			return nil
		}
		return visit(path, info)
	})
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
	size, digest, err = hashOf(ctx, h)
	if err != nil {
		return 0, "", err
	}
	key := FileKey(digest)
	if kept, err := Kept(ctx, s, key, size); err != nil || kept {
		return size, digest, err
	}
	if _, err := h.Seek(0, io.SeekStart); err != nil {
		return 0, "", err
	}
	if err := s.Put(ctx, key, &unchanged{file: h, digest: sha256.New(), want: digest}); err != nil {
		if errors.Is(err, errChanged) {
			err = fmt.Errorf("%s changed while it was read: stop what writes to it and import it again", path)
		}
		return 0, "", err
	}
	return size, digest, nil
}

var errChanged = errors.New("the bytes are not those that were hashed before")

// unchanged reads a file again whose digest is known. If its bytes are others now, it ends with errChanged and not with
// io.EOF: nothing wrong gets a key.
type unchanged struct {
	file   *os.File
	digest hash.Hash
	want   string
}

func (u *unchanged) Read(p []byte) (int, error) {
	n, err := u.file.Read(p)
	u.digest.Write(p[:n])
	if errors.Is(err, io.EOF) && hex.EncodeToString(u.digest.Sum(nil)) != u.want {
		err = errChanged
	}
	return n, err
}

// Seek implements io.Seeker; the digest is that of what follows.
func (u *unchanged) Seek(offset int64, whence int) (int64, error) {
	u.digest.Reset()
	return u.file.Seek(offset, whence)
}

func hashOf(ctx context.Context, r io.Reader) (int64, string, error) {
	d := sha256.New()
	n, err := io.Copy(d, contextReader{ctx, r})
	return n, hex.EncodeToString(d.Sum(nil)), err
}

// contextReader ends a copy when its context ends, and tells whoever wants to know that it gets on.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	moving(c.ctx, n)
	return n, err
}
