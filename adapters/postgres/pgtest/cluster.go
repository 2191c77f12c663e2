package pgtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/featuremill/featuremill/adapters/embedded"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/schema"
)

// clusterVersion changes when what is put into a cached cluster changes for another reason than the migrations.
const clusterVersion = "1"

// settings sync nothing to the disk. A commit is still written out, so a server that is killed loses nothing.
var settings = map[string]string{
	"fsync": "off", "full_page_writes": "off", "autovacuum": "off",
	"max_connections": "400", "shared_buffers": "64MB", "max_wal_size": "256MB", "log_min_messages": "fatal", "log_checkpoints": "off",
}

// start starts a server on a copy of the cached cluster, which is made at the first time or when it does not fit.
func start(ctx context.Context) (*server, error) {
	cached, err := cachedCluster()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(cached + ".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(cached); err == nil {
		if s, err := startCopy(ctx, cached); err == nil {
			return s, nil
		}
		// Made by another version of PostgreSQL, or damaged.
		if err := os.RemoveAll(cached); err != nil {
			return nil, err
		}
	}
	if err := makeCluster(ctx, cached); err != nil {
		return nil, fmt.Errorf("make the cluster that tests start from: %w", err)
	}
	return startCopy(ctx, cached)
}

func startCopy(ctx context.Context, cached string) (*server, error) {
	s, err := newState()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	_ = os.Chtimes(cached, now, now) // in use, see forget
	if err := copyTree(cached, filepath.Join(s.dir, "data")); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	srv, err := s.serve(ctx)
	if err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return srv, nil
}

// cachedCluster names the folder of the cluster for these migrations.
func cachedCluster() (string, error) {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, clusterVersion, os.Geteuid())
	err := fs.WalkDir(schema.Migrations(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(schema.Migrations(), path)
		_, _ = fmt.Fprintln(h, path, len(b))
		_, _ = h.Write(b)
		return err
	})
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "featuremill", "pgtest")
	return filepath.Join(dir, hex.EncodeToString(h.Sum(nil)[:8])), os.MkdirAll(dir, 0o755)
}

// makeCluster makes a cluster with the template database and keeps it under the name target.
func makeCluster(ctx context.Context, target string) (err error) {
	s, err := newState()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remove()) }()
	srv, err := s.serve(ctx)
	if err != nil {
		return err
	}
	err = srv.admin(ctx, "create database "+template)
	if err == nil {
		err = postgres.Migrate(ctx, srv.address(template))
	}
	if err = errors.Join(err, srv.pg.Stop(ctx)); err != nil {
		return err
	}
	forget(filepath.Dir(target))
	if err := os.RemoveAll(target + ".tmp"); err != nil {
		return err
	}
	if err := copyTree(filepath.Join(s.dir, "data"), target+".tmp"); err != nil {
		return err
	}
	return os.Rename(target+".tmp", target)
}

// forget removes the clusters of migrations that nobody has tested for a while.
func forget(dir string) {
	clusters, _ := os.ReadDir(dir) // what cannot be read stays
	for _, c := range clusters {
		if info, err := c.Info(); err == nil && c.IsDir() && time.Since(info.ModTime()) > 7*24*time.Hour {
			_ = os.RemoveAll(filepath.Join(dir, c.Name()))
		}
	}
}

// state is the folder of one server. Its lock says that the process is alive.
type state struct {
	dir    string
	unlock func()
}

const statePrefix = "featuremill-pgtest-"

func newState() (*state, error) {
	sweep()
	dir, err := os.MkdirTemp("", statePrefix)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // as root, the server is another user who has to get in
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	unlock, err := lock(filepath.Join(dir, "alive"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &state{dir: dir, unlock: unlock}, nil
}

func (s *state) serve(ctx context.Context) (*server, error) {
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: s.dir, Settings: settings})
	if err != nil {
		return nil, err
	}
	dsn, err := url.Parse(pg.DSN())
	if err != nil {
		return nil, errors.Join(err, pg.Kill())
	}
	return &server{pg: pg, state: s, dsn: dsn}, nil
}

func (s *state) remove() error {
	s.unlock()
	return os.RemoveAll(s.dir)
}

// sweep removes what killed test binaries left behind.
func sweep() {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), statePrefix+"*", "alive")) // fails for a bad pattern only
	for _, alive := range left {
		if info, err := os.Stat(alive); err != nil || time.Since(info.ModTime()) < time.Minute {
			continue // may be somebody's who has made it and is about to lock it
		}
		f, err := os.Open(alive)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(filepath.Dir(alive)) // somebody else's; the next one tries again
		}
		_ = f.Close()
	}
}

// lock waits for the file's lock. It goes with the process.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
	}
}

// copyTree copies files with mode and owner.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			err = os.Mkdir(target, info.Mode().Perm())
		} else {
			err = copyFile(path, target, info.Mode().Perm())
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && err == nil && os.Geteuid() == 0 {
			err = os.Chown(target, int(owner.Uid), int(owner.Gid))
		}
		return err
	})
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
