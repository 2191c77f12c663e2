package httpapi_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/httpapi"
	"github.com/featuremill/featuremill/adapters/hub"
	"github.com/featuremill/featuremill/adapters/hub/hubtest"
	imports "github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

// withHub gives the interface a hub that nobody fetches from: a download stays pending.
func withHub(t *testing.T, tokens *imports.Tokens, repos ...*hubtest.Repo) option {
	t.Helper()
	client, err := hub.New(hub.Config{Endpoint: hubtest.New(t, repos...).URL, Cache: t.TempDir(), Attempts: 1})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	store, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	l, err := imports.New(store, t.TempDir(), nil)
	require.NoError(t, err)
	return func(c *httpapi.Config) { c.Hub, c.Tokens = imports.NewHub(l, client), tokens }
}

func TestADownloadIsAskedForOnceAndItsTokenIsKeptForItAlone(t *testing.T) {
	t.Parallel()
	repo := &hubtest.Repo{Kind: "model", ID: "maker/saes", Private: true, Files: map[string][]byte{"layer_1/cfg.json": []byte("{}"), "layer_1/sae_weights.safetensors": make([]byte, 5000)}}
	tokens := &imports.Tokens{}
	b := newBundle(t, withHub(t, tokens, repo))
	body := map[string]any{"repo_id": "maker/saes", "filepath": "layer_1", "access_token": hubtest.Token}
	one := b.sent(t, http.StatusAccepted, http.MethodPost, "/api/v1/saes/download", body, "Idempotency-Key", "a")
	two := b.sent(t, http.StatusAccepted, http.MethodPost, "/api/v1/saes/download", body, "Idempotency-Key", "a")
	require.Equal(t, one["id"], two["id"])
	id := one["id"].(string)
	require.Equal(t, "pending", one["status"])
	require.Equal(t, "maker/saes/layer_1", one["name"])
	require.Equal(t, repo.Commit, one["hf_revision"])
	require.Equal(t, hubtest.Token, tokens.Get(sae.Stream(id)))
	require.Len(t, b.sent(t, 200, http.MethodGet, "/api/v1/saes?status=pending", nil)["data"], 1)
	require.Empty(t, b.sent(t, 200, http.MethodGet, "/api/v1/saes?status=downloading", nil)["data"])

	b.refused(t, 409, "download_running", http.MethodPost, "/api/v1/saes/"+id+"/redownload", nil)
	off := b.sent(t, 200, http.MethodPost, "/api/v1/saes/"+id+"/cancel-download", nil)
	require.Empty(t, tokens.Get(sae.Stream(id)))
	require.Equal(t, "failed", off["status"])
	require.Equal(t, "download_cancelled", off["error_code"])
	b.refused(t, 409, "wrong_status", http.MethodPost, "/api/v1/saes/"+id+"/cancel-download", nil)
	require.Equal(t, "pending", b.sent(t, 202, http.MethodPost, "/api/v1/saes/"+id+"/redownload", nil)["status"])
	b.refused(t, 404, "sae_not_found", http.MethodPost, "/api/v1/saes/none/redownload", nil)
	b.refused(t, 404, "hub_repo_not_found", http.MethodPost, "/api/v1/saes/hf/preview", map[string]any{"repo_id": "maker/saes"}, "private")
	require.Len(t, b.sent(t, 200, http.MethodPost, "/api/v1/saes/hf/preview", map[string]any{"repo_id": "maker/saes", "access_token": hubtest.Token})["sae_files"], 1)
	b.sent(t, http.StatusOK, http.MethodDelete, "/api/v1/saes/"+id, nil)
}

func TestWithoutAHubNothingIsDownloaded(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.refused(t, 503, "no_hub", http.MethodPost, "/api/v1/models/download", map[string]any{"repo_id": "a/b"})
}

func TestAnImportedModelIsNotDownloadedAgain(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.refused(t, 409, "not_from_hub", http.MethodPost, "/api/v1/models/"+b.world(t).model+"/redownload", nil)
}

func TestAnSAEThatMayBelongToSeveralModelsAsksWhich(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	register := func(id, name string, width int) {
		b.append(t, model.Stream(id), model.Registered{ID: id, Name: name, Origin: model.Origin{Kind: "local"}}, model.Ready{Facts: model.Facts{Family: "llama", Layers: 4, DModel: width}})
	}
	register("m_a", "maker/Pair", 64)
	register("m_b", "other/pair", 64)
	register("m_narrow", "third/pair", 16)
	b.append(t, sae.Stream("both"), sae.Registered{ID: "both", Name: "both", Origin: sae.Origin{Kind: "local"}}, sae.Ready{Facts: sae.Facts{Architecture: "topk", DIn: 64, DSAE: 8, DOut: 64, K: 2, Hook: "blocks.1.hook_resid_post", Layer: 1, ModelName: "pair"}})
	path := "/api/v1/saes/both/extract-features?dataset_id=" + w.dataset
	require.Eventually(t, func() bool { return b.send(t, http.MethodGet, "/api/v1/saes/both", nil).status == 200 }, 10*time.Second, 10*time.Millisecond)
	p := b.refused(t, 422, "model_unknown", http.MethodPost, path, map[string]any{}, "m_a", "m_b")
	require.Len(t, p["candidates"], 2, "the narrow one does not fit")
	b.append(t, sae.Stream("none"), sae.Registered{ID: "none", Name: "none", Origin: sae.Origin{Kind: "local"}}, sae.Ready{Facts: sae.Facts{Architecture: "topk", DIn: 64, DSAE: 8, DOut: 64, K: 2, Hook: "blocks.1.hook_resid_post", Layer: 1, ModelName: "impair"}})
	p = b.refused(t, 422, "model_unknown", http.MethodPost, "/api/v1/saes/none/extract-features?dataset_id="+w.dataset, map[string]any{}, "impair")
	require.Len(t, p["candidates"], 2, "by width, never by a part of the name")
}
