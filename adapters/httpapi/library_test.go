package httpapi_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatIsImportedCanBeListedNamedAndDeleted(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)

	m := b.send(t, "GET", "/api/v1/models/"+w.model, nil)
	require.Equal(t, 200, m.status)
	require.Equal(t, `"2"`, m.header.Get("ETag"))
	require.NotEmpty(t, m.header.Get("Featuremill-Position"))
	models := b.sent(t, 200, "GET", "/api/v1/models?page=1&limit=10&search=TIN", nil)
	require.EqualValues(t, 1, models["pagination"].(map[string]any)["total"])
	first := models["data"].([]any)[0].(map[string]any)
	require.Equal(t, "tiny", first["name"])
	require.Equal(t, "llama", first["family"])
	require.Positive(t, first["params_count"])

	one := b.sent(t, 200, "GET", "/api/v1/saes/"+w.sae, nil)
	require.Equal(t, w.model, one["model_id"], "its config names the model")
	require.EqualValues(t, latents, one["n_features"])
	require.Equal(t, "residual", one["hook_type"])
	require.EqualValues(t, 100, one["progress"])
	list := b.sent(t, 200, "GET", "/api/v1/saes?skip=0&limit=20&sort_by=name&order=asc&source=local&status=ready&search=sae&model_name=tin", nil)
	require.Len(t, list["data"], 1)
	require.Equal(t, map[string]any{"skip": 0.0, "limit": 20.0, "total": 1.0, "has_more": false}, list["pagination"])
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/saes?search=nothing", nil)["data"])

	d := b.sent(t, 200, "GET", "/api/v1/datasets/"+w.dataset, nil)
	require.EqualValues(t, 3, d["num_samples"])
	require.Equal(t, "speeches", d["name"])
	require.Len(t, b.sent(t, 200, "GET", "/api/v1/datasets", nil)["data"], 1)
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/corpora", nil)["data"])
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/trainings?status=running", nil)["data"])

	b.sent(t, 204, "DELETE", "/api/v1/models/"+w.model, nil)
	require.Equal(t, "deleted", b.sent(t, 200, "GET", "/api/v1/models/"+w.model, nil)["status"])
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/models", nil)["data"])
	b.sent(t, 204, "DELETE", "/api/v1/datasets/"+w.dataset, nil)
	require.Contains(t, b.sent(t, 200, "DELETE", "/api/v1/saes/"+w.sae, nil)["message"], w.sae)
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/saes", nil)["data"])
}

func TestAnSAEIsRenamedAndLinkedByWhoeverSawItsNewestVersion(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	path := "/api/v1/saes/" + w.sae
	seen := b.send(t, "GET", path, nil).header.Get("ETag")
	a := b.send(t, "PATCH", path, map[string]any{"name": "Renamed", "description": "what it is", "nonsense": 1}, "If-Match", seen)
	require.Equal(t, 200, a.status, "%s", a.body)
	require.NotEqual(t, seen, a.header.Get("ETag"))
	require.Contains(t, string(a.body), "nonsense is not known")
	one := b.sent(t, 200, "GET", path, nil)
	require.Equal(t, "Renamed", one["name"])
	require.Equal(t, "what it is", one["description"])

	stale := b.sent(t, 412, "PATCH", path, map[string]any{"name": "Again"}, "If-Match", seen)
	require.Equal(t, "stale", stale["code"])
	b.sent(t, 412, "PATCH", path, map[string]any{"name": "Again"}, "If-Match", "nonsense")
	b.refused(t, 404, "model_not_found", "PATCH", path, map[string]any{"model_id": "m_none", "name": "Not this"})
	require.Equal(t, "Renamed", b.sent(t, 200, "GET", path, nil)["name"], "a link that is refused changes nothing")
	require.NotContains(t, b.sent(t, 200, "PATCH", path, map[string]any{"description": "", "model_id": w.model}), "description")
}

func TestWhatCannotBeImportedSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	before := b.head(t)
	file := func(name, text string) string {
		path := filepath.Join(b.root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	sae := func(path string, more map[string]any) map[string]any {
		body := map[string]any{"file_path": path, "name": "x"}
		for k, v := range more {
			body[k] = v
		}
		return body
	}
	truncated := b.sae(t, "truncated", 32, nil)
	weights := filepath.Join(truncated, "sae_weights.safetensors")
	raw, err := os.ReadFile(weights)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(weights, raw[:len(raw)/2], 0o600))
	nan := b.sae(t, "nan", 32, nil)
	weights = filepath.Join(nan, "sae_weights.safetensors")
	raw, err = os.ReadFile(weights)
	require.NoError(t, err)
	copy(raw[len(raw)-4:], []byte{0, 0, 0xc0, 0x7f})
	require.NoError(t, os.WriteFile(weights, raw, 0o600))
	outside := filepath.Join(t.TempDir(), "x.jsonl")
	require.NoError(t, os.WriteFile(outside, []byte(`{"text":"a"}`), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(b.root, "link.jsonl")))
	half := b.sae(t, "half/layer_1", 32, nil)
	_ = half
	b.sae(t, "half/layer_9", 32, map[string]any{"hook_name": "blocks.9.hook_resid_post"})

	file("splits/test.jsonl", `{"text":"a"}`)
	splits := filepath.Dir(file("splits/train.jsonl", `{"text":"a"}`+"\n"+`{"text":"b"}`+"\n"+`{"text":"c"}`))
	for _, c := range []struct {
		name, path, code string
		status           int
		body             any
		words            []string
	}{
		{"a missing file", "/api/v1/models/import", "file_not_found", 422, map[string]any{"path": filepath.Join(b.root, "none")}, []string{"none"}},
		{"a path outside the roots", "/api/v1/datasets/import", "path_not_allowed", 422, map[string]any{"path": outside}, []string{b.root}},
		{"a link that leads outside the roots", "/api/v1/datasets/import", "path_not_allowed", 422, map[string]any{"path": filepath.Join(b.root, "link.jsonl")}, nil},
		{"a folder that is no model", "/api/v1/models/import", "unreadable_model", 422, map[string]any{"path": b.root}, nil},
		{"a model family that is not known", "/api/v1/models/import", "unreadable_model", 422, map[string]any{"path": filepath.Dir(file("other/config.json", `{"model_type":"mamba"}`))}, []string{"mamba"}},
		{"a dataset without the column", "/api/v1/datasets/import", "unreadable_dataset", 422, map[string]any{"path": b.dataset(t), "text_column": "body"}, []string{"body", "text"}},
		{"a truncated dataset", "/api/v1/datasets/import", "unreadable_dataset", 422, map[string]any{"path": file("cut.jsonl", `{"text":"a"}`+"\n"+`{"text":`)}, nil},
		{"an empty dataset", "/api/v1/datasets/import", "", 422, map[string]any{"path": file("empty.jsonl", "")}, nil},
		{"a dataset of several splits", "/api/v1/datasets/import", "unreadable_dataset", 422, map[string]any{"path": splits}, []string{"which split?", "test, train"}},
		{"a split that is not there", "/api/v1/datasets/import", "unreadable_dataset", 422, map[string]any{"path": splits, "split": "dev"}, []string{"test, train"}},
		{"no rows asked for", "/api/v1/datasets/import", "", 422, map[string]any{"path": splits, "split": "test", "max_rows": 0}, nil},
		{"a truncated SAE", "/api/v1/saes/import/file", "unreadable_sae", 422, sae(truncated, nil), nil},
		{"NaN weights", "/api/v1/saes/import/file", "unreadable_sae", 422, sae(nan, nil), []string{"NaN"}},
		{"shapes that contradict the config", "/api/v1/saes/import/file", "unreadable_sae", 422, sae(b.sae(t, "shapes", 32, map[string]any{"d_in": 16}), nil), nil},
		{"k of zero", "/api/v1/saes/import/file", "unreadable_sae", 422, sae(b.sae(t, "k", 32, map[string]any{"k": 0}), nil), nil},
		{"an unknown architecture", "/api/v1/saes/import/file", "unreadable_sae", 422, sae(b.sae(t, "architecture", 32, map[string]any{"architecture": "quantum"}), nil), []string{"quantum"}},
		{"an unknown hook", "/api/v1/saes/import/file", "unknown_hook", 422, sae(b.sae(t, "hook", 32, map[string]any{"hook_name": "blocks.1.hook_nonsense"}), nil), []string{"hook_resid_post"}},
		{"a layer that contradicts the checkpoint", "/api/v1/saes/import/file", "layer_contradicts_checkpoint", 422, sae(b.sae(t, "layer", 32, nil), map[string]any{"layer": 7}), []string{"blocks.1.hook_resid_post"}},
		{"an SAE of another width", "/api/v1/saes/import/file", "sae_does_not_fit_model", 422, sae(b.sae(t, "wide", 48, nil), map[string]any{"model_id": w.model}), []string{"48", "32"}},
		{"an SAE of another width that names the model", "/api/v1/saes/import/file", "sae_does_not_fit_model", 422, sae(b.sae(t, "wide", 48, nil), nil), []string{"48", "32"}},
		{"an SAE of a layer that is not there", "/api/v1/saes/import/file", "sae_does_not_fit_model", 422, sae(b.sae(t, "deep", 32, map[string]any{"hook_name": "blocks.9.hook_resid_post"}), nil), []string{"layers 0 to 1"}},
		{"an unknown model", "/api/v1/saes/import/file", "model_not_found", 404, sae(b.sae(t, "fine", 32, nil), map[string]any{"model_id": "m_none"}), []string{"m_none"}},
		{"no scaling factor", "/api/v1/saes/import/file", "scaling_factor_missing", 422, sae(b.sae(t, "scaled", 32, map[string]any{"normalize_activations": "expected_average_only_in"}), nil), nil},
		{"a training of which one SAE does not fit", "/api/v1/trainings/import", "sae_does_not_fit_model", 422, map[string]any{"path": filepath.Join(b.root, "half"), "training_id": "t1", "model_id": w.model}, nil},
		{"a training's id that looks like an SAE's", "/api/v1/trainings/import", "invalid_request", 422, map[string]any{"path": b.root, "training_id": "sae_1", "model_id": w.model}, []string{"training_id"}},
		{"a model's id with a slash", "/api/v1/models/import", "invalid_request", 422, map[string]any{"path": b.root, "id": "a/b"}, []string{"id"}},
		{"nothing at all", "/api/v1/saes/import/file", "invalid_request", 422, map[string]any{}, []string{"file_path: is required", "name: is required"}},
		{"no body", "/api/v1/saes/import/file", "invalid_request", 422, nil, []string{"body"}},
		{"a NUL", "/api/v1/saes/import/file", "invalid_request", 422, `{"file_path":"x","name":"a\u0000b"}`, []string{"U+0000"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := b.sent(t, c.status, "POST", c.path, c.body)
			if c.code != "" {
				require.Equal(t, c.code, p["code"], "%v", p)
			}
			require.NotEmpty(t, p["detail"])
			for _, word := range c.words {
				require.Contains(t, p["detail"], word)
			}
		})
	}
	require.Equal(t, before, b.head(t), "nothing was recorded")
}

func (b *bundle) head(t *testing.T) int64 {
	t.Helper()
	position, _, err := b.log.Head(t.Context())
	require.NoError(t, err)
	return position
}

func TestATrainingIsImportedAndItsSAEsBecomeSAEsOfTheirOwn(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	b.sae(t, "run/layer_0", 32, map[string]any{"hook_name": "blocks.0.hook_resid_post"})
	b.sae(t, "run/layer_1", 32, map[string]any{"hook_name": "blocks.1.hook_mlp_out"})
	body := map[string]any{"path": filepath.Join(b.root, "run"), "training_id": "t_1", "model_id": w.model, "name": "A run"}
	a := b.send(t, "POST", "/api/v1/trainings/import", body)
	require.Equal(t, 201, a.status, "%s", a.body)
	require.Equal(t, "/api/v1/trainings/t_1", a.header.Get("Location"))
	b.refused(t, 409, "training_exists", "POST", "/api/v1/trainings/import", body)

	one := b.sent(t, 200, "GET", "/api/v1/trainings/t_1", nil)
	require.Len(t, one["saes"], 2)
	require.Equal(t, []any{0.0, 1.0}, one["hyperparameters"].(map[string]any)["training_layers"])
	list := b.sent(t, 200, "GET", "/api/v1/trainings?page=1&limit=5&model_id="+w.model, nil)
	require.Len(t, list["data"], 1)
	require.EqualValues(t, 1, list["status_counts"].(map[string]any)["completed"])

	p := b.refused(t, 422, "training_has_several_saes", "POST", "/api/v1/trainings/t_1/extract-features?dataset_id="+w.dataset, nil, "blocks.0.hook_resid_post")
	require.Len(t, p["choices"], 2)

	b.refused(t, 422, "no_sae_chosen", "POST", "/api/v1/saes/import/training", map[string]any{"training_id": "t_1", "import_all": false, "layers": []int{7}})
	b.refused(t, 404, "training_not_found", "POST", "/api/v1/saes/import/training", map[string]any{"training_id": "t_none"})
	done := b.sent(t, 201, "POST", "/api/v1/saes/import/training", map[string]any{"training_id": "t_1", "import_all": false, "hook_types": []string{"mlp"}})
	require.EqualValues(t, 1, done["imported_count"])
	mine := done["saes"].([]any)[0].(map[string]any)
	require.Equal(t, "trained", mine["source"])
	require.Equal(t, "t_1", mine["training_id"])
	require.EqualValues(t, 1, mine["layer"])
	require.Equal(t, w.model, mine["model_id"])

	again := b.sent(t, 201, "POST", "/api/v1/saes/import/training", map[string]any{"training_id": "t_1"}, "Idempotency-Key", "all")
	require.EqualValues(t, 1, again["imported_count"], "the other one only")
	require.Len(t, again["sae_ids"], 2)
	available := b.sent(t, 200, "GET", "/api/v1/saes/training/t_1/available", nil)
	require.Len(t, available["available_saes"], 2)
	require.Len(t, available["imported_saes"], 2)

	gone := b.sent(t, 200, "POST", "/api/v1/saes/delete", map[string]any{"sae_ids": []any{mine["id"], "sae_none"}, "delete_files": false})
	require.EqualValues(t, 1, gone["deleted_count"])
	require.Contains(t, fmt.Sprint(gone["errors"]), "sae_none")
	b.sent(t, 204, "DELETE", "/api/v1/trainings/t_1", nil)
	b.refused(t, 404, "training_not_found", "DELETE", "/api/v1/trainings/none", nil)
}

func TestADatasetIsImportedBySplitAndByItsFirstRows(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	folder := filepath.Join(b.root, "splits")
	require.NoError(t, os.MkdirAll(folder, 0o700))
	for name, rows := range map[string]int{"train.jsonl": 5, "test.jsonl": 2} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(strings.Repeat(`{"text":"Four score"}`+"\n", rows)), 0o600))
	}
	train := b.sent(t, 201, "POST", "/api/v1/datasets/import", map[string]any{"path": folder, "split": "train", "max_rows": 3})
	require.EqualValues(t, 3, train["num_samples"])
	test := b.sent(t, 201, "POST", "/api/v1/datasets/import", map[string]any{"path": folder, "split": "test"})
	require.EqualValues(t, 2, test["num_samples"])
}

func TestAModelNeedsATokenizer(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	dir := b.model(t)
	require.NoError(t, os.Remove(filepath.Join(dir, "tokenizer.json")))
	b.refused(t, 422, "tokenizer_missing", "POST", "/api/v1/models/import", map[string]any{"path": dir})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.model"), []byte("\x0a\x05\x0a\x03abc"), 0o600)) // a unigram model of one piece
	refused := b.sent(t, 422, "POST", "/api/v1/models/import", map[string]any{"path": dir})
	require.Contains(t, refused["detail"], "not a BPE model but unigram; give the model's tokenizer.json")
}

func TestAnImportThatIsSentTwiceHappensOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	body := map[string]any{"path": b.dataset(t)}
	first := b.sent(t, 201, "POST", "/api/v1/datasets/import", body, "Idempotency-Key", "k")
	second := b.sent(t, 201, "POST", "/api/v1/datasets/import", body, "Idempotency-Key", "k")
	require.Equal(t, first["id"], second["id"])
	require.Len(t, b.sent(t, 200, "GET", "/api/v1/datasets", nil)["data"], 1)
	other := b.sent(t, 422, "POST", "/api/v1/datasets/import", map[string]any{"path": b.dataset(t), "name": "x"}, "Idempotency-Key", "k")
	require.Equal(t, "idempotency_key_reused", other["code"])
}

func TestListsRefuseWhatTheyDoNotKnow(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for path, field := range map[string]string{
		"/api/v1/saes?status=nice": "status", "/api/v1/saes?source=moon": "source", "/api/v1/saes?limit=0": "limit", "/api/v1/saes?limit=101": "limit", "/api/v1/saes?skip=-1": "skip",
		"/api/v1/models?page=0": "page", "/api/v1/datasets?order=up": "order", "/api/v1/models?limit=x": "limit", "/api/v1/extractions?status_filter=a": "status_filter",
		"/api/v1/trainings?status=": "status", "/api/v1/saes?limit=1e1": "limit",
	} {
		p := b.refused(t, 422, "invalid_request", "GET", path, nil)
		require.Equal(t, field, p["errors"].([]any)[0].(map[string]any)["name"], path)
	}
	p := b.refused(t, 422, "invalid_request", "GET", "/api/v1/saes?limit=0&skip=-1&order=up", nil)
	require.Len(t, p["errors"], 3, "every field that is wrong")
	for _, path := range []string{"/api/v1/saes?sort_by=nonsense", "/api/v1/saes?search=", "/api/v1/saes?unknown=1"} {
		b.sent(t, 200, "GET", path, nil)
	}
	for path, code := range map[string]string{
		"/api/v1/models/x": "model_not_found", "/api/v1/saes/x": "sae_not_found", "/api/v1/datasets/x": "dataset_not_found", "/api/v1/corpora/x": "corpus_not_found", "/api/v1/trainings/x": "training_not_found",
	} {
		b.refused(t, 404, code, "GET", path, nil)
	}
}

func TestACheckpointWhoseTextsCannotBeKeptIsRefusedByName(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	for name, change := range map[string]struct {
		change map[string]any
		field  string
	}{
		"a model's name with U+0000": {map[string]any{"model_name": "tiny\x00"}, "facts.model_name"},
		"a hook with U+0000":         {map[string]any{"hook_name": "blocks.1.hook_resid_post\x00"}, ""},
	} {
		at := b.sae(t, strings.ReplaceAll(name, " ", "_"), 32, change.change)
		a := b.send(t, "POST", "/api/v1/saes/import/file", map[string]any{"file_path": at, "name": "An SAE"})
		require.Equal(t, 422, a.status, "%s: %s", name, a.body)
		if change.field != "" {
			require.Contains(t, string(a.body), change.field, name)
			require.Contains(t, string(a.body), "U+0000", name)
		}
	}
	require.Empty(t, b.sent(t, 200, "GET", "/api/v1/saes", nil)["data"], "nothing was registered")
}
