package sae_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

func modelFacts() model.Facts { return model.Facts{Layers: 12, DModel: 16} }

func saeFacts() sae.Facts {
	return sae.Facts{Architecture: "topk", DIn: 16, DSAE: 64, DOut: 16, K: 4, Hook: "blocks.3.hook_resid_post", Layer: 3}
}

func fold(t *testing.T, s sae.State) func([]event.Data, error) sae.State {
	return func(data []event.Data, err error) sae.State {
		t.Helper()
		require.NoError(t, err)
		for _, d := range data {
			s = s.Evolve(d)
		}
		return s
	}
}

func imported(t *testing.T, f sae.Facts, modelID string) sae.State {
	t.Helper()
	c := sae.Import{ID: "sae_1", Name: "one", Facts: f, ModelID: modelID}
	if modelID != "" {
		m := modelFacts()
		c.Model = &m
	}
	return fold(t, sae.State{})(sae.State{}.DecideImport(c))
}

func TestASelfTestIsAskedForWithTheLink(t *testing.T) {
	t.Parallel()
	signed, activations := saeFacts(), saeFacts()
	signed.Signed, activations.ActivationsOnly = true, true
	for name, test := range map[string]struct {
		facts   sae.Facts
		modelID string
		wanted  bool
		refused string // when a person asks
	}{
		"of an SAE that is linked":                       {saeFacts(), "m", true, ""},
		"not of one that is not linked":                  {saeFacts(), "", false, ""},
		"not of one with signed activations":             {signed, "m", false, "signed_sae"},
		"not of one that reconstructs nothing by itself": {activations, "m", false, "activations_only"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := imported(t, test.facts, test.modelID)
			require.Equal(t, test.modelID, s.ModelID)
			require.Equal(t, test.wanted, s.SelfTestWanted)
			data, err := s.DecideRequestSelfTest("m", modelFacts())
			if test.refused != "" {
				require.True(t, problem.Is(err, test.refused), "%v", err)
				return
			}
			require.Equal(t, test.wanted, len(data) == 0, "one that is wanted already is no change")
			require.True(t, fold(t, s)(data, err).SelfTestWanted)
		})
	}
}

func TestADownloadedSAEIsTestedWhereTheModelIsThere(t *testing.T) {
	t.Parallel()
	m := modelFacts()
	for name, model := range map[string]*model.Facts{"it is": &m, "it is not yet": nil} {
		s := fold(t, sae.State{})(sae.State{}.DecideDownload(sae.Download{ID: "sae_1", Name: "one"}))
		s = fold(t, s)(s.DecideFetched(sae.Fetched{Facts: saeFacts(), ModelID: "m", Model: model}))
		require.Equal(t, "m", s.ModelID, name)
		require.Equal(t, model != nil, s.SelfTestWanted, name)
	}
}

func TestTheReportIsThatOfTheModelItIsLinkedTo(t *testing.T) {
	t.Parallel()
	report := sae.SelfTested{ModelID: "m", Text: "a sample", Report: &extraction.SelfTest{Hook: "blocks.3.hook_resid_post", Tokens: 4096}}
	s := imported(t, saeFacts(), "m")
	tested := fold(t, s)(s.DecideSelfTested(report))
	require.Equal(t, &report, tested.SelfTest)
	require.False(t, tested.SelfTestWanted)
	none, err := tested.DecideSelfTested(report)
	require.NoError(t, err)
	require.Empty(t, none, "nobody asked for another")

	again := fold(t, tested)(tested.DecideRequestSelfTest("m", modelFacts()))
	require.True(t, again.SelfTestWanted)
	require.NotNil(t, again.SelfTest, "the old one is shown until there is a new one")
	failed := fold(t, again)(again.DecideSelfTestFailed("worker_lost", "three workers died"))
	require.Equal(t, &sae.SelfTested{ModelID: "m", Code: "worker_lost", Detail: "three workers died"}, failed.SelfTest)
	require.Equal(t, model.IsReady, failed.Status, "the SAE stays as it is")

	linked := fold(t, tested)(tested.DecideLink("other", modelFacts()))
	require.Nil(t, linked.SelfTest)
	require.True(t, linked.SelfTestWanted)
	none, err = linked.DecideSelfTested(report)
	require.NoError(t, err)
	require.Empty(t, none, "made at the model that it was linked to")

	narrow := modelFacts()
	narrow.DModel = 8
	_, err = tested.DecideRequestSelfTest("m", narrow)
	require.True(t, problem.Is(err, "sae_does_not_fit_model"), "%v", err)
	gone := fold(t, s)(s.DecideDelete())
	_, err = gone.DecideRequestSelfTest("m", modelFacts())
	require.True(t, problem.Is(err, "sae_not_found"), "%v", err)
	none, err = gone.DecideSelfTested(report)
	require.NoError(t, err)
	require.Empty(t, none)
}
