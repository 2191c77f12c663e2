package e2e

import (
	"maps"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/extraction"
)

// The bounds of two correct float32 implementations.
const (
	sameValue  = 5e-5 // of a posting that both have, relative
	atBoundary = 1e-4 // how near the boundary a posting lies that only one has, × the token's largest activation
	oneIn      = 10_000
)

// token is where an activation is: row of the dataset, offset in its sequence.
type token struct{ row, offset int }

// activations are the values at a token, by latent.
type activations map[token]map[int]float32

func (a activations) add(at token, latent int, v float32) {
	if a[at] == nil {
		a[at] = map[int]float32{}
	}
	a[at][latent] = v
}

// boundary is the least value that gets a latent into the set of a token: the k-th, or 0 where fewer fire.
func boundary(values map[int]float32) float64 {
	const k = 8
	if len(values) < k {
		return 0
	}
	return float64(slices.Min(slices.Collect(maps.Values(values))))
}

func TestTheActivationsAreThoseOfPython(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{texts: "testdata/few.jsonl"})
	s.extractor()
	c := config()
	c.PrependBOS = "true"
	id := s.begin(c)
	state := s.awaitStatus(id, extraction.StatusCompleted)

	golden, err := checkpoint.OpenSafetensors("testdata/postings.golden.safetensors")
	require.NoError(t, err)
	defer func() { require.NoError(t, golden.Close()) }()
	numbers := func(name string) []int64 {
		tensor, err := golden.Tensor(name)
		require.NoError(t, err)
		v, err := tensor.Int64()
		require.NoError(t, err)
		return v
	}
	rows, offsets, latents := numbers("row"), numbers("offset"), numbers("latent")
	tensor, err := golden.Tensor("value")
	require.NoError(t, err)
	values, err := tensor.Float32()
	require.NoError(t, err)
	want := activations{}
	for i, v := range values {
		want.add(token{int(rows[i]), int(offsets[i])}, int(latents[i]), v)
	}

	built, _, err := command.Load[corpus.State](t.Context(), s.commands, corpus.Stream(state.CorpusID))
	require.NoError(t, err)
	text, err := worker.OpenCorpus(t.Context(), s.store, built)
	require.NoError(t, err)
	defer func() { require.NoError(t, text.Close()) }()
	ids := make([][]int32, text.Sequences())
	row := func(sequence uint32) int {
		q, err := text.Sequence(int(sequence))
		require.NoError(t, err)
		require.Len(t, q.Pieces, 1, "every row is one sequence")
		ids[q.Pieces[0].Row] = q.Tokens
		return int(q.Pieces[0].Row)
	}
	got := activations{}
	for index := range state.Segments() {
		artifact, ok := state.Recorded.Get(index)
		require.True(t, ok)
		blob, err := s.store.Open(t.Context(), worker.ArtifactKey(id, index, artifact.FileSHA256))
		require.NoError(t, err)
		file, err := postings.Open(blob, blob.Size())
		require.NoError(t, err)
		var read postings.Columns
		require.NoError(t, file.Read(t.Context(), 0, uint32(file.Latents()), &read))
		for i := range read.Len() {
			got.add(token{row(read.Sequence[i]), int(read.Offset[i])}, int(read.Latent[i]), read.Activation[i])
		}
		require.NoError(t, blob.Close())
	}
	for i, id := range numbers("ids") {
		require.EqualValues(t, id, slices.Concat(ids...)[i], "token %d", i)
	}
	requireSameActivations(t, want, got)
}

func requireSameActivations(t *testing.T, want, got activations) {
	t.Helper()
	require.Len(t, got, len(want), "tokens with an activation")
	all, alone := 0, 0
	worst := 0.0
	for at, theirs := range want {
		ours := got[at]
		largest := float64(0)
		for _, v := range theirs {
			largest = max(largest, float64(v))
		}
		for latent, v := range theirs {
			all++
			mine, both := ours[latent]
			if !both {
				alone++
				require.InDelta(t, boundary(ours), v, atBoundary*largest, "latent %d at %v is only Python's", latent, at)
				continue
			}
			difference := math.Abs(float64(mine) - float64(v))
			worst = max(worst, difference/float64(v))
			require.LessOrEqual(t, difference, sameValue*float64(v), "latent %d at %v: %v, Python has %v", latent, at, mine, v)
		}
		for latent, v := range ours {
			if _, both := theirs[latent]; !both {
				alone++
				require.InDelta(t, boundary(theirs), v, atBoundary*largest, "latent %d at %v is only ours", latent, at)
			}
		}
	}
	require.LessOrEqual(t, alone, all/oneIn, "postings that only one side has")
	t.Logf("%d postings, %d in one set only; largest relative difference %.2g", all, alone, worst)
}
