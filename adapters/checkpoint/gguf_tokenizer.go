package checkpoint

import (
	"fmt"
	"math"
)

// GGUFTokenizer is the tokenizer that a GGUF file carries. Pointers are nil where the file says nothing.
type GGUFTokenizer struct {
	Model  string // "gpt2" (byte-level BPE), "llama" (SentencePiece), …
	Pre    string // which pre-tokenizer, e.g. "smollm"; "" when absent
	Tokens []string
	Types  []int32   // one each token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; nil when absent
	Scores []float32 // nil when absent
	Merges []string  // "left right", best first

	BOS, EOS, Unknown, Padding     *int
	AddBOS, AddEOS, AddSpacePrefix *bool
}

// Tokenizer reads the tokenizer's metadata; a FormatError if there is none, or if its parts do not fit one another.
func (g *GGUF) Tokenizer() (GGUFTokenizer, error) {
	const prefix = "tokenizer.ggml."
	var t GGUFTokenizer
	var ok bool
	if t.Tokens, ok = g.Texts(prefix + "tokens"); !ok || len(t.Tokens) == 0 {
		return t, g.broken("the metadata has no tokens", prefix+"tokens, an array of strings")
	}
	t.Model, _ = g.Text(prefix + "model")
	t.Pre, _ = g.Text(prefix + "pre")
	t.Merges, _ = g.Texts(prefix + "merges")
	if g.Has(prefix + "token_type") {
		t.Types = make([]int32, 0, len(t.Tokens))
		if !g.each(prefix+"token_type", func(_ int, v ggufValue) bool {
			n, ok := v.integer()
			t.Types = append(t.Types, int32(n))
			return ok && n >= math.MinInt32 && n <= math.MaxInt32
		}) || len(t.Types) != len(t.Tokens) {
			return t, g.broken(fmt.Sprintf("the metadata has %d tokens and %d usable token types", len(t.Tokens), len(t.Types)), "one whole number each token")
		}
	}
	if g.Has(prefix + "scores") {
		t.Scores = make([]float32, 0, len(t.Tokens))
		if !g.each(prefix+"scores", func(_ int, v ggufValue) bool {
			x, ok := v.number()
			t.Scores = append(t.Scores, float32(x))
			return ok
		}) || len(t.Scores) != len(t.Tokens) {
			return t, g.broken(fmt.Sprintf("the metadata has %d tokens and %d usable scores", len(t.Tokens), len(t.Scores)), "one number each token")
		}
	}
	for name, id := range map[string]**int{"bos_token_id": &t.BOS, "eos_token_id": &t.EOS, "unknown_token_id": &t.Unknown, "padding_token_id": &t.Padding} {
		if !g.Has(prefix + name) {
			continue
		}
		n, ok := g.Integer(prefix + name)
		if !ok || n < 0 || n >= int64(len(t.Tokens)) {
			return t, g.broken(fmt.Sprintf("%s%s is %d", prefix, name, n), fmt.Sprintf("a token id below %d", len(t.Tokens)))
		}
		*id = intPointer(int(n))
	}
	for name, flag := range map[string]**bool{"add_bos_token": &t.AddBOS, "add_eos_token": &t.AddEOS, "add_space_prefix": &t.AddSpacePrefix} {
		if b, ok := g.Flag(prefix + name); ok {
			*flag = &b
		}
	}
	return t, nil
}

func intPointer(n int) *int { return &n }
