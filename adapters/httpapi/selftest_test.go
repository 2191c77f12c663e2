package httpapi_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/sae"
)

func TestAnSAEShowsItsSelfTest(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	path := "/api/v1/saes/" + w.sae
	status := func() any { return b.sent(t, 200, http.MethodGet, path, nil)["self_test"].(map[string]any)["status"] }
	require.Equal(t, "pending", status(), "it came with the link")
	record := func(tested sae.SelfTested) {
		lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "worker", Kinds: []string{facts.SelfTestWork}, Subjects: []string{sae.Stream(w.sae)}})
		require.NoError(t, err)
		require.NotNil(t, lease)
		tested.ModelID = w.model
		_, err = b.commands.RecordSAESelfTest(t.Context(), command.Call{}, *lease, w.sae, tested)
		require.NoError(t, err)
	}
	fvu := 0.1
	record(sae.SelfTested{Text: "built-in sample", Report: &extraction.SelfTest{Hook: "blocks.1.hook_resid_post", FVU: &fvu, Taps: []extraction.Tap{{Hook: "blocks.1.hook_resid_post", FVU: &fvu}}}})
	require.Eventually(t, func() bool { return status() == "done" }, 10*time.Second, 10*time.Millisecond)
	test := b.sent(t, 200, http.MethodGet, path, nil)["self_test"].(map[string]any)
	require.Equal(t, w.model, test["model_id"])
	require.Equal(t, "built-in sample", test["text"])
	require.InDelta(t, fvu, test["report"].(map[string]any)["taps"].([]any)[0].(map[string]any)["fvu"], 0)

	for range 2 {
		again := b.sent(t, 202, http.MethodPost, path+"/self-test", nil)["self_test"].(map[string]any)
		require.Equal(t, "pending", again["status"])
		require.NotNil(t, again["report"], "the one before")
	}
	record(sae.SelfTested{Code: "not_finite", Detail: "an activation is NaN"})
	require.Eventually(t, func() bool { return status() == "failed" }, 10*time.Second, 10*time.Millisecond)
	test = b.sent(t, 200, http.MethodGet, path, nil)["self_test"].(map[string]any)
	require.Equal(t, "not_finite", test["code"])
	require.NotContains(t, test, "report")
}

func TestASelfTestThatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	register := func(id string, f sae.Facts) {
		f.Architecture, f.DIn, f.DSAE, f.DOut, f.Hook, f.Layer = "topk", 32, 8, 32, "blocks.1.hook_resid_post", 1
		b.append(t, sae.Stream(id), sae.Registered{ID: id, Name: id, Origin: sae.Origin{Kind: "local"}}, sae.Ready{Facts: f})
	}
	register("unnamed", sae.Facts{ModelName: "another"})
	register("named", sae.Facts{ModelName: "tiny"})
	register("signed", sae.Facts{ModelName: "tiny", Signed: true})
	ask := func(id string) string { return "/api/v1/saes/" + id + "/self-test" }
	b.refused(t, 404, "sae_not_found", http.MethodPost, ask("sae_none"), nil)
	p := b.refused(t, 422, "model_unknown", http.MethodPost, ask("unnamed"), nil, "another")
	require.Equal(t, w.model, p["candidates"].([]any)[0].(map[string]any)["id"])
	b.refused(t, 422, "signed_sae", http.MethodPost, ask("signed"), nil)
	linked := b.sent(t, 202, http.MethodPost, ask("named"), nil)
	require.Equal(t, w.model, linked["model_id"], "the one model that it names")
	require.Equal(t, "pending", linked["self_test"].(map[string]any)["status"])
}
