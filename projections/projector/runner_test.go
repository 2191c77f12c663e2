package projector_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/projections/projector"
)

func TestRunToEndAppliesEveryEventOnceAndInOrder(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for i := range 7 {
		b.note(i%2, string(rune('a'+i)))
	}
	small := func(c *projector.Config) { c.Batch = 3 }
	require.NoError(t, b.runner(small).RunToEnd(t.Context()))
	want := map[string][]string{latent(0): {"a", "c", "e", "g"}, latent(1): {"b", "d", "f"}}
	require.Equal(t, want, b.notes())
	require.EqualValues(t, 7, b.position())

	require.NoError(t, b.runner().RunToEnd(t.Context()), "a second run has nothing to do")
	require.Equal(t, want, b.notes())

	b.note(1, "h")
	require.NoError(t, b.runner().RunToEnd(t.Context()))
	require.Equal(t, []string{"b", "d", "f", "h"}, b.notes()[latent(1)])
}

func TestSetupMayBeCalledByManyProcessesAtOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	var group errgroup.Group
	for range 8 {
		r := b.runner()
		group.Go(func() error { return r.RunToEnd(t.Context()) })
	}
	require.NoError(t, group.Wait())
	require.Equal(t, map[string][]string{latent(0): {"a"}}, b.notes())
}

func TestASecondRunnerWaitsUntilTheFirstIsGone(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	first, second := b.runner(), b.runner()
	stopFirst := b.running(first, nil)
	b.waitFor(1)
	stopSecond := b.running(second, nil)
	rec := b.note(0, "b")
	b.waitFor(rec.Position)
	require.True(t, first.Stats().Active)
	require.False(t, second.Stats().Active)
	require.Zero(t, second.Stats().Applied)

	require.NoError(t, stopFirst())
	rec = b.note(0, "c")
	b.waitFor(rec.Position)
	require.True(t, second.Stats().Active)
	require.NoError(t, stopSecond())
	require.Equal(t, []string{"a", "b", "c"}, b.notes()[latent(0)])
}

func TestALogThatIsNotTheOneOfTheTablesStopsTheRunner(t *testing.T) {
	t.Parallel()
	for name, events := range map[string]int{"a log with another event there": 5, "a log that is shorter": 1, "an empty log": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			for range 3 {
				b.note(0, "ours")
			}
			require.NoError(t, b.runner().RunToEnd(t.Context()))
			other := openLog(t, b.registry)
			for range events {
				note(t, other, 0, "theirs")
			}
			r := b.runner(func(c *projector.Config) { c.Log = other })

			var restored *projector.RestoredLogError
			require.ErrorAs(t, r.Run(t.Context(), nil), &restored)
			require.EqualValues(t, 3, restored.Position)
			require.Equal(t, events < 3, restored.Found == [32]byte{})
			require.ErrorContains(t, restored, "projections rebuild stars")
			require.Equal(t, []string{"ours", "ours", "ours"}, b.notes()[latent(0)])

			require.NoError(t, r.Rebuild(t.Context()), "a rebuild mends it")
			require.Len(t, b.notes()[latent(0)], events)
			require.NoError(t, r.RunToEnd(t.Context()))
		})
	}
}

func TestALostConnectionRepeatsNothingAndParksNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	var kills atomic.Int32
	p := &killer{stars: b.stars, kill: func() bool { return kills.Add(1) <= 3 }}
	r := b.runnerOf(p)
	b.running(r, nil)
	for i := range 10 {
		b.note(i%3, "x")
	}
	b.waitFor(10)
	total := 0
	for _, n := range b.notes() {
		total += len(n)
	}
	require.Equal(t, 10, total)
	parked, err := r.Parked(t.Context())
	require.NoError(t, err)
	require.Empty(t, parked)
	require.Greater(t, r.Stats().Sessions, int64(1))
}

// killer ends its own PostgreSQL session in the middle of a transaction.
type killer struct {
	*stars
	kill func() bool
}

func (k *killer) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, d event.Data) error {
	if err := k.stars.Apply(ctx, tx, rec, d); err != nil {
		return err
	}
	if k.kill() {
		_, err := tx.Exec(ctx, `select pg_terminate_backend(pg_backend_pid())`)
		return err
	}
	return nil
}

func TestSetupThatChangedWithoutANewVersionIsRefused(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	require.NoError(t, b.runner().RunToEnd(t.Context()))
	b.stars.setup = `create table star_notes (stream text primary key, notes text[] not null, more int)`
	r := b.runner()
	var changed *projector.SetupChangedError
	require.ErrorAs(t, r.RunToEnd(t.Context()), &changed)
	require.ErrorAs(t, r.Run(t.Context(), nil), &changed)
	require.NoError(t, r.Rebuild(t.Context()))
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Equal(t, map[string][]string{latent(0): {"a"}}, b.notes())
}

func TestSetupThatFailsStopsTheRunner(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.stars.setup = `create table star_notes (oops)`
	err := b.runner().Run(t.Context(), nil)
	require.ErrorContains(t, err, "make the tables of stars_v1")
}

func TestANewerVersionTakesOverWhenItHasCaughtUp(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	b.note(0, "b")
	require.NoError(t, b.runner().RunToEnd(t.Context()))

	next := newStars()
	next.version = 2
	next.setup = `create table star_notes (version int not null default 2, stream text primary key, notes text[] not null)` // other columns: the view is made anew
	green := b.runnerOf(next)
	require.NoError(t, green.Setup(t.Context()))
	var behind *projector.BehindError
	require.ErrorAs(t, green.Switch(t.Context()), &behind)
	require.Equal(t, map[string][]string{latent(0): {"a", "b"}}, b.notes(), "the old version serves on")

	stop := b.running(green, nil)
	require.Eventually(t, func() bool { return b.activeVersion() == 2 }, 20*time.Second, time.Millisecond)
	var version int
	require.NoError(t, b.pool.QueryRow(t.Context(), `select version from public.star_notes`).Scan(&version))
	require.Equal(t, 2, version)
	require.NoError(t, stop())

	rec := b.note(0, "c")
	stop = b.running(b.runner(), nil) // an old program that still runs
	require.Eventually(t, func() bool {
		notes, err := b.readNotes("stars_v1.star_notes")
		return err == nil && len(notes[latent(0)]) == int(rec.Position)
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, stop())
	require.Equal(t, 2, b.activeVersion(), "an old program never takes over")
}

func TestANewerVersionTakesOverWhileEventsKeepComing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	fast := func(c *projector.Config) { c.Poll = time.Millisecond }
	b.note(0, "x")
	stop := b.running(b.runner(fast), nil)
	b.waitFor(1)
	next := newStars()
	next.version = 2
	b.running(b.runnerOf(next, fast), nil)
	n := 1
	for deadline := time.Now().Add(20 * time.Second); b.activeVersion() != 2; n++ {
		require.True(t, time.Now().Before(deadline))
		b.note(0, "x")
	}
	require.NoError(t, stop())
	b.waitFor(int64(n))
	require.Len(t, b.notes()[latent(0)], n)
}

func (b *bundle) activeVersion() int {
	b.t.Helper()
	var v int
	require.NoError(b.t, b.pool.QueryRow(b.t.Context(), `select version from projections.active_versions where projection = 'stars'`).Scan(&v))
	return v
}

func TestRebuildRunsBesideALiveRunner(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for i := range 50 {
		b.note(i%5, "x")
	}
	live := b.runner(func(c *projector.Config) { c.Poll = time.Millisecond })
	b.running(live, nil)
	b.waitFor(50)
	// Something that no event says: it is gone after the rebuild.
	_, err := b.pool.Exec(t.Context(), `insert into stars_v1.star_notes values ('damage', '{}')`)
	require.NoError(t, err)

	var group errgroup.Group
	group.Go(func() error { return b.runner(func(c *projector.Config) { c.Batch = 7 }).Rebuild(t.Context()) })
	for i := range 50 {
		b.note(i%5, "y")
	}
	require.NoError(t, group.Wait())
	rec := b.note(0, "z")
	b.waitFor(rec.Position)
	notes := b.notes()
	require.Len(t, notes, 5)
	total := 0
	for _, n := range notes {
		total += len(n)
		require.True(t, strings.HasPrefix(strings.Join(n, ""), strings.Repeat("x", 10)+strings.Repeat("y", 10)))
	}
	require.Equal(t, 101, total)
}

func TestNamesThatCannotBeIdentifiersAreRefused(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for _, name := range []string{"", "Stars", "stars; drop", "1stars", strings.Repeat("s", 41)} {
		_, err := projector.New(b.config(), named{b.stars, name})
		require.Error(t, err, name)
	}
	_, err := projector.New(projector.Config{}, b.stars)
	require.Error(t, err)
}

type named struct {
	*stars
	name string
}

func (n named) Name() string { return n.name }

func TestCancelledContextsEndEverything(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, b.runner().Run(ctx, nil))
	require.True(t, errors.Is(b.runner().RunToEnd(ctx), context.Canceled))
}

func TestWaitForAnswersAsSoonAsTheTablesShowAPosition(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	positions := projector.NewPositions(b.pool, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	group.Go(func() error { return positions.Run(ctx) })

	ok, err := positions.WaitFor(t.Context(), "stars", 1, time.Millisecond)
	require.NoError(t, err)
	require.False(t, ok, "nothing was ever set up")

	b.running(b.runner(func(c *projector.Config) { c.Poll = time.Millisecond }), nil)
	news, stop := positions.Listen()
	defer stop()
	rec := b.note(0, "a")
	ok, err = positions.WaitFor(t.Context(), "stars", rec.Position, 20*time.Second)
	require.NoError(t, err)
	require.True(t, ok)
	<-news
	ok, err = positions.WaitFor(t.Context(), "stars", rec.Position+1, 10*time.Millisecond)
	require.NoError(t, err)
	require.False(t, ok)
	cancel()
	require.NoError(t, group.Wait())
}

func TestVerifyNamesEveryRowThatIsNotTheFoldOfTheLog(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	b.note(1, "b")
	b.note(2, "c")
	r := b.runner(func(c *projector.Config) { c.Poll = time.Millisecond })
	b.running(r, nil)
	b.waitFor(3)
	different, err := r.Verify(t.Context())
	require.NoError(t, err)
	require.Empty(t, different)

	for _, damage := range []string{
		`update star_notes set notes = '{forged}' where stream = '` + latent(0) + `'`, `delete from star_notes where stream = '` + latent(1) + `'`, `insert into star_notes values ('invented', '{}')`,
	} {
		_, err := b.pool.Exec(t.Context(), strings.Replace(damage, "star_notes", "stars_v1.star_notes", 1))
		require.NoError(t, err)
	}
	different, err = r.Verify(t.Context())
	require.NoError(t, err)
	require.Equal(t, []projector.Difference{
		{Table: "star_notes", Side: "tables", Row: `{"notes": ["forged"], "stream": "` + latent(0) + `"}`},
		{Table: "star_notes", Side: "tables", Row: `{"notes": [], "stream": "invented"}`},
		{Table: "star_notes", Side: "log", Row: `{"notes": ["a"], "stream": "` + latent(0) + `"}`},
		{Table: "star_notes", Side: "log", Row: `{"notes": ["b"], "stream": "` + latent(1) + `"}`},
	}, different)

	require.NoError(t, r.Rebuild(t.Context()), "which mends it")
	different, err = r.Verify(t.Context(), "star_notes")
	require.NoError(t, err)
	require.Empty(t, different)
	var left int
	require.NoError(t, b.pool.QueryRow(t.Context(), `select count(*) from projections.projection_checkpoints where rebuild`).Scan(&left))
	require.Zero(t, left)
}

func TestASwitchOfTablesDoesNotWaitForLongBehindAReader(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	r := b.runner()
	require.NoError(t, r.RunToEnd(t.Context()))
	reader, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = reader.Exec(t.Context(), `set local idle_in_transaction_session_timeout = 0; select * from public.star_notes`)
	require.NoError(t, err)
	rebuilt := make(chan error, 1)
	go func() { rebuilt <- r.Rebuild(t.Context()) }()
	require.Eventually(t, func() bool {
		var waits bool
		err := b.pool.QueryRow(t.Context(), `select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and application_name = 'featuremill stars_v1')`).Scan(&waits)
		return err == nil && waits
	}, 20*time.Second, time.Millisecond)
	require.Equal(t, map[string][]string{latent(0): {"a"}}, b.notes(), "readers get through")
	require.NoError(t, reader.Rollback(t.Context()))
	require.NoError(t, <-rebuilt)
}

func TestAProjectionThatWasNeverSetUpCanBeRebuilt(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	r := b.runner()
	require.NoError(t, r.Rebuild(t.Context()))
	require.Equal(t, map[string][]string{latent(0): {"a"}}, b.notes())
	b.note(0, "b")
	require.NoError(t, r.RunToEnd(t.Context()))
	require.Equal(t, []string{"a", "b"}, b.notes()[latent(0)])
}

func TestOnlyOneProcessRebuildsAtATime(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.note(0, "a")
	require.NoError(t, b.runner().RunToEnd(t.Context()))
	inside, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.stars.refuseWith(func(event.Recorded, event.Data) error {
		once.Do(func() { close(inside); <-release })
		return nil
	})
	first := make(chan error, 1)
	go func() { first <- b.runner().Rebuild(t.Context()) }()
	<-inside
	require.ErrorContains(t, b.runner().Rebuild(t.Context()), "by another process")
	close(release)
	require.NoError(t, <-first)
}
