package library_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector"
	"github.com/featuremill/featuremill/projections/projector/projectiontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

type bundle struct {
	log      *postgres.Log
	pool     *pgxpool.Pool
	law      projectiontest.Law
	versions map[string]int64
	queries  *library.Queries
}

func newBundle(t *testing.T) *bundle {
	t.Helper()
	registry, err := facts.Registry()
	require.NoError(t, err)
	// No effects: reservations are not what is tested here.
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	return &bundle{
		log: log, pool: log.Pool(), versions: map[string]int64{}, queries: library.NewQueries(log.Pool()),
		law: projectiontest.Law{
			Config:     projector.Config{Pool: log.Pool(), Log: log, Registry: registry, Logger: slog.New(slog.DiscardHandler), Retry: time.Millisecond},
			Projection: library.Projection{},
			Plain:      plain,
		},
	}
}

// record appends events to one stream.
func (b *bundle) record(t require.TestingT, stream string, data ...event.Data) {
	request := eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: b.versions[stream]}}}
	for _, d := range data {
		request.Streams[0].Events = append(request.Streams[0].Events, event.Proposed{ID: event.NewID(time.Now()), Data: d})
	}
	if len(data) == 0 {
		return
	}
	_, err := b.log.Append(background(t), request)
	require.NoError(t, err)
	b.versions[stream] += int64(len(data))
}

// project brings the tables to the end of the log.
func (b *bundle) project(t *testing.T) {
	t.Helper()
	r, err := projector.New(b.law.Config, b.law.Projection)
	require.NoError(t, err)
	require.NoError(t, r.RunToEnd(t.Context()))
	parked, err := r.Parked(t.Context())
	require.NoError(t, err)
	require.Empty(t, parked)
}

func files(names ...string) fileset.Set {
	var out fileset.Set
	for _, n := range names {
		out = append(out, fileset.File{Name: n, Bytes: int64(100 * len(n)), SHA256: strings.Repeat("ab", 32)})
	}
	return out
}

func modelFacts() model.Facts {
	return model.Facts{Family: "llama", Format: "safetensors", Layers: 30, DModel: 576, Vocab: 49152, Context: 8192, Params: 134_515_008, DType: "BF16",
		Files: files("config.json", "model.safetensors", "tokenizer.json"), Tokenizer: strings.Repeat("cd", 32)}
}

func saeFacts(layer int) sae.Facts {
	yes := true
	l0 := 48.5
	return sae.Facts{Format: "saelens", FormatVersion: "6", Architecture: "topk", DIn: 576, DSAE: 3072, DOut: 576, K: 48, Hook: "blocks.8.hook_resid_post", Layer: layer,
		ModelName: "HuggingFaceTB/SmolLM2-135M-Instruct", Normalization: "none", ApplyBDecToInput: true, PrependBOS: &yes, ContextLength: 128,
		DType: "float32", PublishedL0: &l0, Files: files("cfg.json", "sae_weights.safetensors")}
}

func (b *bundle) importModel(t require.TestingT, id, name string, origin model.Origin) {
	b.record(t, model.Stream(id), model.Registered{ID: id, Name: name, Origin: origin}, model.Ready{Facts: modelFacts()})
}

func (b *bundle) importSAE(t require.TestingT, id, name string, origin sae.Origin, modelID string) {
	events := []event.Data{sae.Registered{ID: id, Name: name, Origin: origin}, sae.Ready{Facts: saeFacts(8)}}
	if modelID != "" {
		events = append(events, sae.LinkedToModel{ModelID: modelID})
	}
	b.record(t, sae.Stream(id), events...)
}

func (b *bundle) importTraining(t require.TestingT, id, modelID string, paths ...string) {
	e := training.Imported{ID: id, Name: "run " + id, Checkpoint: model.Origin{Kind: "local", Path: "/runs/" + id}, ModelID: modelID}
	for i, p := range paths {
		e.SAEs = append(e.SAEs, training.SAE{Path: p, Facts: saeFacts(len(paths) - i)})
	}
	b.record(t, training.Stream(id), e)
}
