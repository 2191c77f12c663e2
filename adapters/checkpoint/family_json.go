package checkpoint

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

func itoa(n int) string { return strconv.Itoa(n) }

// modelFromJSON reads a config.json. A key that is not there means what transformers 4.56 takes it to mean.
func modelFromJSON(d document) (ModelConfig, family, error) {
	kind := d.text("model_type", "")
	if d.failed() != nil {
		return ModelConfig{}, family{}, d.failed()
	}
	f, known := familyWhere(func(f family) bool { return slices.Contains(f.types, kind) })
	if !known {
		return ModelConfig{}, f, &UnsupportedError{Path: d.path, Kind: "model_type", Name: kind, Supported: Families()}
	}
	whole := d
	if d.has("text_config") { // a model of text and pictures: its text decoder
		d = d.object("text_config")
	}
	c := f.shape
	c.Family, c.Name = f.name, whole.text("_name_or_path", "")
	c.DModel = d.size(d.first("hidden_size", "n_embd"), 1, f.absent.width)
	c.Layers = d.size(d.first("num_hidden_layers", "n_layer"), 1, f.absent.layers)
	c.Heads = d.size(d.first("num_attention_heads", "n_head"), 1, f.absent.heads)
	c.Vocab = d.size("vocab_size", 1, f.absent.vocab)
	c.MaxPositions = d.size(d.first("max_position_embeddings", "n_positions"), 1, f.absent.positions)
	ff := f.absent.ff
	if ff == 0 {
		ff = 4 * c.DModel
	}
	c.DFF = d.size(d.first("intermediate_size", "n_inner"), 1, ff)
	kvHeads := f.absent.kvHeads
	if kvHeads == 0 || d.isNull("num_key_value_heads") {
		kvHeads = c.Heads
	}
	c.KVHeads = d.size("num_key_value_heads", 1, kvHeads)
	c.NormEps = d.number(d.first("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), f.absent.eps)
	c.TiedEmbeddings = d.flag("tie_word_embeddings", whole.flag("tie_word_embeddings", f.absent.tied))
	c.HiddenAct = d.text(d.first("hidden_act", "activation_function"), f.absent.act)
	c.BOS, c.EOS = inVocabulary(tokenID(whole, d, "bos_token_id"), c.Vocab), inVocabulary(tokenID(whole, d, "eos_token_id"), c.Vocab)
	if d.failed() != nil {
		return c, f, d.failed()
	}
	head := f.absent.head
	if d.isNull("head_dim") {
		head = 0
	}
	if c.DHead = d.size("head_dim", 1, head); c.DHead == 0 {
		c.DHead = c.DModel / c.Heads
		if c.DModel%c.Heads != 0 {
			d.fail(d.first("hidden_size", "n_embd"), fmt.Sprintf("a multiple of num_attention_heads (%d), as there is no head_dim", c.Heads))
		}
	}
	c.AttentionScale = inverseRoot(float64(c.DHead))
	if !c.LearnedPositions {
		c.Rotary = c.DHead
		c.Rope = ropeFromJSON(d, f.absent.theta, c.MaxPositions)
	}
	if f.adapt != nil && d.failed() == nil {
		f.adapt(d, &c)
	}
	if d.failed() != nil {
		return c, f, d.failed()
	}
	if d.has("partial_rotary_factor") && c.Rotary == c.DHead && d.number("partial_rotary_factor", 1) != 1 {
		return c, f, &UnsupportedError{Path: d.path, Kind: "partial_rotary_factor", Name: fmt.Sprint(d.number("partial_rotary_factor", 1)), Supported: []string{"1"}}
	}
	for _, in := range []document{d, whole} {
		if in.has("quantization_config") {
			return c, f, &UnsupportedError{Path: d.path, Kind: "quantization_config.quant_method", Name: in.object("quantization_config").text("quant_method", "?"),
				Supported: []string{"none: weights in F32, F16, BF16 or F64"}}
		}
	}
	for _, key := range []string{"num_local_experts", "num_experts", "n_routed_experts"} {
		if n := d.size(key, 0, 0); n > 1 {
			return c, f, &UnsupportedError{Path: d.path, Kind: "mixture of experts", Name: fmt.Sprintf("%d experts", n), Supported: []string{"dense layers"}}
		}
	}
	return c, f, checkModel(d.path, c)
}

// tokenID reads one id; of a list, which Llama 3 has for eos, the first.
func tokenID(whole, text document, key string) *int {
	d := whole
	if text.has(key) {
		d = text
	}
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

func inverseRoot(x float64) float64 { return 1 / math.Sqrt(x) }

// window reads sliding_window: a null means none, an absent key the family's default.
func window(d document, otherwise int) int {
	if d.isNull("sliding_window") {
		return 0
	}
	return d.size("sliding_window", 1, otherwise)
}

// softcap: a null means none.
func softcap(d document, key string, otherwise float64) float64 {
	if d.isNull(key) {
		return 0
	}
	return d.number(key, otherwise)
}

// gemma is what all of them share.
func gemma(d document, c *ModelConfig) {
	c.EmbeddingScale = math.Sqrt(float64(c.DModel))
	c.AttentionBias = d.flag("attention_bias", false)
	c.OutputBias = c.AttentionBias
}

// qwenWindows: with use_sliding_window the layers from max_window_layers on are local.
func qwenWindows(d document, c *ModelConfig) {
	if !d.flag("use_sliding_window", false) {
		return
	}
	c.Window, c.LocalFrom = window(d, 4096), d.size("max_window_layers", 0, 28)
	c.LayerIsLocal = layerTypes(d, c.Layers)
}

// layerTypes reads which layers are local, where a file says it layer by layer.
func layerTypes(d document, layers int) []bool {
	if !d.has("layer_types") {
		return nil
	}
	var names []string
	d.decode("layer_types", "a list of full_attention and sliding_attention", &names)
	out := make([]bool, len(names))
	for i, n := range names {
		switch n {
		case "sliding_attention":
			out[i] = true
		case "full_attention":
		default:
			d.unsupported("layer type", n, "full_attention", "sliding_attention")
		}
	}
	if len(out) != layers {
		d.fail("layer_types", fmt.Sprintf("one for each of %d layers", layers))
	}
	return out
}

// rotate sets which share of a head turns.
func (c *ModelConfig) rotate(d document, otherwise float64) {
	in := d.object("rope_parameters")
	share := d.number(d.first("rotary_pct", "partial_rotary_factor"), in.number("partial_rotary_factor", otherwise))
	c.Rotary = int(float64(c.DHead) * share)
	if !(share > 0) || share > 1 || c.Rotary < 2 {
		d.fail(d.first("partial_rotary_factor", "rotary_pct"), "a share above 0, up to 1")
	}
}

// checkModel holds the numbers against one another.
func checkModel(path string, c ModelConfig) error {
	bad := func(fact, want string) error { return &FormatError{Path: path, Fact: fact, Want: want} }
	positive := func(x float64) bool { return x > 0 && !math.IsInf(x, 0) }
	switch {
	case !slices.Contains(activationFunctions(), c.HiddenAct):
		return &UnsupportedError{Path: path, Kind: "activation function", Name: c.HiddenAct, Supported: activationFunctions()}
	case c.Heads%c.KVHeads != 0:
		return bad(fmt.Sprintf("%d attention heads and %d key/value heads", c.Heads, c.KVHeads), "a number of key/value heads that divides the heads")
	case c.Rotary%2 != 0 && c.Rotary == c.DHead:
		return bad(fmt.Sprintf("the heads have %d dimensions", c.DHead), "an even number, as rotary embeddings need")
	case c.Rotary%2 != 0 || c.Rotary > c.DHead:
		return bad(fmt.Sprintf("%d of %d dimensions of a head turn", c.Rotary, c.DHead), "an even number, no more than all")
	case c.Rope.Scaling == "longrope" && (len(c.Rope.ShortFactors) != c.Rotary/2 || len(c.Rope.LongFactors) != c.Rotary/2):
		return bad(fmt.Sprintf("longrope has %d short and %d long factors", len(c.Rope.ShortFactors), len(c.Rope.LongFactors)), fmt.Sprintf("one of each for the %d pairs of dimensions that turn", c.Rotary/2))
	case math.IsInf(c.Rope.AttentionFactor, 0) || math.IsNaN(c.Rope.AttentionFactor):
		return bad(fmt.Sprintf("rope scaling multiplies by %v", c.Rope.AttentionFactor), "a finite attention_factor")
	case c.Rope.Scaling == "dynamic" && c.Rotary < 4:
		return bad(fmt.Sprintf("%d dimensions of a head turn", c.Rotary), "at least 4, as rope scaling dynamic needs")
	case !(c.NormEps > 0) || c.NormEps >= 1:
		return bad(fmt.Sprintf("the norms' epsilon is %v", c.NormEps), "a small number above 0")
	case !positive(c.AttentionScale) || !positive(c.EmbeddingScale):
		return bad(fmt.Sprintf("attention is scaled by %v, embeddings by %v", c.AttentionScale, c.EmbeddingScale), "numbers above 0")
	case c.AttentionSoftcap < 0 || c.LogitSoftcap < 0 || math.IsInf(c.AttentionSoftcap+c.LogitSoftcap, 0):
		return bad(fmt.Sprintf("scores are capped at %v, logits at %v", c.AttentionSoftcap, c.LogitSoftcap), "numbers above 0, or null")
	}
	return nil
}

// inVocabulary drops an id that names no token: transformers writes GPT-2's 50256 into the configuration of every small GPT-2.
func inVocabulary(id *int, vocab int) *int {
	if id != nil && *id >= vocab {
		return nil
	}
	return id
}

// activationFunctions are transformers' names of what the MLP may apply.
func activationFunctions() []string {
	return []string{"silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"}
}
