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
type Model struct {
	config ModelConfig
	wanted []wanted
	load   map[string]func() (Tensor, error) // by canonical name
	files  []string
	gguf   *GGUF
	close  []func() error
}

// wanted is a tensor that a decoder needs.
type wanted struct {
	name  string
	shape []int
	why   string // the shape in words: "[heads × d_head, d_model]"
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

// Names lists the decoder's tensors by their canonical Hugging Face names: embeddings, layers, norm, head.
func (m *Model) Names() []string {
	out := make([]string, len(m.wanted))
	for i, w := range m.wanted {
		out[i] = w.name
	}
	return out
}

// Tensor gives one tensor by its canonical name. Shapes are Hugging Face's: [out, in] for a projection.
// From safetensors it is a view with the file's dtype; from GGUF a fresh F32 tensor, de-quantised, q and k rows in Hugging Face's order.
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
		if w.name == headName && m.config.TiedEmbeddings {
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
