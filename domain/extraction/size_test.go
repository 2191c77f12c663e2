package extraction_test

import (
	"errors"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
)

// Plans that were made before there was a limit: what is cut otherwise has another digest.
func TestRunsAreCutAsTheyAlwaysWere(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		size      extraction.Size
		sequences int
		want      int
	}{
		{extraction.Size{Context: 128, L0: 40}, 512, 64},
		{extraction.Size{Context: 128, L0: 40}, 10_000, 256},
		{extraction.Size{Context: 128, L0: 40}, 100, 256}, // fewer than eight batches
		{extraction.Size{Context: 128, Batch: 8, L0: 40}, 100, 8},
		{extraction.Size{Context: 128, Batch: 3, L0: 40}, 512, 63},
		{extraction.Size{Context: 1024, L0: 40}, 10_000, 32},
		{extraction.Size{Context: 128, L0: 4000}, 10_000, 16},
		{extraction.Size{Context: 128, L0: 65_536}, 10_000, 1},
		{extraction.Size{Context: 128, L0: math.Inf(1)}, 10_000, 256},
		{extraction.Size{Context: 128, L0: math.NaN()}, 10_000, 256},
		{extraction.Size{Context: 16, L0: 1}, 1_000_000, 2048},
		{extraction.Size{Context: 65_536, L0: 1}, 1000, 1},
		{extraction.Size{Context: 128}, 0, 256},
	} {
		require.Equal(t, test.want, test.size.SequencesPerSegment(test.sequences), "%+v", test)
	}
}

func TestTheContextIsWhatTheRequestOrTheSAESaysAndTheModelCanTake(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ asked, sae, model, want int }{
		{0, 0, 0, 128}, {0, 1024, 0, 1024}, {256, 1024, 0, 256}, {0, 4096, 2048, 2048}, {0, 0, 64, 64}, {0, 1 << 20, 1 << 20, 1 << 16},
	} {
		c := extraction.Config{ContextLength: test.asked}
		require.Equal(t, test.want, c.Context(test.sae, test.model), "%+v", test)
	}
}

// Whatever the sizes and however much is planned already: what fits has a plan within the limit, what does not is refused
// with a number that fits, and one more than that does not.
func TestWhatHasNoRoomIsRefusedWithTheNumberThatHas(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		z := extraction.Size{
			Context: rapid.IntRange(1, 65_536).Draw(t, "context"), Batch: rapid.IntRange(0, 256).Draw(t, "batch"), L0: rapid.Float64Range(0, 70_000).Draw(t, "l0"),
		}
		s := given(requested(t))
		few, nearlyAll := rapid.IntRange(0, extraction.MaxSegments), rapid.IntRange(extraction.MaxSegments-20, extraction.MaxSegments)
		if planned := rapid.OneOf(rapid.Just(0), few, nearlyAll).Draw(t, "planned"); planned > 0 {
			s = s.Evolve(plan(0, 0, planned, 1))
		}
		before, _ := s.Planned()
		asked := before + rapid.OneOf(rapid.IntRange(0, 5000), rapid.IntRange(0, extraction.MaxSequences)).Draw(t, "more")
		cut := func(sequences int) int {
			return s.Segments() + extraction.Part{Sequences: sequences - before, SequencesPerSegment: z.SequencesPerSegment(sequences - before)}.Segments()
		}
		err := s.Fits(z, asked)
		if err == nil {
			require.LessOrEqual(t, cut(asked), extraction.MaxSegments)
			return
		}
		require.Greater(t, cut(asked), extraction.MaxSegments)
		var p *problem.Error
		require.True(t, errors.As(err, &p))
		require.Equal(t, problem.Invalid, p.Kind)
		require.Equal(t, "evaluation_samples", p.Fields[0].Name)
		most := p.Facts["max_evaluation_samples"].(int)
		require.NoError(t, s.Fits(z, most))
		if most > before {
			require.LessOrEqual(t, cut(most), extraction.MaxSegments)
			require.Greater(t, cut(most+1), extraction.MaxSegments)
		}
	})
}

func TestAPlanHasAtMostTheSegmentsThatARunMayHave(t *testing.T) {
	t.Parallel()
	s := given(requested(t))
	_, err := s.DecidePlan(plan(0, 0, extraction.MaxSegments, 1))
	require.Equal(t, "plan_untested", code(err), "nothing says yet that the SAE belongs there")
	s = given(requested(t), extraction.SelfTested{})
	_, err = s.DecidePlan(plan(0, 0, extraction.MaxSegments, 1))
	require.NoError(t, err)
	events, err := s.DecidePlan(plan(0, 0, extraction.MaxSegments+1, 1))
	require.Empty(t, events)
	require.Equal(t, "too_many_segments", code(err))
	s = given(requested(t), extraction.SelfTested{}, plan(0, 0, 2, 1), extraction.Completed{}, extraction.Extended{EvaluationSamples: 70_000})
	_, err = s.DecidePlan(plan(2, 2, extraction.MaxSegments-1, 1))
	require.Equal(t, "too_many_segments", code(err))
}
