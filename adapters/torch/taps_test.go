package torch

import (
	"crypto/sha256"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postings"
)

// keptTaps keeps all and counts.
type keptTaps struct {
	passes map[[sha256.Size]byte][]float32
	hits   int
}

func (k *keptTaps) Load(key [sha256.Size]byte, x []float32) bool {
	kept, ok := k.passes[key]
	if ok {
		copy(x, kept)
		k.hits++
	}
	return ok && len(kept) == len(x)
}

func (k *keptTaps) Store(key [sha256.Size]byte, x []float32) { k.passes[key] = slices.Clone(x) }

func TestSAEsThatShareAForwardPassGetTheBitsOfTheirOwn(t *testing.T) {
	sequences := randomSequences(3, 40, 1, 130, 7, 64)
	taps := &keptTaps{passes: map[[sha256.Size]byte][]float32{}}
	run := func(e *Engine, ids [][]int32) (postings.Columns, [][]float32) {
		e.model.tokensPerForward = 100
		var out postings.Columns
		norms, err := e.Batch(t.Context(), ids, 0, &out)
		require.NoError(t, err)
		return out, norms
	}
	for i, architecture := range []string{"topk", "jumprelu", "gated", "temporal"} { // one after the other, as a batch is
		source := randomSAE(architecture, 64, 7)
		want, norms := run(tinyEngine(t, source), sequences)
		e := tinyEngine(t, source)
		e.Share(taps, "the model")
		got, again := run(e, sequences)
		require.Equal(t, want, got, architecture)
		require.Equal(t, norms, again)
		require.Len(t, taps.passes, len(groups(sequences, 100)), "no pass is made twice")
		require.Equal(t, i*len(taps.passes), taps.hits)
	}
	before := taps.hits
	e := tinyEngine(t, randomSAE("topk", 64, 7))
	e.Share(taps, "another model")
	run(e, sequences)
	e.Share(taps, "the model")
	run(e, slices.Concat(sequences[3:4], sequences[:1])) // other sequences run together, and a pass may differ in its last bits
	require.Equal(t, before, taps.hits)
}
