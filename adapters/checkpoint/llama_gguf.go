package checkpoint

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// openGGUFModel opens a Llama-family GGUF file under Hugging Face's names and row order.
func openGGUFModel(path string) (_ *Model, err error) {
	g, err := OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	m := &Model{gguf: g, files: []string{g.Path()}, close: []func() error{g.Close}}
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	if m.config, err = llamaFromGGUF(g); err != nil {
		return nil, err
	}
	return m, m.bindGGUF()
}

// ggufSettings reads the metadata under an architecture's prefix; the first failure sticks.
type ggufSettings struct {
	g      *GGUF
	prefix string
	err    error
}

func (s *ggufSettings) size(key string, otherwise int) int {
	key = s.prefix + key
	if !s.g.Has(key) {
		if otherwise == 0 && s.err == nil {
			s.err = s.g.broken("the metadata has no "+key, "a whole number of at least 1")
		}
		return otherwise
	}
	n, ok := s.g.Integer(key)
	if (!ok || n < 1 || n > maxSize) && s.err == nil {
		s.err = s.g.broken(key+" is not usable", fmt.Sprintf("one whole number from 1 to %d", maxSize))
	}
	return int(n)
}

func (s *ggufSettings) number(key string, otherwise float64) float64 {
	key = s.prefix + key
	if !s.g.Has(key) {
		return otherwise
	}
	x, ok := s.g.Number(key)
	if (!ok || !(x > 0) || math.IsInf(x, 0)) && s.err == nil {
		s.err = s.g.broken(key+" is not usable", "a number above 0")
	}
	return x
}

func llamaFromGGUF(g *GGUF) (ModelConfig, error) {
	family, _ := g.Text("general.architecture")
	if !slices.Contains(families(), family) {
		return ModelConfig{}, &UnsupportedError{Path: g.Path(), Kind: "general.architecture", Name: family, Supported: families()}
	}
	s := &ggufSettings{g: g, prefix: family + "."}
	c := ModelConfig{Family: family, HiddenAct: "silu"}
	c.Name, _ = g.Text("general.name")
	c.Layers = s.size("block_count", 0)
	c.DModel = s.size("embedding_length", 0)
	c.DFF = s.size("feed_forward_length", 0)
	c.Heads = s.size("attention.head_count", 0)
	c.KVHeads = s.size("attention.head_count_kv", c.Heads)
	c.MaxPositions = s.size("context_length", 0)
	c.NormEps = s.number("attention.layer_norm_rms_epsilon", 0)
	c.Rope.Theta = s.number("rope.freq_base", 10_000)
	if s.err != nil {
		return c, s.err
	}
	c.DHead = s.size("attention.key_length", max(1, c.DModel/c.Heads))
	value, rotary := s.size("attention.value_length", c.DHead), s.size("rope.dimension_count", c.DHead)
	if s.err != nil {
		return c, s.err
	}
	if value != c.DHead || rotary != c.DHead {
		return c, &UnsupportedError{Path: g.Path(), Kind: "head", Name: fmt.Sprintf("%d key, %d value and %d rotary dimensions", c.DHead, value, rotary),
			Supported: []string{"heads whose key, value and rotary dimensions are equal"}}
	}
	if n, _ := g.Integer(s.prefix + "expert_count"); n > 0 {
		return c, &UnsupportedError{Path: g.Path(), Kind: "mixture of experts", Name: fmt.Sprintf("%d experts", n), Supported: []string{"dense layers"}}
	}
	if kind, ok := g.Text(s.prefix + "rope.scaling.type"); ok && kind != "none" {
		return c, &UnsupportedError{Path: g.Path(), Kind: "rope scaling", Name: kind, Supported: []string{"none", "llama3"}}
	}
	if scale := s.number("rope.scale_linear", 1); scale != 1 {
		return c, &UnsupportedError{Path: g.Path(), Kind: "rope scaling", Name: "linear", Supported: []string{"none", "llama3"}}
	}
	embedding, ok := g.infos[ggufName(embedName)]
	if !ok || len(embedding.shape) != 2 {
		return c, &MissingTensorError{Path: g.Path(), Tensors: []string{ggufName(embedName)}, Why: "a matrix [vocab, d_model]"}
	}
	c.Vocab = embedding.shape[0]
	if c.Vocab < 1 || c.Vocab > maxSize {
		return c, g.broken(fmt.Sprintf("the vocabulary has %d tokens", c.Vocab), fmt.Sprintf("1 to %d", maxSize))
	}
	c.BOS, c.EOS = ggufID(g, "bos_token_id"), ggufID(g, "eos_token_id")
	_, untied := g.infos[ggufName(headName)]
	_, c.AttentionBias = g.infos["blk.0.attn_q.bias"]
	_, c.MLPBias = g.infos["blk.0.ffn_gate.bias"]
	c.TiedEmbeddings = !untied
	if err := ropeFactors(g, &c); err != nil {
		return c, err
	}
	return c, checkLlama(g.Path(), c)
}

func ggufID(g *GGUF, key string) *int {
	if n, ok := g.Integer("tokenizer.ggml." + key); ok && n >= 0 && n <= maxSize {
		return intPointer(int(n))
	}
	return nil
}

// ropeFactors recognises Llama 3's frequency scaling, of which a GGUF file keeps only the resulting divisors (rope_freqs.weight).
// All published Llama 3.x models use low 1, high 4, original 8192 and differ in the factor; the divisors are recomputed and compared.
func ropeFactors(g *GGUF, c *ModelConfig) error {
	const name = "rope_freqs.weight"
	if _, ok := g.infos[name]; !ok {
		return nil
	}
	t, err := g.Tensor(name)
	if err != nil {
		return err
	}
	found, err := t.Float32()
	if err != nil {
		return err
	}
	if len(found) != c.DHead/2 {
		return &ShapeError{Path: g.Path(), Tensor: name, Found: t.Shape, Want: []int{c.DHead / 2}, Why: "[d_head / 2]"}
	}
	largest := slices.Max(found)
	if largest == 1 && slices.Min(found) == 1 {
		return nil
	}
	r := Rope{Theta: c.Rope.Theta, Scaling: "llama3", Factor: float64(largest), LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192}
	for i, f := range found {
		want := r.divisor(i, c.DHead)
		if math.IsNaN(want) || !(math.Abs(float64(f)-want) <= 1e-4*want) {
			return &UnsupportedError{Path: g.Path(), Kind: "rope scaling", Name: name, Supported: []string{"none", "llama3 with low 1, high 4, original 8192"}}
		}
	}
	c.Rope = r
	return nil
}

// divisor is what llama3 scaling divides the frequency of dimension pair i by: 1 for short waves, factor for long ones, smooth between.
func (r Rope) divisor(i, dHead int) float64 {
	wave := 2 * math.Pi * math.Pow(r.Theta, float64(2*i)/float64(dHead))
	original := float64(r.OriginalMaxPositions)
	switch {
	case wave < original/r.HighFreqFactor:
		return 1
	case wave > original/r.LowFreqFactor:
		return r.Factor
	}
	smooth := (original/wave - r.LowFreqFactor) / (r.HighFreqFactor - r.LowFreqFactor)
	return 1 / ((1-smooth)/r.Factor + smooth)
}

// ggufName translates a canonical name to llama.cpp's.
func ggufName(name string) string {
	switch name {
	case embedName:
		return "token_embd.weight"
	case normName:
		return "output_norm.weight"
	case headName:
		return "output.weight"
	}
	parts := strings.SplitN(strings.TrimPrefix(name, "model.layers."), ".", 2)
	layer, rest := parts[0], parts[1]
	at := strings.LastIndexByte(rest, '.')
	module := map[string]string{
		"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
		"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
		"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
	}[rest[:at]]
	return "blk." + layer + "." + module + rest[at:]
}

// bindGGUF finds every tensor that the decoder needs, and checks shape and quantisation.
func (m *Model) bindGGUF() error {
	if m.config.Layers > len(m.gguf.infos) { // before a list is made by the metadata's claim
		return m.gguf.broken(fmt.Sprintf("block_count is %d and the file has %d tensors in all", m.config.Layers, len(m.gguf.infos)), "the metadata of these weights")
	}
	m.wanted = llamaTensors(m.config)
	m.load = make(map[string]func() (Tensor, error), len(m.wanted))
	var absent []string
	for _, w := range m.wanted {
		name := ggufName(w.name)
		if w.name == headName && m.config.TiedEmbeddings {
			name = ggufName(embedName)
		}
		info, ok := m.gguf.infos[name]
		if !ok {
			absent = append(absent, name)
			continue
		}
		if !slices.Equal(info.shape, w.shape) {
			return &ShapeError{Path: m.gguf.Path(), Tensor: name, Found: info.shape, Want: w.shape, Why: w.why}
		}
		if !info.kind.readable() {
			return m.gguf.notReadable(info)
		}
		m.load[w.name] = m.loader(name, w)
	}
	if len(absent) > 0 {
		return &MissingTensorError{Path: m.gguf.Path(), Tensors: absent}
	}
	return nil
}

// loader gives a tensor in Hugging Face's row order. llama.cpp interleaves the two halves of every head of q and k, for its own
// layout of rotary embeddings: row h·d + 2i + j of the file is row h·d + j·d/2 + i of Hugging Face's, for q over the heads and for
// k over the key/value heads, both with d rows a head. Biases follow their rows.
func (m *Model) loader(name string, w wanted) func() (Tensor, error) {
	d := m.config.DHead
	half := func(row int) int { return row/d*d + row%d%2*(d/2) + row%d/2 }
	switch module := w.name[strings.LastIndex(w.name[:strings.LastIndexByte(w.name, '.')], ".")+1:]; module {
	case "q_proj.weight", "k_proj.weight":
		return func() (Tensor, error) { return m.gguf.rows(name, half) }
	case "q_proj.bias", "k_proj.bias":
		return func() (Tensor, error) {
			t, err := m.gguf.Tensor(name)
			if err != nil {
				return t, err
			}
			values, err := t.Float32()
			if err != nil {
				return t, err
			}
			out := make([]float32, len(values))
			for row, v := range values {
				out[half(row)] = v
			}
			return Float32Tensor(name, out, t.Shape...), nil
		}
	default:
		return func() (Tensor, error) { return m.gguf.Tensor(name) }
	}
}
