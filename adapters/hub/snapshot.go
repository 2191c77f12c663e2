package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sync/errgroup"
)

// Progress is how far a download is.
type Progress struct {
	File       string // the one that bytes came for last
	Bytes      int64  // that are here, of all files
	TotalBytes int64
	Files      int // that are whole
	TotalFiles int
}

// Snapshot makes files of a commit be in the cache and returns the folder where they lie under their
// paths, as links to checked blobs. What is here already is checked and not fetched again. progress may
// be nil; it is called by one goroutine at a time, for every piece that arrives and while another
// process is waited for.
func (c *Client) Snapshot(ctx context.Context, repo Repo, commit string, files []File, progress func(Progress)) (dir string, err error) {
	if err := repo.check(); err != nil {
		return "", err
	}
	if !isCommit(commit) {
		return "", failed(BadReference, "commit %q: want 40 hexadecimal digits", commit)
	}
	r, err := c.openRepo(repo)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := c.room(r, files); err != nil {
		return "", err
	}
	var mu sync.Mutex
	now := Progress{TotalFiles: len(files)}
	for _, f := range files {
		now.TotalBytes += f.Size
	}
	tell := func(change func(*Progress)) {
		mu.Lock()
		defer mu.Unlock()
		change(&now)
		if progress != nil {
			progress(now)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(c.cfg.Concurrency)
	for _, f := range files {
		if err := checkPath(f.Path); err != nil {
			return "", errors.Join(err, group.Wait())
		}
		group.Go(func() error {
			get := c.fetch
			if c.cfg.Offline {
				get = c.cached
			}
			err := get(groupCtx, r, repo, commit, f, func(n int64) {
				tell(func(p *Progress) { p.File, p.Bytes = f.Path, p.Bytes+n })
			})
			if err == nil {
				tell(func(p *Progress) { p.File, p.Files = f.Path, p.Files+1 })
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", err
	}
	return filepath.Join(r.dir, "snapshots", commit), nil
}

// cached is fetch while offline.
func (c *Client) cached(ctx context.Context, r *repoCache, repo Repo, commit string, f File, got func(int64)) error {
	there, err := r.has(ctx, f)
	if err != nil {
		return err
	}
	if !there {
		return failed(NotCached, "%s of %s is not in the cache %s, and the hub is not asked while offline", f.Path, repo, c.cfg.Cache)
	}
	got(f.Size)
	return r.link(commit, f)
}

// room refuses a download that the disk cannot hold, before its first byte.
func (c *Client) room(r *repoCache, files []File) error {
	var need uint64
	for _, f := range files {
		size := f.Size
		for _, name := range []string{f.blob(), f.blob() + ".incomplete"} {
			info, err := r.Stat(path.Join("blobs", name))
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return fmt.Errorf("hub cache: %w", err)
			default:
				size -= info.Size()
			}
		}
		need += uint64(max(0, size))
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(r.dir, &disk); err != nil {
		return nil //nolint:nilerr // where nobody can say how much room there is, it shows when it is full
	}
	if free := disk.Bavail * uint64(disk.Bsize); need > free {
		return failed(DiskFull, "the download needs %d more bytes, and the disk of the hub's cache %s has %d: make room, or choose another folder with --hub-cache", need, c.cfg.Cache, free)
	}
	return nil
}

// ReadFile fetches a small file and returns its bytes.
func (c *Client) ReadFile(ctx context.Context, repo Repo, commit string, f File) ([]byte, error) {
	if f.Size > maxConfig {
		return nil, failed(Unsuitable, "%s of %s has %d bytes: too many for a text that is read whole", f.Path, repo, f.Size)
	}
	dir, err := c.Snapshot(ctx, repo, commit, []File{f}, nil)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Dir(filepath.Dir(dir)))
	if err != nil {
		return nil, err
	}
	b, err := root.ReadFile(path.Join("blobs", f.blob()))
	return b, errors.Join(err, root.Close())
}
