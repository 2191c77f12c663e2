package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

type progressKey struct{}

// WithProgress has fetches that are made with the context tell how many bytes are here, of how many. An error of
// tell ends the fetch with it.
func WithProgress(ctx context.Context, tell func(done, total int64) error) context.Context {
	return context.WithValue(ctx, progressKey{}, tell)
}

func tell(ctx context.Context, done, total int64) error {
	if f, ok := ctx.Value(progressKey{}).(func(done, total int64) error); ok {
		return f(done, total)
	}
	return nil
}

type movingKey struct{}

// WithMoving has whatever reads or writes bytes with the context tell that it gets on.
func WithMoving(ctx context.Context, tell func()) context.Context {
	return context.WithValue(ctx, movingKey{}, tell)
}

func moving(ctx context.Context, n int) {
	if f, ok := ctx.Value(movingKey{}).(func()); ok && n > 0 {
		f()
	}
}

const (
	fetchPart  = 16 << 20         // bytes of one request
	fetchIdle  = 30 * time.Second // without a byte, until a request is given up
	fetchTries = 3                // in a row that bring nothing, until the store counts as away
	lockPause  = 100 * time.Millisecond
)

// Local implements Store: it fetches the blob into the cache once and checks its digest.
//
// It comes in parts, the first first. What is here stays when the store goes away or the process is killed, and the next
// fetch goes on behind it. One process of a machine fetches a blob at a time; the others wait for it.
func (b *Bucket) Local(ctx context.Context, key, sha256 string) (string, error) {
	cached := FileKey(sha256)
	if path, err := b.cache.Local(ctx, cached, sha256); err == nil {
		return path, nil
	}
	partial := filepath.Join(b.cache.root, "fetch", sha256+temporary)
	if err := os.MkdirAll(filepath.Dir(partial), private); err != nil {
		return "", cacheError(err)
	}
	file, err := locked(ctx, partial)
	if err != nil {
		return "", cacheError(err)
	}
	defer func() { _ = file.Close() }() // and with it the lock
	if path, err := b.cache.Local(ctx, cached, sha256); err == nil {
		_ = os.Remove(partial) // another process was faster
		return path, nil
	}
	path := filepath.Join(b.cache.root, filepath.FromSlash(cached))
	if err := b.fetch(ctx, file, key, sha256); err != nil {
		if st, statErr := file.Stat(); statErr == nil && st.Size() == 0 {
			_ = os.Remove(partial)
		}
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), private); err != nil {
		return "", cacheError(err)
	}
	if err := os.Rename(partial, path); err != nil {
		return "", cacheError(err)
	}
	if err := file.Chmod(unchanging); err != nil { // only now: a partial file is opened again for writing
		return "", err
	}
	return path, cacheError(b.cache.syncFolders(filepath.Dir(path)))
}

// cacheError is an error of a file in the cache. One that was removed under the fetch's hands comes again with the next
// fetch: it must not read as a blob that the store does not have.
func cacheError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: somebody removed what was being fetched: %s", ErrUnavailable, err.Error())
	}
	return err
}

// locked opens a file that nobody else has, and waits while somebody has it. What it has fetched meanwhile is progress.
func locked(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			// It may have been renamed away, or removed, between the two calls.
			if here, err := os.Stat(path); err == nil {
				if mine, err := f.Stat(); err == nil && os.SameFile(here, mine) {
					return f, nil
				}
			}
		} else if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		st, statErr := f.Stat()
		if err := errors.Join(statErr, f.Close()); err != nil {
			return nil, err
		}
		if err := tell(ctx, st.Size(), 0); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// fetch fills the file with the blob's bytes, behind those that are there.
func (b *Bucket) fetch(ctx context.Context, file *os.File, key, sha256 string) error {
	whole, err := b.Open(ctx, key)
	if err != nil {
		return err
	}
	total := whole.Size()
	for {
		have, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		resumed := have > 0
		if have > total {
			have = 0
		}
		if err := b.parts(ctx, file, key, have, total); err != nil {
			return err
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		_, digest, err := hashOf(ctx, file)
		if err := errors.Join(err, file.Sync()); err != nil {
			return err
		}
		if digest == sha256 {
			return nil
		}
		if err := file.Truncate(0); err != nil {
			return err
		}
		if !resumed {
			return errors.Join(fmt.Errorf("blob %s has sha256 %s, not %s: it was changed or cut short in the store", key, digest, sha256), os.Remove(file.Name()))
		}
		// What an earlier fetch had left may be to blame: once more, from the start.
	}
}

// parts fetches what is missing, a part a request. A request that breaks is made again from where it broke.
func (b *Bucket) parts(ctx context.Context, file *os.File, key string, have, total int64) error {
	if err := file.Truncate(have); err != nil {
		return err
	}
	pause, failures := firstPause, 0
	for have < total {
		n, err := b.part(ctx, file, key, have, total)
		have += n
		if err == nil || n > 0 {
			pause, failures = firstPause, 0
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, ErrUnavailable):
			return err
		}
		if failures++; failures == fetchTries {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
		pause *= 2
	}
	return tell(ctx, have, total)
}

func (b *Bucket) part(ctx context.Context, file *os.File, key string, from, total int64) (n int64, err error) {
	request, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(fetchIdle, cancel)
	defer idle.Stop()
	r, err := b.bucket.NewRangeReader(request, key, from, min(fetchPart, total-from), nil)
	if err == nil {
		defer func() { _ = r.Close() }()
		w := io.NewOffsetWriter(file, from)
		buffer := make([]byte, 256<<10)
		for {
			var got int
			got, err = r.Read(buffer)
			idle.Reset(fetchIdle)
			if got > 0 {
				if _, err := w.Write(buffer[:got]); err != nil {
					return n, fmt.Errorf("keep what was fetched of %s: %w", key, err)
				}
				n += int64(got)
				if err := tell(ctx, from+n, total); err != nil {
					return n, err
				}
			}
			if err != nil {
				break
			}
		}
		if errors.Is(err, io.EOF) {
			if n < min(fetchPart, total-from) {
				return n, fmt.Errorf("blob %s: %w: the connection was cut at byte %d of %d", key, ErrUnavailable, from+n, total)
			}
			return n, nil
		}
	}
	if ctx.Err() == nil && request.Err() != nil {
		return n, fmt.Errorf("blob %s: %w: it sent nothing for %s", key, ErrUnavailable, fetchIdle)
	}
	if ctx.Err() != nil {
		return n, ctx.Err()
	}
	return n, wrap(key, err)
}
