package checkpoint

import (
	"fmt"
	"math"
	"slices"
)

// openGGUFModel opens a GGUF file under Hugging Face's names and row order.
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
	var f family
	if m.config, f, err = modelFromGGUF(g); err != nil {
		return nil, err
	}
	return m, m.bindGGUF(f)
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

// modelFromGGUF reads a file's metadata. What it has no key for llama.cpp computes by the architecture, and so do we.
func modelFromGGUF(g *GGUF) (ModelConfig, family, error) {
	arch, _ := g.Text("general.architecture")
	f, known := familyWhere(func(f family) bool { return f.arch != "" && f.arch == arch })
	if !known {
		return ModelConfig{}, f, &UnsupportedError{Path: g.Path(), Kind: "general.architecture", Name: arch, Supported: architectures()}
	}
	s := &ggufSettings{g: g, prefix: arch + "."}
	c := f.shape
	c.Family, c.HiddenAct = f.name, f.absent.act
	c.Name, _ = g.Text("general.name")
	c.Layers = s.size("block_count", 0)
	c.DModel = s.size("embedding_length", 0)
	c.DFF = s.size("feed_forward_length", 0)
	c.Heads = s.size("attention.head_count", 0)
	c.KVHeads = s.size("attention.head_count_kv", c.Heads)
	c.MaxPositions = s.size("context_length", 0)
	eps := "attention.layer_norm_rms_epsilon"
	if c.Norm == LayerNorm {
		eps = "attention.layer_norm_epsilon"
	}
	c.NormEps = s.number(eps, 0)
	if s.err != nil {
		return c, f, s.err
	}
	c.DHead = s.size("attention.key_length", max(1, c.DModel/c.Heads))
	c.AttentionScale = inverseRoot(float64(c.DHead))
	value := s.size("attention.value_length", c.DHead)
	if !c.LearnedPositions {
		c.Rope.Theta = s.number("rope.freq_base", f.absent.theta)
		c.Rotary = s.size("rope.dimension_count", c.DHead)
	}
	if n, ok := g.Flag(s.prefix + "use_parallel_residual"); ok {
		c.Parallel = n
	}
	s.gemma(&c)
	if s.err != nil {
		return c, f, s.err
	}
	if value != c.DHead || c.Rotary > c.DHead || arch == "llama" && c.Rotary != c.DHead {
		return c, f, &UnsupportedError{Path: g.Path(), Kind: "head", Name: fmt.Sprintf("%d key, %d value and %d rotary dimensions", c.DHead, value, c.Rotary),
			Supported: []string{"heads whose key, value and rotary dimensions are equal"}}
	}
	if n, _ := g.Integer(s.prefix + "expert_count"); n > 0 {
		return c, f, &UnsupportedError{Path: g.Path(), Kind: "mixture of experts", Name: fmt.Sprintf("%d experts", n), Supported: []string{"dense layers"}}
	}
	if err := s.ropeScaling(&c); err != nil {
		return c, f, err
	}
	embedding, ok := g.infos["token_embd.weight"]
	if !ok || len(embedding.shape) != 2 {
		return c, f, &MissingTensorError{Path: g.Path(), Tensors: []string{"token_embd.weight"}, Why: "a matrix [vocab, d_model]"}
	}
	c.Vocab = embedding.shape[0]
	if c.Vocab < 1 || c.Vocab > maxSize {
		return c, f, g.broken(fmt.Sprintf("the vocabulary has %d tokens", c.Vocab), fmt.Sprintf("1 to %d", maxSize))
	}
	c.BOS, c.EOS = inVocabulary(ggufID(g, "bos_token_id"), c.Vocab), inVocabulary(ggufID(g, "eos_token_id"), c.Vocab)
	has := func(name string) bool { _, ok := g.infos[name]; return ok }
	c.AttentionBias = has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias")
	c.OutputBias = has("blk.0.attn_output.bias")
	c.MLPBias = has("blk.0.ffn_gate.bias") || has("blk.0.ffn_up.bias")
	c.TiedEmbeddings = !has("output.weight")
	if err := ropeFactors(g, &c); err != nil {
		return c, f, err
	}
	return c, f, checkModel(g.Path(), c)
}

// gemma reads windows and caps, and what llama.cpp has in code: which layers are local, what scales scores.
func (s *ggufSettings) gemma(c *ModelConfig) {
	if s.g.Has(s.prefix + "attention.sliding_window") {
		if n, _ := s.g.Integer(s.prefix + "attention.sliding_window"); n != 0 {
			c.Window = s.size("attention.sliding_window", 1)
		}
	}
	switch c.Family {
	case "gemma", "gemma2", "gemma3_text":
		c.EmbeddingScale = math.Sqrt(float64(c.DModel))
	case "qwen2", "qwen3":
		c.Window = 0 // written by some converters, and not in force
	}
	largest := 0 // of the family, by layers: its scores are scaled by the width of a head as if heads filled d_model
	switch c.Family {
	case "gemma2":
		c.GlobalEvery, largest = 2, 46
		c.AttentionSoftcap, c.LogitSoftcap = s.number("attn_logit_softcapping", 50), s.number("final_logit_softcapping", 30)
	case "gemma3_text":
		c.GlobalEvery, largest = 6, 62
		if s.g.Has(s.prefix + "final_logit_softcapping") {
			c.LogitSoftcap = s.number("final_logit_softcapping", 1)
		}
		c.LocalRope = &Rope{Theta: s.number("rope.freq_base_swa", 10_000)}
	}
	if largest > 0 && c.Layers == largest && s.err == nil {
		c.AttentionScale = inverseRoot(float64(c.DModel) / float64(c.Heads))
	}
}

func (s *ggufSettings) ropeScaling(c *ModelConfig) error {
	kind, ok := s.g.Text(s.prefix + "rope.scaling.type")
	factor := s.number("rope.scaling.factor", s.number("rope.scale_linear", 1))
	if s.err != nil {
		return s.err
	}
	_, long := s.g.infos["rope_factors_long.weight"]
	switch {
	case long:
		kind = "longrope"
	case !ok && factor != 1, kind == "linear":
		c.Rope.Scaling, c.Rope.Factor = "linear", factor
		return nil
	case !ok, kind == "none":
		return nil
	}
	return &UnsupportedError{Path: s.g.Path(), Kind: "rope scaling", Name: kind, Supported: []string{"none", "linear", "llama3"}}
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

// bindGGUF finds every tensor that the decoder needs, and checks shape and quantisation.
func (m *Model) bindGGUF(f family) error {
	if m.config.Layers > len(m.gguf.infos) { // before a list is made by the metadata's claim
		return m.gguf.broken(fmt.Sprintf("block_count is %d and the file has %d tensors in all", m.config.Layers, len(m.gguf.infos)), "the metadata of these weights")
	}
	st := storage{qkv: f.ggufQKV, gateUp: f.storage.gateUp, permuted: f.arch == "llama"}
	m.wanted = f.parameters(m.config, st)
	m.load = make(map[string]func() (Tensor, error), len(m.wanted))
	var absent []string
	for _, w := range m.wanted {
		name := inGGUF(w)
		if w.role == roleHead && m.config.TiedEmbeddings {
			name = roleEmbedding + w.leaf
		}
		info, ok := m.gguf.infos[name]
		if !ok {
			absent = append(absent, name)
			continue
		}
		if !slices.Equal(info.shape, w.from.shape) {
			return &ShapeError{Path: m.gguf.Path(), Tensor: name, Found: info.shape, Want: w.from.shape, Why: w.fileWhy()}
		}
		if !info.kind.readable() {
			return m.gguf.notReadable(info)
		}
		m.load[w.name] = func() (Tensor, error) { return m.gguf.slot(name, w.from, w.shape) }
	}
	if absent = slices.Compact(absent); len(absent) > 0 {
		return &MissingTensorError{Path: m.gguf.Path(), Tensors: absent}
	}
	return nil
}
