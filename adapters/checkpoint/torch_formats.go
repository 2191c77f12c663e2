package checkpoint

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// torchNames are the files of a folder that torch.save may have written and that may be an SAE.
func (o *opening) torchNames() []string {
	if o.file != "" {
		if isTorch(o.file) {
			return []string{o.file}
		}
		return nil
	}
	if o.has(dictionaryWeights) {
		return []string{dictionaryWeights}
	}
	var names []string
	for _, n := range o.names {
		if isTorch(n) && n != "trainer_state.pt" {
			names = append(names, n)
		}
	}
	return names
}

func isTorch(name string) bool {
	return slices.Contains([]string{".pt", ".pth"}, filepath.Ext(name))
}

// openTorchSAE tells the formats that are one torch file apart, by the names in it.
func openTorchSAE(o *opening) error {
	names := o.torchNames()
	if len(names) > 1 {
		return &AmbiguousError{Path: o.path, Fact: "the folder holds several SAEs", Choices: names, How: "give the path of one of them"}
	}
	o.path = o.at(names[0])
	file, err := openTorch(o.path)
	if err != nil {
		return err
	}
	o.sae.close = append(o.sae.close, file.Close)
	all := func(wanted ...string) bool {
		return !slices.ContainsFunc(wanted, func(w string) bool { return !slices.Contains(file.Names(), w) })
	}
	config := strings.TrimSuffix(names[0], filepath.Ext(names[0])) + "_cfg.json"
	switch {
	case names[0] == dictionaryWeights:
		return openDictionary(o, file)
	case all("encoder_linear.weight"):
		return openGoodfire(o, file)
	case all("latent_bias", "pre_bias"):
		return openOpenAI(o, file)
	case o.has(config):
		return openConnorRob(o, file, config)
	case all("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"):
		return openQResearch(o, file)
	case all("W_enc", "b_enc", "W_dec", "b_dec"):
		return openQwenScope(o, file)
	}
	return &UnsupportedError{Path: o.path, Kind: "torch file with the tensors", Name: abridged(file.Names()), Supported: []string{
		"dictionary_learning (ae.pt beside config.json)", "OpenAI (latent_bias, pre_bias)", "Goodfire (encoder_linear.*)", "Connor-Rob hook_z (beside NAME_cfg.json)", "qresearch (encoder.*, decoder.*)", "Qwen Scope (W_enc, W_dec)",
	}}
}

// turned sizes an SAE by a pair of matrices as torch's Linear keeps them, and gives the parts, both turned.
func (o *opening) turned(file tensorFile, wEnc, bEnc, wDec, bDec string) ([]part, error) {
	in, err := shapeOf(file, wEnc, 2, "[d_sae, d_in]")
	if err != nil {
		return nil, err
	}
	s, c := o.sae, &o.sae.Config
	o.sized(in[1], in[0], in[1])
	return []part{
		{name: wEnc, why: "[d_sae, d_in]", into: &s.WEnc, shape: in, flip: true}, {name: bEnc, why: "[d_sae]", into: &s.BEnc, shape: []int{c.DSAE}},
		{name: wDec, why: "[d_in, d_sae]", into: &s.WDec, shape: []int{c.DOut, c.DSAE}, flip: true}, {name: bDec, why: "[d_in]", into: &s.BDec, shape: []int{c.DOut}},
	}, nil
}

// plain sets what most single files have in common.
func (o *opening) plain(format, title, architecture string) {
	c := &o.sae.Config
	c.Format, c.Architecture = format, architecture
	c.Normalization, c.FileNormalization = NormNone, NormNone
	o.byFormat(title, "architecture", "normalization", "apply_b_dec_to_input")
	c.Files = append(c.Files, o.path)
}

// openGoodfire: relu, nothing subtracted.
func openGoodfire(o *opening, file *torchFile) error {
	o.plain("goodfire", "Goodfire", "standard")
	parts, err := o.turned(file, "encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias")
	if err != nil {
		return err
	}
	if err := o.hookOfRepo(); err != nil {
		return err
	}
	return o.sae.bind(file, parts)
}

// openQResearch: relu, nothing subtracted; the layer is in the file's name, …-l19.pt.
func openQResearch(o *opening, file *torchFile) error {
	o.plain("deepseek_r1", "qresearch", "standard")
	parts, err := o.turned(file, "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
	if err != nil {
		return err
	}
	if err := o.hookOfRepo(); err != nil {
		return err
	}
	return o.sae.bind(file, parts)
}

// openQwenScope: top-k, nothing subtracted. k is in the repository's name only.
func openQwenScope(o *opening, file *torchFile) error {
	o.plain("qwen_scope", "Qwen Scope", "topk")
	c := &o.sae.Config
	in, err := shapeOf(file, "W_enc", 2, "[d_sae, d_in]")
	if err != nil {
		return err
	}
	if in[0] <= in[1] {
		return &FormatError{Path: o.path, Fact: fmt.Sprintf("W_enc has the shape %v", in), Want: "[d_sae, d_in] with d_sae above d_in, as Qwen Scope has it; another publisher's files need a format of their own"}
	}
	parts, err := o.turned(file, "W_enc", "b_enc", "W_dec", "b_dec")
	if err != nil {
		return err
	}
	switch c.K = o.known.K; {
	case o.facts.K != 0:
		c.K = o.facts.K
		c.learned("k", "option")
	case c.K == 0:
		return &QuestionError{Path: o.path, Fact: "k, the number of latents that a token keeps", Why: "the file does not hold it and the path names no known repository (Qwen/SAE-Res-…-L0_50)", Option: "--k, or --repo with the repository on the hub"}
	default:
		c.learned("k", o.knownFrom)
	}
	if err := o.hookOfRepo(`layer(\d{1,5})\.sae\.pt$`); err != nil {
		return err
	}
	return o.sae.bind(file, parts)
}

// openConnorRob: gpt2-small's hook_z, with the configuration in NAME_cfg.json.
func openConnorRob(o *opening, file *torchFile, config string) error {
	d, err := readDocument(o.at(config), maxConfig)
	if err != nil {
		return err
	}
	o.plain("connor_rob_hook_z", "Connor-Rob hook_z", "standard")
	s, c := o.sae, &o.sae.Config
	c.Files = append(c.Files, d.path)
	for _, key := range []string{"act_size", "dict_size", "act_name"} {
		if !d.has(key) {
			d.fail(key, "what Connor-Rob's configurations have")
		}
	}
	o.sized(d.size("act_size", 1, 0), d.size("dict_size", 1, 0), d.size("act_size", 1, 0))
	c.Hook, c.ApplyBDecToInput, c.Reshape = d.text("act_name", ""), true, "hook_z"
	c.ModelName, c.ContextSize = d.text("model_name", ""), d.size("seq_len", 1, 0)
	for fact, key := range map[string]string{"d_in": "act_size", "d_sae": "dict_size", "hook": "act_name", "model_name": "model_name", "context_length": "seq_len"} {
		if d.has(key) {
			c.learned(fact, d.name())
		}
	}
	if err := d.failed(); err != nil {
		return err
	}
	return s.bind(file, []part{
		{name: "W_enc", why: "[act_size, dict_size]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}}, {name: "b_enc", why: "[dict_size]", into: &s.BEnc, shape: []int{c.DSAE}},
		{name: "W_dec", why: "[dict_size, act_size]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}}, {name: "b_dec", why: "[act_size]", into: &s.BDec, shape: []int{c.DOut}},
	})
}

// openOpenAI: the input is layer-normed exactly where the activation is TopK (sparse_autoencoder/model.py), and pre_bias is
// subtracted from it. Which place of which layer it reads is in the path on their server only (v5_32k/resid_post_mlp/…/8.pt).
func openOpenAI(o *opening, file *torchFile) error {
	o.plain("openai", "OpenAI", "standard")
	s, c := o.sae, &o.sae.Config
	c.ApplyBDecToInput = true
	activation, ok := file.values["activation"].(string)
	if !ok {
		activation = "ReLU" // what their loader takes
	}
	c.FileArchitecture = activation
	switch activation {
	case "ReLU":
	case "TopK":
		c.Architecture = "topk"
		k, ok := file.values["activation_state_dict.k"].(int64)
		if !ok || k < 1 || k > maxSize {
			return &FormatError{Path: o.path, Fact: fmt.Sprintf("activation_state_dict.k is %v", file.values["activation_state_dict.k"]), Want: "a whole number of at least 1"}
		}
		if after := file.values["activation_state_dict.postact_fn"]; after != "ReLU" {
			return &UnsupportedError{Path: o.path, Kind: "postact_fn", Name: fmt.Sprint(after), Supported: []string{"ReLU: activations that are never negative"}}
		}
		c.K = int(k)
		c.Normalization, c.FileNormalization = NormLayer, NormLayer
		c.learned("k", filepath.Base(o.path))
	default:
		return &UnsupportedError{Path: o.path, Kind: "activation", Name: activation, Supported: []string{"ReLU", "TopK"}}
	}
	c.learned("architecture", filepath.Base(o.path))
	in, err := shapeOf(file, "encoder.weight", 2, "[n_latents, n_inputs]")
	if err != nil {
		return err
	}
	o.sized(in[1], in[0], in[1])
	parts := []part{
		{name: "encoder.weight", why: "[n_latents, n_inputs]", into: &s.WEnc, shape: in, flip: true},
		{name: "latent_bias", why: "[n_latents]", into: &s.BEnc, shape: []int{c.DSAE}}, {name: "pre_bias", why: "[n_inputs]", into: &s.BDec, shape: []int{c.DIn}},
	}
	if slices.Contains(file.Names(), "decoder.weight") {
		parts = append(parts, part{name: "decoder.weight", why: "[n_inputs, n_latents]", into: &s.WDec, shape: []int{c.DIn, c.DSAE}, flip: true})
	} else { // tied: the decoder is the encoder, turned
		parts = append(parts, part{name: "encoder.weight", why: "[n_latents, n_inputs]", into: &s.WDec, shape: in})
		c.Notes = append(c.Notes, "there is no decoder.weight: the decoder is the encoder, turned (tied)")
	}
	if err := o.openAIHook(); err != nil {
		return err
	}
	return s.bind(file, parts, "stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
}

// openAIHook reads place and layer from the path, as OpenAI's paths.py makes it.
func (o *opening) openAIHook() error {
	if o.facts.Hook != "" {
		return nil
	}
	places := map[string]string{"mlp_post_act": "mlp.hook_post", "resid_delta_attn": "hook_attn_out", "resid_post_attn": "hook_resid_mid", "resid_delta_mlp": "hook_mlp_out", "resid_post_mlp": "hook_resid_post"}
	c := &o.sae.Config
	for p := range strings.SplitSeq(filepath.ToSlash(o.path), "/") {
		if places[p] != "" {
			c.FileHook = p
		}
	}
	layer, ok := o.layerInPath(`^(\d{1,5})\.pt$`, layerFolder)
	if c.FileHook == "" || !ok {
		var known []string
		for name := range places {
			known = append(known, name)
		}
		slices.Sort(known)
		return &QuestionError{Path: o.path, Fact: "the place that the SAE reads (its hook)", Why: "the file does not say it, and the path is not as OpenAI's server has it (…/" + strings.Join(known, "|") + "/…/LAYER.pt)", Option: "--hook"}
	}
	c.Hook, c.Layer = fmt.Sprintf("blocks.%d.%s", layer, places[c.FileHook]), layer
	c.learned("hook", "the path ("+c.FileHook+")")
	c.learned("layer", "the path")
	return nil
}
