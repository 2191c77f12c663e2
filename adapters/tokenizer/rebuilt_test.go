//go:build cgo

package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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

func TestASentencePieceModelAloneIsEnough(t *testing.T) {
	t.Parallel()
	t.Run("Mistral 7B v0.1, the space before every text", func(t *testing.T) {
		t.Parallel()
		data, err := fromSentencePiece(real(t, "mistral1.tokenizer.model"), nil)
		require.NoError(t, err)
		requireGolden(t, data, "mistral1")
	})
	t.Run("Mistral's third, without its config", func(t *testing.T) {
		t.Parallel()
		data, err := fromSentencePiece(real(t, "mistral3.tokenizer.model"), nil)
		require.NoError(t, err)
		requireGolden(t, data, "mistral3")
	})
	t.Run("Mistral 7B v0.3, as its own tokenizer.json", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.model"), real(t, "mistral3.tokenizer.model"), 0o600))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer_config.json"), []byte(`{"legacy": false, "add_bos_token": true, "added_tokens_decoder": {"1": {"content": "<s>", "special": true}}}`), 0o600))
		data, err := Read(dir)
		require.NoError(t, err)
		// The model file and the tokenizer.json are of different makers, who name one control token differently.
		left := requireGoldenUnless(t, data, "mistral", func(text string) bool { return strings.Contains(text, "[control_") })
		require.Equal(t, 5, left)
	})
	model := real(t, "mistral1.tokenizer.model")
	for name, c := range map[string]struct{ model, config, want string }{
		"a truncated model":           {string(model[:len(model)-5]), "", "not a SentencePiece model"},
		"no model":                    {"", "", "it has no pieces"},
		"another file":                {"{}", "", "not a SentencePiece model"},
		"a unigram model":             {"\x0a\x05\x0a\x03abc", "", "not a BPE model but unigram; give the model's tokenizer.json"},
		"a model that mends spaces":   {"\x0a\x05\x0a\x03abc\x12\x02\x18\x02", "", "by rules of its own"},
		"a token that contradicts it": {string(model), `{"added_tokens_decoder": {"5": {"content": "five"}}}`, `says that token 5 is "five"`},
		"a token far off":             {string(model), `{"added_tokens_decoder": {"40000": {"content": "far"}}}`, `says that token 40000 is "far"`},
	} {
		var config []byte
		if c.config != "" {
			config = []byte(c.config)
		}
		_, err := fromSentencePiece([]byte(c.model), config)
		var format *FormatError
		require.ErrorAs(t, err, &format, name)
		require.ErrorContains(t, err, c.want, name)
	}
}

func FuzzSentencePiece(f *testing.F) {
	f.Add([]byte("\x0a\x05\x0a\x03abc\x12\x02\x18\x02\x1a\x02\x20\x00"), []byte(`{"legacy": false, "added_tokens_decoder": {"1": {"content": "x"}}}`))
	if cache, err := os.UserCacheDir(); err == nil {
		if model, err := os.ReadFile(filepath.Join(cache, "featuremill", "tokenizers", "mistral1.tokenizer.model")); err == nil {
			f.Add(model[:8000], []byte(`{}`))
		}
	}
	f.Fuzz(func(_ *testing.T, model, config []byte) {
		_, _ = fromSentencePiece(model, config)
	})
}

// FuzzFromGGUF builds a tokenizer of any facts; what is built must load or be refused.
func FuzzFromGGUF(f *testing.F) {
	f.Add(true, "smollm", "a\x00<s>\x00b\x00ab", []byte{1, 3, 1, 1}, "a b", 1)
	f.Add(false, "", "<unk>\x00<s>\x00▁\x00▁▁", []byte{2, 3, 1, 4}, "", 1)
	f.Fuzz(func(t *testing.T, bytes bool, pre, tokens string, types []byte, merges string, bos int) {
		g := checkpoint.GGUFTokenizer{Model: "llama", Pre: pre, Tokens: strings.Split(tokens, "\x00"), BOS: &bos}
		if bytes {
			g.Model, g.Merges = "gpt2", strings.Split(merges, "\n")
		} else {
			for b := range 256 {
				g.Tokens, types = append(g.Tokens, fmt.Sprintf("<0x%02X>", b)), append(types, ggufByte)
			}
		}
		for i, kind := range types {
			g.Types, g.Scores = append(g.Types, int32(kind)), append(g.Scores, float32(i%7))
		}
		data, err := FromGGUF(g)
		if err != nil {
			return
		}
		tk, err := LoadBytes(data)
		if err != nil {
			return
		}
		_, _ = tk.Encode(tokens+" "+merges, true)
		require.NoError(t, tk.Close())
	})
}
