package checkpoint

import (
	"fmt"
	"slices"
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

const (
	temporalConfig  = "conf.yaml"
	temporalWeights = "latest_ckpt.safetensors"
)

// openTemporal opens canrager's temporal SAEs: conf.yaml and latest_ckpt.safetensors, with D, b, E and attention layers. SAELens
// 6.54 reads E as it is, [d_in, d_sae]; where its shape says the transpose, it is turned.
func openTemporal(o *opening) error {
	d, err := readYAML(o.at(temporalConfig))
	if err != nil {
		return err
	}
	s, c := o.sae, &o.sae.Config
	c.Files = append(c.Files, d.path)
	llm, sae := d.object("llm"), d.object("sae")
	for _, key := range []string{"exp_factor", "scaling_factor"} {
		if !sae.has(key) {
			sae.fail(key, "a number above 0")
		}
	}
	c.DIn = llm.size("dimin", 1, 0)
	if !llm.has("dimin") {
		llm.fail("dimin", "a whole number of at least 1")
	}
	wide := float64(c.DIn) * sae.number("exp_factor", 0)
	if d.failed() == nil && (wide < 1 || wide > maxSize) {
		sae.fail("exp_factor", "a number above 0")
	}
	c.DSAE, c.DOut = int(wide), c.DIn
	c.Architecture, c.FileArchitecture, c.ApplyBDecToInput = "temporal", "temporal", true
	c.Normalization, c.FileNormalization = NormNone, normScalar
	if factor := sae.number("scaling_factor", 0); d.failed() == nil && factor > 0 {
		sae.fields["activation_normalization_factor"] = sae.fields["scaling_factor"]
	}
	for _, fact := range []string{"d_in", "d_sae", "normalization"} {
		c.learned(fact, d.name())
	}
	o.byFormat("temporal SAEs", "architecture", "apply_b_dec_to_input")
	if err := d.failed(); err != nil {
		return err
	}
	file, err := OpenSafetensors(o.at(temporalWeights))
	if err != nil {
		return err
	}
	o.opened(file)
	parts, err := s.temporalParts(sae, file)
	if err != nil {
		return err
	}
	for i, p := range parts {
		if p.name != "W_enc" {
			continue
		}
		parts[i].name = "E"
		t, err := file.Tensor("E")
		if err != nil {
			return err
		}
		if slices.Equal(t.Shape, []int{c.DSAE, c.DIn}) && c.DSAE != c.DIn {
			parts[i].shape, parts[i].why, parts[i].flip = t.Shape, "[d_sae, d_in]", true
		}
	}
	parts = append(parts, part{name: "D", why: "[d_sae, d_in]", into: &s.WDec, shape: []int{c.DSAE, c.DIn}}, part{name: "b", why: "[d_in]", into: &s.BDec, shape: []int{c.DIn}})
	if layer, ok := o.layerInPath(layerFolder); ok {
		c.Layer, c.Hook = layer, fmt.Sprintf("blocks.%d.hook_resid_post", layer)
		c.learned("layer", "the path")
		c.learned("hook", "the path")
	} else if o.facts.Hook == "" {
		return &QuestionError{Path: o.path, Fact: "the layer that the SAE reads", Why: "the path does not name it (layer_12)", Option: "--layer"}
	}
	return s.bind(file, parts)
}
