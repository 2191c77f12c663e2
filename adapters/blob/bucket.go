package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strings"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/s3blob" // s3:// and stores that speak its protocol
	"gocloud.dev/gcerrors"
)

// Bucket keeps blobs in an object store, and copies on this machine in a cache folder.
type Bucket struct {
	bucket *blob.Bucket
	cache  *Files
}

// Open opens a store by its address: file:///folder, a plain folder, or s3://bucket?region=…&endpoint=…&prefix=….
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

// wrap says what an error of the object store means: a blob that is not there, what stays wrong until somebody changes
// something, or a store that is away.
func wrap(key string, err error) error {
	var said smithy.APIError
	var answered *awshttp.ResponseError
	code, status := "", 0
	if errors.As(err, &said) {
		code = said.ErrorCode()
	}
	if errors.As(err, &answered) {
		status = answered.HTTPStatusCode()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, ErrUnavailable), errors.Is(err, errChanged):
		return fmt.Errorf("blob %s: %w", key, err)
	case code == "NoSuchBucket":
		return fmt.Errorf("blob %s: %w: %w: %w", key, ErrUnavailable, errNoBucket, err)
	case gcerrors.Code(err) == gcerrors.NotFound:
		return fmt.Errorf("blob %s: %w", key, fs.ErrNotExist)
	case status >= http.StatusBadRequest && status < http.StatusInternalServerError && status != http.StatusRequestTimeout && status != http.StatusTooManyRequests && !passing[code]:
		return fmt.Errorf("blob %s: the object store refuses it: %w", key, err)
	}
	return fmt.Errorf("blob %s: %w: %w", key, ErrUnavailable, err)
}

// passing are codes of refusals that pass: the store is busy, or a key or this machine's clock is about to be renewed.
var passing = map[string]bool{"SlowDown": true, "RequestTimeout": true, "ExpiredToken": true, "ExpiredTokenException": true, "TokenRefreshRequired": true, "RequestTimeTooSkewed": true}

var errNoBucket = errors.New("there is no such bucket: make it, or mend the store's address")

// missing tells a blob that is not there from a bucket that is not there: the answer to a look at a blob does not say which.
func (b *Bucket) missing(ctx context.Context, key string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there, asked := b.bucket.IsAccessible(ctx)
	switch {
	case asked != nil && errors.Is(wrap(key, asked), ErrUnavailable):
		return wrap(key, asked)
	case asked != nil:
		return err // who may not list the bucket has to believe the first answer
	case !there:
		return fmt.Errorf("blob %s: %w: %w", key, ErrUnavailable, errNoBucket)
	}
	return err
}

// Pauses of what is tried again at once. The client of the store has tried each request three times by then; a longer
// outage is the caller's to wait for.
const (
	firstPause = 100 * time.Millisecond
	tries      = 2
)

// again tries what may pass a few times.
func again(ctx context.Context, try func() error) error {
	pause := firstPause
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == tries || !errors.Is(err, ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// Put implements Store. An object appears whole or not at all. What can be read again is sent again after a cut.
func (b *Bucket) Put(ctx context.Context, key string, r io.Reader) error {
	rewind, ok := r.(io.Seeker)
	if !ok {
		return b.put(ctx, key, r)
	}
	start, err := rewind.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("blob %s: %w", key, err)
	}
	return again(ctx, func() error {
		if _, err := rewind.Seek(start, io.SeekStart); err != nil {
			return fmt.Errorf("blob %s: %w", key, err)
		}
		return b.put(ctx, key, r)
	})
}

func (b *Bucket) put(ctx context.Context, key string, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := b.bucket.NewWriter(ctx, key, nil)
	if err != nil {
		return wrap(key, err)
	}
	if _, err := io.Copy(w, contextReader{ctx, r}); err != nil {
		cancel() // closing a writer whose context ended leaves no object behind
		if closed := w.Close(); closed != nil && !errors.Is(err, errChanged) && !errors.Is(closed, context.Canceled) {
			err = closed // the copy only learnt that the other end had failed
		}
		return wrap(key, err)
	}
	return wrap(key, w.Close())
}

type object struct {
	ctx      context.Context
	b        *Bucket
	key      string
	size     int64
	modified time.Time
}

func (o object) Size() int64         { return o.size }
func (o object) Modified() time.Time { return o.modified }
func (o object) Close() error        { return nil }

func (o object) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= o.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), o.size-off)]
	err = again(o.ctx, func() error {
		n = 0
		r, err := o.b.bucket.NewRangeReader(o.ctx, o.key, off, int64(len(want)), nil)
		if err != nil {
			return wrap(o.key, err)
		}
		n, err = io.ReadFull(r, want)
		return wrap(o.key, errors.Join(err, r.Close()))
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// Open implements Store; reads are range requests.
func (b *Bucket) Open(ctx context.Context, key string) (Blob, error) {
	var a *blob.Attributes
	err := again(ctx, func() (err error) {
		a, err = b.bucket.Attributes(ctx, key)
		return b.missing(ctx, key, wrap(key, err))
	})
	if err != nil {
		return nil, err
	}
	return object{ctx, b, key, a.Size, a.ModTime}, nil
}

// Delete implements Store.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	err := wrap(key, b.bucket.Delete(ctx, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// DeleteOlder implements Store. An object store deletes whatever has the name, so between look and delete there is a
// moment of some milliseconds in which a blob that is stored again would be lost.
func (b *Bucket) DeleteOlder(ctx context.Context, key string, than time.Time) (bool, error) {
	o, err := b.Open(ctx, key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !o.Modified().Before(than) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, b.Delete(ctx, key)
}

// List implements Store.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for it := b.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
			o, err := it.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Item{}, wrap(prefix, err))
				return
			}
			if !yield(Item{Key: o.Key, Bytes: o.Size, Modified: o.ModTime}, nil) {
				return
			}
		}
	}
}

// Leftovers implements Store: what fetches have left in the cache folder. An upload that does not end leaves no object.
func (b *Bucket) Leftovers(ctx context.Context) ([]Leftover, error) { return b.cache.Leftovers(ctx) }

// Clear implements Store.
func (b *Bucket) Clear(ctx context.Context, l Leftover) (bool, error) { return b.cache.Clear(ctx, l) }

// Cached returns the files that were fetched to this machine.
func (b *Bucket) Cached(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		cache, err := OpenFiles(b.cache.root) // a cache may be deleted at any time
		if err != nil {
			yield(Item{}, err)
			return
		}
		cache.List(ctx, "")(yield)
	}
}

// Uncache removes a fetched file from this machine.
func (b *Bucket) Uncache(ctx context.Context, key string) error { return b.cache.Delete(ctx, key) }

// Close implements Store.
func (b *Bucket) Close() error { return b.bucket.Close() }
