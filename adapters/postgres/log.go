package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// Config says how a Log works. Registry is required; zero values of the rest mean the defaults.
type Config struct {
	Registry *event.Registry                           // types and schema versions of what is appended
	Effects  eventlog.Effects                          // what events do to the side tables; nil = nothing
	Refuse   func(eventType string, data []byte) error // says why a fact's JSON must not be appended; nil = all may
	Logger   *slog.Logger                              // nil = slog.Default()
	Now      func() time.Time                          // for event ids that the log makes itself; nil = time.Now

	Connections int32         // of the pool; 10
	LeaseTime   time.Duration // how long a lease lives without a heartbeat; 30 s
	StallTime   time.Duration // a batch counter may stand still for this long, or ten batches; 2 min
	MaxAttempts int           // losses of one lease until the work is given up; 3
	PollTime    time.Duration // how often Wait looks without being woken; 1 s
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Connections == 0 {
		c.Connections = 10
	}
	if c.LeaseTime == 0 {
		c.LeaseTime = 30 * time.Second
	}
	if c.StallTime == 0 {
		c.StallTime = 2 * time.Minute
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = 3
	}
	if c.PollTime == 0 {
		c.PollTime = time.Second
	}
	return c
}

// Log is the event log. It is safe for concurrent use.
type Log struct {
	cfg  Config
	pool *pgxpool.Pool

	absent      absences
	wakes       wakes
	startListen func() // once, at the first Listen: a short command needs no listener
	stop        context.CancelFunc
	done        sync.WaitGroup
}

var (
	_ eventlog.Log    = (*Log)(nil)
	_ eventlog.Leases = (*Log)(nil)
)

// Open connects, brings the schema up to date and returns the log. Several processes may open the
// same database at once. Close must be called.
func Open(ctx context.Context, dsn string, cfg Config) (*Log, error) {
	poolConfig, err := PoolConfig(dsn)
	if err != nil {
		return nil, err
	}
	return open(ctx, poolConfig, cfg)
}

func open(ctx context.Context, poolConfig *pgxpool.Config, cfg Config) (*Log, error) {
	cfg = cfg.withDefaults()
	if cfg.Registry == nil {
		return nil, fmt.Errorf("open the event log: no registry of event types is configured")
	}
	if err := migrate(ctx, poolConfig.ConnConfig); err != nil {
		return nil, err
	}
	poolConfig.MaxConns = cfg.Connections
	pool, err := pgxpool.NewWithConfig(ctx, poolConfig)
	if err != nil {
		return nil, fmt.Errorf("open the event log: %w", unavailable(err))
	}
	listening, stop := context.WithCancel(context.Background())
	l := &Log{cfg: cfg, pool: pool, stop: stop}
	l.startListen = sync.OnceFunc(func() { l.done.Go(func() { l.listen(listening) }) })
	return l, nil
}

// PoolConfig parses a DSN and adds the limits that every connection of ours has: a client that hangs,
// or whose machine is gone, must not keep locks. What the DSN sets itself is left alone.
func PoolConfig(dsn string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("the PostgreSQL address cannot be read: %w", err)
	}
	for name, value := range map[string]string{
		"application_name":                    "featuremill",
		"statement_timeout":                   "5s",
		"idle_in_transaction_session_timeout": "5s",
		"lock_timeout":                        "3s",
		"tcp_keepalives_idle":                 "10",
		"tcp_keepalives_interval":             "10",
		"tcp_keepalives_count":                "3",
		"timezone":                            "UTC",
	} {
		if _, set := cfg.ConnConfig.RuntimeParams[name]; !set {
			cfg.ConnConfig.RuntimeParams[name] = value
		}
	}
	cfg.ConnConfig.DialFunc = (&net.Dialer{KeepAlive: 10 * time.Second, Timeout: 5 * time.Second}).DialContext
	return cfg, nil
}

// Pool returns the log's connections, for what is kept beside the log in the same database.
func (l *Log) Pool() *pgxpool.Pool { return l.pool }

// Alone runs do unless another process is at it, and reports whether it did. Whoever dies is not at it any more.
func (l *Log) Alone(ctx context.Context, what string, do func(context.Context) error) (mine bool, err error) {
	conn, err := pgx.ConnectConfig(ctx, l.pool.Config().ConnConfig)
	if err != nil {
		return false, unavailable(err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended($1, 11))`, what).Scan(&mine); err != nil || !mine {
		return false, unavailable(err)
	}
	return true, do(ctx)
}

// ForgetKeys removes idempotency keys that were used before a time, and returns how many; dry, it only counts them.
func (l *Log) ForgetKeys(ctx context.Context, before time.Time, dry bool) (n int64, err error) {
	if dry {
		err = l.pool.QueryRow(ctx, `select count(*) from idempotency_keys where recorded_at < $1`, before).Scan(&n)
		return n, unavailable(err)
	}
	for {
		tag, err := l.pool.Exec(ctx, `delete from idempotency_keys where key in (select key from idempotency_keys where recorded_at < $1 limit 10000)`, before)
		n += tag.RowsAffected()
		if err != nil || tag.RowsAffected() == 0 {
			return n, unavailable(err)
		}
	}
}

// Close stops the listener and closes all connections.
func (l *Log) Close() {
	l.stop()
	l.done.Wait()
	l.pool.Close()
}
