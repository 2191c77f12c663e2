//go:build cgo

package tokenizer

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// A GGUF of these models carries their tokenizer.json's tokens and merges: what is rebuilt must behave as the original.
func TestATokenizerRebuiltFromGGUFFactsBehavesAsTheOriginal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, model, pre string }{
		{"gpt2", "gpt2", "gpt-2"}, {"llama3", "gpt2", "llama-bpe"}, {"qwen2_5", "gpt2", "qwen2"}, {"qwen3", "gpt2", "qwen2"}, {"nemo", "gpt2", "tekken"},
		{"llama2", "llama", "default"}, {"gemma2", "llama", "default"}, {"gemma3", "llama", "default"}, {"phi3", "llama", "default"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			facts, swallowing := factsOf(t, real(t, c.name+".tokenizer.json"), c.model)
			facts.Pre = c.pre
			data, err := FromGGUF(facts)
			require.NoError(t, err)
			left := requireGoldenUnless(t, data, c.name, func(text string) bool {
				for _, token := range swallowing {
					if strings.Contains(text, token) {
						return true
					}
				}
				return false
			})
			if c.name == "phi3" { // a GGUF does not say which tokens swallow the spaces behind them
				require.Less(t, left, 60)
			} else {
				require.Zero(t, left)
			}
		})
	}
}

// factsOf writes a tokenizer.json's facts as llama.cpp's converter does, and the tokens that swallow spaces around
// them, of which a GGUF has no record.
func factsOf(t *testing.T, data []byte, model string) (checkpoint.GGUFTokenizer, []string) {
	t.Helper()
	var file struct {
		AddedTokens   []addedToken    `json:"added_tokens"`
		Normalizer    json.RawMessage `json:"normalizer"`
		PostProcessor struct {
			Single []map[string]map[string]any
		} `json:"post_processor"`
		Model struct {
			UnkToken string `json:"unk_token"`
			Vocab    map[string]int
			Merges   []json.RawMessage
		}
	}
	require.NoError(t, json.Unmarshal(data, &file))
	size := 0
	for _, id := range file.Model.Vocab {
		size = max(size, id+1)
	}
	for _, a := range file.AddedTokens {
		size = max(size, a.ID+1)
	}
	g := checkpoint.GGUFTokenizer{Model: model, Tokens: make([]string, size), Types: make([]int32, size)}
	for id := range g.Types {
		g.Tokens[id], g.Types[id] = "[PAD]", ggufUnused
	}
	for token, id := range file.Model.Vocab {
		g.Tokens[id], g.Types[id] = token, ggufNormal
		if _, ok := byteFallback(token); ok && model == "llama" {
			g.Types[id] = ggufByte
		}
	}
	var swallowing []string
	for _, a := range file.AddedTokens {
		g.Tokens[a.ID], g.Types[a.ID] = a.Content, ggufUserDefined
		if a.Special {
			g.Types[a.ID] = ggufControl
		}
		if a.Content == file.Model.UnkToken {
			g.Types[a.ID] = ggufUnknown
		}
		if a.LStrip || a.RStrip {
			swallowing = append(swallowing, a.Content)
		}
	}
	bos := false
	for _, part := range file.PostProcessor.Single {
		if special, ok := part["SpecialToken"]; ok {
			for id, token := range g.Tokens {
				if token == special["id"] {
					bos, g.BOS = true, &id
				}
			}
		}
	}
	g.AddBOS = &bos
	for _, raw := range file.Model.Merges {
		var merge string
		if json.Unmarshal(raw, &merge) != nil {
			var pair [2]string
			require.NoError(t, json.Unmarshal(raw, &pair))
			merge = pair[0] + " " + pair[1]
		}
		g.Merges = append(g.Merges, merge)
	}
	if model == "llama" {
		prefix := strings.Contains(string(file.Normalizer), "Prepend")
		g.AddSpacePrefix = &prefix
		// A SentencePiece model has scores instead: a piece is the better, the earlier it is made.
		g.Scores = make([]float32, size)
		for rank, merge := range slices.Backward(g.Merges) {
			left, right, _ := strings.Cut(merge, " ")
			g.Scores[file.Model.Vocab[left+right]] = -1 - float32(rank)
		}
		g.Merges = nil
		for id := range g.Tokens {
			switch {
			case g.Types[id] == ggufUserDefined:
				g.Tokens[id], g.Scores[id] = strings.ReplaceAll(g.Tokens[id], space, " "), -1000
			case g.Tokens[id] == "\t" && g.Types[id] == ggufNormal: // Gemma 2
				g.Tokens[id], g.Types[id] = "<0x09>", ggufByte
			}
		}
	}
	return g, swallowing
}
