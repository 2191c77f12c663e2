package checkpoint

import (
	"fmt"
	"math"
)

const (
	embedName = "model.embed_tokens.weight"
	normName  = "model.norm.weight"
	headName  = "lm_head.weight"
)

// families are the decoders that can be read; a new one is a new entry with its reader of config.json.
func families() []string { return []string{"llama"} }

// llamaTensors lists what a Llama decoder needs. Call it only after the number of layers was held against the file.
func llamaTensors(c ModelConfig) []wanted {
	q, kv := c.Heads*c.DHead, c.KVHeads*c.DHead
	out := make([]wanted, 0, 3+c.Layers*9)
	add := func(name, why string, shape ...int) { out = append(out, wanted{name, shape, why}) }
	add(embedName, "[vocab, d_model]", c.Vocab, c.DModel)
	for l := range c.Layers {
		in := func(name, why string, shape ...int) { add(fmt.Sprintf("model.layers.%d.%s", l, name), why, shape...) }
		projection := func(name string, bias bool, why string, rows, columns int) {
			in(name+".weight", why, rows, columns)
			if bias {
				in(name+".bias", "the rows of "+why, rows)
			}
		}
		in("input_layernorm.weight", "[d_model]", c.DModel)
		projection("self_attn.q_proj", c.AttentionBias, "[heads × d_head, d_model]", q, c.DModel)
		projection("self_attn.k_proj", c.AttentionBias, "[kv_heads × d_head, d_model]", kv, c.DModel)
		projection("self_attn.v_proj", c.AttentionBias, "[kv_heads × d_head, d_model]", kv, c.DModel)
		projection("self_attn.o_proj", c.AttentionBias, "[d_model, heads × d_head]", c.DModel, q)
		in("post_attention_layernorm.weight", "[d_model]", c.DModel)
		projection("mlp.gate_proj", c.MLPBias, "[d_ff, d_model]", c.DFF, c.DModel)
		projection("mlp.up_proj", c.MLPBias, "[d_ff, d_model]", c.DFF, c.DModel)
		projection("mlp.down_proj", c.MLPBias, "[d_model, d_ff]", c.DModel, c.DFF)
	}
	add(normName, "[d_model]", c.DModel)
	add(headName, "[vocab, d_model]", c.Vocab, c.DModel)
	return out
}

// llamaFromJSON reads a config.json; defaults are those of transformers' LlamaConfig.
func llamaFromJSON(d document) (ModelConfig, error) {
	c := ModelConfig{Family: "llama", Name: d.text("_name_or_path", "")}
	c.DModel = d.size("hidden_size", 1, 0)
	c.Layers = d.size("num_hidden_layers", 1, 0)
	c.Heads = d.size("num_attention_heads", 1, 0)
	c.DFF = d.size("intermediate_size", 1, 0)
	c.Vocab = d.size("vocab_size", 1, 0)
	for _, key := range []string{"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"} {
		if !d.has(key) {
			d.fail(key, "a whole number of at least 1")
		}
	}
	c.KVHeads = d.size("num_key_value_heads", 1, c.Heads)
	c.MaxPositions = d.size("max_position_embeddings", 1, 2048)
	c.NormEps = d.number("rms_norm_eps", 1e-6)
	c.TiedEmbeddings = d.flag("tie_word_embeddings", false)
	c.AttentionBias = d.flag("attention_bias", false)
	c.MLPBias = d.flag("mlp_bias", false)
	c.HiddenAct = d.text("hidden_act", "silu")
	c.BOS, c.EOS = tokenID(d, "bos_token_id"), tokenID(d, "eos_token_id")
	if d.failed() != nil {
		return c, d.failed()
	}
	if c.DHead = d.size("head_dim", 1, 0); c.DHead == 0 {
		c.DHead = c.DModel / c.Heads
		if c.DModel%c.Heads != 0 {
			d.fail("hidden_size", fmt.Sprintf("a multiple of num_attention_heads (%d), as there is no head_dim", c.Heads))
		}
	}
	c.Rope = ropeFromJSON(d)
	if d.failed() != nil {
		return c, d.failed()
	}
	if d.has("quantization_config") {
		return c, &UnsupportedError{Path: d.path, Kind: "quantization_config.quant_method", Name: d.object("quantization_config").text("quant_method", "?"),
			Supported: []string{"none: weights in F32, F16, BF16 or F64"}}
	}
	if share := d.number("partial_rotary_factor", 1); share != 1 {
		return c, &UnsupportedError{Path: d.path, Kind: "partial_rotary_factor", Name: fmt.Sprint(share), Supported: []string{"1"}}
	}
	return c, checkLlama(d.path, c)
}

// tokenID reads one id; of a list, which Llama 3 has for eos, the first.
func tokenID(d document, key string) *int {
	if !d.has(key) {
		return nil
	}
	var one int
	if raw := d.fields[key]; len(raw) > 0 && raw[0] == '[' {
		ids := d.integers(key)
		if len(ids) == 0 {
			return nil
		}
		one = ids[0]
	} else if !d.decode(key, "a token id", &one) {
		return nil
	}
	if one < 0 { // −1 is how old files write "none"
		return nil
	}
	return &one
}

// ropeFromJSON reads rope_theta and rope_scaling, or the newer rope_parameters that holds both.
func ropeFromJSON(d document) Rope {
	in := d.object(d.first("rope_scaling", "rope_parameters"))
	r := Rope{Theta: in.number("rope_theta", d.number("rope_theta", 10_000))}
	kind := in.text("rope_type", in.text("type", "default"))
	if !(r.Theta > 0) || math.IsInf(r.Theta, 0) {
		d.fail("rope_theta", "a number above 0")
	}
	if *d.err != nil || kind == "default" {
		return r
	}
	if kind != "llama3" {
		*d.err = &UnsupportedError{Path: d.path, Kind: "rope scaling", Name: kind, Supported: []string{"none", "default", "llama3"}}
		return r
	}
	r.Scaling = kind
	for key, value := range map[string]*float64{"factor": &r.Factor, "low_freq_factor": &r.LowFreqFactor, "high_freq_factor": &r.HighFreqFactor} {
		if *value = in.number(key, 0); !(*value > 0) || math.IsInf(*value, 0) {
			in.fail(key, "a number above 0, as rope scaling llama3 needs")
		}
	}
	if r.HighFreqFactor <= r.LowFreqFactor {
		in.fail("high_freq_factor", "more than low_freq_factor")
	}
	if r.OriginalMaxPositions = in.size("original_max_position_embeddings", 1, 0); r.OriginalMaxPositions == 0 {
		in.fail("original_max_position_embeddings", "the context length before scaling, as rope scaling llama3 needs")
	}
	return r
}

// checkLlama holds the numbers against one another.
func checkLlama(path string, c ModelConfig) error {
	bad := func(fact, want string) error { return &FormatError{Path: path, Fact: fact, Want: want} }
	switch {
	case c.HiddenAct != "silu":
		return &UnsupportedError{Path: path, Kind: "hidden_act", Name: c.HiddenAct, Supported: []string{"silu"}}
	case c.Heads%c.KVHeads != 0:
		return bad(fmt.Sprintf("%d attention heads and %d key/value heads", c.Heads, c.KVHeads), "a number of key/value heads that divides the heads")
	case c.DHead%2 != 0:
		return bad(fmt.Sprintf("the heads have %d dimensions", c.DHead), "an even number, as rotary embeddings need")
	case !(c.NormEps > 0) || c.NormEps >= 1:
		return bad(fmt.Sprintf("the norms' epsilon is %v", c.NormEps), "a small number above 0")
	case c.BOS != nil && *c.BOS >= c.Vocab:
		return bad(fmt.Sprintf("bos_token_id is %d", *c.BOS), fmt.Sprintf("an id below vocab_size, %d", c.Vocab))
	case c.EOS != nil && *c.EOS >= c.Vocab:
		return bad(fmt.Sprintf("eos_token_id is %d", *c.EOS), fmt.Sprintf("an id below vocab_size, %d", c.Vocab))
	}
	return nil
}
