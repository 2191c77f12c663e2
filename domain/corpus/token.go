package corpus

import "context"

// Token is an entry of a tokenizer's vocabulary; its index in the vocabulary is its id.
type Token struct {
	Piece     string // as the vocabulary has it: Ġ, ▁ and ## are kept; empty for an id that nothing has
	Text      string // the bytes that it stands for; a part of a character is not valid UTF-8 by itself
	Special   bool   // a control token such as <|endoftext|>: never made from ordinary text
	Continues bool   // it goes on with a word that an earlier token began, as far as the token alone can tell
}

// Encoding is a tokenised text. The slices are parallel.
type Encoding struct {
	IDs     []int32
	Offsets [][2]int32 // where each token comes from: [from, to) in code points of the text
	Special []bool     // tokens that the tokenizer's template added around the text
}

// Tokenizer turns text into token ids. Implementations are safe for concurrent use.
type Tokenizer interface {
	// EncodeBatch encodes texts without adding special tokens. Special tokens that a text spells out are found.
	EncodeBatch(ctx context.Context, texts []string) ([]Encoding, error)
	// VocabularySize is one more than the largest token id.
	VocabularySize() int
	// Digest is the lower-case hexadecimal sha256 of what defines the tokenizer.
	Digest() string
}
