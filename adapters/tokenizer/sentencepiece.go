package tokenizer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// space is how SentencePiece writes a space into its pieces.
const space = "▁"

// maxPieceRunes bounds the work of looking for merges; the longest published piece has 93 code points.
const maxPieceRunes = 512

// maxMerges is four times the merges of the largest published SentencePiece vocabulary.
const maxMerges = 1 << 21

// sentencePiece builds the tokenizer of a SentencePiece BPE model with byte fallback (Llama 1 and 2, Mistral,
// Phi-3, Gemma). Such a model has scores and no merges: every split of a piece into two pieces is a merge, the best
// piece first.
//
// The text before each special token gets a space of its own in front unless add_space_prefix is false. (Models
// whose tokenizer.json says "legacy": false put it before the first one only; a GGUF does not tell them apart, and
// neither does llama.cpp.)
func sentencePiece(g checkpoint.GGUFTokenizer) (map[string]any, error) {
	if len(g.Scores) != len(g.Tokens) {
		return nil, &FormatError{Detail: fmt.Sprintf("the GGUF has %d tokens and %d scores, so what SentencePiece would join first cannot be told", len(g.Tokens), len(g.Scores))}
	}
	pieces, added, unknown, err := spPieces(g)
	if err != nil {
		return nil, err
	}
	merges, err := pieces.merges()
	if err != nil {
		return nil, err
	}
	template, err := ggufTemplate(g, true)
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	toSpace := object{"type": "Replace", "pattern": object{"String": " "}, "content": space}
	fromSpace := object{"type": "Replace", "pattern": object{"String": space}, "content": " "}
	normalizer, decoders := toSpace, []any{fromSpace, object{"type": "ByteFallback"}, object{"type": "Fuse"}}
	if g.AddSpacePrefix == nil || *g.AddSpacePrefix {
		normalizer = object{"type": "Sequence", "normalizers": []any{object{"type": "Prepend", "prepend": space}, toSpace}}
		decoders = append(decoders, object{"type": "Strip", "content": " ", "start": 1, "stop": 0})
	}
	return object{
		"added_tokens":   added,
		"normalizer":     normalizer,
		"pre_tokenizer":  nil,
		"post_processor": template,
		"decoder":        object{"type": "Sequence", "decoders": decoders},
		"model": object{
			"type": "BPE", "dropout": nil, "unk_token": unknown, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": pieces.ids, "merges": merges,
		},
	}, nil
}

// scoredPieces are the pieces of a SentencePiece model.
type scoredPieces struct {
	ids    map[string]int
	names  []string // by id; "" where there is none
	scores []float32
}

// spPieces returns the pieces, the tokens that are cut out of text first, and the unknown token.
func spPieces(g checkpoint.GGUFTokenizer) (scoredPieces, []addedToken, any, error) {
	p := scoredPieces{ids: make(map[string]int, len(g.Tokens)), names: make([]string, len(g.Tokens)), scores: slices.Clone(g.Scores)}
	added, bytes := []addedToken{}, 0
	var unknown any
	for id, token := range g.Tokens {
		kind := g.Types[id]
		if kind == ggufUnused {
			continue
		}
		if token == "" || utf8.RuneCountInString(token) > maxPieceRunes {
			return p, nil, nil, &FormatError{Detail: fmt.Sprintf("token %d has %d bytes; a piece has 1 to %d characters", id, len(token), maxPieceRunes)}
		}
		switch kind {
		case ggufNormal:
		case ggufByte:
			if _, ok := byteFallback(token); !ok {
				return p, nil, nil, &FormatError{Detail: fmt.Sprintf("token %d is a byte and is written %q, not like <0x0A>", id, token)}
			}
			bytes++
			if token == "<0x09>" && slices.Contains(g.Tokens, "\t\t") && !slices.Contains(g.Tokens, "\t") {
				token = "\t" // Gemma's runs of tabs are made of it; its own tokenizer.json writes the byte so
			}
		case ggufUnknown, ggufControl:
			if kind == ggufUnknown {
				unknown = token
			}
			added = append(added, addedToken{ID: id, Content: token, Special: true})
		case ggufUserDefined:
			// Converters write the spaces of these as spaces. They come before all others: SentencePiece looks for
			// them before it joins anything.
			token = strings.ReplaceAll(token, " ", space)
			added = append(added, addedToken{ID: id, Content: token})
			p.scores[id] = 0
		default:
			return p, nil, nil, &FormatError{Detail: fmt.Sprintf("token %d (%q) has type %d, which SentencePiece does not have", id, token, kind)}
		}
		if other, taken := p.ids[token]; taken {
			return p, nil, nil, &FormatError{Detail: fmt.Sprintf("tokens %d and %d are both %q", other, id, token)}
		}
		p.ids[token], p.names[id] = id, token
	}
	if bytes != 256 {
		return p, nil, nil, &FormatError{Detail: fmt.Sprintf("the SentencePiece model has %d of the 256 byte tokens: only BPE with byte fallback is supported; give the model's tokenizer.json", bytes)}
	}
	return p, added, unknown, nil
}

// merges lists every way to make a piece of two others: best piece first, then the longer left part.
func (p scoredPieces) merges() ([][2]string, error) {
	type merge struct {
		score       float32
		left, right int // ids
		runes       [2]int
	}
	var all []merge
	for id, name := range p.names {
		if name == "" {
			continue
		}
		from := len(all)
		runes, whole := 0, utf8.RuneCountInString(name)
		for at := range name {
			if at > 0 {
				left, ok := p.ids[name[:at]]
				if right, both := p.ids[name[at:]]; ok && both {
					all = append(all, merge{p.scores[id], left, right, [2]int{runes, whole - runes}})
				}
			}
			runes++
		}
		if len(all) > maxMerges {
			return nil, &FormatError{Detail: fmt.Sprintf("the SentencePiece model has more than %d ways to join its pieces", maxMerges)}
		}
		slices.SortFunc(all[from:], func(a, b merge) int { return cmp.Or(cmp.Compare(a.left, b.left), cmp.Compare(a.right, b.right)) })
	}
	slices.SortStableFunc(all, func(a, b merge) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(b.runes[0], a.runes[0]), cmp.Compare(b.runes[1], a.runes[1]))
	})
	out := make([][2]string, len(all))
	for i, m := range all {
		out[i] = [2]string{p.names[m.left], p.names[m.right]}
	}
	return out, nil
}
