package features_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/generation"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
	"github.com/featuremill/featuremill/projections/projector"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

const (
	latents    = 12
	perSegment = 4
	length     = 20
)

// memory is a small corpus with artifacts that are made up from a seed: what is folded, not how it is stored.
type memory struct {
	sequences []corpus.Sequence
	broken    map[int]error
}

func newMemory(sequences int) *memory {
	r := rand.New(rand.NewPCG(1, 2))
	m := &memory{broken: map[int]error{}}
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
	return []string{"Ġbank", "Ġriver", "Ġmoney", "Ġtree", "Ġtax", "Ġlaw", "Ġpeace", "<end>"}[id]
}
func (m *memory) Special(id int32) bool { return id == 7 }

func (m *memory) Artifact(_ context.Context, _ string, index int, _ string) (fold.Artifact, error) {
	if err := m.broken[index]; err != nil {
		return nil, err
	}
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
					if err := visit([]uint32{l}, []uint32{uint32(s)}, []uint16{uint16(o)}, []float32{float32(1 + s + o)}); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

type bundle struct {
	log     *postgres.Log
	runner  *projector.Runner
	folder  *features.Folder
	queries *features.Queries
	memory  *memory
	source  source.Source
	now     time.Time
}

func newBundle(t *testing.T) *bundle {
	t.Helper()
	registry, err := facts.Registry()
	require.NoError(t, err)
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	b := &bundle{log: log, memory: newMemory(12), queries: features.NewQueries(log.Pool()), now: time.Unix(1_700_000_000, 0)}
	b.runner, err = projector.New(projector.Config{Pool: log.Pool(), Log: log, Registry: registry, Logger: slog.New(slog.DiscardHandler), Retry: time.Millisecond}, features.Projection{})
	require.NoError(t, err)
	b.folder = features.NewFolder(features.FolderConfig{Pool: log.Pool(), Readers: b.memory, Retain: -1})
	b.source, err = source.FromSAE("sae_x")
	require.NoError(t, err)
	return b
}

func (b *bundle) record(t *testing.T, stream string, data ...event.Data) {
	t.Helper()
	old, err := b.log.ReadStream(t.Context(), stream, 0)
	require.NoError(t, err)
	request := eventlog.StreamAppend{Stream: stream, Expected: int64(len(old))}
	for _, d := range data {
		request.Events = append(request.Events, event.Proposed{ID: event.NewID(time.Now()), Data: d})
	}
	_, err = b.log.Append(t.Context(), eventlog.Request{Streams: []eventlog.StreamAppend{request}})
	require.NoError(t, err)
	require.NoError(t, b.runner.RunToEnd(t.Context()))
	parked, err := b.runner.Parked(t.Context())
	require.NoError(t, err)
	require.Empty(t, parked)
}

// start records an extraction of three segments and gives its id.
func (b *bundle) start(t *testing.T) string {
	t.Helper()
	b.now = b.now.Add(time.Second)
	id := b.source.ExtractionID(b.now)
	config := extraction.DefaultConfig()
	config.SkipFirst, config.FilterSpecial = 0, false
	b.record(t, extraction.Stream(id),
		extraction.Requested{ID: id, Source: b.source, ModelID: "m", DatasetID: "d", Latents: latents, Config: config},
		extraction.Planned{CorpusID: "c", BatchSize: 1, Part: extraction.Part{Sequences: 12, SequencesPerSegment: perSegment}})
	return id
}

func segment(index int) extraction.SegmentRecorded {
	return extraction.SegmentRecorded{Index: index, FirstSequence: index * perSegment, Sequences: perSegment, Tokens: perSegment * length, Artifact: extraction.Artifact{FileSHA256: fmt.Sprint(index)}}
}

func (b *bundle) corpus(t *testing.T) {
	t.Helper()
	b.record(t, corpus.Stream("c"), corpus.Requested{ID: "c"}, corpus.ChunkBuilt{Chunk: 0, SHA256: "s", Sequences: 12}, corpus.Ready{VocabularySHA256: "v"})
}

func TestAnExtractionThatEndsIsFoldedAndCanBeBrowsed(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	_, err := b.queries.Of(t.Context(), id)
	require.ErrorIs(t, err, features.ErrNotFolded)
	b.record(t, extraction.Stream(id), segment(0), segment(1), segment(2), extraction.Completed{Segments: 3})
	require.NoError(t, b.folder.RunToEnd(t.Context()))

	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.True(t, g.Newest)
	require.Equal(t, latents-1, g.Features)
	require.Equal(t, 12, g.Statistics.Sequences)
	require.Equal(t, "feat_sae_sae_x_3", g.ID(3))

	page, err := b.queries.List(t.Context(), g, features.ListOptions{Limit: 5, Examples: true})
	require.NoError(t, err)
	require.Equal(t, latents-1, page.Total, "the dead latent is hidden")
	require.Equal(t, latents, page.Neurons)
	require.Len(t, page.Features, 5)
	require.Equal(t, 0, page.Features[0].Latent, "by density")
	require.InDelta(t, 0.5, page.Features[0].Density, 1e-12)
	example := page.Features[0].Example
	require.NotNil(t, example)
	require.Len(t, example.Tokens, len(example.Activations))
	require.Len(t, example.IDs, len(example.Tokens))
	require.Equal(t, example.MaxActivation, example.Activations[example.Prime])
	require.Equal(t, page.Features[0].MaxActivation, example.MaxActivation)
	require.Equal(t, b.memory.Piece(example.IDs[example.Prime]), example.Tokens[example.Prime])

	all, err := b.queries.List(t.Context(), g, features.ListOptions{Limit: 500, IncludeDead: true, Sort: "feature_id", Ascending: true})
	require.NoError(t, err)
	require.Equal(t, latents, all.Total)
	require.Zero(t, all.Features[latents-1].Firings)

	examples, err := b.queries.Examples(t.Context(), g, 0, 1000)
	require.NoError(t, err)
	for i, e := range examples {
		require.Len(t, e.Tokens, len(e.Activations))
		if i > 0 && e.Kind == "top" {
			require.LessOrEqual(t, e.MaxActivation, examples[i-1].MaxActivation)
		}
	}
	tokens, err := b.queries.Tokens(t.Context(), g, 0, 100)
	require.NoError(t, err)
	require.NotEmpty(t, tokens)
	distribution, err := b.queries.Distribution(t.Context(), g, 0)
	require.NoError(t, err)
	require.Len(t, distribution.Quantiles, 9)
	require.Len(t, distribution.LinearCounts, 50)
	_, err = b.queries.Feature(t.Context(), g, latents)
	require.ErrorIs(t, err, features.ErrNoLatent)
}

func TestEverySortAndFilterAnswers(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), segment(1), segment(2), extraction.Completed{Segments: 3})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	latent := feature.Latent{Source: b.source, Index: 4}
	b.record(t, feature.Stream(b.source, 4),
		feature.Named{Latent: latent, Name: "100% banks_", Category: "finance", By: feature.User}, feature.Starred{Latent: latent, Starred: true})
	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	for _, sort := range features.Sorts() {
		for _, ascending := range []bool{true, false} {
			page, err := b.queries.List(t.Context(), g, features.ListOptions{Limit: 500, Sort: sort, Ascending: ascending})
			require.NoError(t, err, sort)
			require.Len(t, page.Features, latents-1, sort)
		}
	}
	half, yes, four := 0.095, true, 15.0
	for name, c := range map[string]struct {
		o    features.ListOptions
		want []int
	}{
		"a number is a latent":                 {features.ListOptions{Search: "7"}, []int{7}},
		"a name, with LIKE's signs in it":      {features.ListOptions{Search: "100% banks_"}, []int{4}},
		"a sign alone does not match anything": {features.ListOptions{Search: "%%"}, nil},
		"a category":                           {features.ListOptions{Search: "FINANCE"}, []int{4}},
		"a token that all fire on":             {features.ListOptions{Search: "bank", MaxDensity: &half}, []int{9, 10}},
		"starred":                              {features.ListOptions{Starred: &yes}, []int{4}},
		"a quote cannot leave the query":       {features.ListOptions{Search: "'; drop table x; --"}, nil},
		"a range that is empty":                {features.ListOptions{MaxMaxActivation: &half, MinMaxActivation: &four}, nil},
	} {
		c.o.Limit, c.o.Sort, c.o.Ascending = 500, "feature_id", true
		page, err := b.queries.List(t.Context(), g, c.o)
		require.NoError(t, err, name)
		var got []int
		for _, f := range page.Features {
			got = append(got, f.Latent)
		}
		require.Equal(t, len(c.want), page.Total, "%s: %v", name, got)
		require.Equal(t, c.want, got, name)
	}
	_, err = b.queries.List(t.Context(), g, features.ListOptions{Sort: "luck"})
	require.ErrorContains(t, err, "density")
	on, err := b.queries.FiringOn(t.Context(), g, "bank", 3)
	require.NoError(t, err)
	require.NotEmpty(t, on)
}

func TestANewGenerationReplacesTheOldOneAndLabelsOutliveIt(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	first := b.start(t)
	b.record(t, extraction.Stream(first), segment(0), extraction.Cancelled{Segments: 1})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	g1, err := b.queries.Of(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, perSegment, g1.Statistics.Sequences, "what was computed before the cancel stays")

	b.record(t, extraction.Stream(first), extraction.Resumed{}, segment(1), segment(2), extraction.Completed{Segments: 3})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	g2, err := b.queries.Of(t.Context(), first)
	require.NoError(t, err)
	require.Greater(t, g2.Generation, g1.Generation)
	require.Equal(t, 12, g2.Statistics.Sequences)
	_, err = b.queries.List(t.Context(), g1, features.ListOptions{Limit: 10})
	require.ErrorIs(t, err, features.ErrReplaced, "the old generation's tables are gone, and that is no empty list")

	b.record(t, feature.Stream(b.source, 2), feature.Named{Latent: feature.Latent{Source: b.source, Index: 2}, Name: "twos", By: feature.User})
	second := b.start(t)
	b.record(t, extraction.Stream(second), segment(0), extraction.Completed{Segments: 1})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	g3, err := b.queries.Newest(t.Context(), b.source)
	require.NoError(t, err)
	require.Equal(t, second, g3.Extraction)
	f, err := b.queries.Feature(t.Context(), g3, 2)
	require.NoError(t, err)
	require.Equal(t, "twos", f.Name)
	g2, err = b.queries.Resolve(t.Context(), source.Latent{Source: b.source, Index: 2, Extraction: first})
	require.NoError(t, err)
	require.Equal(t, "feat_sae_sae_x_2@"+first, g2.ID(2))

	b.record(t, extraction.Stream(second), extraction.Deleted{})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	g, err := b.queries.Newest(t.Context(), b.source)
	require.NoError(t, err)
	require.Equal(t, first, g.Extraction, "the deleted extraction's numbers are gone, the older one's are shown again")
}

func TestAFoldThatFailsIsAFieldOfTheExtraction(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.memory.broken[1] = errors.New("artifact is gone")
	b.record(t, extraction.Stream(id), segment(0), segment(1), extraction.Failed{Code: "x"})
	err := b.folder.RunToEnd(t.Context())
	require.ErrorContains(t, err, "artifact is gone")
	require.ErrorContains(t, err, "artifact of segment 1")
	b.record(t, generation.Stream(id), generation.FoldFailed{Through: 5, Code: "artifact_missing", Detail: "artifact of segment 1: it is gone"})
	why := func() (detail *string) {
		require.NoError(t, b.log.Pool().QueryRow(t.Context(), `select fold_error from feature_folds where extraction_id = $1`, id).Scan(&detail))
		return detail
	}
	require.Contains(t, *why(), "artifact of segment 1")
	require.NoError(t, b.folder.RunToEnd(t.Context()), "what has failed waits until somebody asks")
	delete(b.memory.broken, 1)
	b.record(t, extraction.Stream(id), extraction.Resumed{}, segment(2), extraction.Completed{})
	require.Nil(t, why(), "there is more to fold now")
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, 12, g.Statistics.Sequences)
}

func TestAnExtractionThatEndsBeforeItsFirstSegmentHasNothingToFold(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), extraction.Cancelled{})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	var folded int64
	require.NoError(t, b.log.Pool().QueryRow(t.Context(), `select folded_version from feature_folds where extraction_id = $1`, id).Scan(&folded))
	require.EqualValues(t, 3, folded)
}

func TestAFoldThatWasOvertakenChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), extraction.Cancelled{Segments: 1})
	overtaken := false
	slow := features.NewFolder(features.FolderConfig{Pool: b.log.Pool(), Readers: takenOver{b.memory, func() {
		if overtaken {
			return
		}
		overtaken = true
		b.record(t, extraction.Stream(id), extraction.Resumed{}, segment(1), segment(2), extraction.Completed{Segments: 3})
		require.NoError(t, b.folder.RunToEnd(t.Context()))
	}}})
	_, err := slow.Fold(t.Context(), id, false, func() error { return nil })
	require.NoError(t, err)
	require.True(t, overtaken)
	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, 12, g.Statistics.Sequences, "the fold of more stays")
	dropped, err := b.folder.Collect(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, dropped, "the late one")
}

type takenOver struct {
	*memory
	take func()
}

func (r takenOver) Artifact(ctx context.Context, id string, index int, sha string) (fold.Artifact, error) {
	r.take()
	return r.memory.Artifact(ctx, id, index, sha)
}

func TestVerifyFindsARowThatTheFoldDoesNotGive(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), segment(1), segment(2), extraction.Completed{Segments: 3})
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	checked, differences, err := b.folder.Verify(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, checked)
	require.Empty(t, differences)
	_, err = b.log.Pool().Exec(t.Context(), `update generations.features set max_activation = max_activation + 1 where latent = 3`)
	require.NoError(t, err)
	_, differences, err = b.folder.Verify(t.Context())
	require.NoError(t, err)
	require.Len(t, differences, 2, "the row that is there, and the row that should be")
	require.Equal(t, "features", differences[0].Table)
	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	page, err := b.queries.List(t.Context(), g, features.ListOptions{Limit: 5})
	require.NoError(t, err)
	require.NotEmpty(t, page.Features, "verifying takes nothing away")
}
