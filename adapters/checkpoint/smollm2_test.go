package checkpoint_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// The real model, where somebody has it: a checked-in file of 98 MB would be too much.
func TestSmolLM2OpensWithTheRightShapesAndTokenizer(t *testing.T) {
	t.Parallel()
	path := os.Getenv("FEATUREMILL_TEST_SMOLLM2")
	if path == "" {
		t.Skip("FEATUREMILL_TEST_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf: the real model was not read")
	}
	m, err := checkpoint.OpenModel(path)
	require.NoError(t, err)
	defer shut(t, m)
	c := m.Config()
	require.Equal(t, 30, c.Layers)
	require.Equal(t, 576, c.DModel)
	require.Equal(t, 64, c.DHead)
	require.Equal(t, 9, c.Heads)
	require.Equal(t, 3, c.KVHeads)
	require.Equal(t, 1536, c.DFF)
	require.Equal(t, 49152, c.Vocab)
	require.Equal(t, 8192, c.MaxPositions)
	require.InDelta(t, 1e-5, c.NormEps, 1e-12)
	require.Equal(t, checkpoint.Rope{Theta: 100_000}, c.Rope)
	require.True(t, c.TiedEmbeddings)
	require.Equal(t, 1, *c.BOS)
	require.Equal(t, 2, *c.EOS)
	require.Len(t, m.Names(), 3+30*9)
	head, err := m.Tensor("lm_head.weight")
	require.NoError(t, err)
	require.Equal(t, []int{49152, 576}, head.Shape)
	require.NoError(t, m.CheckFinite())

	tok, err := m.GGUF().Tokenizer()
	require.NoError(t, err)
	require.Equal(t, "gpt2", tok.Model)
	require.Equal(t, "smollm", tok.Pre)
	require.Len(t, tok.Tokens, 49152)
	require.Len(t, tok.Merges, 48900)
	require.False(t, *tok.AddBOS)
	require.Equal(t, 0, *tok.Unknown)
}
