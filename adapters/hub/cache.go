package hub

import (
	"context"
	"crypto/sha1" // git names small files by it
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// repoCache is a repository's folder in the cache. os.Root keeps every path inside it, whatever
// symlinks somebody has put there.
type repoCache struct {
	*os.Root
	dir   string
	locks string
}

func (c *Client) openRepo(repo Repo) (*repoCache, error) {
	r := &repoCache{dir: filepath.Join(c.cfg.Cache, repo.folder()), locks: filepath.Join(c.cfg.Cache, ".locks", repo.folder())}
	for _, dir := range []string{r.locks, r.dir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("hub cache: %w", local(err, c.cfg.Cache))
		}
	}
	var err error
	if r.Root, err = os.OpenRoot(r.dir); err != nil {
		return nil, fmt.Errorf("hub cache: %w", err)
	}
	for _, dir := range []string{"blobs", "refs", "snapshots"} {
		if err := r.MkdirAll(dir, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("hub cache: %w", local(err, c.cfg.Cache)), r.Close())
		}
	}
	return r, nil
}

// remember writes which commit a revision is.
func (c *Client) remember(repo Repo, revision, commit string) (err error) {
	if revision == commit {
		return nil
	}
	r, err := c.openRepo(repo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	name := path.Join("refs", revision)
	if old, err := r.ReadFile(name); err == nil && string(old) == commit {
		return nil
	}
	if err := r.MkdirAll(path.Dir(name), 0o755); err != nil {
		return fmt.Errorf("hub cache: %w", local(err, c.cfg.Cache))
	}
	if err := r.WriteFile(name, []byte(commit), 0o644); err != nil {
		return fmt.Errorf("hub cache: %w", local(err, c.cfg.Cache))
	}
	return nil
}

// remembered is Resolve without the hub; why is the error that it gave, nil = it was not asked.
func (c *Client) remembered(repo Repo, revision string, why error) (Info, error) {
	info := Info{Repo: repo, Revision: revision, Commit: revision, Cached: true}
	if !isCommit(revision) {
		b, err := os.ReadFile(filepath.Join(c.cfg.Cache, repo.folder(), "refs", filepath.FromSlash(or(revision, "main"))))
		if info.Commit = strings.TrimSpace(string(b)); err != nil || !isCommit(info.Commit) {
			return Info{}, notCached(why, "%s at revision %s is not in the cache %s", repo, or(revision, "main"), c.cfg.Cache)
		}
	}
	if why != nil {
		c.cfg.Logger.Warn("the hub does not answer: the cache is used", "repository", repo.ID, "commit", info.Commit, "error", why)
	}
	return info, nil
}

// notCached is the hub's own error where it was asked, else that there is nothing offline.
func notCached(why error, format string, args ...any) error {
	if why != nil {
		return why
	}
	return failed(NotCached, format+", and the hub is not asked while offline", args...)
}

// cachedFiles lists what the cache has of a commit.
func (c *Client) cachedFiles(repo Repo, commit, under string, why error) ([]File, error) {
	dir := filepath.Join(c.cfg.Cache, repo.folder())
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, notCached(why, "%s is not in the cache %s", repo, c.cfg.Cache)
	}
	defer func() { _ = root.Close() }()
	snapshot := path.Join("snapshots", commit)
	var out []File
	err = fs.WalkDir(root.FS(), snapshot, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name := strings.TrimPrefix(p, snapshot+"/")
		if under == "" || name == under || strings.HasPrefix(name, under+"/") {
			if f, ok := cachedFile(root, p, name); ok {
				out = append(out, f)
			}
		}
		return nil
	})
	if err != nil || len(out) == 0 {
		return nil, notCached(why, "%s has no %s at commit %s in the cache %s", repo, or(under, "file"), commit, c.cfg.Cache)
	}
	return inOrder(out)
}

// cachedFile is a file of a snapshot, if it is a link to a blob that is here.
func cachedFile(root *os.Root, link, name string) (File, bool) {
	target, err := root.Readlink(link)
	if err != nil || checkPath(name) != nil {
		return File{}, false
	}
	info, err := root.Stat(link)
	if err != nil || !info.Mode().IsRegular() {
		return File{}, false
	}
	f := File{Path: name, Size: info.Size()}
	switch key := path.Base(filepath.ToSlash(target)); {
	case isHex(key, 64):
		f.SHA256 = key
	case isHex(key, 40):
		f.Git = key
	default:
		return File{}, false
	}
	return f, true
}

// lock takes a blob for this process, waiting for another that has it. Other tools of the hub take the same lock.
func (r *repoCache) lock(ctx context.Context, blob string, waiting func()) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(r.locks, blob+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil // the kernel drops the lock with the file
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		if waiting != nil {
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// digest is the hash that names the file's bytes.
func (f File) digest() hash.Hash {
	if f.SHA256 != "" {
		return sha256.New()
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", f.Size)
	return h
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// has reports whether the cache has the file's bytes, and reads them to be sure.
func (r *repoCache) has(ctx context.Context, f File) (bool, error) {
	name := path.Join("blobs", f.blob())
	b, err := r.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sum := f.digest()
	n, err := io.Copy(sum, stoppable{ctx, b})
	if err := errors.Join(err, b.Close()); err != nil {
		return false, err
	}
	if n == f.Size && hexSum(sum) == f.blob() {
		return true, nil
	}
	return false, r.Remove(name) // somebody cut or changed it
}

// link makes the file appear in the commit's snapshot.
func (r *repoCache) link(commit string, f File) error {
	name := path.Join("snapshots", commit, f.Path)
	target := strings.Repeat("../", strings.Count(name, "/")) + path.Join("blobs", f.blob())
	if old, err := r.Readlink(name); err == nil && old == target {
		return nil
	}
	if err := r.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := r.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := r.Symlink(target, name)
	if errors.Is(err, fs.ErrExist) { // another process made it meanwhile
		if old, err := r.Readlink(name); err == nil && old == target {
			return nil
		}
	}
	return err
}

// stoppable ends a copy when its context ends.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s stoppable) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}
