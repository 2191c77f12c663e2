package projector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// Config says how a Runner works. Pool, Log and Registry are required; zero values of the rest mean the defaults.
type Config struct {
	Pool     *pgxpool.Pool // the runner opens one connection of its own with the pool's settings
	Log      eventlog.Log
	Registry *event.Registry
	Logger   *slog.Logger // nil = slog.Default()

	Batch    int           // events in one transaction at most; 500
	Poll     time.Duration // how often the log is read while no feed brings anything; 250 ms
	Attempts int           // how often an event is tried until it is parked; 3
	Retry    time.Duration // pause after the first failure, doubled each time, 5 s at most; 100 ms
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Batch == 0 {
		c.Batch = 500
	}
	if c.Poll == 0 {
		c.Poll = 250 * time.Millisecond
	}
	if c.Attempts == 0 {
		c.Attempts = 3
	}
	if c.Retry == 0 {
		c.Retry = 100 * time.Millisecond
	}
	return c
}

const longestPause = 5 * time.Second

// Runner runs one version of one projection. Any number of processes may run it: one at a time is
// active, by an advisory lock on the very connection that writes, and the others wait. Its methods
// are safe for concurrent use.
type Runner struct {
	cfg   Config
	p     Projection
	slot  slot
	stats *counters
}

// slot names a set of tables: a version's own, or those of its rebuild.
type slot struct {
	projection string
	version    int
	rebuild    bool
	schema     string
}

func (s slot) lockKey() string {
	return fmt.Sprintf("projection %s v%d rebuild=%t", s.projection, s.version, s.rebuild)
}

// New checks the projection's names; it does not touch the database.
func New(cfg Config, p Projection) (*Runner, error) {
	if cfg.Pool == nil || cfg.Log == nil || cfg.Registry == nil {
		return nil, fmt.Errorf("projection %s: pool, log and registry are required", p.Name())
	}
	if err := check(p); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	cfg.Logger = cfg.Logger.With("projection", p.Name(), "version", p.Version())
	return &Runner{cfg: cfg, p: p, stats: &counters{}, slot: slot{projection: p.Name(), version: p.Version(), schema: Schema(p)}}, nil
}

// RunToEnd applies what the log holds and returns. It waits while another instance is active, and
// leaves the active version as it is.
func (r *Runner) RunToEnd(ctx context.Context) error {
	if err := r.Setup(ctx); err != nil {
		return err
	}
	return r.runToEnd(ctx)
}

func (r *Runner) runToEnd(ctx context.Context) error {
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	return s.catchUp(ctx)
}

// Run applies what the log holds, makes this version the active one if it is newer, and follows the
// feed until ctx ends; nil = no feed, it polls. It returns nil when ctx ends, and an error only for
// what trying again cannot mend: *RestoredLogError, *SetupChangedError, statements that fail.
func (r *Runner) Run(ctx context.Context, feed Feed) error {
	pause := r.cfg.Retry
	for ctx.Err() == nil {
		err := r.serve(ctx, feed, func() { pause = r.cfg.Retry })
		if permanent(err) {
			return err
		}
		r.interrupted(ctx, err, pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
	return nil
}

func permanent(err error) bool {
	var restored *RestoredLogError
	var setup *setupError
	return errors.As(err, &restored) || errors.As(err, &setup)
}

func (r *Runner) interrupted(ctx context.Context, err error, pause time.Duration) {
	switch {
	case ctx.Err() != nil: // we stop
	case errors.Is(err, errMoved):
		r.cfg.Logger.InfoContext(ctx, "the projection's checkpoint was moved by a rebuild; going on from there")
	default:
		r.stats.failed(err)
		r.cfg.Logger.WarnContext(ctx, "the projection was interrupted and starts again", "error", err, "pause", pause)
	}
}

// serve is one session: from taking the lock to losing it.
func (r *Runner) serve(ctx context.Context, feed Feed, healthy func()) error {
	if err := r.Setup(ctx); err != nil {
		if eventsFault(err) {
			return &setupError{err}
		}
		return err
	}
	s, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	for active := false; !active; {
		if err := s.catchUp(ctx); err != nil {
			return err
		}
		if active, err = r.takeOver(ctx); err != nil {
			return err
		}
	}
	healthy()
	return s.follow(ctx, feed)
}

// setupError marks an error of Setup that is not the database's.
type setupError struct{ err error }

func (e *setupError) Error() string { return e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }

// takeOver makes a newer version active; false: the active one has moved on meanwhile. An older
// program never takes over, and is content.
func (r *Runner) takeOver(ctx context.Context) (bool, error) {
	active, err := activeVersion(ctx, r.cfg.Pool, r.slot.projection)
	if err != nil || active >= r.slot.version {
		return err == nil, err
	}
	var behind *BehindError
	err = r.Switch(ctx)
	if errors.As(err, &behind) {
		return false, nil
	}
	return err == nil, err
}

// Stats says what a runner of this process has done.
type Stats struct {
	Active    bool   // it holds the lock
	Following bool   // a feed brings events
	Position  int64  // of the last applied event
	Applied   int64  // events
	Dropped   int64  // messages that were not newer
	Holes     int64  // times that messages were missing and PostgreSQL filled in
	Foreign   int64  // messages that are not of this log, or unreadable
	Parked    int64  // events
	Sessions  int64  // starts; above 1 it was interrupted
	LastError string // "" = none yet
}

type counters struct {
	active, following                                            atomic.Bool
	position, applied, dropped, holes, foreign, parked, sessions atomic.Int64
	lastError                                                    atomic.Pointer[string]
}

func (c *counters) failed(err error) {
	if err != nil {
		text := err.Error()
		c.lastError.Store(&text)
	}
}

// Stats returns the counters of this process.
func (r *Runner) Stats() Stats {
	c := r.stats
	s := Stats{
		Active: c.active.Load(), Following: c.following.Load(), Position: c.position.Load(), Applied: c.applied.Load(), Dropped: c.dropped.Load(),
		Holes: c.holes.Load(), Foreign: c.foreign.Load(), Parked: c.parked.Load(), Sessions: c.sessions.Load(),
	}
	if text := c.lastError.Load(); text != nil {
		s.LastError = *text
	}
	return s
}
