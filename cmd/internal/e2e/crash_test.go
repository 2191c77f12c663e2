package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/projections/features"
)

// slowly makes a worker take some seconds, so that there is a middle.
const slowly = "batch=sleep:15ms"

func TestAKilledExtractorsWorkIsDoneByAnother(t *testing.T) {
	t.Parallel()
	for name, point := range map[string]string{
		"with a self-test that is not recorded":      "tested=kill@1",
		"with a stored chunk that is not recorded":   "chunk=kill@1",
		"with a plan made and no answer read":        "planned=kill@1",
		"in the middle of a segment":                 "batch=kill@28",
		"with an artifact stored but not recorded":   "artifact=kill@5",
		"with a segment recorded and no answer read": "recorded=kill@7",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStack(t, options{})
			s.serve("relay")
			s.serve("projector")
			killed := s.extractor(failpoints(point))
			id := s.begin(config())
			require.Equal(t, -1, killed.Wait(patience), "it was to be killed: %s", killed.out)
			s.extractor()
			s.finish(id)
		})
	}
}

func TestAKilledRelayNeitherLosesNorSwapsEvents(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	relay := s.serve("relay")
	s.serve("projector")
	s.extractor(failpoints(slowly))
	id := s.begin(config())
	s.awaitSegments(id, 3)
	relay.Kill()
	s.awaitSegments(id, 6)
	s.serve("relay")
	s.finish(id)
	s.requireTopic()
}

func TestAKilledProjectorGoesOnFromItsCheckpoint(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	first := s.serve("projector")
	s.extractor(failpoints(slowly))
	id := s.begin(config())
	s.awaitSegments(id, 3)
	first.Kill()
	s.awaitSegments(id, 6)
	second := s.serve("projector")

	// The fold has loaded its tables and waits for a lock to attach them when it is killed.
	const tables = "generations"
	tx, err := s.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `lock table `+tables+`.feature_activations in share update exclusive mode`)
	require.NoError(t, err)
	s.await("a fold that is about to end", func() bool {
		var waits bool
		err := s.pool.QueryRow(t.Context(), `select exists (select from pg_locks where not granted and relation = $1::regclass)`, tables+".feature_activations").Scan(&waits)
		return err == nil && waits
	})
	second.Kill()
	require.NoError(t, tx.Rollback(t.Context()))
	var folded int64
	require.NoError(t, s.pool.QueryRow(t.Context(), `select folded_version from feature_folds where extraction_id = $1`, id).Scan(&folded))
	require.Zero(t, folded)
	s.serve("projector")
	s.finish(id)
}

func TestEverybodyComesBackToARestartedPostgreSQL(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{ownServer: true})
	all := []*process{s.serve("relay"), s.serve("projector"), s.extractor(failpoints(slowly))}
	id := s.begin(config())
	s.awaitSegments(id, 4)
	s.server.Kill()
	s.server.Restart()
	s.finish(id)
	s.requireTopic()
	for _, p := range all {
		require.False(t, p.Ended(), "%s ended", p.name)
	}
}

func TestAResultOutlivesAnOutageOfPostgreSQL(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{ownServer: true})
	s.serve("projector")
	s.extractor(failpoints("artifact=sleep:1500ms@5"))
	id := s.begin(config())
	s.awaitSegments(id, 4)
	s.await("the fifth artifact", func() bool {
		stored, err := s.artifacts(id)
		return err == nil && len(stored) == 5
	})
	s.server.Kill()
	s.server.Restart()
	s.finish(id)
	stored, err := s.artifacts(id)
	require.NoError(t, err)
	require.Len(t, stored, 13)
	for _, r := range s.recorded(id) {
		require.Equal(t, 1, r.Attempt, "segment %d", r.Index)
	}
}

func TestALongChunkKeepsItsLease(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.extractor(failpoints("chunk=sleep:" + (leaseTime * 3 / 2).String() + "@1"))
	s.awaitTested(saeID)
	id := s.begin(config())
	s.awaitStatus(id, extraction.StatusCompleted)
	var claims int
	require.NoError(t, s.pool.QueryRow(t.Context(), `select last_value from work_fence`).Scan(&claims))
	require.Equal(t, 1+1+1+13, claims, "the SAE's own test, the plan, the chunk and each segment were claimed once")
	s.serve("projector") // which claims folds
	s.finish(id)
}

func TestEveryPartMayBeKilledInOneRun(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{ownServer: true})
	relay, project, extract := s.serve("relay"), s.serve("projector"), s.extractor(failpoints(slowly))
	id := s.begin(config())
	s.awaitSegments(id, 2)
	extract.Kill()
	s.extractor(failpoints(slowly))
	s.awaitSegments(id, 4)
	relay.Kill()
	s.awaitSegments(id, 5)
	s.serve("relay")
	project.Kill()
	s.awaitSegments(id, 7)
	s.serve("projector")
	s.server.Kill()
	s.server.Restart()
	s.finish(id)
	s.requireTopic()
}

func TestTwoExtractorsShareTheWork(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	s.serve("projector")
	s.extractor(failpoints(slowly))
	s.extractor(failpoints(slowly))
	id := s.begin(config())
	s.finish(id)
	workers := map[string]int{}
	for _, r := range s.recorded(id) {
		workers[r.Worker]++
	}
	require.Len(t, workers, 2, "segments by worker")
}

func TestAnExtractorThatIsToldToStopGivesItsLeaseBack(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	s.serve("projector")
	first := s.extractor(failpoints(slowly))
	id := s.begin(config())
	s.awaitSegments(id, 3)
	require.Zero(t, first.Stop())
	work, err := s.openSegments(id)
	require.NoError(t, err)
	state, _, _ := s.load(id)
	require.Len(t, work, state.Segments()-state.Recorded.Len())
	for _, w := range work {
		require.Empty(t, w.Owner, "%s", w.Work)
		require.Zero(t, w.Attempts, "%s", w.Work)
	}
	s.extractor()
	s.finish(id)
	for _, r := range s.recorded(id) {
		require.Equal(t, 1, r.Attempt, "segment %d", r.Index)
	}
}

func TestAHungExtractorEndsItselfAndAnotherTakesOver(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	s.serve("projector")
	hung := s.extractor(failpoints("batch=hang@20"), "FEATUREMILL_HUNG=2s")
	id := s.begin(config())
	require.Equal(t, 70, hung.Wait(patience), "its exit code")
	s.extractor()
	s.finish(id)
}

func TestWorkThatKillsThreeWorkersFailsAndCanBeResumed(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	s.serve("projector")
	const segments, batches = 13, 8
	id := s.begin(config())
	// The last of the segments is the only one left when the first worker dies with it.
	for i, point := range []string{"batch=kill@97", "batch=kill@1", "batch=kill@1"} {
		require.Equal(t, (segments-1)*batches+1, 97)
		killed := s.extractor(failpoints(point))
		require.Equal(t, -1, killed.Wait(patience))
		work, err := s.openSegments(id)
		require.NoError(t, err)
		require.Len(t, work, 1)
		require.Equal(t, i+1, work[0].Attempts)
	}
	s.extractor()
	failed := s.awaitStatus(id, extraction.StatusFailed)
	require.Equal(t, "worker_lost", failed.Failure.Code)
	require.NotNil(t, failed.Failure.Segment)
	_, done := failed.Recorded.Get(*failed.Failure.Segment)
	require.False(t, done)
	require.True(t, failed.Failure.Resumable)
	s.awaitFolded(id)
	s.requireWhole()
	_, err := s.commands.ResumeExtraction(t.Context(), call(), id)
	require.NoError(t, err)
	s.finish(id)
}

func TestACancelledExtractionKeepsWhatWasComputedAndCanBeResumed(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	s.serve("projector")
	// In its second batch the fourth segment takes longer than a heartbeat and the cancel.
	worker := s.extractor(failpoints("batch=sleep:4s@26"))
	id := s.begin(config())
	s.await("the fourth segment", func() bool {
		work, err := s.openSegments(id)
		state, _, ok := s.load(id)
		return err == nil && ok && state.Recorded.Len() == 3 && len(work) > 0 && work[0].Owner != ""
	})
	_, err := s.commands.CancelExtraction(t.Context(), call(), id, "enough")
	require.NoError(t, err)
	cancelled := s.awaitStatus(id, extraction.StatusCancelled)
	require.Equal(t, 3, cancelled.Recorded.Len())

	other := s.begin(config()) // the source is free at once
	_, err = s.commands.CancelExtraction(t.Context(), call(), other, "only a try")
	require.NoError(t, err)
	s.await("the worker's end of the work", func() bool { return contains(worker, "called off") })
	stored, err := s.artifacts(id)
	require.NoError(t, err)
	require.Len(t, stored, 3, "the worker stopped in the middle of the fourth segment")

	s.awaitFolded(id)
	queries := features.NewQueries(s.pool)
	g, err := queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, 3, g.Statistics.Segments)
	page, err := queries.List(t.Context(), g, features.ListOptions{Limit: 20, Examples: true})
	require.NoError(t, err)
	require.Len(t, page.Features, 20)
	require.NotNil(t, page.Features[0].Example)
	s.requireWhole()

	_, err = s.commands.ResumeExtraction(t.Context(), call(), id)
	require.NoError(t, err)
	s.finish(id)
}

func TestAnExtendedExtractionIsTheLongOne(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("relay")
	s.serve("projector")
	s.extractor()
	short := config()
	short.EvaluationSamples = 208
	id := s.begin(short)
	s.awaitStatus(id, extraction.StatusCompleted)
	s.awaitFolded(id)
	before := s.result(id)
	_, err := s.commands.ExtendExtraction(t.Context(), call(), id, 416)
	require.NoError(t, err)
	state := s.awaitStatus(id, extraction.StatusCompleted)
	require.Len(t, state.Parts, 2)
	s.awaitFolded(id)
	after, want := s.result(id), wanted(t)
	require.Equal(t, before.Contents, after.Contents[:len(before.Contents)], "what was computed is kept")
	requireSameDump(t, want.Dump, after.Dump)
	s.requireWhole()
}

// artifacts lists the stored artifacts of an extraction.
func (s *stack) artifacts(id string) (keys []string, err error) {
	for item, err := range s.store.List(s.t.Context(), "extractions/"+id+"/") {
		if err != nil {
			return nil, err
		}
		keys = append(keys, item.Key)
	}
	return keys, nil
}

// openSegments lists the open segments of an extraction.
func (s *stack) openSegments(id string) (out []eventlog.WorkStatus, err error) {
	list, err := s.log.ListWork(s.t.Context(), id)
	for _, w := range list {
		if w.Work.Kind == facts.SegmentWork {
			out = append(out, w)
		}
	}
	return out, err
}

// recorded returns the segments as their events tell.
func (s *stack) recorded(id string) (out []extraction.SegmentRecorded) {
	s.t.Helper()
	events, err := s.log.ReadStream(s.t.Context(), extraction.Stream(id), 0)
	require.NoError(s.t, err)
	registry, err := facts.Registry()
	require.NoError(s.t, err)
	for _, e := range events {
		d, err := registry.Decode(e)
		require.NoError(s.t, err)
		if r, ok := d.(extraction.SegmentRecorded); ok {
			out = append(out, r)
		}
	}
	return out
}
