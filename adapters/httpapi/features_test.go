package httpapi_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFeaturesAreListedByEverySortAndFilter(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	id := b.start(t, w)
	b.finish(t, id)
	list := func(query string) []map[string]any {
		t.Helper()
		var out []map[string]any
		for _, f := range b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/features?"+query, nil)["features"].([]any) {
			out = append(out, f.(map[string]any))
		}
		return out
	}
	all := list("limit=500")
	require.Len(t, all, latents-1, "the dead latent is hidden")
	require.Len(t, list("include_dead=true"), latents)
	first := all[0]
	require.Equal(t, "feat_sae_"+w.sae+"_0", first["id"])
	require.Equal(t, id, first["extraction_job_id"])
	require.Equal(t, "feature_0", first["name"])
	require.Equal(t, "auto", first["label_source"])
	require.InDelta(t, 0.5, first["density"], 1e-9)
	example := first["example_context"].(map[string]any)
	require.Len(t, example["activations"], len(example["tokens"].([]any)))
	prime := int(example["prime_activation_index"].(float64))
	require.Equal(t, first["max_activation"], example["activations"].([]any)[prime], "the same number, to the last digit")
	require.Equal(t, example["prime_token"], example["tokens"].([]any)[prime])
	require.Len(t, example["prefix_tokens"], prime)

	for _, sort := range []string{"density", "activation_freq", "activation_frequency", "max_activation", "mean_activation", "sink_share", "top_token_share", "firing_documents",
		"interpretability", "interpretability_score", "feature_id", "neuron_index", "name", "category"} {
		require.Len(t, list("sort_by="+sort), latents-1, sort)
		require.Len(t, list("sort_by="+sort+"&sort_order=asc&limit=2&offset=1"), 2, sort)
	}
	require.EqualValues(t, latents-2, list("sort_by=feature_id&sort_order=desc")[0]["neuron_index"])
	require.Len(t, list("search=7"), 1)
	require.NotEmpty(t, list("search=bank"), "a token")
	require.Empty(t, list("search=%25"))
	require.Len(t, list("min_density=0.4&max_density=1"), 1)
	require.Empty(t, list("min_activation_freq=100.0&max_activation_freq=99"))
	require.NotEmpty(t, list("min_activation_freq=50"), "per cent")
	require.Empty(t, list("min_max_activation=1000"))
	require.Len(t, list("max_max_activation=1000&min_top_token_share=0&max_top_token_share=1&min_firing_documents=1"), latents-1)

	b.sent(t, 200, "POST", "/api/v1/features/"+first["id"].(string)+"/favorite?is_favorite=true", nil)
	require.Len(t, list("is_favorite=true"), 1)
	require.Len(t, list("is_favorite=false"), latents-2)

	for query, field := range map[string]string{"limit=501": "limit", "sort_by=nonsense": "sort_by", "min_activation_freq=101": "min_activation_freq", "is_favorite=maybe": "is_favorite", "min_density=NaN": "min_density"} {
		p := b.refused(t, 422, "invalid_request", "GET", "/api/v1/extractions/"+id+"/features?"+query, nil)
		require.Equal(t, field, p["errors"].([]any)[0].(map[string]any)["name"])
	}

	ofSAE := b.sent(t, 200, "GET", "/api/v1/saes/"+w.sae+"/features?skip=1&limit=3", nil)
	require.EqualValues(t, latents, ofSAE["n_features"])
	require.EqualValues(t, 1, ofSAE["features"].([]any)[0].(map[string]any)["feature_idx"])
	require.Equal(t, true, ofSAE["pagination"].(map[string]any)["has_more"])
	require.NotEmpty(t, ofSAE["features"].([]any)[0].(map[string]any)["top_tokens"])
}

func TestAFeatureHasItsNumbersExamplesAndTokens(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	id := b.start(t, w)
	feature := "/api/v1/features/feat_sae_" + w.sae + "_1"
	b.refused(t, 404, "feature_not_found", "GET", feature, nil, "not yet")
	b.finish(t, id)

	one := b.sent(t, 200, "GET", feature, nil)
	require.Len(t, one["quantiles"], 9)
	require.Len(t, one["linear_histogram"], 50)
	require.Len(t, one["interval_shares"], 5)
	require.NotEmpty(t, one["log_histogram"])
	require.NotEmpty(t, one["tokens"])
	require.EqualValues(t, 12, one["active_samples"])

	var examples []map[string]any
	get := func(query string) []map[string]any {
		a := b.send(t, "GET", feature+"/examples?"+query, nil)
		require.Equal(t, 200, a.status, "%s", a.body)
		examples = nil
		require.NoError(t, json.Unmarshal(a.body, &examples))
		return examples
	}
	top := get("limit=10")
	require.NotEmpty(t, top)
	for i, e := range top {
		require.Equal(t, "top", e["kind"])
		require.Len(t, e["activations"], len(e["tokens"].([]any)))
		require.Len(t, e["token_positions"], len(e["tokens"].([]any)))
		if i > 0 {
			require.LessOrEqual(t, e["max_activation"], top[i-1]["max_activation"])
		}
	}
	for _, e := range get("kind=interval") {
		require.Equal(t, "interval", e["kind"])
		require.Contains(t, e, "interval")
	}
	require.GreaterOrEqual(t, len(get("kind=all&limit=1000")), len(top))
	get("kind=non_firing")
	b.refused(t, 422, "invalid_request", "GET", feature+"/examples?limit=9", nil)
	b.refused(t, 422, "invalid_request", "GET", feature+"/examples?kind=odd", nil)

	all := b.sent(t, 200, "GET", feature+"/token-analysis?apply_filters=false", nil)
	summary := all["summary"].(map[string]any)
	require.EqualValues(t, 0, summary["junk_removed"])
	require.Equal(t, one["firings"], summary["total_examples"])
	filtered := b.sent(t, 200, "GET", feature+"/token-analysis?filter_stop_words=true", nil)
	stats := filtered["summary"].(map[string]any)["filter_stats"].(map[string]any)
	require.EqualValues(t, 1, stats["special"], "%v", filtered)
	require.EqualValues(t, 1, stats["numbers"])
	require.EqualValues(t, 1, stats["stop_words"])
	require.Len(t, filtered["tokens"], int(filtered["summary"].(map[string]any)["filtered_token_count"].(float64)))
	require.EqualValues(t, 1, filtered["tokens"].([]any)[0].(map[string]any)["rank"])

	dead := b.sent(t, 200, "GET", "/api/v1/features/feat_sae_"+w.sae+"_11", nil)
	require.EqualValues(t, 0, dead["max_activation"], "a number all the same")
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/features/feat_sae_"+w.sae+"_11/token-analysis", nil)["tokens"])

	for _, id := range []string{"feat_sae_" + w.sae + "_12", "feat_sae_sae_none_1", "nonsense", "feat_sae_" + w.sae + "_01", "feat_sae_" + w.sae + "_1@" + "ext_sae_x_20260101T000000000000"} {
		for _, path := range []string{"", "/examples", "/token-analysis"} {
			b.refused(t, 404, "feature_not_found", "GET", "/api/v1/features/"+id+path, nil)
		}
	}
}

func TestALabelOutlivesTheNextExtractionAndIsNotOverwrittenUnseen(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	old := b.start(t, w)
	b.finish(t, old)
	feature := "/api/v1/features/feat_sae_" + w.sae + "_2"
	seen := b.send(t, "GET", feature, nil).header.Get("ETag")
	require.Equal(t, `"0"`, seen)
	a := b.send(t, "PATCH", feature, map[string]any{"name": "banks", "description": "money or rivers", "notes": nil, "category": "finance"}, "If-Match", seen)
	require.Equal(t, 200, a.status, "%s", a.body)
	require.Equal(t, `"2"`, a.header.Get("ETag"))
	named := decode(a.body)
	require.Equal(t, "banks", named["name"])
	require.Equal(t, "user", named["label_source"])
	require.Equal(t, "finance", named["category"])
	stale := b.sent(t, 412, "PATCH", feature, map[string]any{"name": "rivers"}, "If-Match", seen)
	require.Equal(t, "stale", stale["code"])
	require.EqualValues(t, 2, stale["version"])
	require.NotContains(t, b.sent(t, 200, "PATCH", feature, map[string]any{"description": "", "is_favorite": true}), "description")

	next := b.start(t, w)
	b.finish(t, next)
	one := b.sent(t, 200, "GET", feature, nil)
	require.Equal(t, next, one["extraction_job_id"], "the newest")
	require.Equal(t, "banks", one["name"])
	require.Equal(t, true, one["is_favorite"])
	require.Equal(t, old, b.sent(t, 200, "GET", feature+"?extraction_id="+old, nil)["extraction_job_id"])
	suffixed := b.sent(t, 200, "GET", "/api/v1/extractions/"+old+"/features?search=2", nil)["features"].([]any)[0].(map[string]any)["id"].(string)
	require.Equal(t, "feat_sae_"+w.sae+"_2@"+old, suffixed)
	require.Equal(t, suffixed, b.sent(t, 200, "GET", "/api/v1/features/"+suffixed, nil)["id"])
	require.Equal(t, 200, b.send(t, "GET", "/api/v1/features/"+suffixed+"/examples", nil).status)
	require.Equal(t, false, b.sent(t, 200, "POST", "/api/v1/features/"+suffixed+"/favorite?is_favorite=false", nil)["is_favorite"])
	b.refused(t, 422, "invalid_request", "GET", "/api/v1/features/"+suffixed+"?extraction_id="+next, nil)
	b.refused(t, 422, "invalid_request", "POST", feature+"/favorite", nil, "is_favorite: is required")
	b.refused(t, 422, "invalid_request", "PATCH", feature, map[string]any{"name": 5})
	require.Equal(t, "banks", b.sent(t, 200, "GET", "/api/v1/extractions/"+next+"/features?search=BANKS", nil)["features"].([]any)[0].(map[string]any)["name"])
}
