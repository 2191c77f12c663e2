package checkpoint_test

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// goldenFamilies are tiny models as transformers saves them.
const goldenFamilies = "../torch/testdata/families"

func TestAConfigurationMeansWhatTransformersTakesItToMean(t *testing.T) {
	t.Parallel()
	root := func(x float64) float64 { return 1 / math.Sqrt(x) }
	for name, c := range map[string]struct {
		model  string
		change object
		check  func(t *testing.T, c checkpoint.ModelConfig)
	}{
		"Mistral without a window has one":      {"mistral", object{"sliding_window": nil}, func(t *testing.T, c checkpoint.ModelConfig) { require.Equal(t, 4096, c.WindowOf(0)) }},
		"Mistral with a null has none":          {"mistral-no-window", nil, func(t *testing.T, c checkpoint.ModelConfig) { require.Zero(t, c.WindowOf(0)) }},
		"Qwen's window is off unless asked for": {"qwen2", object{"sliding_window": 5, "layer_types": nil}, func(t *testing.T, c checkpoint.ModelConfig) { require.Zero(t, c.WindowOf(2)) }},
		"Qwen's last layers are local": {"qwen2-windows", object{"layer_types": nil}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, []int{0, 5, 5}, []int{c.WindowOf(0), c.WindowOf(1), c.WindowOf(2)})
			require.True(t, c.AttentionBias)
			require.False(t, c.OutputBias)
		}},
		"Gemma's early activation is the one that Google computed": {"gemma", object{"hidden_act": "gelu"}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, "gelu_pytorch_tanh", c.HiddenAct)
			require.True(t, c.TiedEmbeddings, "not said in the file")
			require.InDelta(t, math.Sqrt(24), c.EmbeddingScale, 1e-12)
		}},
		"Gemma 2's defaults": {"gemma2", object{"sliding_window": nil, "layer_types": nil, "attn_logit_softcapping": nil, "final_logit_softcapping": nil, "query_pre_attn_scalar": nil}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, []int{4096, 0, 4096}, []int{c.WindowOf(0), c.WindowOf(1), c.WindowOf(2)})
			require.Equal(t, []float64{50, 30, root(256)}, []float64{c.AttentionSoftcap, c.LogitSoftcap, c.AttentionScale})
			require.Nil(t, c.LocalRope)
		}},
		"Gemma 3's every sixth layer is global": {"gemma3-by-head", object{"layer_types": nil, "sliding_window_pattern": nil, "_sliding_window_pattern": nil, "rope_local_base_freq": nil}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, []int{5, 5, 5, 5, 5, 0, 5}, []int{c.WindowOf(0), c.WindowOf(1), c.WindowOf(2), c.WindowOf(3), c.WindowOf(4), c.WindowOf(5), c.WindowOf(6)})
			require.Equal(t, checkpoint.Rope{Theta: 10_000}, c.RopeOf(0))
			require.Equal(t, "linear", c.RopeOf(5).Scaling)
		}},
		"rotation for each kind of layer, as transformers 5 writes it": {"gemma3", object{"rope_scaling": nil, "rope_theta": nil, "rope_local_base_freq": nil, "rope_parameters": object{
			"full_attention": object{"rope_type": "linear", "factor": 8, "rope_theta": 7e5}, "sliding_attention": object{"rope_type": "default", "rope_theta": 300}}}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, checkpoint.Rope{Theta: 7e5, Scaling: "linear", Factor: 8}, c.Rope)
			require.Equal(t, checkpoint.Rope{Theta: 300}, *c.LocalRope)
		}},
		"a share of a head, as transformers 5 writes it": {"gpt_neox", object{"rotary_pct": nil, "rotary_emb_base": nil, "partial_rotary_factor": nil, "rope_theta": nil, "rope_parameters": object{"rope_theta": 500, "partial_rotary_factor": 0.67}}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, checkpoint.Rope{Theta: 500}, c.Rope)
			require.Equal(t, 4, c.Rotary)
		}},
		"the text of a model that reads pictures": {"gemma3-pictures", nil, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, "gemma3_text", c.Family)
			require.Equal(t, 4, c.Layers)
		}},
		"GPT-2's scores may be left as they are": {"gpt2", object{"scale_attn_weights": false}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.InDelta(t, 1, c.AttentionScale, 0)
			require.Zero(t, c.Rotary)
			require.Equal(t, 96, c.DFF, "n_inner is null: four times the width")
		}},
		"a quarter of GPT-NeoX's heads turns": {"gpt_neox", object{"rotary_pct": nil, "rotary_emb_base": nil, "partial_rotary_factor": nil, "rope_theta": nil, "num_attention_heads": 3, "num_key_value_heads": nil}, func(t *testing.T, c checkpoint.ModelConfig) {
			require.Equal(t, []int{8, 2, 3}, []int{c.DHead, c.Rotary, c.KVHeads})
			require.True(t, c.Parallel)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, filepath.Join(goldenFamilies, c.model))
			editJSON(t, filepath.Join(folder, "config.json"), c.change)
			m, err := checkpoint.OpenModel(folder)
			require.NoError(t, err)
			defer shut(t, m)
			c.check(t, m.Config())
		})
	}
}

func TestWhatADecoderDoesNotComputeIsRefusedByName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		model  string
		change object
		want   string
	}{
		"norms of Phi's queries":          {"phi", object{"qk_layernorm": true}, `qk_layernorm "true" is not supported`},
		"attention to another model":      {"gpt2", object{"add_cross_attention": true}, `add_cross_attention "true" is not supported`},
		"a model that looks ahead":        {"gemma3", object{"use_bidirectional_attention": true}, `use_bidirectional_attention "true"`},
		"a layer type that is new":        {"gemma2", object{"layer_types": []string{"full_attention", "chunked_attention", "full_attention"}}, `layer type "chunked_attention" is not supported; supported: full_attention, sliding_attention`},
		"layer types of another model":    {"gemma2", object{"layer_types": []string{"full_attention"}}, "expected one for each of 3 layers"},
		"factors of another head":         {"phi3-longrope", object{"partial_rotary_factor": 1}, "longrope has 2 short and 2 long factors; expected one of each for the 3 pairs"},
		"a share of a head that is none":  {"gpt_neox", object{"rotary_pct": 1.5}, "a share above 0, up to 1"},
		"an odd number of dimensions":     {"gpt_neox", object{"rotary_pct": 0.5}, "3 of 6 dimensions of a head turn; expected an even number"},
		"scores scaled by the root of −1": {"gemma2", object{"query_pre_attn_scalar": -1}, "attention is scaled by NaN"},
		"a negative cap":                  {"gemma2", object{"attn_logit_softcapping": -3}, "scores are capped at -3"},
		"experts":                         {"qwen3", object{"num_experts": 128}, `mixture of experts "128 experts"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, filepath.Join(goldenFamilies, c.model))
			editJSON(t, filepath.Join(folder, "config.json"), c.change)
			_, err := checkpoint.OpenModel(folder)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestFusedTensorsAreCutAndTurnedIntoTheirParts(t *testing.T) {
	t.Parallel()
	const d = 24
	cell := func(row, column int) float32 { return float32(row*100 + column) }
	for name, c := range map[string]struct {
		model, tensor, q, v string
		at                  func(row, column int) (int, int) // of the file, for row r of v
	}{
		"GPT-2: [in, q k v]": {"gpt2", "transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.query.weight", "transformer.h.1.attn.value.weight",
			func(row, column int) (int, int) { return column, 48 + row }},
		"GPT-NeoX: q k v of each head": {"gpt_neox", "gpt_neox.layers.1.attention.query_key_value.weight", "gpt_neox.layers.1.attention.query.weight", "gpt_neox.layers.1.attention.value.weight",
			func(row, column int) (int, int) { return row/6*18 + 12 + row%6, column }},
		"Phi-3: q, then k, then v": {"phi3", "model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight",
			func(row, column int) (int, int) { return 36 + row, column }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, filepath.Join(goldenFamilies, c.model))
			editTensors(t, filepath.Join(folder, "model.safetensors"), func(m map[string]checkpoint.Tensor) {
				shape := m[c.tensor].Shape
				values := make([]float32, shape[0]*shape[1])
				for i := range values {
					values[i] = cell(i/shape[1], i%shape[1])
				}
				m[c.tensor] = checkpoint.Float32Tensor(c.tensor, values, shape...)
			})
			m, err := checkpoint.OpenModel(folder)
			require.NoError(t, err)
			defer shut(t, m)
			require.Contains(t, m.Names(), c.q)
			v, err := m.Tensor(c.v)
			require.NoError(t, err)
			require.Equal(t, []int{m.Config().KVHeads * m.Config().DHead, d}, v.Shape)
			values, err := v.Float32()
			require.NoError(t, err)
			for i, got := range values {
				row, column := c.at(i/d, i%d)
				require.InDelta(t, cell(row, column), got, 0, fmt.Sprint(i))
			}
		})
	}
}
