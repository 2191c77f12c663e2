package worker

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The files of an SAE say less than its facts do: what is loaded depends on both.
func TestTheSameFilesWithOtherFactsAreAnotherPair(t *testing.T) {
	t.Parallel()
	key := func(change func(*inputs), shared bool) string {
		in := inputs{}
		in.sae.ModelName, in.model.Tokenizer = "m", "t"
		change(&in)
		k, err := pairKey(in, shared)
		require.NoError(t, err)
		return k
	}
	as := key(func(*inputs) {}, false)
	require.Equal(t, as, key(func(*inputs) {}, false))
	for what, other := range map[string]string{
		"prepend_bos": key(func(in *inputs) { yes := true; in.sae.PrependBOS = &yes }, false),
		"context":     key(func(in *inputs) { in.sae.ContextLength = 64 }, false),
		"fold":        key(func(in *inputs) { in.extraction.Request.Config.Fold = "decoder-norm" }, false),
		"model":       key(func(in *inputs) { in.model.Tokenizer = "u" }, false),
		"batch":       key(func(*inputs) {}, true),
	} {
		require.NotEqual(t, as, other, what)
	}
}
