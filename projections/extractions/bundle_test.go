package extractions_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/extractions"
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
	queries  *extractions.Queries
}

func newBundle(t *testing.T, effects eventlog.Effects) *bundle {
	t.Helper()
	registry, err := facts.Registry()
	require.NoError(t, err)
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry, Effects: effects})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	b := &bundle{
		log: log, pool: log.Pool(), versions: map[string]int64{}, queries: extractions.NewQueries(log.Pool(), nil),
		law: projectiontest.Law{
			Config:     projector.Config{Pool: log.Pool(), Log: log, Registry: registry, Logger: slog.New(slog.DiscardHandler), Retry: time.Millisecond},
			Projection: extractions.Projection{},
			Plain:      plain,
		},
	}
	b.project(t)
	return b
}

// project brings both projections to the end of the log.
func (b *bundle) project(t *testing.T) {
	t.Helper()
	for _, p := range []projector.Projection{library.Projection{}, extractions.Projection{}} {
		r, err := projector.New(b.law.Config, p)
		require.NoError(t, err)
		require.NoError(t, r.RunToEnd(t.Context()))
		parked, err := r.Parked(t.Context())
		require.NoError(t, err)
		require.Empty(t, parked)
	}
}

func background(t require.TestingT) context.Context {
	if c, ok := t.(interface{ Context() context.Context }); ok {
		return c.Context()
	}
	return context.Background()
}

// record appends events to one stream.
func (b *bundle) record(t require.TestingT, stream string, data ...event.Data) {
	if len(data) == 0 {
		return
	}
	request := eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: b.versions[stream]}}}
	for _, d := range data {
		request.Streams[0].Events = append(request.Streams[0].Events, event.Proposed{ID: event.NewID(time.Now()), Data: d})
	}
	_, err := b.log.Append(background(t), request)
	require.NoError(t, err)
	b.versions[stream] += int64(len(data))
}

func fromSAE(t require.TestingT, id string) source.Source {
	s, err := source.FromSAE(id)
	require.NoError(t, err)
	return s
}

func fromTraining(t require.TestingT, id string) source.Source {
	s, err := source.FromTraining(id)
	require.NoError(t, err)
	return s
}

func requested(src source.Source, id string) extraction.Requested {
	config := extraction.DefaultConfig()
	config.EvaluationSamples = 100
	return extraction.Requested{ID: id, Source: src, ModelID: "m_1", DatasetID: "ds_1", Hook: "blocks.8.hook_resid_post", Layer: 8, Latents: 3072, Mask: extraction.Mask{TokenIDs: []int32{0, 2}, SpecialTokens: true}, Config: config}
}

func profile() extraction.ComputeProfile {
	return extraction.ComputeProfile{Device: "cpu", DType: "float32", Threads: 2, ISA: "avx512", Libtorch: "2.1.1", MKL: "AVX512"}
}

// part plans segments of ten sequences with 128 tokens each, after what a state has planned.
func part(s extraction.State, segments int) extraction.Planned {
	sequences, _ := s.Planned()
	return extraction.Planned{CorpusID: "corpus_1", BatchSize: 8, Profile: profile(), Part: extraction.Part{
		FirstSegment: s.Segments(), FirstSequence: sequences, Sequences: 10 * segments, SequencesPerSegment: 10, Tokens: int64(1280 * segments)}}
}

func segment(i int) extraction.SegmentRecorded {
	return extraction.SegmentRecorded{Index: i, FirstSequence: 10 * i, Sequences: 10, Tokens: 1280, Seconds: 0.1 + float64(i)/3, Device: "cpu", Worker: "w1", Attempt: 1,
		Artifact: extraction.Artifact{ContentSHA256: fmt.Sprintf("content %d", i), FileSHA256: fmt.Sprintf("file %d", i), Bytes: 1000, Postings: 51_200}}
}

func selfTest() extraction.SelfTest {
	fvu, l0 := 0.09, 40.5
	return extraction.SelfTest{Hook: "blocks.8.hook_resid_post", Tokens: 4096, FVU: &fvu, L0: &l0, L0All: 41, DeadShare: 0.25, MedianNorm: 33.5, PrependBOS: true, BOS: 1,
		Taps: []extraction.Tap{{Hook: "blocks.8.hook_resid_post", FVU: &fvu, L0: &l0}, {Hook: "blocks.7.hook_resid_post"}}, Warnings: []string{"L0 is odd"}}
}

// stock records the things that extractions are made from.
func (b *bundle) stock(t *testing.T) {
	t.Helper()
	b.record(t, model.Stream("m_1"), model.Registered{ID: "m_1", Name: "SmolLM2", Origin: model.Origin{Kind: "local"}})
	b.record(t, dataset.Stream("ds_1"), dataset.Registered{ID: "ds_1", Name: "speeches", Origin: model.Origin{Kind: "local"}})
	for _, id := range []string{"sae_1", "sae_2"} {
		b.record(t, sae.Stream(id), sae.Registered{ID: id, Name: "name of " + id, Origin: sae.Origin{Kind: "local"}})
	}
	b.record(t, training.Stream("train_1"), training.Imported{ID: "train_1", Name: "run 1", ModelID: "m_1"})
}
