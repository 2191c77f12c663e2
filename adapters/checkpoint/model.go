package checkpoint

import "errors"

// ModelConfig says everything about a decoder that its weights do not.
type ModelConfig struct {
	Family         string // "llama"
	Name           string // as the checkpoint calls itself, may be empty
	Layers         int
	DModel         int
	DHead          int
	Heads          int
	KVHeads        int // divides Heads
	DFF            int
	Vocab          int
	MaxPositions   int
	NormEps        float64 // of the RMS norms
	Rope           Rope
	TiedEmbeddings bool // lm_head.weight is model.embed_tokens.weight
	AttentionBias  bool // q, k, v and o projections have biases
	MLPBias        bool
	HiddenAct      string // "silu"
	BOS, EOS       *int   // nil: the checkpoint names none
}

// Rope is the rotary position embedding: frequencies theta^(-2i/d_head), half-split ("rotate_half") layout.
type Rope struct {
	Theta   float64
	Scaling string // "" or "llama3"
	// The rest is set for Scaling "llama3" only.
	Factor, LowFreqFactor, HighFreqFactor float64
	OriginalMaxPositions                  int
}

// Model is an open checkpoint of a language model.
type Model struct{}

// OpenModel opens a Hugging Face folder (config.json and safetensors, single or sharded) or a .gguf file.
func OpenModel(path string) (*Model, error) { return nil, errors.ErrUnsupported }

// Config is what the checkpoint says about the decoder.
func (m *Model) Config() ModelConfig { return ModelConfig{} }

// Names lists the decoder's tensors by their canonical Hugging Face names, in file order of the decoder: embeddings, layers, norm, head.
func (m *Model) Names() []string { return nil }

// Tensor gives one tensor by its canonical name. Shapes are Hugging Face's: [out, in] for a projection.
// From safetensors it is a view with the file's dtype; from GGUF a fresh F32 tensor, de-quantised, q and k rows in Hugging Face's order.
func (m *Model) Tensor(name string) (Tensor, error) { return Tensor{}, errors.ErrUnsupported }

// Files are the absolute paths whose bytes define the weights and the configuration.
func (m *Model) Files() []string { return nil }

// GGUF is the underlying file, nil for a folder.
func (m *Model) GGUF() *GGUF { return nil }

// Close ends every view that was handed out.
func (m *Model) Close() error { return nil }
