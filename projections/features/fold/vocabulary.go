package fold

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// traits are what the filters need to know of a token.
type traits uint8

const (
	isSpecial traits = 1 << iota
	isSingleChar
	isPunctuation
	isNumber
	isStopWord
	isPartial     // not a whole number of characters
	continuesWord // continues a word if the token before it ends in one
	endsInWord
)

func (f Filters) traits() traits {
	var t traits
	for _, p := range []struct {
		on   bool
		what traits
	}{
		{f.Special, isSpecial}, {f.SingleChar, isSingleChar}, {f.Punctuation, isPunctuation},
		{f.Numbers, isNumber}, {f.StopWords, isStopWord}, {f.Fragments, isPartial},
	} {
		if p.on {
			t |= p.what
		}
	}
	return t
}

// alphabet is how a tokenizer's file spells white space and bytes.
type alphabet int

const (
	plain         alphabet = iota
	byteLevel              // GPT-2's: Ġ is a space, every byte has a printable character
	sentencePiece          // ▁ is a space, <0xNN> a byte
	wordPiece              // ## continues a word
)

// alphabetOf goes by how most of the pieces start.
func alphabetOf(v Vocabulary) alphabet {
	var counts [4]int
	for id := range int32(v.Len()) {
		switch p := v.Piece(id); {
		case strings.HasPrefix(p, "Ġ"):
			counts[byteLevel]++
		case strings.HasPrefix(p, "▁"):
			counts[sentencePiece]++
		case strings.HasPrefix(p, "##"):
			counts[wordPiece]++
		}
	}
	best := plain
	for a, n := range counts {
		if n > counts[best] {
			best = alphabet(a)
		}
	}
	return best
}

// vocabularyTraits looks at every token once.
func vocabularyTraits(v Vocabulary) []traits {
	spelling := alphabetOf(v)
	bytes, stop := byteLevelBytes(), stopWords()
	all := make([]traits, v.Len())
	for id := range all {
		if v.Special(int32(id)) {
			all[id] = isSpecial
			continue
		}
		all[id] = traitsOf(text(v.Piece(int32(id)), spelling, bytes), stop)
	}
	return all
}

// Texts decodes every token of a vocabulary: what it stands for in a text, with the space before it. A part of
// a character is not valid UTF-8.
func Texts(v Vocabulary) []string {
	spelling, bytes := alphabetOf(v), byteLevelBytes()
	texts := make([]string, v.Len())
	for id := range texts {
		texts[id] = v.Piece(int32(id))
		if !v.Special(int32(id)) {
			texts[id] = text(texts[id], spelling, bytes)
		}
	}
	return texts
}

// text decodes a piece; a leading space says that it starts a word.
func text(piece string, spelling alphabet, bytes map[rune]byte) string {
	switch spelling {
	case byteLevel:
		decoded := make([]byte, 0, len(piece))
		for _, r := range piece {
			if b, ok := bytes[r]; ok {
				decoded = append(decoded, b)
			} else {
				decoded = utf8.AppendRune(decoded, r)
			}
		}
		return string(decoded)
	case sentencePiece:
		if len(piece) == 6 && strings.HasPrefix(piece, "<0x") && piece[5] == '>' {
			if b, err := strconv.ParseUint(piece[3:5], 16, 8); err == nil {
				return string([]byte{byte(b)})
			}
		}
		return strings.ReplaceAll(piece, "▁", " ")
	case wordPiece:
		if rest, ok := strings.CutPrefix(piece, "##"); ok {
			return rest
		}
		return " " + piece
	default:
		return piece
	}
}

// byteLevelBytes is GPT-2's alphabet, from its character to the byte.
func byteLevelBytes() map[rune]byte {
	bytes := make(map[rune]byte, 256)
	next := rune(256)
	for b := range rune(256) {
		if b >= '!' && b <= '~' || b >= '¡' && b <= '¬' || b >= '®' && b <= 'ÿ' {
			bytes[b] = byte(b)
			continue
		}
		bytes[next] = byte(b)
		next++
	}
	return bytes
}

func traitsOf(text string, stop map[string]bool) traits {
	if !utf8.ValidString(text) {
		return isPartial
	}
	var t traits
	word := strings.TrimSpace(text)
	letters, numbers, runes := 0, 0, 0
	var only rune
	for _, r := range word {
		runes++
		only = r
		switch {
		case unicode.IsLetter(r) || unicode.IsMark(r):
			letters++
		case unicode.IsNumber(r):
			numbers++
		}
	}
	if runes == 0 || runes == 1 && !unicode.Is(unicode.Han, only) {
		t |= isSingleChar
	}
	if letters+numbers == 0 {
		t |= isPunctuation
	}
	if numbers > 0 && numbers == runes {
		t |= isNumber
	}
	if stop[strings.ToLower(word)] {
		t |= isStopWord
	}
	if startsInsideWord(text) {
		t |= continuesWord
	}
	if last, _ := utf8.DecodeLastRuneInString(text); unicode.IsLetter(last) || unicode.IsMark(last) || unicode.IsNumber(last) {
		t |= endsInWord
	}
	return t
}

func startsInsideWord(text string) bool {
	first, size := utf8.DecodeRuneInString(text)
	if first == '\'' || first == '’' {
		first, _ = utf8.DecodeRuneInString(text[size:])
	}
	if !unicode.IsLetter(first) && !unicode.IsMark(first) {
		return false
	}
	return !unicode.In(first, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar)
}

// stopWords are English words that carry grammar and little else.
func stopWords() map[string]bool {
	words := map[string]bool{}
	for w := range strings.FieldsSeq(`
		a an the this that these those
		and or but nor so yet if than then because while although
		of in on at by for to from with without into onto over under about as up down out off between through during before after
		i you he she it we they me him her us them my your his its our their who whom whose which what
		am is are was were be been being do does did done doing have has had having
		will would shall should can could may might must
		not no there here when where why how all any both each more most other some such only own same too very just`) {
		words[w] = true
	}
	return words
}
