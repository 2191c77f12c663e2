package projector

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// channel is where a projection says, after its commit, how far it is.
const channel = "featuremill_projected"

// Projected says that a projection's tables show everything up to a position.
type Projected struct {
	Projection string `json:"projection"`
	Version    int    `json:"version"`
	Position   int64  `json:"position"`
}

// notify tells everybody who listens; PostgreSQL delivers it after the commit.
func notify(ctx context.Context, tx pgx.Tx, p Projected) error {
	payload, err := json.Marshal(p)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `select pg_notify($1, $2)`, channel, string(payload))
	return err
}

// Positions tells, in any process, how far the active versions of the projections are. It is safe
// for concurrent use. Without Run it polls; with Run it hears of news at once.
type Positions struct {
	pool   *pgxpool.Pool
	logger *slog.Logger

	setUp     atomic.Bool // the projector's tables were seen
	mu        sync.Mutex
	listeners map[chan struct{}]struct{}
}

// NewPositions returns positions that are read from the projector's tables. A nil logger means slog.Default().
func NewPositions(pool *pgxpool.Pool, logger *slog.Logger) *Positions {
	if logger == nil {
		logger = slog.Default()
	}
	return &Positions{pool: pool, logger: logger, listeners: map[chan struct{}]struct{}{}}
}

// Position returns the position that the active version of a projection reflects; 0 when it was never set up.
func (p *Positions) Position(ctx context.Context, projection string) (int64, error) {
	if !p.setUp.Load() {
		var there bool
		if err := p.pool.QueryRow(ctx, `select to_regclass('projections.active_versions') is not null`).Scan(&there); err != nil || !there {
			return 0, err
		}
		p.setUp.Store(true)
	}
	var position int64
	err := p.pool.QueryRow(ctx, `select c.position from projections.active_versions a
		join projections.projection_checkpoints c on c.projection = a.projection and c.version = a.version and not c.rebuild
		where a.projection = $1`, projection).Scan(&position)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return position, err
}

// How often WaitFor looks: at once, then more and more rarely, and whenever Run hears of news.
const (
	firstLook  = 2 * time.Millisecond
	rarestLook = 50 * time.Millisecond
)

// WaitFor returns true as soon as the projection reflects the position, and false after the timeout.
// A command uses it with 2 s, so that whoever sent it finds what it did.
func (p *Positions) WaitFor(ctx context.Context, projection string, position int64, timeout time.Duration) (bool, error) {
	news, stop := p.Listen()
	defer stop()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for pause := firstLook; ; pause = min(2*pause, rarestLook) {
		at, err := p.Position(ctx, projection)
		if err != nil || at >= position {
			return err == nil, err
		}
		look := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			look.Stop()
			return false, ctx.Err()
		case <-deadline.C:
			look.Stop()
			return false, nil
		case <-news:
			look.Stop()
		case <-look.C:
		}
	}
}

// Listen returns a channel that receives a value soon after any projection has moved on. Values
// coalesce, and one may be missed: look at Position as well. It needs Run; stop must be called.
func (p *Positions) Listen() (news <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners[c] = struct{}{}
	return c, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.listeners, c)
	}
}

func (p *Positions) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.listeners {
		select {
		case c <- struct{}{}:
		default: // one waits there already
		}
	}
}

// Run listens for the projections' news until ctx ends, over one connection of its own; it returns nil.
func (p *Positions) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := p.listen(ctx); ctx.Err() == nil {
			p.logger.WarnContext(ctx, "the connection that listens to the projections broke; readers poll until it is back", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
	return nil
}

func (p *Positions) listen(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, p.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
		return err
	}
	for {
		p.wake() // the first time for what came before we listened
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
	}
}
