package command_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

func (b *bundle) claimTest(t *testing.T) *eventlog.Lease {
	t.Helper()
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.SelfTestWork}})
	require.NoError(t, err)
	return lease
}

func TestASelfTestCountsWhileItsLeaseIsHeld(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.ImportModel(t.Context(), call, model.Import{ID: "other", Name: "org/other", Facts: model.Facts{Layers: 12, DModel: 16}})
	require.NoError(t, err)
	tested := func(modelID string) sae.SelfTested {
		return sae.SelfTested{ModelID: modelID, Text: "a sample", Report: &extraction.SelfTest{Hook: "blocks.3.hook_resid_post", Taps: []extraction.Tap{}}}
	}
	atFirst := b.claimTest(t)
	require.Equal(t, eventlog.Work{Kind: facts.SelfTestWork, Subject: "sae-sae_a"}, atFirst.Work)
	require.Nil(t, b.claimTest(t))

	_, err = b.LinkSAE(t.Context(), call, "sae_a", "other")
	require.NoError(t, err)
	var fenced *eventlog.FencedError
	_, err = b.FailSAESelfTest(t.Context(), call, atFirst.Held(), "sae_a", "not_finite", "NaN")
	require.ErrorAs(t, err, &fenced, "it was linked to another model meanwhile")
	lease := b.claimTest(t)
	require.NotNil(t, lease)
	_, err = b.RecordSAESelfTest(t.Context(), call, *lease, "sae_a", tested("other"))
	require.NoError(t, err)
	s, _, err := command.Load[sae.State](t.Context(), b.Handler, sae.Stream("sae_a"))
	require.NoError(t, err)
	require.Equal(t, "other", s.SelfTest.ModelID)
	require.Nil(t, b.claimTest(t))

	for range 2 { // asked for twice, done once
		_, err = b.RequestSAESelfTest(t.Context(), call, "sae_a", "other")
		require.NoError(t, err)
	}
	lease = b.claimTest(t)
	require.NotNil(t, lease)
	require.Nil(t, b.claimTest(t))
	_, err = b.FailSAESelfTest(t.Context(), call, nil, "sae_a", "worker_lost", "three workers died")
	require.NoError(t, err)
	_, err = b.RecordSAESelfTest(t.Context(), call, *lease, "sae_a", tested("other"))
	require.NoError(t, err, "what nobody wants any more is no change")
	s, _, err = command.Load[sae.State](t.Context(), b.Handler, sae.Stream("sae_a"))
	require.NoError(t, err)
	require.Equal(t, "worker_lost", s.SelfTest.Code)

	_, err = b.RequestSAESelfTest(t.Context(), call, "sae_a", "other")
	require.NoError(t, err)
	_, err = b.DeleteSAE(t.Context(), call, "sae_a")
	require.NoError(t, err, "a self-test holds nothing")
	require.Nil(t, b.claimTest(t))
	_, err = b.RequestSAESelfTest(t.Context(), call, "sae_a", "other")
	refusal(t, err, "sae_not_found")
	_, err = b.RequestSAESelfTest(t.Context(), call, "sae_none", "none")
	refusal(t, err, "model_not_found")
	report, err := b.log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Zero(t, report.Work)
}
