package checkpoint

import (
	"fmt"
	"slices"
	"strings"
)

// normScalar is a normalisation that only temporal SAEs have: one factor on the way in, divided on the way out.
const normScalar = "constant_scalar_rescale"

// temporalParts reads the configuration of a temporal SAE, SAELens's keys, and says which tensors it has beside W_dec and b_dec
// (SAELens 6.54, temporal_sae.py). Attention works on codes: its layers are d_sae wide.
func (s *SAE) temporalParts(d document, file tensorFile) ([]part, error) {
	c := &s.Config
	for _, key := range []string{"n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "tied_weights"} {
		if !d.has(key) {
			d.fail(key, "the value that the SAE was trained with")
		}
	}
	layers, bottleneck := d.size("n_attn_layers", 1, 1), d.size("bottleneck_factor", 1, 1)
	t := &Temporal{Heads: d.size("n_heads", 1, 1), ActivationScale: 1, Lambda: 1 / (4 * float64(c.DIn)), Tied: d.flag("tied_weights", true)}
	if c.FileNormalization == normScalar {
		const key = "activation_normalization_factor"
		if t.ActivationScale = d.number(key, 0); !(t.ActivationScale > 0) {
			d.fail(key, "a number above 0")
		}
		c.learned("scaling_factor", d.name())
	}
	switch kind := d.text("sae_diff_type", ""); kind {
	case "relu":
	case "topk":
		if t.TopK = d.size("kval_topk", 1, 0); t.TopK > c.DSAE {
			d.fail("kval_topk", fmt.Sprintf("a whole number from 1 to d_sae, %d, or null", c.DSAE))
		}
	default:
		d.fail("sae_diff_type", "relu or topk")
	}
	if d.failed() == nil && c.DSAE%(bottleneck*t.Heads) != 0 {
		d.fail("bottleneck_factor", fmt.Sprintf("a factor whose product with n_heads divides d_sae, %d", c.DSAE))
	}
	if err := d.failed(); err != nil {
		return nil, err
	}
	if layers > len(file.Names()) { // before a list is made by the configuration's claim
		return nil, &FormatError{Path: d.path, Fact: fmt.Sprintf("n_attn_layers is %d and the weights have %d tensors in all", layers, len(file.Names())), Want: "the configuration of these weights"}
	}
	c.K = 0
	s.Temporal = t
	t.BottleneckDim = c.DSAE / bottleneck
	t.Layers = make([]TemporalLayer, layers)
	var parts []part
	for i := range t.Layers {
		l := &t.Layers[i]
		for _, m := range []struct {
			name   string
			weight *[]float32
			bias   *[]float32
			out    int
		}{{"k_ctx", &l.KWeight, &l.KBias, t.BottleneckDim}, {"q_target", &l.QWeight, &l.QBias, t.BottleneckDim}, {"v_ctx", &l.VWeight, &l.VBias, c.DSAE}, {"c_proj", &l.CWeight, &l.CBias, c.DSAE}} {
			name := fmt.Sprintf("attn_layers.%d.%s", i, m.name)
			parts = append(parts, part{name: name + ".weight", why: "[out, d_sae]", into: m.weight, shape: []int{m.out, c.DSAE}})
			if slices.Contains(file.Names(), name+".bias") {
				parts = append(parts, part{name: name + ".bias", why: "[out]", into: m.bias, shape: []int{m.out}})
			}
		}
	}
	if !t.Tied {
		parts = append(parts, part{name: "W_enc", why: "[d_in, d_sae]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}})
	}
	return parts, nil
}

func isAttention(name string) bool { return strings.HasPrefix(name, "attn_layers.") }
