package wiring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"go.uber.org/fx"
)

// Extractor is the worker as a child of this process.
type Extractor struct {
	Path    string // of the program; "" = beside this one
	Threads int    // 0 = all cores
	Device  string // "" = cpu
	Stderr  io.Writer
	Started func(pid int) // told of every start; nil = nobody
}

// Find returns the program's path, or says how to get it.
func (e Extractor) Find() (string, error) {
	if e.Path != "" {
		return e.Path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "extractor")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the worker's program is not beside this one (%s): build it with make build, or name it with --extractor", path)
	}
	return path, nil
}

// Command returns the worker's command line for this configuration.
func (e Extractor) Command(cfg Config, db Database, brokers Brokers) (*exec.Cmd, error) {
	path, err := e.Find()
	if err != nil {
		return nil, err
	}
	args := []string{"work", "--state", cfg.State, "--database", db.DSN, "--store", cfg.store(), "--log-level", cfg.LogLevel}
	for _, b := range brokers {
		args = append(args, "--kafka", b)
	}
	if e.Device != "" {
		args = append(args, "--device", e.Device)
	}
	if e.Threads > 0 {
		args = append(args, "--threads", strconv.Itoa(e.Threads))
	}
	cmd := exec.Command(path, args...) //nolint:noctx // it is asked to stop, and finishes its batch; see run
	cmd.Stderr = e.Stderr
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	return cmd, nil
}

// ChildExtractor keeps a worker running: one that ends is started again, and its work goes on.
func ChildExtractor(e Extractor) fx.Option {
	return fx.Invoke(func(lc fx.Lifecycle, shut fx.Shutdowner, cfg Config, db Database, brokers Brokers, log *slog.Logger) error {
		if _, err := e.Find(); err != nil {
			return err
		}
		background(lc, shut, log, "extractor", func(ctx context.Context) error {
			for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
				started := time.Now()
				err := e.run(ctx, cfg, db, brokers)
				if ctx.Err() != nil {
					return nil //nolint:nilerr // it was asked to stop
				}
				log.Warn("the worker ended and is started again", "error", err)
				if time.Since(started) > time.Minute {
					pause = time.Second
				}
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(pause):
				}
			}
		})
		return nil
	})
}

// run starts the worker and waits for it. When ctx ends it is asked to stop, and given time to finish its batch.
func (e Extractor) run(ctx context.Context, cfg Config, db Database, brokers Brokers) error {
	cmd, err := e.Command(cfg, db, brokers)
	if err != nil {
		return err
	}
	ended, pids := make(chan error, 1), make(chan int, 1)
	go func() {
		ended <- runBound(cmd, func(pid int) {
			pids <- pid
			if e.Started != nil {
				e.Started(pid)
			}
		})
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case pid := <-pids:
		_ = syscall.Kill(pid, syscall.SIGTERM)
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return nil // that is how it ends when asked to
			}
			return err
		case <-time.After(30 * time.Second):
			return errors.Join(syscall.Kill(pid, syscall.SIGKILL), <-ended)
		}
	case err := <-ended:
		return err
	}
}
