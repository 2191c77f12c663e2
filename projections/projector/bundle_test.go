package projector_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/projector"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m), kafkatest.Leaks()) }

// stars is a projection small enough to see through: the notes of each stream in the order they came.
type stars struct {
	version int
	setup   string
	mu      sync.Mutex
	refuse  func(rec event.Recorded, d event.Data) error // nil = nothing
}

func newStars() *stars {
	return &stars{version: 1, setup: `create table star_notes (stream text primary key, notes text[] not null)`}
}

func (p *stars) Name() string    { return "stars" }
func (p *stars) Version() int    { return p.version }
func (p *stars) Setup() string   { return p.setup }
func (p *stars) Views() []string { return []string{"star_notes"} }

func (p *stars) refuseWith(f func(event.Recorded, event.Data) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = f
}

func (p *stars) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, d event.Data) error {
	p.mu.Lock()
	refuse := p.refuse
	p.mu.Unlock()
	if refuse != nil {
		if err := refuse(rec, d); err != nil {
			return err
		}
	}
	note, ok := d.(feature.Noted)
	if !ok {
		return nil
	}
	_, err := tx.Exec(ctx, `insert into star_notes as s (stream, notes) values ($1, array[$2])
		on conflict (stream) do update set notes = s.notes || excluded.notes`, rec.Stream, note.Notes)
	return err
}

type bundle struct {
	t        *testing.T
	log      *postgres.Log
	pool     *pgxpool.Pool
	registry *event.Registry
	stars    *stars
}

func newBundle(t *testing.T) *bundle {
	t.Helper()
	registry, err := facts.Registry()
	require.NoError(t, err)
	log := openLog(t, registry)
	return &bundle{t: t, log: log, pool: log.Pool(), registry: registry, stars: newStars()}
}

func openLog(t *testing.T, registry *event.Registry) *postgres.Log {
	t.Helper()
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry, Effects: facts.Effects})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	return log
}

func (b *bundle) config() projector.Config {
	return projector.Config{Pool: b.pool, Log: b.log, Registry: b.registry, Logger: slog.New(slog.DiscardHandler), Retry: time.Millisecond}
}

func (b *bundle) runner(change ...func(*projector.Config)) *projector.Runner {
	b.t.Helper()
	return b.runnerOf(b.stars, change...)
}

func (b *bundle) runnerOf(p projector.Projection, change ...func(*projector.Config)) *projector.Runner {
	b.t.Helper()
	cfg := b.config()
	for _, c := range change {
		c(&cfg)
	}
	r, err := projector.New(cfg, p)
	require.NoError(b.t, err)
	return r
}

// note appends one note to the stream of a latent.
func (b *bundle) note(latent int, text string) event.Recorded {
	b.t.Helper()
	return note(b.t, b.log, latent, text)
}

func note(t *testing.T, log eventlog.Log, latent int, text string) event.Recorded {
	t.Helper()
	src, err := source.FromSAE("sae_1")
	require.NoError(t, err)
	return appendTo(t, log, feature.Stream(src, latent), feature.Noted{Latent: feature.Latent{Source: src, Index: latent}, Notes: text})
}

func appendTo(t *testing.T, log eventlog.Log, stream string, d event.Data) event.Recorded {
	t.Helper()
	before, err := log.ReadStream(t.Context(), stream, 0)
	require.NoError(t, err)
	done, err := log.Append(t.Context(), eventlog.Request{Streams: []eventlog.StreamAppend{{
		Stream: stream, Expected: int64(len(before)), Events: []event.Proposed{{ID: event.NewID(time.Now()), Data: d}},
	}}})
	require.NoError(t, err)
	return done.Events[0]
}

func latent(i int) string { return fmt.Sprintf("latent-sae_sae_1-%d", i) }

// notes reads the stable view.
func (b *bundle) notes() map[string][]string {
	b.t.Helper()
	out, err := b.readNotes("public.star_notes")
	require.NoError(b.t, err)
	return out
}

func (b *bundle) readNotes(table string) (map[string][]string, error) {
	rows, err := b.pool.Query(b.t.Context(), `select stream, notes from `+table)
	if err != nil {
		return nil, err
	}
	type row struct {
		Stream string
		Notes  []string
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	out := map[string][]string{}
	for _, r := range all {
		out[r.Stream] = r.Notes
	}
	return out, err
}

func (b *bundle) position() int64 {
	b.t.Helper()
	p, err := projector.NewPositions(b.pool, nil).Position(b.t.Context(), "stars")
	require.NoError(b.t, err)
	return p
}

// running runs a runner in the background until the test ends or stop is called; stop returns Run's error.
func (b *bundle) running(r *projector.Runner, feed projector.Feed) (stop func() error) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, feed) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	b.t.Cleanup(func() { _ = stop() })
	return stop
}

func (b *bundle) waitFor(position int64) {
	b.t.Helper()
	ok, err := projector.NewPositions(b.pool, nil).WaitFor(b.t.Context(), "stars", position, 20*time.Second)
	require.NoError(b.t, err)
	require.True(b.t, ok, "the projection did not reach position %d", position)
}

var errBad = errors.New("this note cannot be read")

// badNote refuses the notes with a text.
func badNote(text string) func(event.Recorded, event.Data) error {
	return func(_ event.Recorded, d event.Data) error {
		if n, ok := d.(feature.Noted); ok && n.Notes == text {
			return errBad
		}
		return nil
	}
}
