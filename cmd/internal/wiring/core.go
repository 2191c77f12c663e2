package wiring

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/fx"
	"go.uber.org/fx/fxevent"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/embedded"
	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
)

// Topic is where the log's copy goes.
const Topic = kafka.Topic

// Database is where PostgreSQL answers.
type Database struct{ DSN string }

// Brokers is where Kafka answers.
type Brokers []string

// Core provides the log, the commands, the store and the library, and starts the embedded PostgreSQL
// and broker where none is configured.
func Core(cfg Config) fx.Option {
	return fx.Options(
		fx.Supply(cfg),
		fx.WithLogger(func(l *slog.Logger) fxevent.Logger { return quiet{l} }),
		fx.StartTimeout(2*time.Minute),
		fx.StopTimeout(time.Minute),
		fx.Provide(newLogger, newDatabase, newBrokers, facts.Registry, newLog, newCommands, newStore, newLibrary,
			func(l *postgres.Log) eventlog.Log { return l },
			func(l *postgres.Log) eventlog.Leases { return l }),
	)
}

func newLogger(cfg Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func newDatabase(lc fx.Lifecycle, cfg Config, log *slog.Logger) (Database, error) {
	if cfg.Database != "" {
		return Database{cfg.Database}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: filepath.Join(cfg.State, "postgres"), Logger: log.With("part", "postgres")})
	if err != nil {
		return Database{}, err
	}
	lc.Append(fx.StopHook(server.Stop))
	// For commands that look at a running system.
	note := filepath.Join(cfg.State, addressFile)
	if err := os.WriteFile(note, []byte(server.DSN()), 0o600); err != nil {
		return Database{}, errors.Join(err, server.Stop(ctx))
	}
	lc.Append(fx.StopHook(func() error { return os.Remove(note) }))
	return Database{server.DSN()}, nil
}

const addressFile = "database-address"

// Attach returns the configuration with the embedded PostgreSQL that another process runs in the same
// state folder, if one does.
func Attach(ctx context.Context, cfg Config) Config {
	if cfg.Database != "" {
		return cfg
	}
	dsn, err := os.ReadFile(filepath.Join(cfg.State, addressFile))
	if err != nil {
		return cfg
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, string(dsn))
	if err != nil {
		return cfg // it ended without a word
	}
	_ = conn.Close(ctx)
	cfg.Database = string(dsn)
	return cfg
}

func newBrokers(lc fx.Lifecycle, cfg Config, log *slog.Logger) (Brokers, error) {
	if len(cfg.Kafka) > 0 {
		return cfg.Kafka, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	broker, err := embedded.StartBroker(ctx, embedded.BrokerConfig{Dir: filepath.Join(cfg.State, "kafka"), Logger: log.With("part", "broker")})
	if err != nil {
		return nil, err
	}
	lc.Append(fx.StopHook(broker.Stop))
	return broker.Addrs(), nil
}

func newLog(lc fx.Lifecycle, cfg Config, db Database, registry *event.Registry, log *slog.Logger) (*postgres.Log, error) {
	var l *postgres.Log
	err := patiently(cfg, log, func(ctx context.Context) (err error) {
		l, err = postgres.Open(ctx, db.DSN, postgres.Config{Registry: registry, Effects: facts.Effects, Refuse: facts.Storable, LeaseTime: cfg.LeaseTime, Logger: log.With("part", "log")})
		return err
	})
	if err != nil {
		return nil, err
	}
	lc.Append(fx.StopHook(l.Close))
	return l, nil
}

// patiently tries again while PostgreSQL is away, for cfg.Wait. A constructor has no context, so it hears
// the signals itself.
func patiently(cfg Config, log *slog.Logger, try func(context.Context) error) error {
	asked, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	end := time.Now().Add(cfg.Wait)
	for {
		ctx, cancel := context.WithTimeout(asked, time.Minute)
		err := try(ctx)
		cancel()
		if err == nil || asked.Err() != nil || !away(err) || time.Now().After(end) {
			return err
		}
		log.Warn("PostgreSQL does not answer yet", "error", err)
		select {
		case <-asked.Done():
			return asked.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// away reports whether an error is the server's state, or that of the connection to it.
func away(err error) bool {
	var said *pgconn.PgError
	return errors.Is(err, eventlog.ErrUnavailable) || !errors.As(err, &said) || strings.HasPrefix(said.Code, "57P")
}

func newCommands(l eventlog.Log, registry *event.Registry) *command.Handler {
	return command.NewHandler(l, registry, time.Now)
}

// OpenStore opens the configured store. It makes a new one only for a log that names no file yet: an empty folder is else
// what a disk leaves behind that is not mounted.
func OpenStore(ctx context.Context, cfg Config, log *postgres.Log) (blob.Store, error) {
	bare, err := blob.Bare(cfg.store())
	if err != nil {
		return nil, fmt.Errorf("the store: %w", err)
	}
	if bare {
		var used bool
		if err := log.Pool().QueryRow(ctx, `select exists (select from events where type in ('ModelReady', 'SAEReady', 'DatasetReady', 'SegmentRecorded'))`).Scan(&used); err != nil {
			return nil, fmt.Errorf("look whether the store may be empty: %w", err)
		}
		if used {
			return nil, fmt.Errorf("the store %s is empty, but the log names files that were stored: is its disk mounted? To begin with an empty store, put an empty file named .store there", cfg.store())
		}
	}
	return blob.Open(ctx, cfg.store(), filepath.Join(cfg.Cache(), "blobs"))
}

func newStore(lc fx.Lifecycle, cfg Config, log *postgres.Log) (blob.Store, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := OpenStore(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	lc.Append(fx.StopHook(s.Close))
	return s, nil
}

func newLibrary(store blob.Store, cfg Config) (*library.Library, error) {
	return library.New(store, cfg.Cache(), cfg.ImportRoots)
}

// quiet tells of failures only: what fx builds is nobody's news.
type quiet struct{ log *slog.Logger }

func (q quiet) LogEvent(e fxevent.Event) {
	switch e := e.(type) {
	case *fxevent.OnStartExecuted:
		q.failed("start "+e.CallerName, e.Err)
	case *fxevent.OnStopExecuted:
		q.failed("stop "+e.CallerName, e.Err)
	case *fxevent.Started:
		q.failed("start", e.Err)
	case *fxevent.Stopped:
		q.failed("stop", e.Err)
	}
}

func (q quiet) failed(what string, err error) {
	if err != nil {
		q.log.Error(what, "error", err)
	}
}
