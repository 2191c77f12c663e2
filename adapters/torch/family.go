package torch

import (
	"fmt"
	"slices"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// family is one row of the table of decoders: how its checkpoints name their weights, and what may
// vary. %d is the layer. A new family is a new row, and a new column where it does what no row did.
type family struct {
	name        string
	activations []string // of the gated MLP
	embedding   string
	finalNorm   string
	head        string // absent when embeddings are tied
	attnNorm    string // RMSNorm before attention
	q, k, v, o  string
	mlpNorm     string // RMSNorm before the MLP
	gate, up    string
	down        string
}

func families() []family {
	return []family{
		{
			name:        "llama",
			activations: []string{"silu", "swish"},
			embedding:   "model.embed_tokens",
			finalNorm:   "model.norm",
			head:        "lm_head",
			attnNorm:    "model.layers.%d.input_layernorm",
			q:           "model.layers.%d.self_attn.q_proj",
			k:           "model.layers.%d.self_attn.k_proj",
			v:           "model.layers.%d.self_attn.v_proj",
			o:           "model.layers.%d.self_attn.o_proj",
			mlpNorm:     "model.layers.%d.post_attention_layernorm",
			gate:        "model.layers.%d.mlp.gate_proj",
			up:          "model.layers.%d.mlp.up_proj",
			down:        "model.layers.%d.mlp.down_proj",
		},
	}
}

// familyOf finds the row and checks that this checkpoint stays inside it.
func familyOf(c checkpoint.ModelConfig) (family, error) {
	var names []string
	for _, f := range families() {
		names = append(names, f.name)
		if f.name != c.Family {
			continue
		}
		if !slices.Contains(f.activations, c.HiddenAct) {
			return family{}, &checkpoint.UnsupportedError{Kind: "activation function", Name: c.HiddenAct, Supported: f.activations}
		}
		return f, nil
	}
	return family{}, &checkpoint.UnsupportedError{Kind: "model family", Name: c.Family, Supported: names}
}

func layerName(pattern string, layer int) string { return fmt.Sprintf(pattern, layer) }
