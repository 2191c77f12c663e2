package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
)

var (
	note = eventlogtest.Note
	to   = eventlogtest.To
)

// appendRaw calls append_events inside a transaction that stays open for a while, as no client of ours does.
func appendRaw(ctx context.Context, tx pgx.Tx, stream string, version int64, pause time.Duration) error {
	_, err := tx.Exec(ctx, `
select append_events(array[$1], array[$2]::bigint[], array[true], array[$3::text::uuid], array[$1], array[$2 + 1]::bigint[], array['TestNoted'], array[1],
                     array['{"text":"raw"}'], array['{}'], null), pg_sleep($4)`,
		stream, version, event.NewID(time.Now()).String(), pause.Seconds())
	return err
}

var errRolledBack = errors.New("rolled back on purpose")

// TestReadersMissNothingWhileManyWrite: 24 writers with random pauses, of which every tenth append is
// rolled back after it had its position; readers that follow the log must see every position once, in
// order, each event chained to the one before.
func TestReadersMissNothingWhileManyWrite(t *testing.T) {
	t.Parallel()
	const writers, appendsEach, readers = 24, 40, 4
	dsn := pgtest.New(t)
	log := openAt(t, dsn, func(c *postgres.Config) { c.Connections = writers + readers; c.PollTime = 20 * time.Millisecond })
	cfg, err := postgres.PoolConfig(dsn)
	require.NoError(t, err)
	cfg.MaxConns = writers
	raw, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer raw.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var written atomic.Int64
	var writing errgroup.Group
	for w := range writers {
		writing.Go(func() error {
			random := rand.New(rand.NewPCG(1, uint64(w)))
			own, version := fmt.Sprint("own-", w), int64(0)
			for range appendsEach {
				pause := time.Duration(random.IntN(2000)) * time.Microsecond
				switch dice := random.IntN(10); {
				case dice == 0: // it takes a position and gives it back
					err := pgx.BeginFunc(ctx, raw, func(tx pgx.Tx) error {
						if err := appendRaw(ctx, tx, own, version, pause); err != nil {
							return err
						}
						return errRolledBack
					})
					if !errors.Is(err, errRolledBack) {
						return err
					}
				case dice == 1: // it commits late
					if err := pgx.BeginFunc(ctx, raw, func(tx pgx.Tx) error { return appendRaw(ctx, tx, own, version, pause) }); err != nil {
						return err
					}
					version++
					written.Add(1)
				case dice < 4: // many want the same stream
					for {
						common, err := log.ReadStream(ctx, "common", 0)
						if err != nil {
							return err
						}
						_, err = log.Append(ctx, to("common", int64(len(common)), note("common")))
						if err == nil {
							written.Add(1)
							break
						}
						if !errors.As(err, new(*eventlog.ConflictError)) {
							return err
						}
					}
				default:
					n := 1 + random.IntN(3)
					r := to(own, version)
					for range n {
						r.Streams[0].Events = append(r.Streams[0].Events, note("own"))
					}
					if _, err := log.Append(ctx, r); err != nil {
						return err
					}
					version += int64(n)
					written.Add(int64(n))
				}
			}
			return nil
		})
	}

	var total atomic.Int64 // 0 while the writers are at work
	var reading errgroup.Group
	for range readers {
		reading.Go(func() error {
			var last event.Recorded
			for total.Load() == 0 || last.Position < total.Load() {
				page, err := log.ReadAll(ctx, last.Position, 50)
				if err != nil {
					return err
				}
				for _, r := range page {
					if r.Position != last.Position+1 || r.PrevHash != last.Hash || r.RecordedAt.Before(last.RecordedAt) {
						return fmt.Errorf("after event %d came event %d", last.Position, r.Position)
					}
					last = r
				}
			}
			return nil
		})
	}
	require.NoError(t, writing.Wait())
	total.Store(written.Load())
	require.NoError(t, reading.Wait())

	head, _, err := log.Head(ctx)
	require.NoError(t, err)
	require.Equal(t, written.Load(), head, "as many events as were acknowledged")
	report, err := log.Verify(ctx, nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
}

// TestOfAHundredStartsOneWins: one exclusive reservation, a hundred streams that want it.
func TestOfAHundredStartsOneWins(t *testing.T) {
	t.Parallel()
	const starts = 100
	log := open(t, func(c *postgres.Config) { c.Connections = 25 })
	results := make([]error, starts)
	begin := make(chan struct{})
	var all sync.WaitGroup
	for i := range starts {
		all.Go(func() {
			id := fmt.Sprint("ext_sae_1_", i)
			r := to("extraction-"+id, 0, note("requested",
				eventlog.Reserve{Key: "source:sae_1", Holder: id},
				eventlog.Reserve{Key: "model:m", Holder: id, Shared: true},
				eventlog.OpenWork{Work: eventlog.Work{Kind: "plan", Subject: id}}))
			<-begin
			_, results[i] = log.Append(t.Context(), r)
		})
	}
	close(begin)
	all.Wait()

	winner := ""
	for i, err := range results {
		if err == nil {
			require.Empty(t, winner, "only one may win")
			winner = fmt.Sprint("ext_sae_1_", i)
		}
	}
	require.NotEmpty(t, winner)
	for _, err := range results {
		if err != nil {
			var reserved *eventlog.ReservedError
			require.ErrorAs(t, err, &reserved)
			require.Equal(t, eventlog.ReservedError{Key: "source:sae_1", Holder: winner}, *reserved)
		}
	}
	head, _, err := log.Head(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 1, head)
	report, err := log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Equal(t, 2, report.Reservations)
}

// TestAStartAndTheDeletionOfItsSAEExcludeEachOther: the start reserves the SAE and needs its stream
// unchanged; the deletion is refused while the SAE is reserved. Either may come first, never both.
func TestAStartAndTheDeletionOfItsSAEExcludeEachOther(t *testing.T) {
	t.Parallel()
	log := open(t)
	var startWon, deleteWon int
	for round := range 30 {
		sae, ext := fmt.Sprint("sae-", round), fmt.Sprint("ext-", round)
		_, err := log.Append(t.Context(), to(sae, 0, note("ready")))
		require.NoError(t, err)
		start := to(ext, 0, note("requested", eventlog.Reserve{Key: sae, Holder: ext, Shared: true}))
		start.Unchanged = []eventlog.StreamVersion{{Stream: sae, Version: 1}}
		remove := to(sae, 1, note("deleted", eventlog.RefuseIfReserved{Key: sae}))

		var started, deleted error
		begin := make(chan struct{})
		var both sync.WaitGroup
		both.Go(func() { <-begin; _, started = log.Append(t.Context(), start) })
		both.Go(func() { <-begin; _, deleted = log.Append(t.Context(), remove) })
		close(begin)
		both.Wait()
		switch {
		case started == nil:
			startWon++
			var reserved *eventlog.ReservedError
			require.ErrorAs(t, deleted, &reserved)
			require.Equal(t, ext, reserved.Holder)
		default:
			deleteWon++
			require.NoError(t, deleted)
			var conflict *eventlog.ConflictError
			require.ErrorAs(t, started, &conflict)
			require.Equal(t, eventlog.ConflictError{Stream: sae, Expected: 1, Actual: 2}, *conflict)
		}
	}
	require.Equal(t, 30, startWon+deleteWon)
}

func TestManyStartsOfTheProgramBringTheSchemaUpToDateOnce(t *testing.T) {
	t.Parallel()
	dsn := pgtest.NewEmpty(t)
	var starting errgroup.Group
	for range 8 {
		starting.Go(func() error {
			log, err := postgres.Open(t.Context(), dsn, config(t))
			if err != nil {
				return err
			}
			defer log.Close()
			_, _, err = log.Head(t.Context())
			return err
		})
	}
	require.NoError(t, starting.Wait())
}

func TestAnAppendThatWaitsTooLongSaysThatTheLogIsNotAvailable(t *testing.T) {
	t.Parallel()
	dsn := pgtest.New(t)
	log := openAt(t, dsn+"&lock_timeout=50ms")
	blocker, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, blocker.Close(context.Background())) }()
	_, err = blocker.Exec(t.Context(), `select pg_advisory_lock(1179471180, 1)`)
	require.NoError(t, err)
	_, err = log.Append(t.Context(), to("a", 0, note("x")))
	require.ErrorIs(t, err, eventlog.ErrUnavailable)
	_, err = blocker.Exec(t.Context(), `select pg_advisory_unlock_all()`)
	require.NoError(t, err)
	_, err = log.Append(t.Context(), to("a", 0, note("x")))
	require.NoError(t, err)

	_, err = postgres.Open(t.Context(), "postgres://nobody@127.0.0.1:1/none?connect_timeout=2", config(t))
	require.ErrorIs(t, err, eventlog.ErrUnavailable)
}

func TestWhoWaitsIsWokenByAnAppend(t *testing.T) {
	t.Parallel()
	log := open(t, func(c *postgres.Config) { c.PollTime = time.Hour })
	wake, stop := log.Listen()
	defer stop()
	<-wake // the listener is connected
	heads := make(chan int64)
	go func() {
		head, _ := log.Wait(t.Context(), 0)
		heads <- head
	}()
	_, err := log.Append(t.Context(), to("a", 0, note("x")))
	require.NoError(t, err)
	require.EqualValues(t, 1, <-heads)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = log.Wait(cancelled, 1)
	require.ErrorIs(t, err, context.Canceled)
}

func TestAListenerWhoseConnectionBrokeComesBack(t *testing.T) {
	t.Parallel()
	log := open(t, func(c *postgres.Config) { c.PollTime = 10 * time.Millisecond })
	wake, stop := log.Listen()
	defer stop()
	<-wake
	_, err := log.Pool().Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query = 'listen featuremill_events'`)
	require.NoError(t, err)
	<-wake // connected again
	_, err = log.Append(t.Context(), to("a", 0, note("x")))
	require.NoError(t, err)
	<-wake
}

func TestALongPlanOpensItsWorkInOneAppend(t *testing.T) {
	t.Parallel()
	const segments = 10_000
	log := open(t)
	// Ten facts, because one may have 256 KiB.
	events := make([]event.Proposed, 10)
	for i := range events {
		effects := make([]eventlog.Effect, segments/len(events))
		for j := range effects {
			effects[j] = eventlog.OpenWork{Work: eventlog.Work{Kind: "segment", Subject: "a", Index: i*len(effects) + j}}
		}
		events[i] = note("planned", effects...)
	}
	_, err := log.Append(t.Context(), to("a", 0, events...))
	require.NoError(t, err)
	for i := range 3 {
		require.Equal(t, i, claim(t, log, "worker").Work.Index)
	}
	_, err = log.Append(t.Context(), to("a", 10, note("cancelled", eventlog.CloseAllWork{Subject: "a"})))
	require.NoError(t, err)
	list, err := log.ListWork(t.Context(), "a")
	require.NoError(t, err)
	require.Empty(t, list)
}

func TestALongAppendAnswersAfterItsCommit(t *testing.T) {
	t.Parallel()
	log := open(t)
	// What is checked only at the commit: the statement itself has answered by then.
	_, err := log.Pool().Exec(t.Context(), `
		create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused at the commit'; end $$;
		create constraint trigger refuse after insert on events deferrable initially deferred for each row execute function refuse()`)
	require.NoError(t, err)
	for _, rows := range []int{1, 5000} { // more than a few rows are opened in a transaction of several statements
		_, err = log.Append(t.Context(), to("a", 0, note("planned", eventlog.OpenWork{Work: segment, Until: rows})))
		require.ErrorContains(t, err, "refused at the commit", "%d rows", rows)
	}
	recorded, err := log.ReadStream(t.Context(), "a", 0)
	require.NoError(t, err)
	require.Empty(t, recorded)
	work, err := log.ListWork(t.Context(), "a")
	require.NoError(t, err)
	require.Empty(t, work)
}
