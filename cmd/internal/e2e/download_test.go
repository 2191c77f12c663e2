package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/hub/hubtest"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/sae"
)

// backend builds featuremill alone: a download needs no libtorch.
func backend(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("FEATUREMILL_TEST_BINARIES"); dir != "" {
		return filepath.Join(dir, "featuremill")
	}
	path := filepath.Join(t.TempDir(), "featuremill")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./cmd/featuremill")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return path
}

// files reads a folder of testdata as a repository has it.
func files(t testing.TB, dir, at string) map[string][]byte {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	out := map[string][]byte{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		out[at+e.Name()] = b
	}
	return out
}

// office is an installation without a worker, and a hub.
type office struct {
	*stack
	hub   *hubtest.Server
	path  string
	url   string
	cache string
}

var listening = regexp.MustCompile(`msg=listening .*address=(\S+)`)

// open starts the backend and waits until it answers.
func (o *office) open() *process {
	o.t.Helper()
	args := o.args("serve", "--roles", "api,relay,projector", "--listen", "127.0.0.1:0", "--hub-endpoint", o.hub.URL, "--hub-cache", o.cache)
	p := start(o.t, "backend", o.path, args, append([]string{"HF_TOKEN=", "HF_TOKEN_PATH=/nowhere"}, fast...))
	o.await("the API", func() bool {
		require.False(o.t, p.Ended(), "%s", p.out)
		m := listening.FindStringSubmatch(p.out.String())
		if m == nil {
			return false
		}
		o.url = "http://" + m[1] + "/api/v1"
		return true
	})
	return p
}

func (o *office) send(method, path string, body any) (status int, out map[string]any) {
	o.t.Helper()
	var in io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		require.NoError(o.t, err)
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(o.t.Context(), method, o.url+path, in)
	require.NoError(o.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(o.t, err)
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(o.t, err)
	require.NoError(o.t, json.Unmarshal(raw, &out), "%s", raw)
	return resp.StatusCode, out
}

func (o *office) post(status int, path string, body any) map[string]any {
	o.t.Helper()
	got, out := o.send(http.MethodPost, path, body)
	require.Equal(o.t, status, got, "%s: %v", path, out)
	return out
}

// becomes waits until something has a status.
func (o *office) becomes(path, status string) (out map[string]any) {
	o.t.Helper()
	o.await(path+" "+status, func() bool {
		_, out = o.send(http.MethodGet, path, nil)
		if status == "ready" {
			require.NotEqual(o.t, "failed", out["status"], "%v", out)
		}
		return out["status"] == status
	})
	return out
}

func newOffice(t *testing.T, repos ...*hubtest.Repo) *office {
	t.Helper()
	s := &stack{t: t, state: t.TempDir(), dsn: pgtest.New(t), broker: kafkatest.Start(t)}
	registry, err := facts.Registry()
	require.NoError(t, err)
	s.log, err = postgres.Open(t.Context(), s.dsn, postgres.Config{Registry: registry, Effects: facts.Effects, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(s.log.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return &office{stack: s, hub: hubtest.New(t, repos...), path: backend(t), cache: t.TempDir()}
}

func library3(t *testing.T) (m, s, d *hubtest.Repo) {
	t.Helper()
	m = &hubtest.Repo{Kind: "model", ID: "maker/e2e-llama", Files: files(t, "testdata/model", "")}
	s = &hubtest.Repo{Kind: "model", ID: "maker/saes", Files: files(t, "testdata/sae", "layer_1/width_1k/")}
	for name, b := range files(t, "testdata/sae", "layer_2/") {
		s.Files[name] = b
	}
	s.Files["README.md"] = []byte("---\nlicense: mit\n---\n# Two tiny SAEs\n")
	texts, err := os.ReadFile("testdata/texts.jsonl")
	require.NoError(t, err)
	lines := bytes.SplitAfter(bytes.TrimSpace(texts), []byte("\n"))
	half := len(lines) / 2
	d = &hubtest.Repo{Kind: "dataset", ID: "maker/texts", Files: map[string][]byte{
		"README.md":        []byte("---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/*\n---\n"),
		"en/a.jsonl":       bytes.Join(lines[:half], nil),
		"en/b.jsonl":       append(bytes.Join(lines[half:], nil), '\n'),
		"other/more.jsonl": []byte(`{"text": "not asked for"}` + "\n"),
	}}
	return m, s, d
}

func TestADownloadSurvivesTheKillOfItsProcess(t *testing.T) {
	m, saes, texts := library3(t)
	o := newOffice(t, m, saes, texts)
	o.hub.Behave(func(b *hubtest.Behaviour) { b.Cut = 30_000 })
	var held, killed atomic.Bool
	o.hub.Behave(func(b *hubtest.Behaviour) {
		b.Hold = func(file string, at int64, gone <-chan struct{}) {
			if at > 120_000 && strings.HasSuffix(file, "model.safetensors") && !killed.Load() {
				held.Store(true)
				<-gone
			}
		}
	})
	backend := o.open()

	p := o.post(200, "/saes/hf/preview", map[string]any{"repo_id": "maker/saes"})
	require.Equal(t, []any{"layer_1/width_1k", "layer_2"}, p["sae_paths"])
	require.Equal(t, "e2e-llama", p["model_name"])
	require.Equal(t, "Two tiny SAEs", p["description"])
	require.InDelta(t, 1, p["sae_files"].([]any)[0].(map[string]any)["layer"], 0)

	one := o.post(202, "/models/download", map[string]any{"repo_id": "maker/e2e-llama", "quantization": "FP16"})
	model := "/models/" + one["id"].(string)
	require.Equal(t, m.Commit, one["hf_revision"])
	require.NotEmpty(t, one["warnings"])
	o.await("half of the model", held.Load)
	require.Equal(t, "downloading", o.becomes(model, "downloading")["status"])
	o.await("its progress", func() bool {
		_, out := o.send(http.MethodGet, model, nil)
		share, _ := out["progress"].(float64)
		return share > 40 && share < 90 && out["download"] != nil
	})
	_, again := o.send(http.MethodPost, "/models/download", map[string]any{"repo_id": "maker/e2e-llama"})
	require.Equal(t, "model_exists", again["code"])

	backend.Kill()
	killed.Store(true)
	sent := o.hub.Sent()
	o.open()
	ready := o.becomes(model, "ready")
	require.InDelta(t, 100, ready["progress"], 0)
	require.Equal(t, m.Commit, ready["hf_revision"])
	require.InDelta(t, 32, ready["d_model"], 0)
	require.Less(t, o.hub.Sent()-sent, int64(120_000), "what had arrived is not fetched again")

	two := o.post(202, "/saes/download", map[string]any{"repo_id": "maker/saes", "filepath": "layer_1/width_1k", "name": "tiny"})
	linked := o.becomes("/saes/"+two["id"].(string), "ready")
	require.Equal(t, one["id"], linked["model_id"], "it names e2e-llama, and there is one")
	require.Equal(t, "layer_1/width_1k", linked["hf_filepath"])
	require.Equal(t, saes.Commit, linked["hf_revision"])
	require.Equal(t, "blocks.1.hook_resid_post", linked["hook"])

	three := o.post(202, "/datasets/download", map[string]any{"repo_id": "maker/texts"})
	all := o.becomes("/datasets/"+three["id"].(string), "ready")
	four := o.post(202, "/datasets/download", map[string]any{"repo_id": "maker/texts", "config": "en", "split": "train", "max_rows": 3})
	first := o.becomes("/datasets/"+four["id"].(string), "ready")
	require.InDelta(t, 3, first["num_samples"], 0)
	require.Less(t, first["size_bytes"], all["size_bytes"], "the second file was not needed")

	// What is kept is what the hub has, and the log tells the whole story.
	state, _, err := loadSAE(o, two["id"].(string))
	require.NoError(t, err)
	for _, f := range state.Facts.Files {
		require.Equal(t, hubtest.SHA256(saes.Files[f.Name]), f.SHA256)
	}
	events, err := o.log.ReadStream(t.Context(), "model-"+one["id"].(string), 0)
	require.NoError(t, err)
	var types []string
	for _, e := range events {
		types = append(types, e.Type)
		require.NotContains(t, string(e.Data)+string(e.Metadata), hubtest.Token)
	}
	require.Equal(t, []string{"ModelRegistered", "ModelDownloadRequested", "ModelReady"}, types)
	out, code := run(t, o.path, o.args("events", "verify")...)
	require.Zero(t, code, "%s", out)
}

func loadSAE(o *office, id string) (sae.State, int64, error) {
	var state sae.State
	registry, err := facts.Registry()
	if err != nil {
		return state, 0, err
	}
	events, err := o.log.ReadStream(o.t.Context(), sae.Stream(id), 0)
	for _, e := range events {
		d, err := registry.Decode(e)
		if err != nil {
			return state, 0, err
		}
		state = state.Evolve(d)
	}
	return state, int64(len(events)), err
}

func TestADownloadIsRefusedFailsAndIsAskedForAgain(t *testing.T) {
	m, saes, texts := library3(t)
	gated := &hubtest.Repo{Kind: "model", ID: "maker/gated", Files: saes.Files, Gated: true}
	broken := &hubtest.Repo{Kind: "model", ID: "maker/broken", Files: map[string][]byte{"cfg.json": []byte("{}"), "sae_weights.safetensors": []byte(strings.Repeat("x", 5000))}}
	o := newOffice(t, m, saes, texts, gated, broken)
	var hold atomic.Bool
	hold.Store(true)
	o.hub.Behave(func(b *hubtest.Behaviour) {
		b.Hold = func(file string, at int64, gone <-chan struct{}) {
			if at > 0 && hold.Load() && strings.HasSuffix(file, "model.safetensors") {
				<-gone
			}
		}
	})
	backend := o.open()
	for _, c := range []struct {
		name, path string
		body       map[string]any
		status     int
		code       string
	}{
		{"no such repository", "/models/download", map[string]any{"repo_id": "maker/none"}, 404, "hub_repo_not_found"},
		{"no such revision", "/saes/download", map[string]any{"repo_id": "maker/saes", "filepath": "layer_2", "revision": "v9"}, 404, "hub_revision_not_found"},
		{"no such SAE", "/saes/download", map[string]any{"repo_id": "maker/saes", "filepath": "layer_3"}, 422, "hub_file_not_found"},
		{"several SAEs", "/saes/download", map[string]any{"repo_id": "maker/saes"}, 422, "hub_unsuitable"},
		{"a token that is none", "/saes/hf/preview", map[string]any{"repo_id": "maker/saes", "access_token": "hf_wrong"}, 403, "hub_bad_token"},
		{"a quantization that is not there", "/models/download", map[string]any{"repo_id": "maker/e2e-llama", "quantization": "Q4"}, 422, "hub_unsuitable"},
		{"code of the repository", "/models/download", map[string]any{"repo_id": "maker/e2e-llama", "trust_remote_code": true}, 422, "invalid_request"},
		{"no such split", "/datasets/download", map[string]any{"repo_id": "maker/texts", "split": "test"}, 422, "hub_unsuitable"},
		{"a model that is not there", "/saes/download", map[string]any{"repo_id": "maker/saes", "filepath": "layer_2", "model_id": "m_none"}, 404, "model_not_found"},
		{"a name that is none", "/models/download", map[string]any{"repo_id": "../../etc"}, 422, "hub_bad_reference"},
	} {
		status, out := o.send(http.MethodPost, c.path, c.body)
		require.Equal(t, c.status, status, "%s: %v", c.name, out)
		require.Equal(t, c.code, out["code"], c.name)
	}

	// A gated repository: without a token it fails in words, with one it arrives, and the token is nowhere.
	refusedSAE := o.post(202, "/saes/download", map[string]any{"repo_id": "maker/gated", "filepath": "layer_2"})
	failed := o.becomes("/saes/"+refusedSAE["id"].(string), "failed")
	require.Equal(t, "hub_gated", failed["error_code"])
	require.Contains(t, failed["error_message"], "accept its conditions")
	let := o.post(202, "/saes/download", map[string]any{"repo_id": "maker/gated", "filepath": "layer_2", "access_token": hubtest.Token})
	arrived := o.becomes("/saes/"+let["id"].(string), "ready")
	require.Nil(t, arrived["model_id"], "no model of that name is there yet")
	require.NotContains(t, backend.out.String(), hubtest.Token)
	all, err := o.log.ReadAll(t.Context(), 0, 1000)
	require.NoError(t, err)
	for _, e := range all {
		require.NotContains(t, string(e.Data)+string(e.Metadata), hubtest.Token)
	}
	for _, q := range o.hub.Requests() {
		require.False(t, q.CDN && q.Authorization != "", "the token went to another host")
	}

	bad := o.post(202, "/saes/download", map[string]any{"repo_id": "maker/broken"})
	require.NotEmpty(t, o.becomes("/saes/"+bad["id"].(string), "failed")["error_message"])

	// Called off, and asked for again.
	one := o.post(202, "/models/download", map[string]any{"repo_id": "maker/e2e-llama"})
	model := "/models/" + one["id"].(string)
	o.becomes(model, "downloading")
	frames, stop := o.events(t)
	status, _ := o.send(http.MethodDelete, model+"/cancel", nil)
	require.Equal(t, 200, status)
	require.Equal(t, "download_cancelled", o.becomes(model, "failed")["error_code"])
	stop()
	require.Contains(t, frames(), "event: download\ndata: {\"kind\":\"model\",\"id\":\""+one["id"].(string))
	hold.Store(false)
	o.post(202, model+"/redownload", nil)
	o.becomes(model, "ready")
	_, out := o.send(http.MethodPost, model+"/redownload", nil)
	require.Equal(t, "wrong_status", out["code"])

	// The command line does the same.
	said, code := run(t, o.path, "import", "sae", "hf:maker/saes@main:layer_2", "--api", strings.TrimSuffix(o.url, "/api/v1"))
	require.Zero(t, code, "%s", said)
	require.Contains(t, said, "commit "+saes.Commit)
	said, code = run(t, o.path, "import", "dataset", "maker/texts:en", "--max-rows", "2", "--api", strings.TrimSuffix(o.url, "/api/v1"))
	require.Zero(t, code, "%s", said)
	said, code = run(t, o.path, "import", "sae", "hf:maker/none:x", "--api", strings.TrimSuffix(o.url, "/api/v1"))
	require.NotZero(t, code)
	require.Contains(t, said, "the hub has no model repository maker/none")
	require.Zero(t, backend.Stop())
}

// events reads the event stream until stop.
func (o *office) events(t *testing.T) (got func() string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url+"/events", http.NoBody)
	require.NoError(t, err)
	said := &output{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(said, resp.Body)
	}()
	o.await("an event", func() bool { return strings.Contains(said.String(), "event: download") })
	return said.String, func() {
		cancel()
		<-done
	}
}
