package torch

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postings"
)

// The order of work that a GPU needs, on the CPU: what comes out must be what comes out piece after piece.
func TestWorkingAheadGivesWhatWorkingInTurnGives(t *testing.T) {
	ids := make([][]int32, 9)
	for i := range ids {
		for j := range 3 + 5*i {
			ids[i] = append(ids[i], int32((7*i+3*j)%90))
		}
	}
	for _, architecture := range []string{"standard", "topk", "jumprelu", "gated", "matching_pursuit", "temporal"} {
		for _, pieceTokens := range []int64{1, 7, 64, 1000} { // many pieces, fewer than are on their way, one
			a, err := testRuntime.LoadSAE(t.Context(), randomSAE(architecture, 64, 8))
			require.NoError(t, err)
			a.chunkTokens = pieceTokens
			e, err := NewEngine(openModel(t, "testdata/llama-tied"), a, Hook{Layer: 1, Point: ResidPost})
			require.NoError(t, err)
			fire := func(by encoder) (postings.Columns, [][]float32) {
				a.encoder = by
				var out postings.Columns
				norms, err := e.Batch(t.Context(), ids, 0, &out)
				require.NoError(t, err)
				return out, norms
			}
			want, wantNorms := fire(&composedEncoder{a: a})
			got, norms := fire(&composedEncoder{a: a, always: true})
			require.Positive(t, want.Len())
			require.Equal(t, want, got, "%s in pieces of %d", architecture, pieceTokens)
			require.Equal(t, wantNorms, norms)
			require.NoError(t, a.Close())
		}
	}
}

func TestWorkingAheadStopsInTheMiddle(t *testing.T) {
	a, err := testRuntime.LoadSAE(t.Context(), randomSAE("topk", 64, 8))
	require.NoError(t, err)
	defer func() { require.NoError(t, a.Close()) }()
	a.chunkTokens = 2
	e := &composedEncoder{a: a, always: true}
	a.encoder = e
	ctx, cancel := context.WithCancel(t.Context())
	visits := 0
	err = testRuntime.do(ctx, func(s *scope) error {
		a.encode(s, s.floats(random(9, 40*tinyWidth, 1), 40, tinyWidth), &packed{starts: []int64{0}, lengths: []int64{40}}, func(*scope, int64, tensor, *firings) {
			if visits++; visits == 3 {
				cancel()
			}
		})
		require.Empty(t, s.owned[1:], "what was on its way is given back") // but the input
		return s.err
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 3, visits)
}
