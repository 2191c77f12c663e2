package projector_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/projections/projector"
)

func (b *bundle) parked(r *projector.Runner) []projector.Parked {
	b.t.Helper()
	p, err := r.Parked(b.t.Context())
	require.NoError(b.t, err)
	return p
}

func TestAnEventThatCannotBeAppliedIsParkedWithTheLaterOnesOfItsStream(t *testing.T) {
	t.Parallel()
	for name, batch := range map[string]int{"in one transaction with others": 100, "in transactions of one event": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.stars.refuseWith(badNote("bad"))
			for _, n := range []string{"a", "bad", "c"} {
				b.note(0, n)
				b.note(1, n+"!")
			}
			r := b.runner(func(c *projector.Config) { c.Batch = batch })
			require.NoError(t, r.RunToEnd(t.Context()))
			require.Equal(t, map[string][]string{latent(0): {"a"}, latent(1): {"a!", "bad!", "c!"}}, b.notes())
			require.EqualValues(t, 6, b.position(), "the others went on")

			parked := b.parked(r)
			require.Len(t, parked, 2)
			require.Equal(t, "failed", parked[0].Reason)
			require.Contains(t, parked[0].Error, errBad.Error())
			require.Equal(t, 3, parked[0].Attempts)
			require.Equal(t, "waiting", parked[1].Reason)

			b.note(0, "d")
			require.NoError(t, b.runner().RunToEnd(t.Context()))
			require.Len(t, b.parked(r), 3, "a new event waits behind the others")

			done, err := r.Retry(t.Context(), latent(0))
			require.NoError(t, err)
			require.ErrorIs(t, done.Err, errBad)
			require.Equal(t, 3, done.Left)
			require.Equal(t, 4, b.parked(r)[0].Attempts)

			b.stars.refuseWith(badNote("d"))
			done, err = r.Retry(t.Context(), latent(0))
			require.NoError(t, err)
			require.Equal(t, 2, done.Applied)
			require.Equal(t, 1, done.Left, "what was mended is applied, and the rest waits on")
			require.Equal(t, []string{"a", "bad", "c"}, b.notes()[latent(0)])

			b.stars.refuseWith(nil)
			done, err = r.Retry(t.Context(), latent(0))
			require.NoError(t, err)
			require.Equal(t, projector.Retried{Applied: 1}, done)
			require.Empty(t, b.parked(r))
			b.note(0, "e")
			require.NoError(t, b.runner().RunToEnd(t.Context()))
			require.Equal(t, []string{"a", "bad", "c", "d", "e"}, b.notes()[latent(0)])

			done, err = r.Retry(t.Context(), latent(0))
			require.NoError(t, err)
			require.Zero(t, done, "nothing is left to retry")
		})
	}
}

func TestARetryAndNewEventsOfTheStreamDoNotOvertakeEachOther(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.stars.refuseWith(badNote("0"))
	b.note(0, "0")
	r := b.runner(func(c *projector.Config) { c.Poll = time.Millisecond })
	b.running(r, nil)
	b.waitFor(1)
	b.stars.refuseWith(nil)
	retried := make(chan error, 1)
	go func() {
		for range 20 {
			if _, err := r.Retry(t.Context(), latent(0)); err != nil {
				retried <- err
				return
			}
		}
		retried <- nil
	}()
	want := []string{"0"}
	var last event.Recorded
	for i := range 40 {
		n := string(rune('A' + i))
		want = append(want, n)
		last = b.note(0, n)
	}
	require.NoError(t, <-retried)
	b.waitFor(last.Position)
	require.Empty(t, b.parked(r))
	require.Equal(t, want, b.notes()[latent(0)])
}

func TestASkippedEventIsLeftOutNowAndInARebuild(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.stars.refuseWith(badNote("bad"))
	b.note(0, "a")
	bad := b.note(0, "bad")
	b.note(0, "c")
	r := b.runner()
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Len(t, b.parked(r), 2)

	appendTo(t, b.log, facts.OperationsStream, facts.EventSkipped{Projection: "others", EventID: bad.ID})
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Len(t, b.parked(r), 2, "somebody else's skip does not count")

	appendTo(t, b.log, facts.OperationsStream, facts.EventSkipped{Projection: "stars", EventID: bad.ID, Reason: "written by a bug", Actor: "test"})
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Empty(t, b.parked(r))
	require.Equal(t, []string{"a", "c"}, b.notes()[latent(0)])

	b.stars.refuseWith(nil) // the bug is gone; the event stays left out all the same
	require.NoError(t, r.Rebuild(t.Context()))
	require.Equal(t, []string{"a", "c"}, b.notes()[latent(0)])
}

func TestAPanicOfAHandlerParksTheEvent(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.stars.refuseWith(func(rec event.Recorded, _ event.Data) error {
		var none []int
		_ = none[rec.Position]
		return nil
	})
	b.note(0, "a")
	r := b.runner()
	require.NoError(t, r.RunToEnd(t.Context()))
	parked := b.parked(r)
	require.Len(t, parked, 1)
	require.Contains(t, parked[0].Error, "panicked")
	require.Equal(t, r.Stats().Parked, int64(1))
	require.Contains(t, r.Stats().LastError, "panicked")
}

func TestATypeOfANewerProgramWaitsForThatProgram(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	r := b.runner(func(c *projector.Config) { c.Registry = event.NewRegistry() }) // knows nothing
	require.NoError(t, r.RunToEnd(t.Context()))
	parked := b.parked(r)
	require.Len(t, parked, 1)
	require.Equal(t, "unknown_type", parked[0].Reason)

	b.note(0, "b")
	require.NoError(t, b.runner().RunToEnd(t.Context()), "the newer program drains it by itself")
	require.Empty(t, b.parked(r))
	require.Equal(t, []string{"a", "b"}, b.notes()[latent(0)])
}

func TestAnArchivedEventIsLeftOut(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	gone := b.note(0, "b")
	b.note(0, "c")
	_, err := b.log.Archive(t.Context(), []event.ID{gone.ID}, "asked for", event.Metadata{})
	require.NoError(t, err)
	r := b.runner()
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Empty(t, b.parked(r))
	require.Equal(t, []string{"a", "c"}, b.notes()[latent(0)])
}

func TestAConstraintThatIsBrokenParksAndAMissingTableDoesNot(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.stars.setup = `create table star_notes (stream text primary key, notes text[] not null check (notes <> '{bad}'))`
	b.note(0, "bad")
	b.note(1, "good")
	r := b.runner()
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Len(t, b.parked(r), 1)
	require.Equal(t, map[string][]string{latent(1): {"good"}}, b.notes())

	b.note(2, "later")
	_, err := b.pool.Exec(t.Context(), `drop schema stars_v1 cascade`)
	require.NoError(t, err)
	require.ErrorContains(t, r.RunToEnd(t.Context()), "star_notes")
	require.Len(t, b.parked(r), 1)
	var count int
	require.NoError(t, pgx.BeginFunc(t.Context(), b.pool, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), `select count(*) from projections.parked_streams`).Scan(&count)
	}))
	require.Equal(t, 1, count)
}
