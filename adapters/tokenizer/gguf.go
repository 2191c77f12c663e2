package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// Token types of GGUF.
const (
	ggufNormal      = 1
	ggufUnknown     = 2
	ggufControl     = 3
	ggufUserDefined = 4
	ggufUnused      = 5
	ggufByte        = 6
)

// splitting is how one named `pre` cuts text up, as the models' own tokenizer.json files say it. A name is here
// only when its rule was held against such a file: a guess would give ids that look right and are not.
type splitting struct {
	preTokenizers []any
	normalizer    any
	ignoreMerges  bool
	addBOS        bool // what llama.cpp takes when the file does not say
}

// The letters, numbers, rest and space rule of GPT-4's tokenizer; %s is how many digits stay together.
const gpt4Split = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`

// The rule of o200k, which tells small letters from capitals; digits stay alone.
const tekkenSplit = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`

// splittings returns the known rules by their `pre` name.
func splittings() map[string]splitting {
	type object = map[string]any
	byteLevel := func(regex bool) object {
		return object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex}
	}
	split := func(pattern string) object {
		return object{"type": "Split", "pattern": object{"Regex": pattern}, "behavior": "Isolated", "invert": false} //nolint:misspell // a word of the format
	}
	llama3 := splitting{preTokenizers: []any{split(fmt.Sprintf(gpt4Split, "{1,3}")), byteLevel(false)}, ignoreMerges: true, addBOS: true}
	return map[string]splitting{
		"gpt-2":     {preTokenizers: []any{byteLevel(true)}},
		"smollm":    {preTokenizers: []any{object{"type": "Digits", "individual_digits": true}, byteLevel(true)}},
		"llama-bpe": llama3,
		"llama3":    llama3, // older names of the same
		"llama-v3":  llama3,
		"qwen2":     {preTokenizers: []any{split(fmt.Sprintf(gpt4Split, "")), byteLevel(false)}, normalizer: object{"type": "NFC"}},
		"tekken":    {preTokenizers: []any{split(tekkenSplit), byteLevel(false)}, ignoreMerges: true, addBOS: true},
	}
}

type addedToken struct {
	ID         int    `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

// FromGGUF builds the tokenizer.json of a model that came as GGUF. The same facts always give the same bytes.
// It refuses with a *FormatError what it cannot build exactly.
//
// A GGUF does not say whether an added token swallows the spaces around it; it is taken not to.
func FromGGUF(g checkpoint.GGUFTokenizer) ([]byte, error) {
	if err := checkTokens(g); err != nil {
		return nil, err
	}
	var file map[string]any
	var err error
	switch g.Model {
	case "gpt2":
		file, err = byteLevelBPE(g)
	case "llama":
		file, err = sentencePiece(g)
	default:
		return nil, &FormatError{Detail: fmt.Sprintf("a GGUF tokenizer of kind %q is not supported (\"gpt2\", byte-level BPE, and \"llama\", SentencePiece BPE, are); give the model's tokenizer.json", g.Model)}
	}
	if err != nil {
		return nil, err
	}
	return write(file)
}

// write gives the bytes of a tokenizer.json.
func write(file map[string]any) ([]byte, error) {
	file["version"], file["truncation"], file["padding"] = "1.0", nil, nil
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(file); err != nil {
		return nil, fmt.Errorf("write tokenizer.json: %w", err)
	}
	return out.Bytes(), nil
}

func checkTokens(g checkpoint.GGUFTokenizer) error {
	switch {
	case len(g.Tokens) == 0:
		return &FormatError{Detail: "the GGUF has no tokens"}
	case len(g.Tokens) > maxVocabulary:
		return &FormatError{Detail: fmt.Sprintf("the GGUF has %d tokens; more than %d are refused", len(g.Tokens), maxVocabulary)}
	case len(g.Types) != len(g.Tokens):
		return &FormatError{Detail: fmt.Sprintf("the GGUF has %d tokens and %d token types, so special tokens cannot be told", len(g.Tokens), len(g.Types))}
	}
	return nil
}

func byteLevelBPE(g checkpoint.GGUFTokenizer) (map[string]any, error) {
	known := splittings()
	rule, ok := known[g.Pre]
	if !ok {
		hint := ""
		if g.Pre == "" || g.Pre == "default" {
			hint = ": whoever converted the model did not record how it cuts text up"
		}
		return nil, &FormatError{Detail: fmt.Sprintf("the GGUF pre-tokenizer %q is not known (%s are)%s; give the model's tokenizer.json", g.Pre, strings.Join(slices.Sorted(maps.Keys(known)), ", "), hint)}
	}
	vocabulary, added, err := ggufTokens(g)
	if err != nil {
		return nil, err
	}
	merges := make([][2]string, len(g.Merges))
	for i, merge := range g.Merges {
		left, right, found := strings.Cut(merge, " ")
		if !found || left == "" || right == "" || strings.Contains(right, " ") {
			return nil, &FormatError{Detail: fmt.Sprintf("merge %d is %q, not two pieces with a space between", i, merge)}
		}
		merges[i] = [2]string{left, right}
	}
	template, err := ggufTemplate(g, rule.addBOS)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"added_tokens":   added,
		"normalizer":     rule.normalizer,
		"pre_tokenizer":  map[string]any{"type": "Sequence", "pretokenizers": rule.preTokenizers},
		"post_processor": template,
		"decoder":        map[string]any{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
		"model": map[string]any{
			"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": false, "byte_fallback": false, "ignore_merges": rule.ignoreMerges, "vocab": vocabulary, "merges": merges,
		},
	}, nil
}

// ggufTokens returns the vocabulary, which fixes every id, and the tokens that are cut out of text before BPE.
func ggufTokens(g checkpoint.GGUFTokenizer) (map[string]int, []addedToken, error) {
	vocabulary := make(map[string]int, len(g.Tokens))
	added := []addedToken{}
	for id, token := range g.Tokens {
		switch kind := g.Types[id]; kind {
		case ggufUnused:
			continue // a filler such as [PAD151936], which exists to make the embedding's size round
		case ggufNormal:
		case ggufControl, ggufUserDefined:
			if token == "" {
				return nil, nil, &FormatError{Detail: fmt.Sprintf("token %d is special and empty", id)}
			}
			added = append(added, addedToken{ID: id, Content: token, Special: kind == ggufControl})
		default:
			return nil, nil, &FormatError{Detail: fmt.Sprintf("token %d (%q) has type %d, which a byte-level BPE does not have", id, token, kind)}
		}
		if other, taken := vocabulary[token]; taken {
			return nil, nil, &FormatError{Detail: fmt.Sprintf("tokens %d and %d are both %q", other, id, token)}
		}
		vocabulary[token] = id
	}
	return vocabulary, added, nil
}

// ggufTemplate is the post-processor that adds BOS and EOS, or nil when neither is added.
func ggufTemplate(g checkpoint.GGUFTokenizer, addBOS bool) (any, error) {
	type object = map[string]any
	special := object{}
	piece := func(name string, id *int) (any, error) {
		if id == nil || *id < 0 || *id >= len(g.Tokens) {
			return nil, &FormatError{Detail: fmt.Sprintf("the GGUF asks for a %s at every text and has no valid %s_token_id", strings.ToUpper(name), name)}
		}
		token := g.Tokens[*id]
		special[token] = object{"id": token, "ids": []int{*id}, "tokens": []string{token}}
		return object{"SpecialToken": object{"id": token, "type_id": 0}}, nil
	}
	single := []any{object{"Sequence": object{"id": "A", "type_id": 0}}}
	if g.AddBOS != nil && *g.AddBOS || g.AddBOS == nil && addBOS {
		bos, err := piece("bos", g.BOS)
		if err != nil {
			return nil, err
		}
		single = append([]any{bos}, single...)
	}
	if g.AddEOS != nil && *g.AddEOS {
		eos, err := piece("eos", g.EOS)
		if err != nil {
			return nil, err
		}
		single = append(single, eos)
	}
	if len(single) == 1 {
		return nil, nil
	}
	pair := append(slices.Clone(single), object{"Sequence": object{"id": "B", "type_id": 1}})
	return object{"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}, nil
}
