package fold_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features/fold"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dump(t require.TestingT, in fold.Input) string {
	latents, summary := run(t, in)
	var b []byte
	for _, l := range latents {
		b = l.AppendDump(b)
	}
	return string(summary.AppendDump(b))
}

// real writes the artifacts as Parquet and opens them.
func real(t require.TestingT, artifacts []*memoryArtifact) []fold.Artifact {
	var readers []fold.Artifact
	for _, a := range artifacts {
		var buf bytes.Buffer
		_, err := postings.Write(&buf, &a.rows, a.meta)
		require.NoError(t, err)
		r, err := postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
		require.NoError(t, err)
		readers = append(readers, r)
	}
	return readers
}

func TestTheResultDoesNotDependOnSegmentsWorkersOrRanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := synthetic(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 40).Draw(t, "documents"), rapid.IntRange(1, 25).Draw(t, "latents"))
		o := fold.DefaultOptions()
		o.TopExamples = rapid.IntRange(0, 8).Draw(t, "top examples")
		o.Prefix = rapid.IntRange(0, 30).Draw(t, "prefix")
		o.Seed = rapid.Uint64().Draw(t, "sampling seed")
		o.Workers = 1
		want := dump(t, w.input(o, w.artifacts(nil, nil)))

		cuts := rapid.SliceOfN(rapid.IntRange(0, len(w.corpus)), 0, 90).Draw(t, "cuts")
		slices.Sort(cuts)
		o.Workers = rapid.IntRange(1, 5).Draw(t, "workers")
		o.RangePostings = rapid.IntRange(1, 500).Draw(t, "postings a range")
		if rapid.Bool().Draw(t, "read the corpus again and again") {
			o = o.WithResidentTokens(1)
		}
		in := w.input(o, w.artifacts(cuts, nil))
		if rapid.Bool().Draw(t, "from Parquet, merged above 64 segments") {
			in.Artifacts = real(t, w.artifacts(cuts, nil))
			in.Merge = func(ctx context.Context, run []fold.Artifact) (fold.Artifact, error) {
				sources := make([]postings.Source, len(run))
				for i, a := range run {
					sources[i] = a.(postings.Source)
				}
				var buf bytes.Buffer
				if _, err := postings.Merge(ctx, &buf, sources...); err != nil {
					return nil, err
				}
				return postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
			}
		}
		require.Equal(t, want, dump(t, in))
	})
}

func TestManySegmentsAreMergedAndTheRunFilesClosed(t *testing.T) {
	t.Parallel()
	w := synthetic(5, 150, 20)
	o := fold.DefaultOptions()
	var cuts []int
	for i := 1; i < len(w.corpus); i++ {
		cuts = append(cuts, i)
	}
	require.Greater(t, len(cuts), 128)
	missing := func(segment int) bool { return segment%7 != 3 }
	want := dump(t, w.input(o, w.artifacts(cuts, missing)))
	in := w.input(o, nil)
	in.Artifacts = real(t, w.artifacts(cuts, missing))
	folder := t.TempDir()
	var runs []*closeCounter
	in.Merge = func(ctx context.Context, run []fold.Artifact) (fold.Artifact, error) {
		require.LessOrEqual(t, len(run), 32)
		sources := make([]postings.Source, len(run))
		for i, a := range run {
			sources[i] = a.(postings.Source)
		}
		r, err := postings.CreateRun(ctx, folder, sources...)
		if err != nil {
			return nil, err
		}
		c := &closeCounter{Run: r}
		runs = append(runs, c)
		return c, nil
	}
	require.Equal(t, want, dump(t, in))
	require.NotEmpty(t, runs)
	for _, r := range runs {
		require.Equal(t, 1, r.closed)
	}
}

type closeCounter struct {
	*postings.Run
	closed int
}

func (c *closeCounter) Close() error {
	c.closed++
	return c.Run.Close()
}

func TestOnlyTheSequencesOfTheGivenArtifactsCount(t *testing.T) {
	t.Parallel()
	w := synthetic(6, 60, 20)
	cuts := []int{10, 30, 50}
	whole := w.artifacts(cuts, nil)
	_, some := run(t, w.input(fold.DefaultOptions(), []*memoryArtifact{whole[1], whole[3]}))
	require.Equal(t, 20+len(w.corpus)-50, some.Sequences)
	latents, none := run(t, w.input(fold.DefaultOptions(), nil))
	require.Zero(t, none.Sequences)
	require.Equal(t, 20, none.Dead)
	for i, l := range latents {
		require.Equal(t, &fold.Latent{Index: i}, l)
	}
}

func TestAPreviewHasTheStatisticsOfTheFoldAndFiveExamples(t *testing.T) {
	t.Parallel()
	w := synthetic(8, 60, 20)
	o := fold.DefaultOptions()
	full, _ := run(t, w.input(o, w.artifacts(nil, nil)))
	o.Preview = true
	preview, _ := run(t, w.input(o, w.artifacts(nil, nil)))
	for i, p := range preview {
		require.Equal(t, full[i].Examples[:min(5, len(full[i].Examples))], p.Examples[:min(5, len(p.Examples))])
		require.LessOrEqual(t, len(p.Examples), 5)
		p.Examples, full[i].Examples = nil, nil
		p.InterpretabilityScore, full[i].InterpretabilityScore = 0, 0 // of the examples
		require.Equal(t, full[i], p)
	}
}

// tiny is a world of one latent and given rows (sequence, offset, activation) over sequences of one document each.
func tiny(lengths []int, rows [][3]float64) world {
	w := world{latents: 1, vocabulary: memoryVocabulary{Pieces: []string{"Ġone", "Ġtwo", "Ġthree", "Ġfour"}}}
	for i, n := range lengths {
		s := corpus.Sequence{Pieces: []corpus.Piece{{Row: int64(100 - i)}}}
		for p := range n {
			s.Tokens = append(s.Tokens, int32((i+p)%4))
		}
		w.corpus = append(w.corpus, s)
	}
	for _, r := range rows {
		w.rows = append(w.rows, event{0, uint32(r[0]), uint16(r[1]), float32(r[2])})
	}
	return w
}

func one(t *testing.T, w world, change func(o *fold.Options)) *fold.Latent {
	t.Helper()
	o := fold.DefaultOptions()
	o.SkipFirst = 0
	if change != nil {
		change(&o)
	}
	latents, _ := run(t, w.input(o, w.artifacts(nil, nil)))
	return latents[0]
}

func kinds(l *fold.Latent, kind fold.Kind) []fold.Example {
	var examples []fold.Example
	for _, e := range l.Examples {
		if e.Kind == kind {
			examples = append(examples, e)
		}
	}
	return examples
}

func TestEqualActivationsAreOrderedByRow(t *testing.T) {
	t.Parallel()
	// Rows are 100, 99, 98: the last sequence comes first.
	l := one(t, tiny([]int{5, 6, 7}, [][3]float64{{0, 2, 1}, {1, 3, 1}, {1, 4, 1}, {2, 1, 1}}), nil)
	top := kinds(l, fold.Top)
	require.Len(t, top, 3, "one for each document")
	require.Equal(t, []int64{98, 99, 100}, []int64{top[0].Row, top[1].Row, top[2].Row})
	require.Equal(t, 3, top[1].Offset, "of equal firings of a document the first")
}

func TestWindowsCarryEveryTokensOwnActivationAndEndAtTheDocument(t *testing.T) {
	t.Parallel()
	w := tiny([]int{10}, [][3]float64{{0, 2, 1}, {0, 4, 9}, {0, 5, 3}, {0, 7, 2}})
	w.corpus[0].Pieces = []corpus.Piece{{Token: 1, Row: 7}, {Token: 3, Row: 8}, {Token: 6, Row: 9}}
	w.corpus[0].Inserted = []int{0}
	l := one(t, w, nil)
	top := kinds(l, fold.Top)
	require.Len(t, top, 3)
	require.Equal(t, [3]int{8, 3, 6}, [3]int{int(top[0].Row), top[0].Start, top[0].End})
	require.Equal(t, []float32{0, 9, 3}, top[0].Activations)
	require.Equal(t, [3]int{9, 6, 10}, [3]int{int(top[1].Row), top[1].Start, top[1].End})
	require.Equal(t, [3]int{7, 0, 3}, [3]int{int(top[2].Row), top[2].Start, top[2].End}, "the inserted token belongs to the first document")
	require.Equal(t, 0, top[2].Piece)
}

func TestMasksLeaveFiringsOutAndWindowsKeepThem(t *testing.T) {
	t.Parallel()
	w := tiny([]int{6}, [][3]float64{{0, 0, 50}, {0, 1, 40}, {0, 2, 5}, {0, 3, 30}})
	w.sinks = []postings.TokenRef{{Sequence: 0, Offset: 3}}
	l := one(t, w, func(o *fold.Options) {
		o.SkipFirst = 1
		o.ExcludeTokens = []int32{1} // of offsets 1 and 5
	})
	require.EqualValues(t, 2, l.Firings)
	require.Equal(t, 2.0/3, l.Density)
	require.Equal(t, float32(30), l.Max, "a sink is counted")
	require.Equal(t, 0.5, l.SinkShare)
	top := kinds(l, fold.Top)
	require.Len(t, top, 1)
	require.Equal(t, 2, top[0].Offset, "a sink is never an example")
	require.Equal(t, []float32{50, 40, 5, 30, 0, 0}, top[0].Activations)
}

func TestALatentThatOnlyFiresWhereNothingCountsIsDead(t *testing.T) {
	t.Parallel()
	l := one(t, tiny([]int{6, 6}, [][3]float64{{0, 0, 50}, {1, 0, 50}}), func(o *fold.Options) { o.SkipFirst = 1 })
	require.True(t, l.Dead())
	require.Equal(t, &fold.Latent{Interval: &fold.Interval{High: 0.3}}, l)
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	good := tiny([]int{5, 5}, [][3]float64{{0, 1, 1}, {1, 2, 1}})
	for _, tt := range []struct {
		name   string
		change func(w *world, in *fold.Input)
		wants  string
	}{
		{"a negative activation", func(w *world, _ *fold.Input) { w.rows[0].activation = -1 }, "only finite positive ones"},
		{"a NaN", func(w *world, _ *fold.Input) { w.rows[0].activation = float32(math.NaN()) }, "only finite positive ones"},
		{"an infinity", func(w *world, _ *fold.Input) { w.rows[0].activation = float32(math.Inf(1)) }, "only finite positive ones"},
		{"a posting beyond its sequence", func(w *world, _ *fold.Input) { w.rows[0].offset = 5 }, "has no token"},
		{"a sink beyond its sequence", func(w *world, _ *fold.Input) { w.sinks = []postings.TokenRef{{Offset: 9}} }, "has a sink"},
		{"a token that the vocabulary has not", func(w *world, _ *fold.Input) { w.corpus[1].Tokens[2] = 4 }, "token id 4, the vocabulary has 4"},
		{"a sequence without pieces", func(w *world, _ *fold.Input) { w.corpus[1].Pieces = nil }, "no piece"},
		{"an empty sequence", func(w *world, _ *fold.Input) { w.corpus[1].Tokens = nil }, "0 tokens"},
		{"inserted tokens out of order", func(w *world, _ *fold.Input) { w.corpus[1].Inserted = []int{3, 1} }, "inserted offsets"},
		{"a piece beyond its sequence", func(w *world, _ *fold.Input) {
			w.corpus[1].Pieces = append(w.corpus[1].Pieces, corpus.Piece{Token: 5})
		}, "1 pieces start inside of it"},
		{"an SAE of another width", func(_ *world, in *fold.Input) { in.Latents = 2 }, "has 1 latents, the SAE has 2"},
		{"no latents", func(_ *world, in *fold.Input) { in.Latents = 0 }, "0 latents"},
		{"the same artifact twice", func(_ *world, in *fold.Input) { in.Artifacts = append(in.Artifacts, in.Artifacts...) }, "before the end of the one before it"},
		{"a corpus that is too short", func(w *world, in *fold.Input) { in.Corpus = w.corpus[:1] }, "the corpus has 1"},
		{"a negative option", func(_ *world, in *fold.Input) { in.Options.Prefix = -1 }, "context_prefix_tokens is -1"},
		{"a slice that goes backwards", func(_ *world, in *fold.Input) { in.Options.Seqpos = &fold.Seqpos{Step: -1} }, "step -1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := tiny([]int{5, 5}, [][3]float64{{0, 1, 1}, {1, 2, 1}})
			var probe fold.Input
			tt.change(&w, &probe) // what is in the postings must be there before they are cut
			in := w.input(fold.DefaultOptions(), w.artifacts(nil, nil))
			tt.change(&w, &in)
			_, err := fold.Run(context.Background(), in, func(*fold.Latent) error { return nil })
			require.ErrorIs(t, err, fold.ErrInput)
			require.ErrorContains(t, err, tt.wants)
		})
	}
	_, err := fold.Run(context.Background(), good.input(fold.DefaultOptions(), good.artifacts(nil, nil)), func(*fold.Latent) error { return nil })
	require.NoError(t, err)
}

func TestAnErrorOfEmitOrOfTheContextEndsTheFold(t *testing.T) {
	t.Parallel()
	w := synthetic(9, 60, 30)
	o := fold.DefaultOptions()
	o.Workers, o.RangePostings = 4, 10
	full := errors.New("the disk is full")
	emitted := 0
	_, err := fold.Run(context.Background(), w.input(o, w.artifacts([]int{10, 20}, nil)), func(*fold.Latent) error {
		if emitted++; emitted == 3 {
			return full
		}
		return nil
	})
	require.ErrorIs(t, err, full)
	require.Equal(t, 3, emitted)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_, err = fold.Run(ctx, w.input(o, w.artifacts([]int{10, 20}, nil)), func(*fold.Latent) error {
		cancel()
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
}

func TestDocumentsAddUpToTheLatent(t *testing.T) {
	t.Parallel()
	w := synthetic(10, 60, 30)
	in := w.input(fold.DefaultOptions(), w.artifacts([]int{10, 20}, nil))
	latents, summary := run(t, in)
	table, err := fold.Documents(context.Background(), in, []int{4, 0, 7})
	require.NoError(t, err)
	require.True(t, slices.IsSorted(table.Rows))
	require.Len(t, table.Rows, summary.Documents)
	total := int64(0)
	for _, n := range table.CountedTokens {
		total += n
	}
	require.Equal(t, summary.CountedTokens, total)
	for i, latent := range []int{4, 0, 7} {
		firings, documents := int64(0), int64(0)
		for _, n := range table.Firings[i] {
			firings += n
			documents += min(n, 1)
		}
		require.Equal(t, latents[latent].Firings, firings)
		require.Equal(t, latents[latent].FiringDocuments, documents)
	}
	_, err = fold.Documents(context.Background(), in, []int{30})
	require.ErrorIs(t, err, fold.ErrInput)
}
