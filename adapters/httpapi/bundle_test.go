package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/httpapi"
	imports "github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
	"github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector"
	"github.com/featuremill/featuremill/schema"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(pgtest.Main(m), goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// specification is schema/openapi.yaml as another implementation reads it.
var specification = sync.OnceValues(func() (*openapi3.T, error) {
	return openapi3.NewLoader().LoadFromData(schema.OpenAPI())
})

type bundle struct {
	handler  *httpapi.Handler
	server   *httptest.Server
	client   *http.Client
	router   routers.Router
	log      *postgres.Log
	commands *command.Handler
	folder   *features.Folder
	root     string // of what may be imported
	memory   *memory
	stop     func() // the projections
}

type option func(*httpapi.Config)

func newBundle(t *testing.T, options ...option) *bundle {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	registry, err := facts.Registry()
	require.NoError(t, err)
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry, Effects: facts.Effects, Refuse: facts.Storable, Logger: quiet, Connections: 20})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	b := &bundle{log: log, commands: command.NewHandler(log, registry, time.Now), root: t.TempDir(), memory: newMemory(12)}

	var runners []*projector.Runner
	for _, p := range []projector.Projection{library.Projection{}, extractions.Projection{}, features.Projection{}} {
		r, err := projector.New(projector.Config{Pool: log.Pool(), Log: log, Registry: registry, Logger: quiet, Retry: time.Millisecond, Poll: 5 * time.Millisecond}, p)
		require.NoError(t, err)
		require.NoError(t, r.Setup(t.Context()))
		runners = append(runners, r)
	}
	positions := projector.NewPositions(log.Pool(), quiet)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = positions.Run(ctx) })
	for _, r := range runners {
		running.Go(func() { _ = r.Run(ctx, nil) })
	}
	b.stop = func() { cancel(); running.Wait() }
	t.Cleanup(b.stop)
	b.folder = features.NewFolder(features.FolderConfig{Pool: log.Pool(), Readers: b.memory})

	store, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	files, err := imports.New(store, t.TempDir(), []string{b.root})
	require.NoError(t, err)
	cfg := httpapi.Config{
		Commands: b.commands, Imports: files, Log: log, Library: library.NewQueries(log.Pool()), Extractions: extractions.NewQueries(log.Pool(), nil),
		Features: features.NewQueries(log.Pool()), Positions: positions, Logger: quiet, Tick: 20 * time.Millisecond, Wait: 10 * time.Second,
	}
	for _, o := range options {
		o(&cfg)
	}
	b.handler, err = httpapi.New(cfg)
	require.NoError(t, err)
	b.server = httptest.NewServer(b.handler)
	t.Cleanup(func() { b.handler.Close(); b.server.Close() })
	b.client = b.server.Client()
	doc, err := specification()
	require.NoError(t, err)
	b.router, err = gorillamux.NewRouter(doc)
	require.NoError(t, err)
	return b
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// send sends a request and checks the answer, and what was asked for where it was granted, against the specification.
func (b *bundle) send(t require.TestingT, method, path string, body any, headers ...string) answer {
	var reader io.Reader = http.NoBody
	var raw []byte
	switch v := body.(type) {
	case nil:
	case string:
		raw = []byte(v)
	default:
		var err error
		raw, err = json.Marshal(v)
		require.NoError(t, err)
	}
	if raw != nil {
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, b.server.URL+path, reader)
	require.NoError(t, err)
	if raw != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := b.client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	out := answer{status: resp.StatusCode, header: resp.Header}
	out.body, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	b.check(t, req, raw, out)
	return out
}

// sent is the same with the status that is expected, and decodes the answer.
func (b *bundle) sent(t require.TestingT, status int, method, path string, body any, headers ...string) map[string]any {
	a := b.send(t, method, path, body, headers...)
	require.Equal(t, status, a.status, "%s %s: %s", method, path, a.body)
	out := map[string]any{}
	if len(a.body) > 0 {
		require.NoError(t, json.Unmarshal(a.body, &out), "%s", a.body)
	}
	return out
}

func (b *bundle) check(t require.TestingT, req *http.Request, raw []byte, a answer) {
	relative := req.Clone(context.Background())
	relative.URL.Scheme, relative.URL.Host, relative.Host = "", "", ""
	relative.Body = io.NopCloser(bytes.NewReader(raw))
	route, params, err := b.router.FindRoute(relative)
	if err != nil {
		require.GreaterOrEqual(t, a.status, 400, "a path that the specification does not have")
		return
	}
	input := &openapi3filter.RequestValidationInput{Request: relative, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, SkipSettingDefaults: true, IncludeResponseStatus: false}}
	if a.status < 300 {
		require.NoError(t, openapi3filter.ValidateRequest(context.Background(), input), "%s %s", req.Method, req.URL)
	}
	if a.status >= 400 {
		require.Equal(t, "application/problem+json", a.header.Get("Content-Type"), "%s", a.body)
	}
	require.NoError(t, openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), Options: input.Options,
	}), "%s %s: %d %s", req.Method, req.URL, a.status, a.body)
}

// refused is a request that must fail: with this status, code, and words in the detail.
func (b *bundle) refused(t require.TestingT, status int, code, method, path string, body any, words ...string) map[string]any {
	p := b.sent(t, status, method, path, body)
	require.Equal(t, code, p["code"], "%v", p)
	require.Equal(t, p["detail"], p["message"])
	require.NotEmpty(t, p["trace_id"])
	for _, w := range words {
		require.Contains(t, p["detail"], w)
	}
	return p
}

// model writes a tiny Llama below the import root and gives its folder.
func (b *bundle) model(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(b.root, "model")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	require.NoError(t, os.CopyFS(dir, os.DirFS("../checkpoint/testdata/llama/tied")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.json"), []byte(`{"version":"1.0"}`), 0o600))
	return dir
}

const latents = 12

// sae writes an SAE that fits the tiny Llama, with changes to its config.
func (b *bundle) sae(t *testing.T, name string, width int, change map[string]any) string {
	t.Helper()
	dir := filepath.Join(b.root, name)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	config := map[string]any{
		"d_in": width, "d_sae": latents, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": true, "normalize_activations": "none", "reshape_activations": "none",
		"metadata": map[string]any{"sae_lens_version": "6.54.0", "model_name": "tiny", "hook_name": "blocks.1.hook_resid_post", "context_size": 20},
		"k":        2, "rescale_acts_by_decoder_norm": false, "architecture": "topk",
	}
	metadata := config["metadata"].(map[string]any)
	for k, v := range change {
		if k == "hook_name" || k == "model_name" {
			metadata[k] = v
		} else {
			config[k] = v
		}
	}
	raw, err := json.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cfg.json"), raw, 0o600))
	tensor := func(name string, shape ...int) checkpoint.Tensor {
		n := 1
		for _, d := range shape {
			n *= d
		}
		return checkpoint.Tensor{Name: name, DType: "F32", Shape: shape, Data: bytes.Repeat([]byte{0, 0, 128, 63}, n)}
	}
	require.NoError(t, checkpoint.WriteSafetensors(filepath.Join(dir, "sae_weights.safetensors"), []checkpoint.Tensor{
		tensor("W_enc", width, latents), tensor("b_enc", latents), tensor("W_dec", latents, width), tensor("b_dec", width),
	}, nil))
	return dir
}

func (b *bundle) dataset(t *testing.T) string {
	t.Helper()
	file := filepath.Join(b.root, "speeches.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat(`{"text":"Four score and seven years ago"}`+"\n", 3)), 0o600))
	return file
}

type world struct{ model, sae, dataset string }

// world imports a model, an SAE that fits it, and a dataset.
func (b *bundle) world(t *testing.T) world {
	t.Helper()
	return world{
		model:   b.sent(t, 201, "POST", "/api/v1/models/import", map[string]any{"path": b.model(t), "name": "tiny"})["id"].(string),
		sae:     b.sent(t, 201, "POST", "/api/v1/saes/import/file", map[string]any{"file_path": b.sae(t, "sae", 32, nil), "name": "An SAE"})["id"].(string),
		dataset: b.sent(t, 201, "POST", "/api/v1/datasets/import", map[string]any{"path": b.dataset(t)})["id"].(string),
	}
}

// start starts an extraction and gives its id.
func (b *bundle) start(t *testing.T, w world) string {
	t.Helper()
	return b.sent(t, 202, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id="+w.dataset,
		map[string]any{"skip_first": 0, "evaluation_samples": 12, "filter_special": false, "min_activation_frequency": 0})["id"].(string)
}

func (b *bundle) append(t *testing.T, stream string, data ...event.Data) {
	t.Helper()
	old, err := b.log.ReadStream(t.Context(), stream, 0)
	require.NoError(t, err)
	request := eventlog.StreamAppend{Stream: stream, Expected: int64(len(old))}
	for _, d := range data {
		request.Events = append(request.Events, event.Proposed{ID: event.NewID(time.Now()), Data: d})
	}
	_, err = b.log.Append(t.Context(), eventlog.Request{Streams: []eventlog.StreamAppend{request}})
	require.NoError(t, err)
}

// plan does a worker's first job for an extraction.
func (b *bundle) plan(t *testing.T, id string) {
	t.Helper()
	if old, err := b.log.ReadStream(t.Context(), corpus.Stream("c"), 0); err == nil && len(old) == 0 {
		b.append(t, corpus.Stream("c"), corpus.Requested{ID: "c", DatasetID: "d", Options: corpus.Options{Mode: corpus.Documents, ContextLength: length}},
			corpus.ChunkBuilt{Chunk: 0, SHA256: "s", Sequences: 12, Tokens: 12 * length}, corpus.Ready{Sequences: 12, Tokens: 12 * length, VocabularySHA256: "v", Exhausted: true})
	}
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "worker", Kinds: []string{facts.PlanWork}, Subjects: []string{id}})
	require.NoError(t, err)
	require.NotNil(t, lease)
	fvu := 0.1
	_, err = b.commands.RecordSelfTest(t.Context(), command.Call{}, *lease, id, extraction.SelfTest{Hook: "blocks.1.hook_resid_post", FVU: &fvu, Taps: []extraction.Tap{}})
	require.NoError(t, err)
	_, err = b.commands.PlanExtraction(t.Context(), command.Call{}, *lease, id,
		extraction.Planned{CorpusID: "c", BatchSize: 4, Part: extraction.Part{Sequences: 12, SequencesPerSegment: perSegment, Tokens: 12 * length}})
	require.NoError(t, err)
}

// compute does so many segments.
func (b *bundle) compute(t *testing.T, id string, segments int) {
	t.Helper()
	for range segments {
		lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "worker", Kinds: []string{facts.SegmentWork}, Subjects: []string{id}, Capabilities: []string{extraction.ComputeProfile{}.Requirement()}})
		require.NoError(t, err)
		require.NotNil(t, lease)
		i := lease.Work.Index
		_, err = b.commands.RecordSegment(t.Context(), command.Call{}, *lease, id, extraction.SegmentRecorded{
			Index: i, FirstSequence: i * perSegment, Sequences: perSegment, Tokens: perSegment * length, Seconds: 0.5, Worker: "worker",
			Artifact: extraction.Artifact{FileSHA256: fmt.Sprint(i), ContentSHA256: fmt.Sprint(i), Postings: 10},
		})
		require.NoError(t, err)
	}
}

// finish computes and folds an extraction.
func (b *bundle) finish(t *testing.T, id string) {
	t.Helper()
	b.plan(t, id)
	b.compute(t, id, 3)
	b.fold(t, id, "completed")
}

// fold folds until the extraction has this status.
func (b *bundle) fold(t *testing.T, id, status string) {
	t.Helper()
	require.Eventually(t, func() bool {
		require.NoError(t, b.folder.RunToEnd(t.Context()))
		e := b.sent(t, 200, "GET", "/api/v1/extractions/"+id, nil)
		return e["status"] == status && e["folded_at"] != nil
	}, 20*time.Second, 10*time.Millisecond)
}

const (
	perSegment = 4
	length     = 20
)

// memory is a small corpus whose postings are made up: what is folded, not how it is stored.
type memory struct{ sequences []corpus.Sequence }

func newMemory(sequences int) *memory {
	r := rand.New(rand.NewPCG(1, 2))
	m := &memory{}
	for i := range sequences {
		s := corpus.Sequence{Pieces: []corpus.Piece{{Row: int64(i), CharEnd: length}}}
		for range length {
			s.Tokens = append(s.Tokens, r.Int32N(8))
		}
		m.sequences = append(m.sequences, s)
	}
	return m
}

func (m *memory) Sequences() int                          { return len(m.sequences) }
func (m *memory) Sequence(i int) (corpus.Sequence, error) { return m.sequences[i], nil }
func (m *memory) Len() int                                { return 8 }
func (m *memory) Piece(id int32) string {
	return []string{"Ġbank", "Ġriver", "Ġthe", "Ġtree", "Ġ12", "Ġlaw", ".", "<end>"}[id]
}
func (m *memory) Special(id int32) bool { return id == 7 }

func (m *memory) Artifact(_ context.Context, _ string, index int, _ string) (fold.Artifact, error) {
	return rows{first: index * perSegment}, nil
}
func (m *memory) Corpus(context.Context, string, []features.Chunk) (fold.Corpus, error) {
	return m, nil
}
func (m *memory) Vocabulary(context.Context, string) (fold.Vocabulary, error) { return m, nil }
func (m *memory) Merge(context.Context, []fold.Artifact) (fold.Artifact, error) {
	return nil, errors.New("nothing to merge")
}

// rows: latent l fires on every token whose (sequence + offset) is a multiple of l + 2; the last latent is dead.
type rows struct{ first int }

func (r rows) Span() (int, int)              { return r.first, perSegment }
func (r rows) Latents() int                  { return latents }
func (r rows) EachSink(func(uint32, uint16)) {}
func (r rows) Scan(_ context.Context, from, to uint32, visit func(l, s []uint32, o []uint16, a []float32) error) error {
	for l := from; l < min(to, latents-1); l++ {
		for s := r.first; s < r.first+perSegment; s++ {
			for o := range length {
				if (s+o)%int(l+2) == 0 {
					if err := visit([]uint32{l}, []uint32{uint32(s)}, []uint16{uint16(o)}, []float32{float32(1+s+o) + 0.1}); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// failing is a T for goroutines: what fails there panics, and the test with it.
type failing struct{}

func (failing) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (failing) FailNow()                          { panic("failed") }

func decode(body []byte) map[string]any {
	out := map[string]any{}
	_ = json.Unmarshal(body, &out)
	return out
}

const (
	waitFor = 20 * time.Second
	poll    = 10 * time.Millisecond
)
