package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// maxSocketPath is what fits into a unix socket's address on Linux, the closing zero excluded.
	maxSocketPath = 107
	socketPrefix  = "featuremill-pg-" // of a socket folder under the temporary directory
	socketRecord  = "socket"          // a file that names that folder
	freshSuffix   = ".tmp"            // of a data folder that is being made
)

// makeStateDir makes the folder and returns its path without links: the folder is compared with what
// the kernel says of running servers.
func makeStateDir(path string) (string, error) {
	// Others may pass, not list: the server's user has to reach its data inside.
	if err := os.MkdirAll(path, 0o711); err != nil {
		return "", err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// reap ends what is left of a server on the data folder, with sig and in the end with SIGKILL. We hold the lock of the state
// folder, so nobody can be using such a server.
func reap(ctx context.Context, data string, sig syscall.Signal) error {
	if len(serversIn(data)) == 0 {
		return nil
	}
	deadline := time.Now().Add(reapTimeout)
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		pids := serversIn(data)
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			if sig == syscall.SIGKILL {
				return fmt.Errorf("a server of an earlier run (process %d) cannot be ended", pids[0])
			}
			sig, deadline = syscall.SIGKILL, time.Now().Add(reapTimeout)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, sig) // gone already is what we want
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// initialise makes the data folder with its database under another name and renames it, so that a
// half-made one is never taken for a whole one.
func initialise(ctx context.Context, dir string, who account, bin programs, unsafe bool) error {
	data, fresh := filepath.Join(dir, "data"), filepath.Join(dir, "data"+freshSuffix)
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		return sameMajor(data, bin)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := who.makeDir(fresh); err != nil {
		return err
	}
	args := []string{"-D", fresh, "-U", databaseName, "--auth=trust", "--encoding=UTF8", "--no-locale", "--data-checksums", "--no-instructions"}
	switch {
	case unsafe:
		args = append(args, "--no-sync")
	case bin.major >= 17:
		args = append(args, "--sync-method=syncfs")
	}
	if err := runAs(ctx, who, fresh, "", bin.initdb, args...); err != nil {
		return err
	}
	// Single-user mode needs no socket and no client; it ends with a checkpoint.
	single := []string{"--single", "-D", fresh, "-c", "log_checkpoints=off"}
	if unsafe {
		single = append(single, "-c", "fsync=off")
	}
	if err := runAs(ctx, who, fresh, "CREATE DATABASE "+databaseName+";\n", bin.postgres, append(single, "postgres")...); err != nil {
		return err
	}
	if err := os.Rename(fresh, data); err != nil {
		return err
	}
	return syncDir(dir)
}

func sameMajor(data string, bin programs) error {
	b, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if err != nil {
		return err
	}
	if have, want := strings.TrimSpace(string(b)), fmt.Sprint(bin.major); have != want {
		return fmt.Errorf("the data in %s was written by PostgreSQL %s, but %s is version %s: use the programs of version %s, or pg_upgrade", data, have, bin.postgres, want, have)
	}
	return nil
}

// runAs runs a program to its end as the server's user; it ends with us too.
func runAs(ctx context.Context, who account, dir, stdin, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = serverEnv()
	cmd.SysProcAttr = childAttributes(who)
	cmd.Stdin = strings.NewReader(stdin)
	runtime.LockOSThread() // see Postgres.start
	defer runtime.UnlockOSThread()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(program), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// clearStale removes what a killed run left. PostgreSQL itself refuses to start when the pid in its
// old file belongs to any living process, which in containers, with their few pids, it often does; we
// know better, by the lock and by reap.
func (p *Postgres) clearStale(dir string) error {
	record := filepath.Join(dir, socketRecord)
	if b, err := os.ReadFile(record); err == nil {
		old := string(b)
		if filepath.Dir(old) == filepath.Clean(os.TempDir()) && strings.HasPrefix(filepath.Base(old), socketPrefix) {
			_ = os.RemoveAll(old) // in the worst case an empty folder stays
		}
		if err := os.Remove(record); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(p.data, "postmaster.pid")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeSocketDir makes the folder of the socket, 0700: who can enter it can log in.
func (p *Postgres) makeSocketDir(dir string, who account) error {
	p.socket = filepath.Join(dir, "run")
	if len(p.socket)+len("/.s.PGSQL."+socketPort) <= maxSocketPath {
		return who.makeDir(p.socket)
	}
	short, err := os.MkdirTemp("", socketPrefix)
	if err != nil {
		return err
	}
	record := filepath.Join(dir, socketRecord)
	p.socket, p.temporaries = short, append(p.temporaries, short, record)
	if err := os.WriteFile(record, []byte(short), 0o600); err != nil {
		return err
	}
	return who.own(short)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
