package checkpoint

import (
	"fmt"
	"slices"
	"strings"
)

const dictionaryWeights = "ae.pt"

// openDictionary opens a trainer folder of dictionary_learning: config.json with trainer.dict_class, and ae.pt. Which tensors
// there are and how they encode is the class's (dictionary.py, trainers/*.py).
func openDictionary(o *opening, file *torchFile) error {
	s, c := o.sae, &o.sae.Config
	c.Format = "dictionary_learning"
	d, err := readDocument(o.at(configFile), maxConfig)
	if err != nil {
		return err
	}
	c.Files = append(c.Files, d.path)
	o.opened(file)
	trainer, buffer := d.object("trainer"), d.object("buffer")
	for _, key := range []string{"dict_class", "activation_dim", "dict_size"} {
		if !trainer.has(key) {
			trainer.fail(key, "what dictionary_learning's trainers write")
		}
	}
	c.FileArchitecture = trainer.text("dict_class", "")
	c.DIn, c.DSAE = trainer.size("activation_dim", 1, 0), trainer.size("dict_size", 1, 0)
	c.DOut = c.DIn
	c.ModelName = trainer.text("lm_name", "")
	c.ContextSize = buffer.size("ctx_len", 1, 0)
	c.Normalization, c.FileNormalization = NormNone, NormNone
	for _, fact := range []string{"architecture", "d_in", "d_sae", "model_name", "context_length"} {
		c.learned(fact, d.name())
	}
	o.byFormat("dictionary_learning", "apply_b_dec_to_input", "normalization")
	if err := o.dictionaryHook(d, trainer, buffer); err != nil {
		return err
	}
	prefix := ""
	if slices.ContainsFunc(file.Names(), func(n string) bool { return strings.HasPrefix(n, "ae.") }) {
		if prefix, err = o.backup(file); err != nil {
			return err
		}
	}
	parts, err := s.dictionaryParts(d, prefix)
	if err != nil {
		return err
	}
	ignored := []string{prefix + "k", prefix + "group_sizes"}
	if slices.Contains([]string{"AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"}, c.FileArchitecture) {
		ignored = append(ignored, prefix+"threshold")
	}
	if prefix != "" { // the optimiser's state, beside the weights
		for _, n := range file.Names() {
			if !strings.HasPrefix(n, prefix) {
				ignored = append(ignored, n)
			}
		}
	}
	if err := s.bind(file, parts, ignored...); err != nil {
		return err
	}
	return o.dictionaryChoice(file, trainer, prefix)
}

// backup: a checkpoint in mid-training nests the weights under "ae" beside a norm_factor, by which activations are divided while
// it trains; the finished ae.pt has it folded.
func (o *opening) backup(file *torchFile) (prefix string, err error) {
	factor, ok := file.values["norm_factor"]
	if !ok || factor == nil {
		return "ae.", nil
	}
	value, ok := factor.(float64)
	if n, whole := factor.(int64); whole {
		value, ok = float64(n), true
	}
	if !ok || !(value > 0) {
		return "", &FormatError{Path: file.Path(), Fact: fmt.Sprintf("norm_factor is %v", factor), Want: "a number above 0"}
	}
	c := &o.sae.Config
	c.Normalization, c.FileNormalization = NormExpected, NormExpected
	c.learned("normalization", "norm_factor in "+dictionaryWeights)
	if o.facts.ScalingFactor == nil {
		o.factor, o.factorFrom = 1/value, "norm_factor in "+dictionaryWeights
	}
	return "ae.", nil
}

// dictionaryHook: the submodule's name where the trainer kept it, else resid_post of the layer, as SAELens reads these files.
func (o *opening) dictionaryHook(d, trainer, buffer document) error {
	c := &o.sae.Config
	if layer := trainer.size("layer", 0, -1); layer >= 0 {
		c.Layer = layer
		c.learned("layer", d.name())
	}
	name := trainer.text("submodule_name", "")
	side := buffer.text("io", "out")
	if err := d.failed(); err != nil {
		return err
	}
	c.FileHook = name
	if name != "" && side != "out" {
		c.FileHook += " (" + side + ")"
	}
	residual := name == "" || strings.HasPrefix(name, "resid_post")
	switch {
	case residual && c.Layer >= 0 && side == "out":
		c.Hook = fmt.Sprintf("blocks.%d.hook_resid_post", c.Layer)
	case residual && c.Layer >= 0 && side == "in":
		c.Hook = fmt.Sprintf("blocks.%d.hook_resid_pre", c.Layer)
	case o.facts.Hook == "":
		return &QuestionError{Path: d.path, Fact: "the place that the SAE reads (its hook)", Why: fmt.Sprintf("trainer.submodule_name is %q, buffer.io %q, trainer.layer %d", name, side, c.Layer), Option: "--hook"}
	}
	c.learned("hook", d.name())
	return nil
}

func (s *SAE) dictionaryParts(d document, prefix string) ([]part, error) {
	c := &s.Config
	in, latents := []int{c.DIn}, []int{c.DSAE}
	wEnc := part{name: prefix + "encoder.weight", why: "[dict_size, activation_dim]", into: &s.WEnc, shape: []int{c.DSAE, c.DIn}, flip: true}
	wDec := part{name: prefix + "decoder.weight", why: "[activation_dim, dict_size]", into: &s.WDec, shape: []int{c.DOut, c.DSAE}, flip: true}
	vector := func(name string, into *[]float32, shape []int, why string) part {
		return part{name: prefix + name, why: why, into: into, shape: shape}
	}
	linear := func(bDec string) []part {
		return []part{wEnc, vector("encoder.bias", &s.BEnc, latents, "[dict_size]"), wDec, vector(bDec, &s.BDec, in, "[activation_dim]")}
	}
	bare := []part{
		{name: prefix + "W_enc", why: "[activation_dim, dict_size]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}}, vector("b_enc", &s.BEnc, latents, "[dict_size]"),
		{name: prefix + "W_dec", why: "[dict_size, activation_dim]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}}, vector("b_dec", &s.BDec, in, "[activation_dim]"),
	}
	c.ApplyBDecToInput = true
	const folds = "dictionary_learning multiplies activations by the decoder's norms: those are the activations after the decoder-norm fold"
	switch c.FileArchitecture {
	case "AutoEncoder":
		c.Architecture = "standard"
		c.Notes = append(c.Notes, "dictionary_learning gives the decoder's rows norm 1 when it loads an AutoEncoder: those are the activations after the decoder-norm fold")
		return linear("bias"), nil
	case "AutoEncoderNew":
		c.Architecture, c.ApplyBDecToInput = "standard", false
		return linear("decoder.bias"), nil
	case "GatedAutoEncoder":
		c.Architecture = "gated"
		c.Notes = append(c.Notes, folds)
		return []part{wEnc, wDec, vector("decoder_bias", &s.BDec, in, "[activation_dim]"), vector("r_mag", &s.RMag, latents, "[dict_size]"),
			vector("gate_bias", &s.BGate, latents, "[dict_size]"), vector("mag_bias", &s.BMag, latents, "[dict_size]")}, nil
	case "JumpReluAutoEncoder":
		c.Architecture, c.ApplyBDecToInput = "jumprelu", false
		c.Notes = append(c.Notes, folds)
		return append(bare, vector("threshold", &s.Threshold, latents, "[dict_size]")), nil
	case "AutoEncoderTopK":
		c.Architecture = "topk"
		return linear("b_dec"), nil
	case "BatchTopKSAE":
		c.Architecture = "jumprelu"
		return linear("b_dec"), nil
	case "MatryoshkaBatchTopKSAE":
		c.Architecture = "jumprelu"
		return bare, nil
	}
	return nil, &UnsupportedError{Path: d.path, Kind: "dict_class", Name: c.FileArchitecture, Supported: []string{"AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"}}
}

// dictionaryChoice reads k, or the threshold that batch top-k has once it is trained: one number, −1 while it was never set.
func (o *opening) dictionaryChoice(file *torchFile, trainer document, prefix string) error {
	s, c := o.sae, &o.sae.Config
	switch c.FileArchitecture {
	case "AutoEncoderTopK":
		return o.dictionaryK(file, trainer, prefix)
	case "BatchTopKSAE", "MatryoshkaBatchTopKSAE":
	default:
		return nil
	}
	threshold := []float32{-1}
	if slices.Contains(file.Names(), prefix+"threshold") {
		var err error
		if threshold, err = readScalar(file, prefix+"threshold", 1); err != nil {
			return err
		}
	}
	if threshold[0] >= 0 {
		s.Threshold = slices.Repeat(threshold, c.DSAE)
		c.learned("threshold", dictionaryWeights)
		return nil
	}
	if o.facts.K == 0 {
		return &QuestionError{Path: file.Path(), Fact: "the threshold of " + c.FileArchitecture, Why: "it is −1: training ended before it was set",
			Choices: []string{"a k: the largest k latents of each token"}, Option: "--k"}
	}
	c.Architecture, c.K = "topk", o.facts.K
	c.learned("k", "option")
	c.Notes = append(c.Notes, "the threshold of "+c.FileArchitecture+" was never set: latents are chosen by top-k of each token, as the option says")
	return nil
}

func (o *opening) dictionaryK(file *torchFile, trainer document, prefix string) error {
	c := &o.sae.Config
	c.K = trainer.size("k", 1, 0)
	c.learned("k", trainer.name())
	if slices.Contains(file.Names(), prefix+"k") { // annealing changes k while it trains: the weights' own counts
		t, err := file.Tensor(prefix + "k")
		if err != nil {
			return err
		}
		values, err := t.Int64()
		if err != nil || len(values) != 1 || values[0] < 1 || values[0] > int64(c.DSAE) {
			return &FormatError{Path: file.Path(), Fact: fmt.Sprintf("k is %v", values), Want: fmt.Sprintf("a whole number from 1 to dict_size, %d", c.DSAE)}
		}
		c.K = int(values[0])
		c.learned("k", dictionaryWeights)
	}
	if trainer.failed() == nil && c.K == 0 {
		trainer.fail("k", "a whole number of at least 1")
	}
	return trainer.failed()
}
