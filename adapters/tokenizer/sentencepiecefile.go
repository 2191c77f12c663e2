package tokenizer

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// maxModelBytes is ten times the largest published tokenizer.model.
const maxModelBytes = 48 << 20

// fromModelFile builds the tokenizer.json of a SentencePiece tokenizer.model (BPE with byte fallback), with what a
// tokenizer_config.json beside it says of the BOS, of more tokens and of the space in front of a text.
func fromModelFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read tokenizer: %w", err)
	}
	if info.Size() > maxModelBytes {
		return nil, fmt.Errorf("%s: %w", path, &FormatError{Detail: fmt.Sprintf("it has %d bytes; a tokenizer.model has at most %d", info.Size(), maxModelBytes)})
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read tokenizer: %w", err)
	}
	config, err := os.ReadFile(filepath.Join(filepath.Dir(path), "tokenizer_config.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read tokenizer: %w", err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "added_tokens.json")); err == nil && config == nil {
		return nil, fmt.Errorf("%s: %w", path, &FormatError{Detail: "beside it is an added_tokens.json and no tokenizer_config.json, which says how those tokens are found; give the model's tokenizer.json (transformers writes one with save_pretrained)"})
	}
	out, err := fromSentencePiece(data, config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

// fromSentencePiece is fromModelFile on bytes; config may be nil.
func fromSentencePiece(model, config []byte) ([]byte, error) {
	g, err := parseSentencePiece(model)
	if err != nil {
		return nil, err
	}
	var c struct {
		AddBOS *bool `json:"add_bos_token"`
		AddEOS *bool `json:"add_eos_token"`
		Legacy *bool `json:"legacy"`
		Added  map[string]struct {
			addedToken
		} `json:"added_tokens_decoder"`
	}
	if config != nil {
		if err := json.Unmarshal(config, &c); err != nil {
			return nil, &FormatError{Detail: fmt.Sprintf("tokenizer_config.json: %v", err), Err: err}
		}
	}
	g.AddBOS, g.AddEOS = c.AddBOS, c.AddEOS
	added := make([]addedToken, 0, len(c.Added))
	for name, a := range c.Added {
		id, err := strconv.Atoi(name)
		if err != nil || id < 0 || id >= maxVocabulary || a.Content == "" {
			return nil, &FormatError{Detail: fmt.Sprintf("tokenizer_config.json adds a token %q with the id %q", a.Content, name)}
		}
		a.ID = id
		added = append(added, a.addedToken)
	}
	slices.SortFunc(added, func(a, b addedToken) int { return a.ID - b.ID })
	for _, a := range added {
		switch {
		case a.ID < len(g.Tokens) && g.Tokens[a.ID] != a.Content, a.ID > len(g.Tokens):
			return nil, &FormatError{Detail: fmt.Sprintf("tokenizer_config.json says that token %d is %q, which the model's %d tokens contradict", a.ID, a.Content, len(g.Tokens))}
		case a.ID == len(g.Tokens):
			g.Tokens, g.Types, g.Scores = append(g.Tokens, a.Content), append(g.Types, ggufUserDefined), append(g.Scores, 0)
		}
	}
	file, err := sentencePiece(g)
	if err != nil {
		return nil, err
	}
	tokens := file["added_tokens"].([]addedToken) //nolint:forcetypeassert // sentencePiece put it there
	for _, a := range added {
		if at := slices.IndexFunc(tokens, func(t addedToken) bool { return t.ID == a.ID }); at >= 0 {
			tokens[at] = a
		} else {
			tokens = append(tokens, a)
		}
	}
	slices.SortFunc(tokens, func(a, b addedToken) int { return a.ID - b.ID })
	file["added_tokens"] = tokens
	if c.Legacy != nil && !*c.Legacy && (g.AddSpacePrefix == nil || *g.AddSpacePrefix) {
		file["normalizer"] = nil
		file["pre_tokenizer"] = map[string]any{"type": "Metaspace", "replacement": space, "prepend_scheme": "first", "split": false}
	}
	return write(file)
}

// The wire format of protocol buffers: kinds of fields.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

// eachField calls use for every field of a message.
func eachField(b []byte, use func(field int, number uint64, bytes []byte) error) error {
	broken := &FormatError{Detail: "not a SentencePiece model (tokenizer.model): its fields do not end where it does"}
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 {
			return broken
		}
		b = b[n:]
		var number uint64
		var bytes []byte
		switch key & 7 {
		case wireVarint:
			if number, n = binary.Uvarint(b); n <= 0 {
				return broken
			}
			b = b[n:]
		case wire64, wire32:
			size := 8
			if key&7 == wire32 {
				size = 4
			}
			if len(b) < size {
				return broken
			}
			if size == 4 {
				number = uint64(binary.LittleEndian.Uint32(b))
			}
			b = b[size:]
		case wireBytes:
			length, n := binary.Uvarint(b)
			if n <= 0 || length > uint64(len(b)-n) {
				return broken
			}
			bytes, b = b[n:n+int(length)], b[n+int(length):]
		default:
			return broken
		}
		if err := use(int(key>>3), number, bytes); err != nil {
			return err
		}
	}
	return nil
}

// parseSentencePiece reads what makes a model, and refuses what would not come out the same.
func parseSentencePiece(model []byte) (checkpoint.GGUFTokenizer, error) {
	g := checkpoint.GGUFTokenizer{Model: "llama"}
	kind, suffix := uint64(1), false // unigram is the default
	rules, dummyPrefix, removeSpaces, escape := false, true, true, true
	bos, eos := 1, 2
	err := eachField(model, func(field int, _ uint64, part []byte) error {
		switch field {
		case 1: // a piece
			if len(g.Tokens) == maxVocabulary {
				return &FormatError{Detail: fmt.Sprintf("it has more than %d pieces", maxVocabulary)}
			}
			text, score, class := "", float32(0), int32(ggufNormal)
			if err := eachField(part, func(field int, number uint64, bytes []byte) error {
				switch field {
				case 1:
					text = string(bytes)
				case 2:
					score = math.Float32frombits(uint32(number))
				case 3:
					class = int32(min(number, 1<<20))
				}
				return nil
			}); err != nil {
				return err
			}
			g.Tokens, g.Scores, g.Types = append(g.Tokens, text), append(g.Scores, score), append(g.Types, class)
		case 2: // how it was trained
			return eachField(part, func(field int, number uint64, _ []byte) error {
				switch field {
				case 3:
					kind = number
				case 24:
					suffix = number != 0
				case 41:
					bos = int(int32(number))
				case 42:
					eos = int(int32(number))
				}
				return nil
			})
		case 3: // how text is normalised
			return eachField(part, func(field int, number uint64, bytes []byte) error {
				switch field {
				case 2:
					rules = len(bytes) > 0
				case 3:
					dummyPrefix = number != 0
				case 4:
					removeSpaces = number != 0
				case 5:
					escape = number != 0
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return g, err
	}
	const instead = "; give the model's tokenizer.json (transformers writes one with save_pretrained)"
	switch {
	case len(g.Tokens) == 0:
		return g, &FormatError{Detail: "not a SentencePiece model (tokenizer.model): it has no pieces"}
	case kind != 2:
		return g, &FormatError{Detail: "the tokenizer.model is not a BPE model but " + map[uint64]string{1: "unigram", 3: "words", 4: "characters"}[kind] + instead}
	case rules, removeSpaces, !escape, suffix:
		return g, &FormatError{Detail: "the tokenizer.model normalises text by rules of its own" + instead}
	}
	g.AddSpacePrefix = &dummyPrefix
	if bos >= 0 {
		g.BOS = &bos
	}
	if eos >= 0 {
		g.EOS = &eos
	}
	return g, checkTokens(g)
}
