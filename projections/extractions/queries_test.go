package extractions_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/projector"
)

// start records an extraction up to its plan of four segments, of which some are recorded.
func (b *bundle) start(t *testing.T, src source.Source, id string, recorded int) {
	t.Helper()
	stream := extraction.Stream(id)
	b.record(t, stream, requested(src, id), extraction.SelfTested{SelfTest: selfTest()}, part(extraction.State{}, 4))
	for i := range recorded {
		b.record(t, stream, segment(i))
	}
}

func (b *bundle) end(t *testing.T, id string) {
	t.Helper()
	b.record(t, extraction.Stream(id), extraction.Completed{Segments: 4, Tokens: 5120, Postings: 204_800})
}

// fold plays the part of the features projection.
func (b *bundle) fold(t *testing.T, id string, version int64, foldError *string) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), `create table if not exists folds (extraction_id text primary key, folded_version bigint, generation bigint, features bigint, fold_error text, statistics json, folded_at timestamptz)`)
	require.NoError(t, err)
	_, err = b.pool.Exec(t.Context(), `create or replace view public.feature_folds as select * from folds`)
	require.NoError(t, err)
	_, err = b.pool.Exec(t.Context(), `insert into folds values ($1, $2, 1, 3072, $3, '{"live_neurons": 2900}', now())
		on conflict (extraction_id) do update set folded_version = excluded.folded_version, fold_error = excluded.fold_error`, id, version, foldError)
	require.NoError(t, err)
}

func (b *bundle) status(t *testing.T, id string) string {
	t.Helper()
	e, err := b.queries.Get(t.Context(), id)
	require.NoError(t, err)
	return e.Status
}

func TestAnExtractionShowsEveryFact(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	b.stock(t)
	src := fromSAE(t, "sae_1")
	b.start(t, src, "x1", 3)
	b.record(t, extraction.Stream("x1"), extraction.SegmentMismatched{Index: 1, Recorded: "content 1", Offered: "other", Worker: "w2"})
	b.project(t)

	e, err := b.queries.Get(t.Context(), "x1")
	require.NoError(t, err)
	require.Equal(t, "extracting", e.Status)
	require.Equal(t, "sae", e.SourceType())
	require.Equal(t, src, e.Source())
	require.Equal(t, []string{"name of sae_1", "SmolLM2", "speeches"}, []string{*e.SAEName, *e.ModelName, *e.DatasetName})
	require.Nil(t, e.TrainingID)
	require.Equal(t, 3, e.SegmentsRecorded)
	require.Equal(t, 4, e.SegmentsPlanned)
	require.Equal(t, 30, e.SequencesRecorded)
	require.EqualValues(t, 3840, e.Tokens)
	require.EqualValues(t, 153_600, e.Postings)
	require.InDelta(t, 1.3, e.ComputeSeconds, 1e-12)
	require.InDelta(t, 0.75, e.RecordedShare(), 0)
	require.Equal(t, 1, e.Mismatches)
	require.True(t, e.Active())
	require.False(t, e.Rests())
	require.NotNil(t, e.StartedAt)
	require.Nil(t, e.CompletedAt)
	require.Nil(t, e.FoldedVersion)
	config, err := e.ReadConfig()
	require.NoError(t, err)
	require.Equal(t, requested(src, "x1").Config, config)
	var test extraction.SelfTest
	require.NoError(t, json.Unmarshal(e.SelfTest, &test))
	require.Equal(t, selfTest(), test)
	var plan []extraction.Part
	require.NoError(t, json.Unmarshal(e.Plan, &plan))
	require.Equal(t, []extraction.Part{part(extraction.State{}, 4).Part}, plan)

	segments, err := b.queries.Segments(t.Context(), "x1")
	require.NoError(t, err)
	require.Len(t, segments, 3)
	require.Equal(t, "file 2", segments[2].FileSHA256)
	alarms, err := b.queries.Alarms(t.Context(), "x1")
	require.NoError(t, err)
	require.Equal(t, "other", alarms[0].OfferedContentSHA256)
	alarms, err = b.queries.Alarms(t.Context(), "")
	require.NoError(t, err)
	require.Len(t, alarms, 1)

	_, err = b.queries.Get(t.Context(), "none")
	require.True(t, problem.Is(err, "extraction_not_found"))
}

func TestACompletedExtractionIsFinalizingUntilItsFeaturesAreFoldedAsFar(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	b.stock(t)
	b.start(t, fromSAE(t, "sae_1"), "x1", 4)
	b.project(t)
	require.Equal(t, "extracting", b.status(t, "x1"))

	b.end(t, "x1")
	b.project(t)
	require.Equal(t, "finalizing", b.status(t, "x1"), "nothing is folded")
	b.fold(t, "x1", 4, nil)
	require.Equal(t, "finalizing", b.status(t, "x1"), "folded in the middle of the run")
	b.fold(t, "x1", 8, nil)
	require.Equal(t, "completed", b.status(t, "x1"))

	e, err := b.queries.Get(t.Context(), "x1")
	require.NoError(t, err)
	require.True(t, e.Rests())
	require.EqualValues(t, 3072, *e.Features)
	require.JSONEq(t, `{"live_neurons": 2900}`, string(e.Statistics))

	b.record(t, extraction.Stream("x1"), extraction.Extended{SourceKey: "sae_sae_1", SAEID: "sae_1", ModelID: "m_1", DatasetID: "ds_1", EvaluationSamples: 200})
	b.project(t)
	require.Equal(t, "queued", b.status(t, "x1"))

	b.record(t, extraction.Stream("x1"), extraction.Failed{Code: "out_of_memory", Detail: "no room", Resumable: true})
	b.project(t)
	require.Equal(t, "failed", b.status(t, "x1"), "what did not complete is never finalizing")

	broken := "an artifact is lost"
	b.fold(t, "x1", 4, &broken)
	b.record(t, extraction.Stream("x1"), extraction.Resumed{SourceKey: "sae_sae_1", SAEID: "sae_1", ModelID: "m_1", DatasetID: "ds_1", Plan: true}, part(extraction.State{}, 0))
	b.end(t, "x1")
	b.project(t)
	e, err = b.queries.Get(t.Context(), "x1")
	require.NoError(t, err)
	require.Equal(t, "completed", e.Status, "its fold was given up: it must not be finalizing for ever")
	require.Equal(t, broken, *e.ErrorMessage)
}

func TestExtractionsAreListedNewestFirst(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	b.stock(t)
	one, two, run := fromSAE(t, "sae_1"), fromSAE(t, "sae_2"), fromTraining(t, "train_1")
	b.start(t, one, "x_done", 4)
	b.end(t, "x_done")
	b.start(t, one, "x_failed", 0)
	b.record(t, extraction.Stream("x_failed"), extraction.Failed{Code: "sae_mismatch", Detail: "does not fit"})
	b.start(t, one, "x_gone", 0)
	b.record(t, extraction.Stream("x_gone"), extraction.Cancelled{}, extraction.Deleted{})
	b.start(t, one, "x_runs", 1)
	b.record(t, extraction.Stream("x_queued"), requested(two, "x_queued"))
	b.start(t, run, "x_training", 0)
	b.record(t, extraction.Stream("x_training"), extraction.Cancelled{Reason: "changed my mind"})
	b.project(t)

	for name, test := range map[string]struct {
		ask   extractions.Listing
		want  []string
		total int
	}{
		"all that are not deleted": {extractions.Listing{}, []string{"x_training", "x_queued", "x_runs", "x_failed", "x_done"}, 5},
		"a page":                   {extractions.Listing{Limit: 2, Offset: 1}, []string{"x_queued", "x_runs"}, 5},
		"nothing after the end":    {extractions.Listing{Offset: 7}, nil, 5},
		"by several statuses":      {extractions.Listing{Statuses: extractions.ParseStatuses("queued, extracting,")}, []string{"x_queued", "x_runs"}, 2},
		"by a computed status":     {extractions.Listing{Statuses: []string{"finalizing"}}, []string{"x_done"}, 1},
		"not by what is stored":    {extractions.Listing{Statuses: []string{"completed"}}, nil, 0},
		"of an SAE":                {extractions.Listing{Source: one}, []string{"x_runs", "x_failed", "x_done"}, 3},
		"of a training":            {extractions.Listing{Source: run, Statuses: []string{"cancelled"}}, []string{"x_training"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			page, err := b.queries.List(t.Context(), test.ask)
			require.NoError(t, err)
			require.Equal(t, test.total, page.Total)
			var ids []string
			for _, e := range page.Items {
				ids = append(ids, e.ID)
			}
			require.Equal(t, test.want, ids)
		})
	}

	e, err := b.queries.Get(t.Context(), "x_training")
	require.NoError(t, err)
	require.Equal(t, "training", e.SourceType())
	require.Equal(t, "run 1", *e.SAEName)
	require.Equal(t, "changed my mind", *e.CancelReason)
	_, err = b.queries.Get(t.Context(), "x_gone")
	require.True(t, problem.Is(err, "extraction_not_found"))
	for _, wrong := range []extractions.Listing{{Statuses: []string{"done"}}, {Statuses: []string{"deleted"}}, {Limit: -1}, {Limit: 1001}, {Offset: -1}} {
		_, err := b.queries.List(t.Context(), wrong)
		require.True(t, problem.Is(err, "invalid_request"), "%+v", wrong)
	}
}

func TestASourceShowsTheExtractionThatHoldsItElseTheNewest(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	b.stock(t)
	one := fromSAE(t, "sae_1")
	for _, id := range []string{"x1", "x2"} {
		b.start(t, one, id, 0)
		b.record(t, extraction.Stream(id), extraction.Cancelled{})
	}
	b.project(t)
	newest, err := b.queries.ForSource(t.Context(), one)
	require.NoError(t, err)
	require.Equal(t, "x2", newest.ID)
	holder, err := b.queries.Holder(t.Context(), one)
	require.NoError(t, err)
	require.Empty(t, holder)

	b.record(t, extraction.Stream("x1"), extraction.Resumed{SourceKey: one.Key(), SAEID: "sae_1", ModelID: "m_1", DatasetID: "ds_1", Missing: []extraction.Run{{From: 0, To: 4}}, Profile: profile()})
	holder, err = b.queries.Holder(t.Context(), one)
	require.NoError(t, err)
	require.Equal(t, "x1", holder, "before the tables know it")
	b.project(t)
	held, err := b.queries.ForSource(t.Context(), one)
	require.NoError(t, err)
	require.Equal(t, "x1", held.ID)

	_, err = b.queries.ForSource(t.Context(), fromSAE(t, "sae_2"))
	require.True(t, problem.Is(err, "extraction_not_found"))
}

// claim takes the next work of a kind.
func (b *bundle) claim(t *testing.T, owner, kind string) eventlog.Lease {
	t.Helper()
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: owner, Kinds: []string{kind}, Capabilities: []string{profile().Requirement()}})
	require.NoError(t, err)
	require.NotNil(t, lease)
	return *lease
}

func (b *bundle) tell(t *testing.T, lease eventlog.Lease, detail string) {
	t.Helper()
	_, err := b.log.Heartbeat(t.Context(), lease, eventlog.Progress{Batches: 1, Detail: json.RawMessage(detail)})
	require.NoError(t, err)
}

func TestProgressAddsWhatWorkersSayToWhatIsRecorded(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	b.stock(t)
	progress := func() extractions.Progress {
		b.project(t)
		p, err := b.queries.Progress(t.Context(), "x1")
		require.NoError(t, err)
		return p
	}
	stream := extraction.Stream("x1")
	b.record(t, stream, requested(fromSAE(t, "sae_1"), "x1"))
	p := progress()
	require.Equal(t, "waiting for a worker", p.Waiting)
	require.Zero(t, p.Share)
	require.Nil(t, p.ETASeconds)

	plan := b.claim(t, "w1", facts.PlanWork)
	p = progress()
	require.Equal(t, 1, p.Workers)
	require.Empty(t, p.Stage, "it has not told yet")
	b.tell(t, plan, `{"stage":"self-test"}`)
	p = progress()
	require.Equal(t, "self-test", p.Stage)
	require.Empty(t, p.Waiting)

	b.record(t, stream, extraction.SelfTested{SelfTest: selfTest()}, part(extraction.State{}, 4))
	p = progress()
	require.Equal(t, "waiting for a worker: "+profile().Requirement(), p.Waiting)
	require.Equal(t, []extractions.Work{{Kind: facts.SegmentWork, Requirement: profile().Requirement()}}, p.Open, "of the four, the next one to be taken")

	first, second := b.claim(t, "w1", facts.SegmentWork), b.claim(t, "w2", facts.SegmentWork)
	b.tell(t, first, `{"stage":"extracting","tokens_done":640,"tokens_total":1280,"tokens_per_second":100,"current_batch":1,"total_batches":2}`)
	b.tell(t, second, `{"stage":"extracting","tokens_done":320,"tokens_total":1280,"tokens_per_second":50}`)
	p = progress()
	require.Equal(t, 2, p.Workers)
	require.EqualValues(t, 960, p.TokensDone)
	require.InDelta(t, 960.0/5120, p.Share, 1e-12)
	require.InDelta(t, 150, *p.TokensPerSecond, 0)
	require.InDelta(t, (5120.0-960)/150, *p.ETASeconds, 1e-9)
	require.Equal(t, 0, *p.Segment)
	require.Equal(t, []int{1, 2}, []int{p.Batch, p.Batches})
	require.Equal(t, "extracting", p.Stage)
	require.Len(t, p.Open, 2, "what somebody works on")

	b.record(t, stream, segment(0))
	b.tell(t, second, `"another program's"`)
	p = progress()
	require.EqualValues(t, 1280, p.TokensDone, "what cannot be read is not counted")
	require.Nil(t, p.TokensPerSecond)
	require.Equal(t, 1, *p.Segment)

	// A lease that expired is nobody's.
	_, err := b.pool.Exec(t.Context(), `update work set expires_at = now() - interval '1 second' where index = 1`)
	require.NoError(t, err)
	require.NotEmpty(t, progress().Waiting)

	for i := 1; i < 4; i++ {
		b.record(t, stream, segment(i))
	}
	b.end(t, "x1")
	p = progress()
	require.InDelta(t, 1, p.Share, 0)
	require.Empty(t, p.Waiting)
	require.Empty(t, p.Open)
	_, err = b.queries.Progress(t.Context(), "none")
	require.True(t, problem.Is(err, "extraction_not_found"))
}

func TestWaitingAsksWhoKnowsTheWorkers(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	b.stock(t)
	b.start(t, fromSAE(t, "sae_1"), "x1", 0)
	b.project(t)
	var failure error
	live := map[string]bool{}
	q := extractions.NewQueries(b.pool, func(_ context.Context, requirement string) (bool, error) { return live[requirement], failure })
	p, err := q.Progress(t.Context(), "x1")
	require.NoError(t, err)
	require.Equal(t, "waiting for a worker: "+profile().Requirement(), p.Waiting)
	live[profile().Requirement()] = true
	p, err = q.Progress(t.Context(), "x1")
	require.NoError(t, err)
	require.Empty(t, p.Waiting, "one that fits is there and is about to take it")
	failure = errors.New("no table of workers")
	_, err = q.Progress(t.Context(), "x1")
	require.ErrorIs(t, err, failure)
}

func TestAReservationOfASourceHasTheKeyThatTheFactsGiveIt(t *testing.T) {
	t.Parallel()
	for _, src := range []source.Source{fromSAE(t, "sae_1"), fromTraining(t, "train_1")} {
		effects, err := facts.Effects(extraction.Stream("x"), requested(src, "x"))
		require.NoError(t, err)
		require.Contains(t, effects, eventlog.Reserve{Key: "source:" + src.Key(), Holder: "x"})
	}
}

func TestTheConsumerGroupAndTheSchemaOfExtractionsNeverChange(t *testing.T) {
	t.Parallel()
	require.Equal(t, "extractions-v2", projector.ConsumerGroup(extractions.Projection{}))
	require.Equal(t, "extractions_v2", projector.Schema(extractions.Projection{}))
}

func TestACommandIsSeenAsSoonAsItsPositionIs(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	r, err := projector.New(b.law.Config, extractions.Projection{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, nil) }()
	b.record(t, extraction.Stream("x1"), requested(fromSAE(t, "sae_1"), "x1"))
	ok, err := projector.NewPositions(b.pool, nil).WaitFor(t.Context(), extractions.Name, 1, 20*time.Second)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "queued", b.status(t, "x1"))
	cancel()
	require.NoError(t, <-ended)
}

func TestOrphansAreWhatTheLibraryHasNeverHeardOf(t *testing.T) {
	t.Parallel()
	b := newBundle(t, nil)
	b.stock(t)
	b.start(t, fromSAE(t, "sae_1"), "x1", 0)
	b.start(t, fromTraining(t, "train_9"), "x2", 0)
	b.record(t, dataset.Stream("ds_1"), dataset.Deleted{}) // deleted, not unknown
	b.project(t)
	orphans, err := b.queries.Orphans(t.Context())
	require.NoError(t, err)
	require.Equal(t, []extractions.Orphan{
		{ExtractionID: "x1", Kind: "corpus", ID: "corpus_1"},
		{ExtractionID: "x2", Kind: "corpus", ID: "corpus_1"},
		{ExtractionID: "x2", Kind: "training", ID: "train_9"},
	}, orphans)
}
