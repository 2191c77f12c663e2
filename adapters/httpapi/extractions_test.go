package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/adapters/httpapi"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
)

func TestAnExtractionGoesFromItsStartToItsFeatures(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	a := b.send(t, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset, map[string]any{
		"evaluation_samples": 12, "layer_index": nil, "batch_size": nil, "num_workers": 4, "prepend_bos": true, "start_sample": 5, "min_activation_frequency": 0.001, "skip_first": 0,
	}, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "X-Correlation-ID", "mine", "Featuremill-Actor", "somebody")
	require.Equal(t, 202, a.status, "%s", a.body)
	id := a.header.Get("Location")[len("/api/v1/extractions/"):]
	started := b.sent(t, 200, "GET", a.header.Get("Location"), nil)
	require.Equal(t, "queued", started["status"])
	require.Equal(t, "sae", started["source_type"])
	require.Equal(t, w.sae, started["external_sae_id"])
	require.Equal(t, "An SAE", started["sae_name"])
	require.Equal(t, "tiny", started["model_name"])
	require.EqualValues(t, 12, started["config"].(map[string]any)["evaluation_samples"])
	require.Equal(t, "true", started["config"].(map[string]any)["prepend_bos"])
	require.EqualValues(t, 0, started["progress"])
	require.Equal(t, "waiting for a worker", started["waiting"])
	require.NotContains(t, started, "tokens_per_second", "what is not known is left out")
	require.NotContains(t, started, "training_id")
	require.Contains(t, string(a.body), "start_sample is not known and was ignored")
	require.Empty(t, b.send(t, "GET", "/api/v1/extractions/"+id, nil).header.Get("ETag"), "it does not rest")
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/features", nil)["features"])

	b.plan(t, id)
	b.compute(t, id, 1)
	require.Eventually(t, func() bool {
		return b.sent(t, 200, "GET", "/api/v1/saes/"+w.sae+"/extraction-status", nil)["segments_recorded"] == 1.0
	}, waitFor, poll)
	running := b.sent(t, 200, "GET", "/api/v1/extractions?status_filter=queued,extracting&limit=5", nil)
	require.EqualValues(t, 1, running["meta"].(map[string]any)["total"])
	one := running["data"].([]any)[0].(map[string]any)
	require.Equal(t, "extracting", one["status"])
	require.InDelta(t, 1.0/3, one["progress"], 1e-9)

	b.compute(t, id, 2)
	require.Eventually(t, func() bool {
		return b.sent(t, 200, "GET", "/api/v1/extractions/"+id, nil)["status"] == "finalizing"
	}, waitFor, poll)
	b.fold(t, id, "completed")
	done := b.send(t, "GET", "/api/v1/extractions/"+id, nil)
	require.NotEmpty(t, done.header.Get("ETag"))
	ended := b.sent(t, 200, "GET", "/api/v1/extractions/"+id, nil)
	require.EqualValues(t, 1, ended["progress"])
	statistics := ended["statistics"].(map[string]any)
	require.EqualValues(t, latents, statistics["total_neurons"])
	require.EqualValues(t, latents-1, statistics["total_features"])
	require.EqualValues(t, 1, statistics["dead_neurons_filtered"])
	require.EqualValues(t, 0.1, statistics["fvu"])
	require.Positive(t, statistics["avg_activation_frequency"])

	history := b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/history", nil)
	facts := history["data"].([]any)
	require.Len(t, facts, 7)
	requested := facts[0].(map[string]any)
	require.Equal(t, "ExtractionRequested", requested["type"])
	metadata := requested["metadata"].(map[string]any)
	require.Equal(t, "mine", metadata["correlation_id"])
	require.Equal(t, "somebody", metadata["actor"])
	require.Contains(t, metadata["traceparent"], "0af7651916cd43dd8448eb211c80319c")
	require.Len(t, requested["hash"], 64)
	second := b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/history?limit=1&offset=1", nil)
	require.Equal(t, "SelfTested", second["data"].([]any)[0].(map[string]any)["type"])
	require.EqualValues(t, 7, second["meta"].(map[string]any)["total"])
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/history?offset=100", nil)["data"])

	planned := b.sent(t, 200, "GET", fmt.Sprintf("/api/v1/extractions/%s?as_of=%v", id, facts[2].(map[string]any)["position"]), nil)
	require.Equal(t, "extracting", planned["status"])
	require.EqualValues(t, 0, planned["segments_recorded"])
	require.EqualValues(t, 3, planned["segments_planned"])
	require.Equal(t, "queued", b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"?as_of="+facts[0].(map[string]any)["recorded_at"].(string), nil)["status"])
	require.Len(t, b.sent(t, 200, "GET", fmt.Sprintf("/api/v1/extractions/%s/history?as_of=%v", id, facts[2].(map[string]any)["position"]), nil)["data"], 3)
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/extractions/"+id+"?as_of=1", nil, "yet")
	b.refused(t, 422, "invalid_request", "GET", "/api/v1/extractions/"+id+"?as_of=yesterday", nil, "as_of")

	estimate := b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset+"&dry_run=true", map[string]any{"evaluation_samples": 100})
	require.EqualValues(t, 100, estimate["sequences"])
	require.EqualValues(t, 100*length, estimate["tokens"], "the SAE's own context")
	require.Positive(t, estimate["seconds"])
	require.Positive(t, estimate["disk_bytes"])
	require.NotContains(t, estimate, "busy_with")

	b.refused(t, 422, "invalid_request", "POST", "/api/v1/extractions/"+id+"/extend", map[string]any{"evaluation_samples": 12}, "evaluation_samples")
	extended := b.sent(t, 202, "POST", "/api/v1/extractions/"+id+"/extend", map[string]any{"evaluation_samples": 24})
	require.Equal(t, "queued", extended["status"])
	require.EqualValues(t, 24, extended["config"].(map[string]any)["evaluation_samples"])
	b.refused(t, 409, "extraction_active", "DELETE", "/api/v1/extractions/"+id, nil)
	cancelled := b.sent(t, 200, "POST", "/api/v1/extractions/"+id+"/cancel", map[string]any{"reason": "enough"})
	require.Equal(t, "cancelled", cancelled["status"])
	require.Equal(t, "enough", cancelled["cancel_reason"])
	b.sent(t, 204, "DELETE", "/api/v1/extractions/"+id, nil)
	b.sent(t, 204, "DELETE", "/api/v1/extractions/"+id, nil)
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/extractions/"+id, nil)
	require.Len(t, b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/history", nil)["data"], 10, "history outlives it")
}

func TestWhatAnExtractionUsesCannotBeDeleted(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	id := b.start(t, w)
	for _, path := range []string{"/api/v1/saes/" + w.sae, "/api/v1/models/" + w.model, "/api/v1/datasets/" + w.dataset} {
		p := b.refused(t, 409, "in_use", "DELETE", path, nil, id)
		require.Equal(t, id, p["active_extraction_id"])
	}
	failed := b.sent(t, 200, "POST", "/api/v1/saes/delete", map[string]any{"sae_ids": []string{w.sae}})
	require.EqualValues(t, 1, failed["failed_count"])
	require.Contains(t, failed["errors"].(map[string]any)[w.sae], id)

	require.Equal(t, id, b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dry_run=true", map[string]any{"dataset_id": w.dataset})["busy_with"])
	done := b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/cancel-extraction", nil)
	require.Equal(t, id, done["extraction_id"])
	b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/cancel-extraction", nil)
	require.Equal(t, "queued", b.sent(t, 202, "POST", "/api/v1/extractions/"+id+"/resume", nil)["status"])
	b.sent(t, 200, "POST", "/api/v1/extractions/"+id+"/cancel", nil)
	b.sent(t, 200, "DELETE", "/api/v1/saes/"+w.sae, nil)
	b.refused(t, 404, "sae_not_found", "POST", "/api/v1/extractions/"+id+"/resume", nil)
}

func TestAStartThatCannotBeSaysWhy(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	signed := b.sent(t, 201, "POST", "/api/v1/saes/import/file", map[string]any{"file_path": b.sae(t, "signed", 32, map[string]any{"architecture": "abstopk"}), "name": "signed"})["id"].(string)
	alone := b.sent(t, 201, "POST", "/api/v1/saes/import/file", map[string]any{"file_path": b.sae(t, "alone", 48, map[string]any{"model_name": "gpt9"}), "name": "alone"})
	require.Contains(t, alone["warnings"].([]any)[0], "gpt9")
	start := func(sae, query string) string { return "/api/v1/saes/" + sae + "/extract-features" + query }
	for _, c := range []struct {
		name, path, code string
		status           int
		body             any
		words            []string
	}{
		{"no dataset", start(w.sae, ""), "invalid_request", 422, nil, []string{"dataset_id"}},
		{"two datasets", start(w.sae, "?dataset_id=a"), "invalid_request", 422, map[string]any{"dataset_id": "b"}, []string{"dataset_id"}},
		{"an unknown dataset", start(w.sae, "?dataset_id=ds_none"), "dataset_not_found", 404, nil, []string{"ds_none"}},
		{"an unknown SAE", start("sae_none", "?dataset_id="+w.dataset), "sae_not_found", 404, nil, []string{"sae_none"}},
		{"an id that no SAE can have", start("sae%20none", "?dataset_id="+w.dataset), "sae_not_found", 404, nil, nil},
		{"an unknown model", start(w.sae, "?dataset_id="+w.dataset), "model_not_found", 404, map[string]any{"model_id": "m_none"}, []string{"m_none"}},
		{"a signed SAE", start(signed, "?dataset_id="+w.dataset), "signed_sae", 422, nil, []string{"signed"}},
		{"no model", start(alone["id"].(string), "?dataset_id="+w.dataset), "model_unknown", 422, nil, []string{"model_id", "gpt9"}},
		{"a model that it does not fit", start(alone["id"].(string), "?dataset_id="+w.dataset), "sae_does_not_fit_model", 422, map[string]any{"model_id": w.model}, []string{"48", "32"}},
		{"the same, asked without starting", start(alone["id"].(string), "?dry_run=true&dataset_id="+w.dataset), "sae_does_not_fit_model", 422, map[string]any{"model_id": w.model}, []string{"48", "32"}},
		{"bounds", start(w.sae, "?dataset_id="+w.dataset), "invalid_request", 422, map[string]any{"evaluation_samples": 0, "top_k_examples": 5, "context_prefix_tokens": 51, "min_activation_frequency": 0.2, "mode": "x"},
			[]string{"evaluation_samples", "top_k_examples", "context_prefix_tokens", "min_activation_frequency", "mode"}},
		{"wrong types", start(w.sae, "?dataset_id="+w.dataset), "invalid_request", 422, map[string]any{"evaluation_samples": "many", "filter_special": 1}, []string{"evaluation_samples", "filter_special"}},
		{"a context length that nothing has", start(w.sae, "?dataset_id="+w.dataset), "invalid_request", 422, map[string]any{"context_length": 3}, []string{"context_length"}},
		{"an unknown way with BOS", start(w.sae, "?dataset_id="+w.dataset), "invalid_request", 422, map[string]any{"prepend_bos": "perhaps"}, []string{"prepend_bos"}},
		{"a body that is no object", start(w.sae, "?dataset_id="+w.dataset), "invalid_request", 422, "[]", []string{"object"}},
		{"malformed JSON", start(w.sae, "?dataset_id="+w.dataset), "malformed_json", 400, "{\n  \"seed\": 1,,\n}", []string{"line 2, column 13"}},
		{"JSON that ends early", start(w.sae, "?dataset_id="+w.dataset), "malformed_json", 400, `{"seed": `, []string{"line 1"}},
		{"bytes that are no text", start(w.sae, "?dataset_id="+w.dataset), "malformed_json", 400, "{\"mode\": \"\xff\"}", []string{"byte 10"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.refused(t, c.status, c.code, "POST", c.path, c.body, c.words...)
		})
	}
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/extractions", nil)["data"])
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/saes/"+w.sae+"/extraction-status", nil, "never")
	b.refused(t, 404, "extraction_not_found", "POST", "/api/v1/saes/"+w.sae+"/cancel-extraction", nil)
	for _, path := range []string{"/cancel", "/resume"} {
		b.refused(t, 404, "extraction_not_found", "POST", "/api/v1/extractions/ext_none"+path, nil)
	}
	b.refused(t, 404, "extraction_not_found", "POST", "/api/v1/extractions/ext_none/extend", map[string]any{"evaluation_samples": 5})
	b.refused(t, 404, "extraction_not_found", "DELETE", "/api/v1/extractions/ext_none", nil)
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/extractions/ext_none/history", nil)
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/extractions/ext_none/events", nil)
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/extractions/ext_none/features", nil)
}

func TestOfAHundredStartsExactlyOneWins(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	var mu sync.Mutex
	won, lost := []string{}, []string{}
	var all errgroup.Group
	for range 100 {
		all.Go(func() error {
			a := b.send(failing{}, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset, nil)
			p := decode(a.body)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case a.status == 202:
				won = append(won, p["id"].(string))
			case a.status == 409 && p["code"] == "source_busy":
				lost = append(lost, p["active_extraction_id"].(string))
			default:
				return fmt.Errorf("%d %s", a.status, a.body)
			}
			return nil
		})
	}
	require.NoError(t, all.Wait())
	require.Len(t, won, 1)
	require.Len(t, lost, 99)
	for _, holder := range lost {
		require.Equal(t, won[0], holder)
	}
}

func TestAStartThatIsSentTwiceHappensOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	path := "/api/v1/saes/" + w.sae + "/extract-features?dataset_id=" + w.dataset
	first := b.sent(t, 202, "POST", path, map[string]any{"seed": 1}, "Idempotency-Key", "once")
	second := b.sent(t, 202, "POST", path, map[string]any{"seed": 1}, "Idempotency-Key", "once")
	require.Equal(t, first["id"], second["id"])
	other := b.sent(t, 422, "POST", path, map[string]any{"seed": 2}, "Idempotency-Key", "once")
	require.Equal(t, "idempotency_key_reused", other["code"])
	b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/cancel-extraction", nil, "Idempotency-Key", "stop")
	b.sent(t, 202, "POST", path, nil)
	b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/cancel-extraction", nil, "Idempotency-Key", "stop")
	require.Equal(t, "queued", b.sent(t, 200, "GET", "/api/v1/saes/"+w.sae+"/extraction-status", nil)["status"], "the second stop was the first one's")
}

func TestATrainingWithOneSAEIsASourceStill(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	b.sae(t, "run/layer_1", 32, nil)
	b.sent(t, 201, "POST", "/api/v1/trainings/import", map[string]any{"path": b.root + "/run", "training_id": "t_1", "model_id": w.model})
	b.refused(t, 404, "extraction_not_found", "GET", "/api/v1/trainings/t_1/extraction-status", nil)
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/trainings/t_1/features", nil)["features"])
	a := b.send(t, "POST", "/api/v1/trainings/t_1/extract-features?dataset_id="+w.dataset, map[string]any{"skip_first": 0, "evaluation_samples": 12})
	require.Equal(t, 202, a.status, "%s", a.body)
	require.Regexp(t, `^@\d+$`, a.header.Get("Deprecation"))
	e := decode(a.body)
	require.Equal(t, "training", e["source_type"])
	require.Equal(t, "t_1", e["training_id"])
	require.NotContains(t, e, "external_sae_id")
	require.Regexp(t, `^ext_t_1_\d{8}T\d{12}$`, e["id"])
	p := b.refused(t, 409, "in_use", "DELETE", "/api/v1/trainings/t_1", nil)
	require.Equal(t, e["id"], p["active_extraction_id"])
	require.Equal(t, e["id"], b.sent(t, 200, "GET", "/api/v1/trainings/t_1/extraction-status", nil)["id"])
	b.finish(t, e["id"].(string))
	list := b.sent(t, 200, "GET", "/api/v1/trainings/t_1/features?limit=3&sort_by=feature_id&sort_order=asc", nil)
	require.Equal(t, "feat_t_1_0", list["features"].([]any)[0].(map[string]any)["id"])
	b.refused(t, 409, "wrong_status", "POST", "/api/v1/trainings/t_1/cancel-extraction", nil, "completed")
	b.refused(t, 404, "training_not_found", "POST", "/api/v1/trainings/none/extract-features?dataset_id="+w.dataset, nil)
	b.refused(t, 404, "training_not_found", "GET", "/api/v1/trainings/none/extraction-status", nil)
	b.refused(t, 404, "training_not_found", "POST", "/api/v1/trainings/none/cancel-extraction", nil)
}

func TestACommandIsAnsweredThoughItsTablesAreLate(t *testing.T) {
	t.Parallel()
	b := newBundle(t, func(c *httpapi.Config) { c.Wait = 1 })
	w := world{}
	w.model = b.sent(t, 201, "POST", "/api/v1/models/import", map[string]any{"path": b.model(t), "name": "tiny"})["id"].(string)
	w.sae = b.sent(t, 201, "POST", "/api/v1/saes/import/file", map[string]any{"file_path": b.sae(t, "sae", 32, nil), "name": "An SAE", "model_id": w.model})["id"].(string)
	w.dataset = b.sent(t, 201, "POST", "/api/v1/datasets/import", map[string]any{"path": b.dataset(t)})["id"].(string)
	b.stop()
	e := b.sent(t, 202, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset, nil)
	require.Equal(t, "queued", e["status"])
	require.Equal(t, w.sae, e["external_sae_id"])
	require.Contains(t, e["warnings"].([]any)[0], "behind")
	d := b.send(t, "POST", "/api/v1/datasets/import", map[string]any{"path": b.dataset(t)})
	require.Equal(t, http.StatusCreated, d.status, "%s", d.body)
	require.NotEmpty(t, d.header.Get("Featuremill-Position"))
	require.Equal(t, "cancelled", b.sent(t, 200, "POST", "/api/v1/extractions/"+e["id"].(string)+"/cancel", nil)["status"])
}

func TestSeveralSAEsAreStartedTogether(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	request := map[string]any{"sae_ids": []string{w.sae, "sae_unknown", w.sae}, "dataset_id": w.dataset, "evaluation_samples": 12}
	started := b.send(t, "POST", "/api/v1/saes/batch-extract-features", request, "Idempotency-Key", "together")
	require.Equal(t, 200, started.status, "%s", started.body)
	answer := b.sent(t, 200, "POST", "/api/v1/saes/batch-extract-features", request, "Idempotency-Key", "together")
	require.JSONEq(t, string(started.body), string(b.send(t, "POST", "/api/v1/saes/batch-extract-features", request, "Idempotency-Key", "together").body), "a repeat starts nothing")
	require.NotContains(t, answer, "warnings", "all of it is known")
	require.EqualValues(t, 2, answer["total_requested"])
	require.EqualValues(t, 1, answer["total_created"])
	require.EqualValues(t, 1, answer["total_skipped"])
	job := answer["created_jobs"].([]any)[0].(map[string]any)
	require.Equal(t, w.sae, job["sae_id"])
	require.Equal(t, "An SAE", job["sae_name"])
	require.EqualValues(t, 1, job["position"])
	require.Equal(t, "queued", job["status"])
	skipped := answer["skipped_saes"].([]any)[0].(map[string]any)
	require.Equal(t, "sae_unknown", skipped["sae_id"])
	require.Equal(t, "sae_not_found", skipped["code"])

	one := b.sent(t, 200, "GET", "/api/v1/extractions/"+job["job_id"].(string), nil)
	require.Equal(t, answer["batch_id"], one["batch_id"])
	require.EqualValues(t, 1, one["batch_position"])
	require.EqualValues(t, 2, one["batch_total"])
	require.EqualValues(t, 12, one["config"].(map[string]any)["evaluation_samples"])

	again := b.sent(t, 200, "POST", "/api/v1/saes/batch-extract-features", map[string]any{"sae_ids": []string{w.sae}, "dataset_id": w.dataset})
	busy := again["skipped_saes"].([]any)[0].(map[string]any)
	require.Equal(t, "source_busy", busy["code"])
	require.Equal(t, job["job_id"], busy["active_extraction_id"])

	b.refused(t, 404, "dataset_not_found", "POST", "/api/v1/saes/batch-extract-features", map[string]any{"sae_ids": []string{w.sae}, "dataset_id": "none"})
	b.refused(t, 422, "invalid_request", "POST", "/api/v1/saes/batch-extract-features", map[string]any{"sae_ids": []string{}, "dataset_id": w.dataset})
}

func TestAnExtractionSaysWhyItsWorkWaits(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	id := b.sent(t, 202, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset, map[string]any{"evaluation_samples": 12})["id"].(string)
	require.NotContains(t, b.sent(t, 200, "GET", "/api/v1/extractions/"+id, nil), "put_off")
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "worker-1", Kinds: []string{facts.PlanWork}})
	require.NoError(t, err)
	require.NotNil(t, lease)
	require.NoError(t, b.log.PutOff(t.Context(), *lease, eventlog.Pause{After: time.Minute, Cause: "the store is away: 503"}))
	waits := b.sent(t, 200, "GET", "/api/v1/extractions/"+id, nil)["put_off"].([]any)
	require.Len(t, waits, 1)
	plan := waits[0].(map[string]any)
	require.Equal(t, "plan", plan["kind"])
	require.EqualValues(t, 0, plan["attempts"], "an outage uses none up")
	require.NotEmpty(t, plan["not_before"])
	cause := plan["causes"].([]any)[0].(map[string]any)
	require.Equal(t, "the store is away: 503", cause["detail"])
	require.Equal(t, "put off", cause["outcome"])
	require.Equal(t, "worker-1", cause["owner"])
}

func TestAStartOfMoreThanARunMayHaveIsRefusedWithTheNumberThatWorks(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	start := "/api/v1/saes/" + w.sae + "/extract-features?dataset_id=" + w.dataset
	for _, path := range []string{start, start + "&dry_run=true"} {
		p := b.refused(t, 422, "too_many_segments", "POST", path, map[string]any{"evaluation_samples": extraction.MaxSequences}, "evaluation_samples", "65536 segments")
		most := int(p["max_evaluation_samples"].(float64))
		require.Contains(t, p["detail"], fmt.Sprint(most))
		require.Equal(t, "evaluation_samples", p["errors"].([]any)[0].(map[string]any)["name"])
		b.refused(t, 422, "too_many_segments", "POST", path, map[string]any{"evaluation_samples": most + 1})
		status := map[bool]int{true: 200, false: 202}[strings.HasSuffix(path, "dry_run=true")]
		done := b.sent(t, status, "POST", path, map[string]any{"evaluation_samples": most})
		if status == 202 {
			b.sent(t, 200, "POST", "/api/v1/extractions/"+done["id"].(string)+"/cancel", nil)
		}
	}
	b.refused(t, 422, "invalid_request", "POST", start, map[string]any{"evaluation_samples": extraction.MaxSequences + 1})
}

func TestTheTablesOfAnExtractionThatHasEndedAreAskedForAgain(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	id := b.sent(t, 202, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset, map[string]any{"evaluation_samples": 12, "skip_first": 0})["id"].(string)
	b.refused(t, 409, "wrong_status", "POST", "/api/v1/extractions/"+id+"/fold", nil, "queued")
	b.refused(t, 404, "extraction_not_found", "POST", "/api/v1/extractions/ext_none/fold", nil)
	b.finish(t, id)
	held := func() (list []eventlog.WorkStatus) {
		list, err := b.log.ListWork(t.Context(), id)
		require.NoError(t, err)
		return list
	}
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "folder", Kinds: []string{facts.FoldWork}})
	require.NoError(t, err)
	_, err = b.commands.FailFold(t.Context(), command.Call{}, lease.Held(), "artifact_missing", "artifact of segment 1 is not in the store")
	require.NoError(t, err)
	require.Empty(t, held())
	require.Equal(t, "completed", b.sent(t, 200, "GET", "/api/v1/extractions/"+id, nil)["status"])
	again := b.sent(t, 202, "POST", "/api/v1/extractions/"+id+"/fold", nil)
	require.Equal(t, id, again["id"])
	require.Len(t, held(), 1)
	require.Equal(t, facts.FoldWork, held()[0].Work.Kind)
	b.sent(t, 202, "POST", "/api/v1/extractions/"+id+"/fold", nil)
	require.Len(t, held(), 1, "one open fold an extraction")
}
