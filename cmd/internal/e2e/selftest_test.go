package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/sae"
)

// awaitTested waits until an SAE was tested, or could not be.
func (s *stack) awaitTested(id string) (tested sae.SelfTested) {
	s.t.Helper()
	s.await("the self-test of "+id, func() bool {
		state, _, err := command.Load[sae.State](s.t.Context(), s.commands, sae.Stream(id))
		if err != nil || state.SelfTest == nil {
			return false
		}
		tested = *state.SelfTest
		return true
	})
	return tested
}

func TestAnImportedSAEIsTestedAtItsModel(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.importSAE("wronglayer", changedSAE(t, hook("blocks.2.hook_resid_post"), asIs))
	s.extractor()
	fits := s.awaitTested(saeID)
	require.Empty(t, fits.Code, fits.Detail)
	require.Equal(t, modelID, fits.ModelID)
	require.Contains(t, fits.Text, "built-in sample")
	require.Empty(t, fits.Report.Mismatch)
	require.Equal(t, "blocks.1.hook_resid_post", fits.Report.Hook)
	require.Greater(t, fits.Report.Tokens, 3000)
	require.Greater(t, len(fits.Report.Taps), 2)
	require.Contains(t, s.awaitTested("wronglayer").Report.Mismatch, "blocks.1.hook_resid_post fits better")
	s.requireWhole()
}

func TestAnExtractionReusesTheSelfTestOfAnEqualOne(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.extractor()
	tested := func(c extraction.Config) (string, extraction.SelfTest) {
		id := s.begin(c)
		return id, s.awaitStatus(id, extraction.StatusCompleted).SelfTest.SelfTest
	}
	c := config()
	c.EvaluationSamples = 32
	id, first := tested(c)
	require.Empty(t, first.ReusedFrom)
	c.EvaluationSamples, c.TopKExamples = 48, 20 // no matter of a self-test
	_, second := tested(c)
	require.Equal(t, id, second.ReusedFrom)
	second.ReusedFrom = ""
	require.Equal(t, first, second)
	c.SkipFirst = 2
	_, third := tested(c)
	require.Empty(t, third.ReusedFrom)
	s.requireWhole()
}

func TestASelfTestThatKillsThreeWorkersIsGivenUpAndHoldsNothingUp(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	for range 3 {
		require.Equal(t, -1, s.extractor(failpoints("sae-tested=kill")).Wait(patience))
	}
	s.serve("projector")
	s.extractor()
	lost := s.awaitTested(saeID)
	require.Equal(t, "worker_lost", lost.Code)
	require.Nil(t, lost.Report)
	s.finish(s.begin(config()))
}
