package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	databaseName = "featuremill" // of the database and of its only user
	socketPort   = "5432"        // part of the socket's file name; no port is opened

	startTimeout = 2 * time.Minute // recovery of a large log after a crash included
	reapTimeout  = 10 * time.Second
	readyPoll    = 4 * time.Millisecond
)

// PostgresConfig says how to run a server. Only Dir is needed.
type PostgresConfig struct {
	Dir      string            // state folder; made if it is not there. Data, socket and lock lie in it
	Binaries string            // folder of postgres and initdb; empty: $FEATUREMILL_POSTGRES_BIN, the cache, what is installed
	Settings map[string]string // settings of postgresql.conf, stronger than our own. {"fsync": "off"} is for tests only
	Logger   *slog.Logger      // gets the server's log; nil: nowhere
}

// Postgres is a running server. It listens on a unix socket only.
type Postgres struct {
	data, socket string
	lock         *os.File
	log          *serverLog
	cmd          *exec.Cmd
	done         chan struct{}

	release     sync.Once
	stopping    sync.Once
	wasStopped  chan struct{}
	temporaries []string // to remove once the server is gone
}

// StartPostgres starts a server on cfg.Dir, makes the database at the first start, and returns when
// the server takes connections. Errors: *LockedError, *UnreachableError, ErrNoPostgres, or one that
// carries the server's last lines.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	if cfg.Dir == "" {
		return nil, errors.New("embedded PostgreSQL: no state folder given")
	}
	p, err := startPostgres(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("embedded PostgreSQL in %s: %w", cfg.Dir, err)
	}
	return p, nil
}

func startPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	who, err := serverAccount()
	if err != nil {
		return nil, err
	}
	bin, err := findPrograms(ctx, cfg.Binaries)
	if err != nil {
		return nil, err
	}
	dir, err := makeStateDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	for _, path := range []string{dir, filepath.Dir(bin.postgres)} {
		if err := who.canReach(path); err != nil {
			return nil, err
		}
	}
	p := &Postgres{data: filepath.Join(dir, "data"), log: newServerLog(cfg.Logger), done: make(chan struct{}), wasStopped: make(chan struct{})}
	if p.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err := p.start(ctx, dir, who, bin, cfg.Settings); err != nil {
		p.cleanUp()
		return nil, err
	}
	return p, nil
}

func (p *Postgres) start(ctx context.Context, dir string, who account, bin programs, settings map[string]string) error {
	for _, data := range []string{p.data, p.data + freshSuffix} {
		if err := reap(ctx, data, syscall.SIGQUIT); err != nil {
			return err
		}
	}
	if err := initialise(ctx, dir, who, bin, settings["fsync"] == "off"); err != nil {
		return err
	}
	if err := p.clearStale(dir); err != nil {
		return err
	}
	if err := p.makeSocketDir(dir, who); err != nil {
		return err
	}
	args := []string{"-D", p.data, "-p", socketPort}
	for _, s := range []map[string]string{p.ownSettings(), settings} {
		for _, name := range slices.Sorted(maps.Keys(s)) {
			args = append(args, "-c", name+"="+s[name])
		}
	}
	p.cmd = exec.CommandContext(context.WithoutCancel(ctx), bin.postgres, args...) // ctx is the start's only
	p.cmd.Dir = p.data
	p.cmd.Env = serverEnv()
	p.cmd.SysProcAttr = childAttributes(who)
	p.cmd.Stderr = p.log
	// Without it a backend that hangs on to stderr would keep Wait from returning.
	p.cmd.WaitDelay = reapTimeout

	started := make(chan error)
	go func() {
		// The kernel's "parent" for Pdeathsig is the thread, and Go ends idle threads as it likes:
		// this one has to live as long as the child. It is never unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // what became of the child is in its ProcessState
			p.log.flush()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", bin.postgres, err)
	}
	if err := p.waitReady(ctx); err != nil {
		_ = p.Kill()
		return err
	}
	return nil
}

func (p *Postgres) ownSettings() map[string]string {
	return map[string]string{
		"listen_addresses":          "", // the socket's folder is the access control
		"unix_socket_directories":   p.socket,
		"unix_socket_permissions":   "0700",
		"max_locks_per_transaction": "1024",   // a question over the features of all extractions locks a table and nine indexes of each
		"recovery_init_sync_method": "syncfs", // else a restart after a crash opens and syncs every file: seconds
		"timezone":                  "UTC",
		"log_timezone":              "UTC",
	}
}

// serverEnv keeps the child free of PG* variables and of a foreign locale.
func serverEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

// waitReady polls postmaster.pid, whose last line says when connections are taken: no client is
// needed, and it costs a few microseconds.
func (p *Postgres) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(filepath.Join(p.data, "postmaster.pid"))
		if lines := strings.Split(string(b), "\n"); err == nil && len(lines) >= 8 &&
			strings.TrimSpace(lines[0]) == fmt.Sprint(p.PID()) && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("the server ended (%v): %s", p.cmd.ProcessState, p.log.tail())
		case <-ctx.Done():
			return fmt.Errorf("the server was not ready: %w: %s", ctx.Err(), p.log.tail())
		}
	}
}

// DSN returns the address of the database as a URL that pgx and libpq read.
func (p *Postgres) DSN() string {
	query := url.Values{"host": {p.socket}, "port": {socketPort}, "sslmode": {"disable"}}
	return "postgres://" + databaseName + "@/" + databaseName + "?" + query.Encode()
}

// PID returns the process id of the server.
func (p *Postgres) PID() int { return p.cmd.Process.Pid }

// Done is closed when the server has ended, by Stop or by itself.
func (p *Postgres) Done() <-chan struct{} { return p.done }

// Wait blocks until the server has ended. It returns nil after Stop, else what became of the server
// with its last lines.
func (p *Postgres) Wait() error {
	<-p.done
	p.cleanUp()
	select {
	case <-p.wasStopped:
		return nil
	default:
		return fmt.Errorf("embedded PostgreSQL ended (%v): %s", p.cmd.ProcessState, p.log.tail())
	}
}

// Stop ends the server: sessions are cut off, running transactions rolled back, everything is
// written. When ctx ends first, the server is told to drop everything; the next start then recovers.
// Stopping twice, or what has ended by itself, is fine.
func (p *Postgres) Stop(ctx context.Context) error {
	p.stopping.Do(func() { close(p.wasStopped) })
	defer p.cleanUp()
	_ = p.cmd.Process.Signal(syscall.SIGINT) // fails only if it has ended
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(reapTimeout):
		_ = p.Kill()
	}
	return fmt.Errorf("embedded PostgreSQL was stopped the hard way: %w", ctx.Err())
}

// Kill ends the server and its children as a crash would (SIGKILL) and returns when they are gone.
func (p *Postgres) Kill() error {
	p.stopping.Do(func() { close(p.wasStopped) })
	defer p.cleanUp()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	err := reap(context.Background(), p.data, syscall.SIGKILL)
	<-p.done
	return err
}

// cleanUp gives the state folder back; it runs when the child is gone.
func (p *Postgres) cleanUp() {
	p.release.Do(func() {
		for _, path := range p.temporaries {
			_ = os.RemoveAll(path) // what stays is an empty folder, and the next start tries again
		}
		if p.lock != nil {
			_ = p.lock.Close()
		}
	})
}
