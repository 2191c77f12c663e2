package tokenizer

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

func smallGGUF() checkpoint.GGUFTokenizer {
	one, no := 1, false
	return checkpoint.GGUFTokenizer{
		Model: "gpt2", Pre: "smollm", BOS: &one, AddBOS: &no,
		Tokens: []string{"a", "<s>", "b", "ab", "[PAD4]"}, Types: []int32{1, 3, 1, 1, 5}, Merges: []string{"a b"},
	}
}

func TestFromGGUFGivesTheSameBytesEachTime(t *testing.T) {
	t.Parallel()
	first, err := FromGGUF(smallGGUF())
	require.NoError(t, err)
	for range 20 {
		again, err := FromGGUF(smallGGUF())
		require.NoError(t, err)
		require.Equal(t, string(first), string(again))
	}
	var file struct {
		AddedTokens   []addedToken `json:"added_tokens"`
		PostProcessor any          `json:"post_processor"`
		Model         struct{ Vocab map[string]int }
	}
	require.NoError(t, json.Unmarshal(first, &file))
	require.Equal(t, []addedToken{{ID: 1, Content: "<s>", Special: true}}, file.AddedTokens)
	require.Equal(t, map[string]int{"a": 0, "<s>": 1, "b": 2, "ab": 3}, file.Model.Vocab, "fillers are left out, ids stay")
	require.Nil(t, file.PostProcessor, "add_bos_token is false")
}

func TestFromGGUFRefusesWhatItCannotBuildExactly(t *testing.T) {
	t.Parallel()
	yes := true
	for name, c := range map[string]struct {
		change func(*checkpoint.GGUFTokenizer)
		want   string
	}{
		"a tokenizer of another kind":       {func(g *checkpoint.GGUFTokenizer) { g.Model = "rwkv" }, `kind "rwkv"`},
		"a SentencePiece without scores":    {func(g *checkpoint.GGUFTokenizer) { g.Model = "llama" }, "5 tokens and 0 scores"},
		"an unknown pre-tokenizer":          {func(g *checkpoint.GGUFTokenizer) { g.Pre = "falcon" }, `"falcon" is not known (gpt-2, llama-bpe, llama-v3, llama3, qwen2, smollm, tekken are)`},
		"a pre-tokenizer by default":        {func(g *checkpoint.GGUFTokenizer) { g.Pre = "default" }, "did not record how it cuts text up"},
		"no pre-tokenizer":                  {func(g *checkpoint.GGUFTokenizer) { g.Pre = "" }, `"" is not known`},
		"no tokens":                         {func(g *checkpoint.GGUFTokenizer) { g.Tokens = nil }, "no tokens"},
		"no token types":                    {func(g *checkpoint.GGUFTokenizer) { g.Types = nil }, "5 tokens and 0 token types"},
		"a token type of another kind":      {func(g *checkpoint.GGUFTokenizer) { g.Types[0] = 6 }, "type 6"},
		"an empty special token":            {func(g *checkpoint.GGUFTokenizer) { g.Tokens[1] = "" }, "special and empty"},
		"a token twice":                     {func(g *checkpoint.GGUFTokenizer) { g.Tokens[2] = "a" }, `tokens 0 and 2 are both "a"`},
		"a merge of one piece":              {func(g *checkpoint.GGUFTokenizer) { g.Merges[0] = "ab" }, "merge 0"},
		"a merge of three pieces":           {func(g *checkpoint.GGUFTokenizer) { g.Merges[0] = "a b c" }, "merge 0"},
		"a BOS to add and none to be known": {func(g *checkpoint.GGUFTokenizer) { g.AddBOS, g.BOS = &yes, nil }, "bos_token_id"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := smallGGUF()
			c.change(&g)
			_, err := FromGGUF(g)
			var format *FormatError
			require.ErrorAs(t, err, &format)
			require.ErrorContains(t, err, c.want)
		})
	}
}
