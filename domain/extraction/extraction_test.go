package extraction_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/source"
)

var profile = extraction.ComputeProfile{Device: "cpu", DType: "float32", Threads: 2, ISA: "avx512", Libtorch: "2.1.1", MKL: "AVX512"}

func requested(t require.TestingT) extraction.Requested {
	src, err := source.FromSAE("sae_1")
	require.NoError(t, err)
	return extraction.Requested{ID: src.ExtractionID(time.Unix(0, 0)), Source: src, ModelID: "m", DatasetID: "d", Hook: "blocks.8.hook_resid_post", Layer: 8, Latents: 16, Config: extraction.DefaultConfig()}
}

func given(events ...event.Data) extraction.State {
	var s extraction.State
	for _, e := range events {
		s = s.Evolve(e)
	}
	return s
}

func plan(first, firstSequence, sequences, size int) extraction.Planned {
	return extraction.Planned{CorpusID: "c", BatchSize: 1, Profile: profile, Part: extraction.Part{FirstSegment: first, FirstSequence: firstSequence, Sequences: sequences, SequencesPerSegment: size}}
}

func record(s extraction.State, index int, content string) extraction.SegmentRecorded {
	first, count, _ := s.Range(index)
	return extraction.SegmentRecorded{Index: index, FirstSequence: first, Sequences: count, Tokens: int64(count), Artifact: extraction.Artifact{ContentSHA256: content, Postings: 1}}
}

func code(err error) string {
	var p *problem.Error
	if errors.As(err, &p) {
		return p.Code
	}
	return ""
}

func TestTheLastSegmentCompletesTheExtractionInTheSameDecision(t *testing.T) {
	t.Parallel()
	s := given(requested(t), plan(0, 0, 3, 2))
	require.Equal(t, extraction.Extracting, s.Status)
	events, err := s.DecideRecord(record(s, 1, "b"))
	require.NoError(t, err)
	require.Len(t, events, 1)
	s = s.Evolve(events[0])
	require.Equal(t, []extraction.Run{{From: 0, To: 1}}, s.Missing())
	events, err = s.DecideRecord(record(s, 0, "a"))
	require.NoError(t, err)
	require.Equal(t, extraction.Completed{Segments: 2, Tokens: 3, Postings: 2}, events[1])
}

func TestTheFirstResultOfASegmentStands(t *testing.T) {
	t.Parallel()
	s := given(requested(t), plan(0, 0, 4, 2))
	first := record(s, 0, "a")
	s = s.Evolve(first)
	events, err := s.DecideRecord(first)
	require.NoError(t, err)
	require.Empty(t, events, "the same result again is a redelivery")
	events, err = s.DecideRecord(record(s, 0, "other"))
	var mismatch *extraction.SegmentMismatchError
	require.ErrorAs(t, err, &mismatch)
	require.Equal(t, extraction.SegmentMismatched{Index: 0, Recorded: "a", Offered: "other"}, events[0])
	kept, ok := s.Evolve(events[0]).Recorded.Get(0)
	require.True(t, ok)
	require.Equal(t, "a", kept.ContentSHA256)
}

func TestAnSAEThatDoesNotFitFailsUnlessForced(t *testing.T) {
	t.Parallel()
	bad := extraction.SelfTest{Mismatch: "blocks.7.hook_resid_post reconstructs better"}
	events, err := given(requested(t)).DecideSelfTested(bad)
	require.NoError(t, err)
	require.Equal(t, extraction.Failed{Code: "sae_mismatch", Detail: bad.Mismatch}, events[1])
	forced := requested(t)
	forced.Config.Force = true
	events, err = given(forced).DecideSelfTested(bad)
	require.NoError(t, err)
	require.Equal(t, []event.Data{extraction.SelfTested{SelfTest: bad, Forced: true}}, events)
}

func TestWhatIsRefusedSaysWhy(t *testing.T) {
	t.Parallel()
	running := given(requested(t), plan(0, 0, 4, 2))
	done := given(requested(t), plan(0, 0, 1, 1), extraction.Completed{})
	broken := given(requested(t), extraction.Failed{Code: "sae_mismatch"})
	for name, c := range map[string]struct {
		decide func() ([]event.Data, error)
		code   string
	}{
		"a segment that the plan does not have": {func() ([]event.Data, error) { return running.DecideRecord(extraction.SegmentRecorded{Index: 9}) }, "segment_not_in_plan"},
		"a segment of other sequences": {func() ([]event.Data, error) {
			return running.DecideRecord(extraction.SegmentRecorded{Index: 1, FirstSequence: 0, Sequences: 2})
		}, "segment_not_in_plan"},
		"deleting while it runs":                 {func() ([]event.Data, error) { return running.DecideDelete() }, "extraction_active"},
		"resuming what runs":                     {func() ([]event.Data, error) { return running.DecideResume("") }, "wrong_status"},
		"resuming what trying again cannot mend": {func() ([]event.Data, error) { return broken.DecideResume("") }, "not_resumable"},
		"cancelling what has ended":              {func() ([]event.Data, error) { return done.DecideCancel("") }, "wrong_status"},
		"extending by nothing":                   {func() ([]event.Data, error) { return done.DecideExtend(10_000, "") }, "invalid_request"},
		"planning twice":                         {func() ([]event.Data, error) { return running.DecidePlan(plan(2, 4, 4, 2)) }, "wrong_status"},
		"a plan that leaves a hole":              {func() ([]event.Data, error) { return given(requested(t)).DecidePlan(plan(1, 2, 4, 2)) }, "plan_out_of_order"},
		"anything on what is not there":          {func() ([]event.Data, error) { return given().DecideCancel("") }, "extraction_not_found"},
		"a source that holds neither":            {func() ([]event.Data, error) { return given().DecideStart(extraction.Requested{}) }, "no_source"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			events, err := c.decide()
			require.Empty(t, events)
			require.Equal(t, c.code, code(err), "%v", err)
		})
	}
}

func TestEveryFieldThatIsOutOfBoundsIsNamed(t *testing.T) {
	t.Parallel()
	c := extraction.DefaultConfig()
	require.NoError(t, c.Validate())
	c.EvaluationSamples, c.TopKExamples, c.BatchSize, c.MinActivationFrequency, c.Mode, c.Fold, c.PrependBOS = 0, 5, 999, 0.5, "other", "x", "maybe"
	var p *problem.Error
	require.ErrorAs(t, c.Validate(), &p)
	var names []string
	for _, f := range p.Fields {
		names = append(names, f.Name)
	}
	require.Equal(t, []string{"evaluation_samples", "top_k_examples", "batch_size", "min_activation_frequency", "mode", "prepend_bos", "fold"}, names)
}

// Whatever people and workers ask for, in any order: a segment is recorded at most once and never
// changes, completed means complete, nothing but resume, extend and delete follows a terminal event,
// and what was refused leaves no trace.
func TestAnyHistoryKeepsThePromises(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var s extraction.State
		recorded := map[int]string{}
		apply := func(events []event.Data, err error) {
			before := s.Status
			for _, e := range events {
				if before.Terminal() {
					switch e.(type) {
					case extraction.Resumed, extraction.Extended, extraction.Deleted, extraction.SegmentMismatched:
					default:
						t.Fatalf("%T after %s", e, before)
					}
				}
				if r, ok := e.(extraction.SegmentRecorded); ok {
					if old, again := recorded[r.Index]; again {
						t.Fatalf("segment %d recorded as %s and again as %s", r.Index, old, r.Artifact.ContentSHA256)
					}
					recorded[r.Index] = r.Artifact.ContentSHA256
				}
				s = s.Evolve(e)
				if _, ok := e.(extraction.Completed); ok {
					if s.Recorded.Len() != s.Segments() {
						t.Fatalf("completed with %d of %d segments", s.Recorded.Len(), s.Segments())
					}
				}
				before = extraction.Absent // events of one decision belong together
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"start":  func(t *rapid.T) { apply(s.DecideStart(requested(t))) },
			"test":   func(t *rapid.T) { apply(s.DecideSelfTested(extraction.SelfTest{})) },
			"cancel": func(*rapid.T) { apply(s.DecideCancel("")) },
			"fail": func(t *rapid.T) {
				apply(s.DecideFail(extraction.Failed{Code: "x", Resumable: rapid.Bool().Draw(t, "resumable")}))
			},
			"resume": func(*rapid.T) { apply(s.DecideResume("")) },
			"extend": func(t *rapid.T) { apply(s.DecideExtend(s.Wanted+rapid.IntRange(-1, 5).Draw(t, "more"), "")) },
			"delete": func(*rapid.T) { apply(s.DecideDelete()) },
			"plan": func(t *rapid.T) {
				sequences, _ := s.Planned()
				apply(s.DecidePlan(plan(s.Segments(), sequences, rapid.IntRange(0, 7).Draw(t, "sequences"), rapid.IntRange(1, 3).Draw(t, "size"))))
			},
			"record": func(t *rapid.T) {
				apply(s.DecideRecord(record(s, rapid.IntRange(0, 8).Draw(t, "index"), fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "content")))))
			},
			"": func(t *rapid.T) {
				for i, a := range s.Recorded.All() {
					if recorded[i] != a.ContentSHA256 {
						t.Fatalf("segment %d changed", i)
					}
				}
				missing := 0
				for _, r := range s.Missing() {
					missing += r.To - r.From
				}
				if missing+s.Recorded.Len() != s.Segments() {
					t.Fatalf("%d missing and %d recorded of %d", missing, s.Recorded.Len(), s.Segments())
				}
				covered := 0
				for i := range s.Segments() {
					first, count, ok := s.Range(i)
					if !ok || first != covered || count < 1 {
						t.Fatalf("segment %d covers %d + %d after %d", i, first, count, covered)
					}
					covered += count
				}
			},
		})
	})
}
