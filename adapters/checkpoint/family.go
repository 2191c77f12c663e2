package checkpoint

import "slices"

// family is a row of the table of decoders that can be read: Hugging Face's names of its parts, how its files store them, what
// its config.json leaves out, and the same for GGUF. What a decoder computes is in ModelConfig alone; a new family is a new row
// as long as it computes nothing new.
type family struct {
	name    string   // ModelConfig.Family
	types   []string // model_type in config.json
	modules Modules
	storage storage
	absent  absent // what transformers 4.56 takes for a key that is not there
	shape   ModelConfig
	adapt   func(d document, c *ModelConfig) // reads what is this family's own
	arch    string                           // general.architecture of a GGUF file; "" = llama.cpp's form is not read
	ggufQKV fusion                           // how that file stores queries, keys and values
}

// Modules are Hugging Face's names of a decoder's parts; "" where a family has no such part. Embedding, Positions, Layers and
// FinalNorm follow the first of Bodies; the others follow the layer's index.
type Modules struct {
	Bodies                                          []string // "model." in a model with a head, "" in one saved without
	Embedding, Positions, Layers, FinalNorm, Head   string
	AttnNorm, Attn, Q, K, V, O, QNorm, KNorm        string
	AttnPostNorm, MLPNorm, MLP, Gate, Up, Down, Act string
	MLPPostNorm                                     string
	QKV, GateUp                                     string // in the file: one tensor for several of the above
	ScalesItself                                    bool   // the embedding's module multiplies by EmbeddingScale, not the model after it
}

// fusion is how a file stores matrices that read the same input.
type fusion int

const (
	apart   fusion = iota
	stacked        // the rows of the first, then of the second …
	perHead        // for every head the rows of q, k, v
)

type storage struct {
	qkv      fusion
	gateUp   fusion
	turned   bool // projections are [in, out] (GPT-2's Conv1D)
	plusOne  bool // norms multiply by 1 + weight
	permuted bool // rows of q and k are in llama.cpp's order
}

// absent holds class defaults; kvHeads 0 = heads, head 0 = width / heads, ff 0 = 4 × width.
type absent struct {
	vocab, width, ff, layers, heads, kvHeads, head, positions int
	eps, theta                                                float64
	tied                                                      bool
	act                                                       string
}

// families is the table.
func families() []family {
	llama := Modules{
		Bodies: []string{"model.", ""}, Embedding: "embed_tokens", Layers: "layers", FinalNorm: "norm", Head: "lm_head",
		AttnNorm: "input_layernorm", Attn: "self_attn", Q: "self_attn.q_proj", K: "self_attn.k_proj", V: "self_attn.v_proj", O: "self_attn.o_proj",
		MLPNorm: "post_attention_layernorm", MLP: "mlp", Gate: "mlp.gate_proj", Up: "mlp.up_proj", Down: "mlp.down_proj",
	}
	preNorm := ModelConfig{Norm: RMSNorm, PreNorms: true, Gated: true, EmbeddingScale: 1}
	row := func(name string, a absent, change func(f *family)) family {
		f := family{name: name, types: []string{name}, modules: llama, absent: a, shape: preNorm, arch: name}
		if f.absent.act == "" {
			f.absent.act = "silu"
		}
		if f.absent.theta == 0 {
			f.absent.theta = 10_000
		}
		if change != nil {
			change(&f)
		}
		return f
	}
	return []family{
		row("llama", absent{vocab: 32000, width: 4096, ff: 11008, layers: 32, heads: 32, positions: 2048, eps: 1e-6}, func(f *family) {
			f.adapt = func(d document, c *ModelConfig) {
				c.AttentionBias = d.flag("attention_bias", false)
				c.OutputBias, c.MLPBias = c.AttentionBias, d.flag("mlp_bias", false)
			}
		}),
		row("mistral", absent{vocab: 32000, width: 4096, ff: 14336, layers: 32, heads: 32, kvHeads: 8, positions: 131072, eps: 1e-6}, func(f *family) {
			f.arch = "" // llama.cpp calls it llama
			f.adapt = func(d document, c *ModelConfig) { c.Window = window(d, 4096) }
		}),
		row("qwen2", absent{vocab: 151936, width: 4096, ff: 22016, layers: 32, heads: 32, kvHeads: 32, positions: 32768, eps: 1e-6}, func(f *family) {
			f.shape.AttentionBias = true
			f.adapt = qwenWindows
		}),
		row("qwen3", absent{vocab: 151936, width: 4096, ff: 22016, layers: 32, heads: 32, kvHeads: 32, head: 128, positions: 32768, eps: 1e-6}, func(f *family) {
			f.modules.QNorm, f.modules.KNorm = "self_attn.q_norm", "self_attn.k_norm"
			f.shape.QKNorm = NormHeads
			f.adapt = func(d document, c *ModelConfig) {
				c.AttentionBias = d.flag("attention_bias", false)
				c.OutputBias = c.AttentionBias
				qwenWindows(d, c)
			}
		}),
		row("gemma", absent{vocab: 256000, width: 3072, ff: 24576, layers: 28, heads: 16, kvHeads: 16, head: 256, positions: 8192, eps: 1e-6, tied: true, act: "gelu_pytorch_tanh"}, func(f *family) {
			f.storage.plusOne, f.shape.NormRoundsOnce = true, true
			f.adapt = func(d document, c *ModelConfig) {
				gemma(d, c)
				// The first files of 2024 say "gelu", which Google's own code never computed; the name was mended there, and
				// in transformers, by hidden_activation.
				if c.HiddenAct = d.text("hidden_activation", c.HiddenAct); c.HiddenAct == "gelu" {
					c.HiddenAct = "gelu_pytorch_tanh"
				}
			}
		}),
		row("gemma2", absent{vocab: 256000, width: 2304, ff: 9216, layers: 26, heads: 8, kvHeads: 4, head: 256, positions: 8192, eps: 1e-6, tied: true, act: "gelu_pytorch_tanh"}, func(f *family) {
			gemmaNorms(f)
			f.adapt = func(d document, c *ModelConfig) {
				gemma(d, c)
				c.HiddenAct = d.text("hidden_activation", "gelu_pytorch_tanh")
				c.AttentionScale = inverseRoot(d.number("query_pre_attn_scalar", 256))
				c.AttentionSoftcap, c.LogitSoftcap = softcap(d, "attn_logit_softcapping", 50), softcap(d, "final_logit_softcapping", 30)
				c.Window, c.GlobalEvery = window(d, 4096), 2
				c.LayerIsLocal = layerTypes(d, c.Layers)
			}
		}),
		row("gemma3_text", absent{vocab: 262208, width: 2304, ff: 9216, layers: 26, heads: 8, kvHeads: 4, head: 256, positions: 131072, eps: 1e-6, theta: 1e6, tied: true, act: "gelu_pytorch_tanh"}, func(f *family) {
			gemmaNorms(f)
			f.types = []string{"gemma3_text", "gemma3"}
			f.modules.Bodies = []string{"model.", "model.language_model.", "language_model.model.", ""}
			f.modules.QNorm, f.modules.KNorm, f.modules.ScalesItself = "self_attn.q_norm", "self_attn.k_norm", true
			f.shape.QKNorm = NormHeads
			f.arch = "gemma3"
			f.adapt = func(d document, c *ModelConfig) {
				gemma(d, c)
				c.HiddenAct = d.text("hidden_activation", "gelu_pytorch_tanh")
				c.AttentionScale = inverseRoot(d.number("query_pre_attn_scalar", 256))
				c.AttentionSoftcap, c.LogitSoftcap = softcap(d, "attn_logit_softcapping", 0), softcap(d, "final_logit_softcapping", 0)
				c.Window, c.GlobalEvery = window(d, 4096), d.size(d.first("sliding_window_pattern", "_sliding_window_pattern"), 1, 6)
				c.LayerIsLocal = layerTypes(d, c.Layers)
				local := d.object("rope_parameters").object("sliding_attention")
				c.LocalRope = &Rope{Theta: local.number("rope_theta", d.number("rope_local_base_freq", 10_000))}
				if d.flag("use_bidirectional_attention", false) {
					d.unsupported("use_bidirectional_attention", "true", "false: a decoder's tokens look back only")
				}
			}
		}),
		row("phi3", absent{vocab: 32064, width: 3072, ff: 8192, layers: 32, heads: 32, positions: 4096, eps: 1e-5}, func(f *family) {
			f.modules.QKV, f.modules.GateUp = "self_attn.qkv_proj", "mlp.gate_up_proj"
			f.storage.qkv, f.storage.gateUp, f.ggufQKV = stacked, stacked, stacked
			f.adapt = func(d document, c *ModelConfig) {
				c.Window = window(d, 0)
				c.rotate(d, 1)
			}
		}),
		row("olmo2", absent{vocab: 50304, width: 4096, ff: 11008, layers: 32, heads: 32, positions: 2048, eps: 1e-5}, func(f *family) {
			m := &f.modules
			m.AttnNorm, m.MLPNorm, m.AttnPostNorm, m.MLPPostNorm = "", "", "post_attention_layernorm", "post_feedforward_layernorm"
			m.QNorm, m.KNorm = "self_attn.q_norm", "self_attn.k_norm"
			f.shape.PreNorms, f.shape.PostNorms, f.shape.QKNorm, f.shape.NormRoundsOnce = false, true, NormProjections, true
			f.adapt = func(d document, c *ModelConfig) {
				c.AttentionBias = d.flag("attention_bias", false)
				c.OutputBias = c.AttentionBias
			}
		}),
		row("gpt2", absent{vocab: 50257, width: 768, layers: 12, heads: 12, positions: 1024, eps: 1e-5, tied: true, act: "gelu_new"}, func(f *family) {
			gptNames(f)
			f.modules.QKV, f.modules.Positions = "attn.c_attn", "wpe"
			f.modules.O, f.modules.Up, f.modules.Down = "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
			f.storage.qkv, f.storage.turned, f.ggufQKV = stacked, true, stacked
			f.shape = ModelConfig{Norm: LayerNorm, PreNorms: true, LearnedPositions: true, AttentionBias: true, OutputBias: true, MLPBias: true, EmbeddingScale: 1}
			f.adapt = func(d document, c *ModelConfig) {
				c.KVHeads = c.Heads
				if !d.flag("scale_attn_weights", true) {
					c.AttentionScale = 1
				}
				c.ScaleByLayer = d.flag("scale_attn_by_inverse_layer_idx", false)
				if d.flag("add_cross_attention", false) {
					d.unsupported("add_cross_attention", "true", "false: a decoder without an encoder")
				}
			}
		}),
		row("gpt_neox", absent{vocab: 50432, width: 6144, ff: 24576, layers: 44, heads: 64, positions: 2048, eps: 1e-5, act: "gelu"}, func(f *family) {
			f.arch, f.ggufQKV, f.storage.qkv = "gptneox", stacked, perHead
			f.modules = Modules{
				Bodies: []string{"gpt_neox.", ""}, Embedding: "embed_in", Layers: "layers", FinalNorm: "final_layer_norm", Head: "embed_out",
				AttnNorm: "input_layernorm", Attn: "attention", Q: "attention.query", K: "attention.key", V: "attention.value", O: "attention.dense",
				MLPNorm: "post_attention_layernorm", MLP: "mlp", Up: "mlp.dense_h_to_4h", Down: "mlp.dense_4h_to_h", Act: "mlp.act", QKV: "attention.query_key_value",
			}
			f.shape = ModelConfig{Norm: LayerNorm, PreNorms: true, OutputBias: true, MLPBias: true, EmbeddingScale: 1}
			f.adapt = func(d document, c *ModelConfig) {
				c.KVHeads = c.Heads
				c.AttentionBias = d.flag("attention_bias", true)
				c.OutputBias = c.AttentionBias
				c.Parallel = d.flag("use_parallel_residual", true)
				c.Rope.Theta = d.number("rotary_emb_base", c.Rope.Theta)
				c.rotate(d, 0.25)
			}
		}),
		row("gptj", absent{vocab: 50400, width: 4096, layers: 28, heads: 16, positions: 2048, eps: 1e-5, act: "gelu_new"}, func(f *family) {
			gptNames(f)
			f.arch = ""
			f.modules.Q, f.modules.K, f.modules.V, f.modules.O = "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"
			f.modules.Up, f.modules.Down, f.modules.MLPNorm = "mlp.fc_in", "mlp.fc_out", ""
			f.shape = ModelConfig{Norm: LayerNorm, PreNorms: true, Parallel: true, SharedNorm: true, MLPBias: true, HeadBias: true, RotaryPairs: true, EmbeddingScale: 1}
			f.adapt = func(d document, c *ModelConfig) { c.KVHeads, c.Rotary = c.Heads, d.size("rotary_dim", 1, 64) }
		}),
		row("phi", absent{vocab: 51200, width: 2048, ff: 8192, layers: 24, heads: 32, positions: 2048, eps: 1e-5, act: "gelu_new"}, func(f *family) {
			f.arch = ""
			m := &f.modules
			m.O, m.Gate, m.Up, m.Down, m.MLPNorm, m.FinalNorm, m.Act = "self_attn.dense", "", "mlp.fc1", "mlp.fc2", "", "final_layernorm", "mlp.activation_fn"
			f.shape = ModelConfig{Norm: LayerNorm, PreNorms: true, Parallel: true, SharedNorm: true, AttentionBias: true, OutputBias: true, MLPBias: true, HeadBias: true, EmbeddingScale: 1}
			f.adapt = func(d document, c *ModelConfig) {
				c.rotate(d, 0.5)
				if d.flag("qk_layernorm", false) {
					d.unsupported("qk_layernorm", "true", "false")
				}
			}
		}),
	}
}

func gptNames(f *family) {
	f.modules = Modules{
		Bodies: []string{"transformer.", ""}, Embedding: "wte", Layers: "h", FinalNorm: "ln_f", Head: "lm_head",
		AttnNorm: "ln_1", Attn: "attn", Q: "attn.query", K: "attn.key", V: "attn.value", MLPNorm: "ln_2", MLP: "mlp", Act: "mlp.act",
	}
}

func gemmaNorms(f *family) {
	f.modules.AttnPostNorm, f.modules.MLPNorm, f.modules.MLPPostNorm = "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
	f.storage.plusOne, f.shape.PostNorms, f.shape.NormRoundsOnce = true, true, true
}

// Families are the names of all decoders that can be read (ModelConfig.Family).
func Families() []string {
	var out []string
	for _, f := range families() {
		out = append(out, f.name)
	}
	return out
}

func architectures() []string {
	var out []string
	for _, f := range families() {
		if f.arch != "" {
			out = append(out, f.arch)
		}
	}
	return out
}

func familyWhere(is func(family) bool) (family, bool) {
	table := families()
	if i := slices.IndexFunc(table, is); i >= 0 {
		return table[i], true
	}
	return family{}, false
}

// Modules are the names of this family's parts; they are empty for a family that is not known.
func (c ModelConfig) Modules() Modules {
	f, _ := familyWhere(func(f family) bool { return f.name == c.Family })
	return f.modules
}

// Name is the whole name of a part outside the layers.
func (m Modules) Name(part string) string {
	if part == m.Head {
		return part
	}
	return m.Bodies[0] + part
}

// InLayer is the whole name of a layer's part.
func (m Modules) InLayer(layer int, part string) string {
	return m.Bodies[0] + m.Layers + "." + itoa(layer) + "." + part
}
