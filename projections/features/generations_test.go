package features_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
	"github.com/featuremill/featuremill/projections/generations"
	"github.com/featuremill/featuremill/projections/projector"
)

// folded has an extraction with all its segments folded.
func (b *bundle) folded(t *testing.T) string {
	t.Helper()
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), segment(1), segment(2), extraction.Completed{Segments: 3})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	return id
}

// watch reads an extraction every few milliseconds as somebody who browses it does, until the returned function is called,
// which returns how often it was read. Every answer must be of one whole generation.
func (b *bundle) watch(t *testing.T, id string) (stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var reads atomic.Int64
	var wrong atomic.Pointer[error]
	var reading sync.WaitGroup
	reading.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if err := b.whole(ctx, id); err != nil && ctx.Err() == nil {
				wrong.CompareAndSwap(nil, &err)
			}
			reads.Add(1)
			<-tick.C
		}
	})
	return func() int {
		cancel()
		reading.Wait()
		if err := wrong.Load(); err != nil {
			require.NoError(t, *err)
		}
		return int(reads.Load())
	}
}

func (b *bundle) whole(ctx context.Context, id string) error {
	g, err := b.queries.Of(ctx, id)
	if err != nil {
		return fmt.Errorf("resolve: %w", err)
	}
	page, err := b.queries.List(ctx, g, features.ListOptions{Limit: 500, Examples: true})
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if page.Total != latents-1 || len(page.Features) != latents-1 || page.Features[0].Example == nil {
		return fmt.Errorf("generation %d has %d features of %d", g.Generation, len(page.Features), page.Total)
	}
	examples, err := b.queries.Examples(ctx, g, 3, 100)
	if err == nil && len(examples) == 0 {
		err = errors.New("there are none")
	}
	if err != nil {
		return fmt.Errorf("examples: %w", err)
	}
	return nil
}

func TestARebuildTakesNothingAwayFromReaders(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.folded(t)
	before, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	stop := b.watch(t, id)
	for range 3 {
		require.NoError(t, b.runner.Rebuild(t.Context()))
	}
	require.Positive(t, stop())
	after, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, before.Generation, after.Generation, "what is there is not folded again")
	outdated, err := b.folder.Outdated(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, outdated)
}

func TestANewVersionOfTheFoldReplacesTablesOneExtractionAfterTheOther(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	var ids []string
	for range 3 {
		ids = append(ids, b.folded(t))
	}
	// Readers that have found a generation may go on reading it: it is dropped only after a while.
	newer := features.NewFolder(features.FolderConfig{Pool: b.log.Pool(), Readers: b.memory, Version: fold.Version + 1, Retain: time.Hour})
	outdated, err := newer.Outdated(t.Context(), 10)
	require.NoError(t, err)
	require.Equal(t, ids, outdated)
	var stops []func() int
	var before []features.Generation
	for _, id := range ids {
		g, err := b.queries.Of(t.Context(), id)
		require.NoError(t, err)
		before = append(before, g)
		stops = append(stops, b.watch(t, id))
	}
	require.NoError(t, newer.RunToEnd(t.Context()))
	for i, stop := range stops {
		require.Positive(t, stop())
		g, err := b.queries.Of(t.Context(), ids[i])
		require.NoError(t, err)
		require.Greater(t, g.Generation, before[i].Generation)
		old, err := b.queries.List(t.Context(), before[i], features.ListOptions{Limit: 500})
		require.NoError(t, err, "a reader that had found the generation before the switch goes on with it")
		require.Len(t, old.Features, latents-1)
	}
	old, err := b.folder.Outdated(t.Context(), 10)
	require.NoError(t, err)
	require.Empty(t, old, "an older program does not fold back")
}

// count returns a number from the database.
func (b *bundle) count(t *testing.T, sql string, args ...any) (n int) {
	t.Helper()
	require.NoError(t, b.log.Pool().QueryRow(t.Context(), sql, args...).Scan(&n))
	return n
}

const tablesOfGenerations = `select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'generations' and c.relname ~ '_g[0-9]+$' and c.relkind = 'r'`

// aHundredGenerations that no extraction shows any more, without rows; a part of them is shown to SQL users.
const aHundredGenerations = `
do $$ declare g bigint; t text;
begin
    for i in 1 .. 100 loop
        g := nextval('generations.number');
        foreach t in array array['features', 'feature_distributions', 'feature_tokens', 'feature_activations', 'token_features'] loop
            execute format('create table generations.%s_g%s (like generations.%s including constraints, constraint is_generation check (generation = %s))', t, g, t, g);
            if i <= 20 then
                execute format('alter table generations.%s attach partition generations.%s_g%s for values in (%s)', t, t, g, g);
            end if;
        end loop;
        insert into generations.generations (generation, extraction_id, key, state, retired_at) values (g, 'x', g::text, 'ready', now() - interval '1 hour');
    end loop;
end $$`

func TestTwoThousandGenerationsAreRebuiltAndDropped(t *testing.T) {
	t.Parallel()
	const many = 2000
	b := newBundle(t)
	b.corpus(t)
	id := b.folded(t)
	setup, err := pgx.ConnectConfig(t.Context(), b.log.Pool().Config().ConnConfig)
	require.NoError(t, err)
	defer func() { _ = setup.Close(context.WithoutCancel(t.Context())) }()
	_, err = setup.Exec(t.Context(), `set statement_timeout = 0`) // a hundred generations in a transaction is the test's doing
	require.NoError(t, err)
	// As many more, with a row each, in transactions of a hundred: one cannot lock them all.
	for from := 0; from < many; from += 100 {
		_, err := setup.Exec(t.Context(), aHundredGenerations)
		require.NoError(t, err)
	}
	require.NoError(t, b.runner.Rebuild(t.Context()))
	require.NoError(t, b.whole(t.Context(), id))
	dropped, err := b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Equal(t, many, dropped)
	require.Equal(t, 5, b.count(t, tablesOfGenerations), "those that are shown stay")
	require.NoError(t, b.whole(t.Context(), id))
}

// A statement over the tables of all generations is planned with those that there are, and runs later.
func TestASQLReaderFindsAllOfOneGenerationWhilePeopleFold(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.folded(t)
	_, err := b.log.Pool().Exec(t.Context(), aHundredGenerations) // planning takes a while
	require.NoError(t, err)
	want := b.count(t, `select count(*) from features`)
	require.Positive(t, want)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var reads, wrong atomic.Int64
	var reading sync.WaitGroup
	for range 3 {
		reading.Go(func() {
			reader, err := pgx.ConnectConfig(t.Context(), b.log.Pool().Config().ConnConfig)
			if err != nil {
				wrong.Add(1)
				return
			}
			defer func() { _ = reader.Close(context.WithoutCancel(t.Context())) }()
			for ctx.Err() == nil {
				var got int
				if err := reader.QueryRow(t.Context(), `select count(*) from features`, pgx.QueryExecModeSimpleProtocol).Scan(&got); err != nil || got != want {
					wrong.Add(1)
				}
				reads.Add(1)
			}
		})
	}
	for range 20 {
		_, err := b.folder.Fold(t.Context(), id, true, func() error { return nil })
		require.NoError(t, err)
	}
	stop()
	reading.Wait()
	require.Greater(t, reads.Load(), int64(20))
	require.Zero(t, wrong.Load(), "of %d", reads.Load())
}

// The collector finds that nobody loads a generation any more: because it has just been shown.
func TestWhatHasJustBeenShownIsNotCollected(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.folded(t)
	// The collector's look at the loader's lock takes a while.
	_, err := b.log.Pool().Exec(t.Context(), `
		create function public.pg_try_advisory_xact_lock_shared(bigint) returns boolean language plpgsql volatile as $$
		begin
			if current_setting('application_name') = 'featuremill collector' then perform pg_sleep(0.2);   end if;
			return pg_catalog.pg_try_advisory_xact_lock_shared($1);
		end $$;
		do $$ begin execute format('alter database %I set search_path = public, pg_catalog', current_database()); end $$`)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var collecting sync.WaitGroup
	defer collecting.Wait()
	defer stop()
	collecting.Go(func() {
		for ctx.Err() == nil {
			_, _ = b.folder.Collect(ctx)
		}
	})
	for range 4 {
		_, err := b.folder.Fold(t.Context(), id, true, func() error { return nil })
		require.NoError(t, err)
		time.Sleep(time.Second)
		require.Zero(t, b.count(t, `select count(*) from generations.current c left join generations.generations g using (generation) where g.state is distinct from 'ready'`))
		require.NoError(t, b.whole(t.Context(), id))
	}
}

func TestASnapshotShowsWhatWasShownWhenItWasTaken(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.folded(t)
	cfg := b.log.Pool().Config().ConnConfig
	cfg.RuntimeParams["application_name"] = "somebody's notebook"
	reader, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer func() { _ = reader.Close(context.WithoutCancel(t.Context())) }()
	for _, sql := range []string{`set idle_in_transaction_session_timeout = 0`, `begin isolation level repeatable read`, `select count(*) from generations.current`} {
		_, err := reader.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	_, err = b.folder.Fold(t.Context(), id, true, func() error { return nil })
	require.NoError(t, err)
	dropped, err := b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Zero(t, dropped)
	var seen int
	require.NoError(t, reader.QueryRow(t.Context(), `select count(*) from features`).Scan(&seen))
	require.Equal(t, b.count(t, `select count(*) from features`), seen)
	require.Positive(t, seen)
	_, err = reader.Exec(t.Context(), `rollback`)
	require.NoError(t, err)
	dropped, err = b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, dropped)
}

func TestSequencesAndVocabulariesGoWithTheLastExtractionThatNeedsThem(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	first, second := b.folded(t), b.folded(t)
	sequences, pieces := b.count(t, `select count(*) from corpus_sequences`), b.count(t, `select count(*) from vocabulary`)
	require.Positive(t, sequences)
	require.Positive(t, pieces)
	b.record(t, extraction.Stream(first), extraction.Deleted{})
	_, err := b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.whole(t.Context(), second))
	require.Equal(t, sequences, b.count(t, `select count(*) from corpus_sequences`))
	require.Equal(t, pieces, b.count(t, `select count(*) from vocabulary`))
	b.record(t, extraction.Stream(second), extraction.Deleted{})
	_, err = b.log.Pool().Exec(t.Context(), `insert into generations.current values ('not known yet', 1, true, 1, null, 0, null, now(), now(), 0)`)
	require.NoError(t, err)
	_, err = b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Equal(t, sequences, b.count(t, `select count(*) from corpus_sequences`), "what is needed is not known yet")
	_, err = b.log.Pool().Exec(t.Context(), `delete from generations.current where extraction_id = 'not known yet'`)
	require.NoError(t, err)
	_, err = b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Zero(t, b.count(t, `select count(*) from corpus_sequences`))
	require.Zero(t, b.count(t, `select count(*) from vocabulary`))
}

func TestASQLReaderHoldsUpTheDroppingAndNobodyElse(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	first := b.folded(t)
	// A snapshot over the tables of all generations, held for as long as the test wants: far beyond the pool's lock_timeout.
	reader, err := pgx.ConnectConfig(t.Context(), b.log.Pool().Config().ConnConfig)
	require.NoError(t, err)
	defer func() { _ = reader.Close(context.WithoutCancel(t.Context())) }()
	for _, sql := range []string{`set idle_in_transaction_session_timeout = 0`, `begin isolation level repeatable read`, `select count(*) from features`} {
		_, err := reader.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	b.record(t, extraction.Stream(first), extraction.Deleted{})
	collected := make(chan error, 1)
	go func() {
		dropped, err := b.folder.Collect(context.WithoutCancel(t.Context()))
		if err == nil && dropped != 1 {
			err = fmt.Errorf("%d were dropped", dropped)
		}
		collected <- err
	}()
	require.Eventually(t, func() bool {
		return b.count(t, `select count(*) from pg_stat_activity where application_name = 'featuremill collector' and wait_event_type = 'Lock'`) == 1
	}, 20*time.Second, 10*time.Millisecond, "the collector waits for the reader")
	began := time.Now()
	for time.Since(began) < 4*time.Second { // longer than the pool's lock_timeout
		require.NoError(t, b.whole(t.Context(), b.foldedWithoutCollecting(t)), "folds and other readers go on")
	}
	select {
	case err := <-collected:
		require.Fail(t, "it did not wait for the reader", "%v", err)
	default:
	}
	_, err = reader.Exec(t.Context(), `rollback`)
	require.NoError(t, err)
	require.NoError(t, <-collected)
	require.Zero(t, b.count(t, `select count(*) from generations.generations where extraction_id = $1`, first))
}

// foldedWithoutCollecting is folded, beside a collector that waits.
func (b *bundle) foldedWithoutCollecting(t *testing.T) string {
	t.Helper()
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), segment(1), segment(2), extraction.Completed{Segments: 3})
	_, err := b.folder.Fold(t.Context(), id, false, func() error { return nil })
	require.NoError(t, err)
	return id
}

func TestACollectorThatDiesWhileItWaitsIsNoMatter(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	first, second := b.folded(t), b.folded(t)
	reader, err := pgx.ConnectConfig(t.Context(), b.log.Pool().Config().ConnConfig)
	require.NoError(t, err)
	defer func() { _ = reader.Close(context.WithoutCancel(t.Context())) }()
	for _, sql := range []string{`set idle_in_transaction_session_timeout = 0`, `begin`, `select count(*) from features`} {
		_, err := reader.Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	b.record(t, extraction.Stream(first), extraction.Deleted{})
	ctx, kill := context.WithCancel(t.Context())
	died := make(chan error, 1)
	go func() { _, err := b.folder.Collect(ctx); died <- err }()
	pending := func() int { return b.count(t, `select count(*) from pg_inherits where inhdetachpending`) }
	require.Eventually(t, func() bool { return pending() == 1 }, 20*time.Second, 10*time.Millisecond)
	kill()
	require.Error(t, <-died)
	require.Equal(t, 1, pending(), "PostgreSQL detaches no other partition until this one is finished")
	_, err = reader.Exec(t.Context(), `rollback`)
	require.NoError(t, err)
	b.record(t, extraction.Stream(second), extraction.Deleted{})
	dropped, err := b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Equal(t, 2, dropped)
	require.Zero(t, b.count(t, tablesOfGenerations))
	require.Zero(t, pending())
}

func TestWhatIsHalfLoadedWhenItsExtractionIsDeletedOrItsProcessDiesIsDropped(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), segment(1), segment(2), extraction.Completed{Segments: 3})
	lost := errors.New("the lease was lost")
	loading := func() int {
		return b.count(t, `select count(*) from generations.generations where state = 'loading'`)
	}
	deleted := false
	_, err := b.folder.Fold(t.Context(), id, false, func() error {
		if loading() == 0 {
			return nil
		}
		if !deleted { // in the middle of the load
			deleted = true
			b.record(t, extraction.Stream(id), extraction.Deleted{})
			dropped, err := b.folder.Collect(t.Context())
			require.NoError(t, err)
			require.Zero(t, dropped, "somebody is at work on it")
		}
		return lost
	})
	require.ErrorIs(t, err, lost)
	require.True(t, deleted)
	require.Equal(t, 1, loading())
	require.Eventually(t, func() bool { // the server notices in its own time that the loader has gone
		dropped, err := b.folder.Collect(t.Context())
		require.NoError(t, err)
		return dropped == 1
	}, 20*time.Second, 10*time.Millisecond)
	require.Zero(t, b.count(t, tablesOfGenerations))
	require.Zero(t, b.count(t, `select count(*) from generations.generations`))
	r, err := b.folder.Fold(t.Context(), id, false, func() error { return nil })
	require.NoError(t, err)
	require.True(t, r.Gone)
}

func TestAGenerationOfTheSameIsNotFoldedAgainUnlessSomebodyAsks(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.folded(t)
	first, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	still := func() error { return nil }
	r, err := b.folder.Fold(t.Context(), id, false, still)
	require.NoError(t, err)
	require.Len(t, r.Key, 64)
	again, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, first.Generation, again.Generation)
	_, err = b.folder.Fold(t.Context(), id, true, still)
	require.NoError(t, err)
	again, err = b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Greater(t, again.Generation, first.Generation)
	require.Equal(t, generations.Table("features", again.Generation), fmt.Sprintf("generations.features_g%d", again.Generation))
}

func TestARunningExtractionIsFoldedInAShareOfItsTime(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0))
	still := func() error { return nil }
	r, err := b.folder.Fold(t.Context(), id, false, still)
	require.NoError(t, err)
	require.Greater(t, r.Later, 15*time.Second, "a fold of a second is a twentieth of twenty seconds")
	_, err = b.log.Pool().Exec(t.Context(), `update features_v2.extractions set running_since = running_since - interval '1 minute'`)
	require.NoError(t, err)
	r, err = b.folder.Fold(t.Context(), id, false, still)
	require.NoError(t, err)
	require.Zero(t, r.Later)
	require.False(t, r.Terminal)
	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, perSegment, g.Statistics.Sequences)
	r, err = b.folder.Fold(t.Context(), id, false, still)
	require.NoError(t, err)
	require.Positive(t, r.Later, "there is nothing new")
	b.record(t, extraction.Stream(id), segment(1), segment(2), extraction.Completed{Segments: 3})
	r, err = b.folder.Fold(t.Context(), id, false, still)
	require.NoError(t, err)
	require.True(t, r.Terminal, "the end is folded at once")
}

func TestTheConsumerGroupAndTheSchemaOfFeaturesNeverChange(t *testing.T) {
	t.Parallel()
	require.Equal(t, "features-v2", projector.ConsumerGroup(features.Projection{}))
	require.Equal(t, "features_v2", projector.Schema(features.Projection{}))
}
