package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// ModelConfig says everything about a decoder that its weights do not.
type ModelConfig struct {
	Family         string // the table's name: "llama", "gemma2", "gpt_neox", …
	Name           string // as the checkpoint calls itself, may be empty
	Layers         int
	DModel         int
	DHead          int
	Heads          int
	KVHeads        int // divides Heads
	DFF            int
	Vocab          int
	MaxPositions   int
	TiedEmbeddings bool   // the head's weights are the embedding
	HiddenAct      string // of the MLP, in transformers' words: "silu", "gelu", "gelu_new", "gelu_pytorch_tanh", …
	BOS, EOS       *int   // nil: the checkpoint names none, or none of its vocabulary

	// The norms.
	Norm           string  // RMSNorm or LayerNorm (which has a bias)
	NormEps        float64 // of all of them
	PreNorms       bool    // attention and MLP read the residual stream through a norm
	PostNorms      bool    // a norm stands between what they make and the residual stream
	QKNorm         string  // "", NormHeads or NormProjections: queries and keys are normalised before they turn
	Parallel       bool    // attention and MLP read the same residual stream; there is none between them
	SharedNorm     bool    // and through the same norm
	NormRoundsOnce bool    // in half precision: after the weight only, not before it too

	// What is added, and what is scaled.
	AttentionBias    bool    // q, k and v projections have biases
	OutputBias       bool    // o has one
	MLPBias          bool    // the MLP's projections
	HeadBias         bool    // the head
	Gated            bool    // the MLP is down(act(gate x) · up x), not down(act(up x))
	LearnedPositions bool    // one vector a position is added to the embedding
	EmbeddingScale   float64 // embeddings are multiplied by it, in the model but not in the head
	AttentionScale   float64 // multiplies q·k
	ScaleByLayer     bool    // which layer L divides by L+1
	AttentionSoftcap float64 // c: scores become c·tanh(score/c); 0 = none
	LogitSoftcap     float64 // likewise for logits

	// Positions.
	Rotary      int   // dimensions at the front of a head that turn; 0 = none
	RotaryPairs bool  // pairs are neighbours (GPT-J), not halves
	Rope        Rope  // of all layers, but
	LocalRope   *Rope // of local ones, where it is not nil

	// A query of a local layer sees Window tokens, itself included. Which are local: LayerIsLocal where it is not nil; else
	// those from LocalFrom on of which not every GlobalEvery-th is left out.
	Window       int // 0 = no layer is local
	LocalFrom    int
	GlobalEvery  int
	LayerIsLocal []bool
}

// The norms, and where queries and keys are normalised.
const (
	RMSNorm         = "rms"
	LayerNorm       = "layer"
	NormHeads       = "heads"       // each head by itself
	NormProjections = "projections" // all heads together
)

// WindowOf is how many tokens a query of the layer sees, itself included; 0 = all before it.
func (c ModelConfig) WindowOf(layer int) int {
	local := layer >= c.LocalFrom && (c.GlobalEvery == 0 || (layer+1)%c.GlobalEvery != 0)
	if c.LayerIsLocal != nil {
		local = layer < len(c.LayerIsLocal) && c.LayerIsLocal[layer]
	}
	if !local {
		return 0
	}
	return c.Window
}

// RopeOf is the layer's rotary embedding.
func (c ModelConfig) RopeOf(layer int) Rope {
	if c.LocalRope != nil && c.WindowOf(layer) > 0 {
		return *c.LocalRope
	}
	return c.Rope
}

// Rope is the rotary position embedding: frequencies theta^(-2i/d), d the dimensions that turn.
type Rope struct {
	Theta   float64
	Scaling string // "", "linear", "dynamic", "yarn", "longrope" or "llama3"; the rest is set where it has a meaning
	Factor  float64

	LowFreqFactor, HighFreqFactor float64   // llama3
	OriginalMaxPositions          int       // of the context before scaling
	BetaFast, BetaSlow            float64   // yarn
	Truncate                      bool      // yarn: the range that is blended begins and ends at whole dimensions
	AttentionFactor               float64   // yarn, longrope: multiplies cosines and sines
	ShortFactors, LongFactors     []float64 // longrope: divide the frequencies of sequences up to the original context, and of longer ones
}

// Model is an open checkpoint of a language model.
type Model struct {
	config ModelConfig
	wanted []wanted
	load   map[string]func() (Tensor, error) // by name
	files  []string
	gguf   *GGUF
	close  []func() error
}

// OpenModel opens a Hugging Face folder (config.json and safetensors, single or sharded) or a .gguf file. All tensors that the
// decoder needs are there with the right shapes when it returns without error.
func OpenModel(path string) (*Model, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no such file or folder: %w", path, fs.ErrNotExist)
		}
		return nil, err
	}
	switch {
	case info.IsDir():
		return openFolder(path)
	case strings.EqualFold(filepath.Ext(path), ".gguf"), hasMagic(path):
		return openGGUFModel(path)
	default:
		return nil, &UnsupportedError{Path: path, Kind: "model file", Name: filepath.Base(path),
			Supported: []string{"a Hugging Face folder with config.json and safetensors", "a .gguf file"}}
	}
}

func hasMagic(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // only read
	magic := make([]byte, len(ggufMagic))
	n, _ := f.Read(magic)
	return string(magic[:n]) == ggufMagic
}

// Config is what the checkpoint says about the decoder.
func (m *Model) Config() ModelConfig { return m.config }

// Names lists the decoder's parameters by their Hugging Face names: embeddings, layers, norm, head. Where a file fuses several
// into one tensor they have names of their own (Modules).
func (m *Model) Names() []string {
	out := make([]string, len(m.wanted))
	for i, w := range m.wanted {
		out[i] = w.name
	}
	return out
}

// Tensor gives one parameter by its name. A projection is [out, in] whatever the file has, and a norm's weight is what it
// multiplies by: 1 is added where a family stores it so. From safetensors it has the file's dtype, and is a view unless rows had
// to be put in order; from GGUF it is a fresh F32 tensor, de-quantised, q and k rows in Hugging Face's order.
func (m *Model) Tensor(name string) (Tensor, error) {
	load, ok := m.load[name]
	if !ok {
		return Tensor{}, &MissingTensorError{Path: m.files[0], Tensors: []string{name}, Why: "not a tensor of a " + m.config.Family + " decoder"}
	}
	t, err := load()
	t.Name = name
	return t, err
}

// Files are the absolute paths whose bytes define the weights and the configuration.
func (m *Model) Files() []string { return slices.Clone(m.files) }

// GGUF is the underlying file, nil for a folder.
func (m *Model) GGUF() *GGUF { return m.gguf }

// CheckFinite reads every weight once and gives a NonFiniteError for the first tensor with NaN or an infinity. It costs a pass
// over the files: an import does it once, a worker that trusts the digest does not.
func (m *Model) CheckFinite() error {
	for _, w := range m.wanted {
		if w.role == roleHead && m.config.TiedEmbeddings {
			continue
		}
		t, err := m.Tensor(w.name)
		if err != nil {
			return err
		}
		values, err := t.Float32()
		if err != nil {
			return err
		}
		if err := checkFinite(m.files[0], w.name, values); err != nil {
			return err
		}
	}
	return nil
}

// Close ends every view that was handed out.
func (m *Model) Close() error {
	var errs []error
	for _, c := range m.close {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// checkFinite counts the values that are NaN or infinite.
func checkFinite(path, name string, values []float32) error {
	var mu sync.Mutex
	count, first := 0, len(values)
	inParallel(len(values), func(from, to int) {
		n, at := 0, len(values)
		for i, v := range values[from:to] {
			if math.Float32bits(v)&0x7f800000 == 0x7f800000 { // the exponent of NaN and ±Inf only
				if n == 0 {
					at = from + i
				}
				n++
			}
		}
		mu.Lock()
		defer mu.Unlock()
		count, first = count+n, min(first, at)
	})
	if count == 0 {
		return nil
	}
	return &NonFiniteError{Path: path, Tensor: name, Index: first, Count: count, Value: values[first]}
}
