package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/featuremill/featuremill/domain/corpus"
)

// maxVocabulary bounds the memory that a token id read from a file can ask for; the largest published
// vocabularies have 262,208 tokens.
const maxVocabulary = 1 << 22

// FormatError says why a tokenizer.json, or a GGUF's tokenizer, cannot be used.
type FormatError struct {
	Detail string
	Err    error // may be nil
}

func (e *FormatError) Error() string { return "unusable tokenizer: " + e.Detail }

func (e *FormatError) Unwrap() error { return e.Err }

// appearance is how a vocabulary writes text into its pieces.
type appearance int

const (
	plain     appearance = iota // the piece is the text
	byteLevel                   // each byte is a printable character: Ġ is a space (GPT-2)
	metaspace                   // ▁ is a space, <0xNN> a byte (SentencePiece)
	wordPiece                   // ## goes on with a word; words are apart by spaces (BERT)
)

// inspect looks at the parts of a tokenizer.json that the library does not tell: how pieces are written, and
// settings that would make tokenisation random.
func inspect(data []byte) (appearance, error) {
	var file struct {
		Model *struct {
			Dropout                 float64 `json:"dropout"`
			ContinuingSubwordPrefix *string `json:"continuing_subword_prefix"`
		} `json:"model"`
		PreTokenizer json.RawMessage `json:"pre_tokenizer"`
		Decoder      json.RawMessage `json:"decoder"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return plain, &FormatError{Detail: fmt.Sprintf("not JSON: %v at byte %d of %d", err, syntax.Offset, len(data)), Err: err}
		}
		return plain, &FormatError{Detail: fmt.Sprintf("not a tokenizer.json: %v", err), Err: err}
	}
	if file.Model == nil {
		return plain, &FormatError{Detail: `not a tokenizer.json: it has no "model" (a tokenizer_config.json or vocab.json is not enough)`}
	}
	if file.Model.Dropout > 0 {
		return plain, &FormatError{Detail: fmt.Sprintf("a BPE dropout of %v makes token ids random; set model.dropout to null", file.Model.Dropout)}
	}
	parts := string(file.Decoder) + string(file.PreTokenizer)
	switch {
	case strings.Contains(parts, `"ByteLevel"`):
		return byteLevel, nil
	case strings.Contains(parts, `"Metaspace"`), strings.Contains(parts, "▁"), strings.Contains(parts, `\u2581`):
		return metaspace, nil
	case strings.Contains(parts, `"WordPiece"`), file.Model.ContinuingSubwordPrefix != nil && *file.Model.ContinuingSubwordPrefix == "##":
		return wordPiece, nil
	}
	return plain, nil
}

// token reads a piece of this appearance.
func (a appearance) token(piece string, special bool) corpus.Token {
	t := corpus.Token{Piece: piece, Text: piece, Special: special}
	if special {
		return t
	}
	switch a {
	case byteLevel:
		t.Text = fromByteLevel(piece)
		t.Continues = beginsInsideWord(t.Text)
	case metaspace:
		if b, ok := byteFallback(piece); ok {
			t.Text = string([]byte{b})
		} else {
			t.Text = strings.ReplaceAll(piece, "▁", " ")
		}
		t.Continues = beginsInsideWord(t.Text)
	case wordPiece:
		if rest, ok := strings.CutPrefix(piece, "##"); ok && rest != "" {
			t.Text, t.Continues = rest, true
		} else {
			t.Text = " " + piece
		}
	case plain:
	}
	return t
}

// beginsInsideWord reports whether text starts with a letter, digit or mark, or in the middle of a character.
func beginsInsideWord(text string) bool {
	if text == "" {
		return false
	}
	r, size := utf8.DecodeRuneInString(text)
	if r == utf8.RuneError && size <= 1 {
		return !utf8.RuneStart(text[0])
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r)
}

// byteFallback reads "<0x0A>".
func byteFallback(piece string) (byte, bool) {
	if len(piece) != 6 || !strings.HasPrefix(piece, "<0x") || piece[5] != '>' {
		return 0, false
	}
	b, err := strconv.ParseUint(piece[3:5], 16, 8)
	return byte(b), err == nil
}

// fromByteLevel undoes GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the other 68 bytes
// for U+0100 and up in their order. A character outside the alphabet (an added token) is kept.
func fromByteLevel(piece string) string {
	var text strings.Builder
	for _, r := range piece {
		switch {
		case r >= '!' && r <= '~', r >= '¡' && r <= '¬', r >= '®' && r <= 'ÿ':
			text.WriteByte(byte(r))
		case r >= 0x100 && r < 0x100+0x21:
			text.WriteByte(byte(r - 0x100)) // 0x00 … 0x20
		case r >= 0x121 && r < 0x121+0x22:
			text.WriteByte(byte(r - 0x121 + 0x7f)) // 0x7f … 0xa0
		case r == 0x143:
			text.WriteByte(0xad)
		default:
			text.WriteRune(r)
		}
	}
	return text.String()
}
