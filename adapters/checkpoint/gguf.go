package checkpoint

// GGUF is an open GGUF file.
type GGUF struct{}

// GGUFTokenizer is the tokenizer that a GGUF file carries. Pointers are nil where the file says nothing.
type GGUFTokenizer struct {
	Model  string // "gpt2" (byte-level BPE), "llama" (SentencePiece), …
	Pre    string // which pre-tokenizer, e.g. "smollm"
	Tokens []string
	Types  []int32   // one each token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; nil when absent
	Scores []float32 // nil when absent
	Merges []string  // "left right", best first

	BOS, EOS, Unknown, Padding     *int
	AddBOS, AddEOS, AddSpacePrefix *bool
}

// Tokenizer reads the tokenizer's metadata; it fails if there is none or if an id lies outside the vocabulary.
func (g *GGUF) Tokenizer() (GGUFTokenizer, error) { return GGUFTokenizer{}, ErrClosed }
