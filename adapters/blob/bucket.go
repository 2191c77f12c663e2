package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/s3blob" // s3:// and stores that speak its protocol
	"gocloud.dev/gcerrors"
)

// Bucket keeps blobs in an object store, and copies on this machine in a cache folder.
type Bucket struct {
	bucket *blob.Bucket
	cache  *Files
}

// Open opens a store by its address: file:///folder, a plain folder, or s3://bucket?region=…&endpoint=….
// An object store needs a cache folder.
func Open(ctx context.Context, address, cacheDir string) (Store, error) {
	if path, ok := strings.CutPrefix(address, "file://"); ok {
		return OpenFiles(path)
	}
	if !strings.Contains(address, "://") {
		return OpenFiles(address)
	}
	if !strings.HasPrefix(address, "s3://") {
		return nil, fmt.Errorf("blob store %q: want a folder, file:///folder or s3://bucket", address)
	}
	b, err := blob.OpenBucket(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("blob store %q: %w", address, err)
	}
	cache, err := OpenFiles(cacheDir)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &Bucket{bucket: b, cache: cache}, nil
}

func (b *Bucket) wrap(key string, err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("blob %s: %w", key, fs.ErrNotExist)
	}
	return fmt.Errorf("blob %s: %w", key, err)
}

// Put implements Store. An object appears whole or not at all.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := b.bucket.NewWriter(ctx, key, nil)
	if err != nil {
		return b.wrap(key, err)
	}
	if _, err := io.Copy(w, contextReader{ctx, r}); err != nil {
		cancel() // closing a writer whose context ended leaves no object behind
		_ = w.Close()
		return b.wrap(key, err)
	}
	if err := w.Close(); err != nil {
		return b.wrap(key, err)
	}
	return nil
}

type object struct {
	ctx  context.Context
	b    *Bucket
	key  string
	size int64
}

func (o object) Size() int64  { return o.size }
func (o object) Close() error { return nil }

func (o object) ReadAt(p []byte, off int64) (int, error) {
	if off >= o.size {
		return 0, io.EOF
	}
	r, err := o.b.bucket.NewRangeReader(o.ctx, o.key, off, min(int64(len(p)), o.size-off), nil)
	if err != nil {
		return 0, o.b.wrap(o.key, err)
	}
	n, err := io.ReadFull(r, p[:min(int64(len(p)), o.size-off)])
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// Open implements Store; reads are range requests.
func (b *Bucket) Open(ctx context.Context, key string) (Blob, error) {
	a, err := b.bucket.Attributes(ctx, key)
	if err != nil {
		return nil, b.wrap(key, err)
	}
	return object{ctx, b, key, a.Size}, nil
}

// Local implements Store: it fetches the blob into the cache once and checks its digest.
func (b *Bucket) Local(ctx context.Context, key, sha256 string) (string, error) {
	cached := FileKey(sha256)
	if path, err := b.cache.Local(ctx, cached, sha256); err == nil {
		return path, nil
	}
	r, err := b.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return "", b.wrap(key, err)
	}
	defer func() { _ = r.Close() }()
	tmp, err := os.CreateTemp(b.cache.root, "fetch.*"+temporary)
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, digest, err := hash(ctx, io.TeeReader(r, tmp))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return "", b.wrap(key, err)
	}
	if digest != sha256 {
		return "", fmt.Errorf("blob %s has sha256 %s, not %s: it was changed or cut short in the store", key, digest, sha256)
	}
	path := filepath.Join(b.cache.root, filepath.FromSlash(cached))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.Rename(tmp.Name(), path)
}

// Delete implements Store.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := b.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
		return b.wrap(key, err)
	}
	return nil
}

// List implements Store.
func (b *Bucket) List(ctx context.Context, prefix string) ([]string, error) {
	var keys []string
	for it := b.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := it.Next(ctx)
		if errors.Is(err, io.EOF) {
			return keys, nil
		}
		if err != nil {
			return nil, b.wrap(prefix, err)
		}
		keys = append(keys, o.Key)
	}
}

// Close implements Store.
func (b *Bucket) Close() error { return b.bucket.Close() }
