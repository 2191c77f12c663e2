package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// safetensorsNames are the files of a folder that may be an SAE of a format without a folder of its own.
func (o *opening) safetensorsNames() []string {
	if o.file != "" {
		if filepath.Ext(o.file) == ".safetensors" {
			return []string{o.file}
		}
		return nil
	}
	var names []string
	for _, n := range o.names {
		if filepath.Ext(n) == ".safetensors" && n != saeSparsity && !strings.HasPrefix(n, "W_dec_") && maybeSAE(o.at(n)) {
			names = append(names, n)
		}
	}
	return names
}

// maybeSAE says whether a safetensors file has an encoder or a decoder, as what people keep beside an SAE has not: activations,
// tokens. A file that cannot be read may be one: opening it says what is wrong.
func maybeSAE(path string) bool {
	file, err := OpenSafetensors(path)
	if err != nil {
		return true
	}
	found := slices.ContainsFunc(file.Names(), func(tensor string) bool {
		return slices.ContainsFunc([]string{"w_enc", "w_dec", "encoder", "decoder"}, func(part string) bool {
			return strings.Contains(strings.ToLower(tensor), part)
		})
	})
	return file.Close() != nil || found
}

// openSafetensorsSAE tells the formats apart that are one safetensors file with a configuration elsewhere, or none.
func openSafetensorsSAE(o *opening) error {
	names := o.safetensorsNames()
	if o.facts.Layer != nil && len(names) > 1 {
		end := fmt.Sprintf("_%d.safetensors", *o.facts.Layer)
		names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, end) })
	}
	switch len(names) {
	case 0:
		return &FormatError{Path: o.path, Fact: fmt.Sprintf("there is no file for layer %d", *o.facts.Layer), Want: "the layer of a file that is there"}
	case 1:
	default:
		return &AmbiguousError{Path: o.path, Fact: "the folder holds several SAEs", Choices: names, How: "give the path of one of them, or its layer"}
	}
	o.path = o.at(names[0])
	file, err := OpenSafetensors(o.path)
	if err != nil {
		return err
	}
	has := func(name string) bool { return slices.Contains(file.Names(), name) }
	mistudio := slices.ContainsFunc(file.Names(), func(n string) bool { return strings.HasPrefix(n, "model.") }) || has("activation.log_threshold") || has("decoder_bias")
	clt := regexp.MustCompile(`^W_(?:enc|dec)_(\d{1,5})\.safetensors$`).FindStringSubmatch(names[0])
	switch {
	case clt != nil:
		return openCLTLayer(o, file, clt[1])
	case o.wandb() != "":
		return openMWHanna(o, file)
	case has("w_enc"):
		return openGemmaScope2(o, file)
	case mistudio:
		return openMiStudio(o, file)
	case has("W_enc") || has("W_dec"):
		return openBareSAELens(o, file)
	}
	o.sae.close = append(o.sae.close, file.Close)
	return &UnsupportedError{Path: o.path, Kind: "safetensors file with the tensors", Name: abridged(file.Names()), Supported: []string{
		"Gemma Scope 2 (w_enc, w_dec)", "mwhanna's transcoders (beside wandb-config.yaml)", "layers of mntss's cross-layer transcoders (W_enc_L, W_dec_L)", "miStudio", "SAELens (W_enc, W_dec)",
	}}
}

// wandb is the configuration of mwhanna's transcoders, which some repositories misspell.
func (o *opening) wandb() string {
	for _, n := range []string{"wandb-config.yaml", "wanb-config.yaml"} {
		if o.has(n) {
			return n
		}
	}
	return ""
}

// openMWHanna: layer_N.safetensors of a repository of relu transcoders that read the MLP's input, after its norm.
func openMWHanna(o *opening, file *Safetensors) error {
	o.plain("mwhanna_transcoder", "mwhanna's transcoders", "standard")
	o.sae.close = append(o.sae.close, file.Close)
	s, c := o.sae, &o.sae.Config
	c.Transcoder = true
	d, err := readYAML(o.at(o.wandb()))
	if err != nil {
		return err
	}
	c.Files = append(c.Files, d.path)
	value := func(key string) int { // a run's configuration keeps {key: {value: …}}
		in := d.object(key)
		if !in.has("value") {
			in.fail("value", "a whole number of at least 1")
		}
		return in.size("value", 1, 0)
	}
	o.sized(value("d_model"), value("d_feature"), value("d_model"))
	if d.has("batch_size") {
		c.ContextSize = value("batch_size")
	}
	if err := d.failed(); err != nil {
		return err
	}
	c.learned("d_in", d.name())
	c.learned("d_sae", d.name())
	layer, ok := o.layerInPath(`^layer_(\d{1,5})\.safetensors$`)
	if !ok {
		return &QuestionError{Path: o.path, Fact: "the layer that the transcoder reads", Why: "the file's name is not layer_N.safetensors", Option: "--layer"}
	}
	c.Layer, c.Hook, c.HookOut = layer, fmt.Sprintf("blocks.%d.mlp.hook_in", layer), fmt.Sprintf("blocks.%d.hook_mlp_out", layer)
	c.learned("layer", "the file's name")
	o.byFormat("mwhanna's transcoders", "hook", "hook_out")
	if err := o.baseModel(); err != nil {
		return err
	}
	return s.bind(file, []part{
		{name: "W_enc", why: "[d_feature, d_model]", into: &s.WEnc, shape: []int{c.DSAE, c.DIn}, flip: true}, {name: "b_enc", why: "[d_feature]", into: &s.BEnc, shape: []int{c.DSAE}},
		{name: "W_dec", why: "[d_feature, d_model]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}}, {name: "b_dec", why: "[d_model]", into: &s.BDec, shape: []int{c.DOut}},
	})
}

// baseModel reads config.yaml for the model's name, where it is there.
func (o *opening) baseModel() error {
	d, err := readYAML(o.at("config.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.sae.Config.ModelName = d.text("model_name", ""); o.sae.Config.ModelName != "" {
		o.sae.Config.learned("model_name", d.name())
	}
	return d.failed()
}

// openCLTLayer: one layer of mntss's cross-layer transcoders, W_enc_L.safetensors with W_dec_L.safetensors beside it.
func openCLTLayer(o *opening, file *Safetensors, number string) error {
	o.sae.close = append(o.sae.close, file.Close)
	if o.path != o.at("W_enc_"+number+".safetensors") { // the decoder's file was named
		o.path = o.at("W_enc_" + number + ".safetensors")
		var err error
		if file, err = OpenSafetensors(o.path); err != nil {
			return err
		}
		o.sae.close = append(o.sae.close, file.Close)
	}
	o.plain("mntss_clt", "mntss's cross-layer transcoders", "standard")
	s, c := o.sae, &o.sae.Config
	layer, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	c.Layer = layer
	c.learned("layer", "the file's name")
	d, err := readYAML(o.at("config.yaml"))
	if err != nil {
		return err
	}
	c.Files = append(c.Files, d.path)
	for _, key := range []string{"model_name", "feature_input_hook", "feature_output_hook"} {
		if !d.has(key) {
			d.fail(key, "what config.yaml of these transcoders has")
		}
	}
	c.ModelName = d.text("model_name", "")
	c.Hook, c.HookOut = fmt.Sprintf("blocks.%d.%s", layer, d.text("feature_input_hook", "")), fmt.Sprintf("blocks.%d.%s", layer, d.text("feature_output_hook", ""))
	if err := d.failed(); err != nil {
		return err
	}
	for _, fact := range []string{"model_name", "hook", "hook_out"} {
		c.learned(fact, d.name())
	}
	decoder, err := OpenSafetensors(o.at("W_dec_" + number + ".safetensors"))
	if err != nil {
		return err
	}
	o.opened(decoder)
	in, err := shapeOf(file, "W_enc_"+number, 2, "[d_sae, d_in]")
	if err != nil {
		return err
	}
	out, err := shapeOf(decoder, "W_dec_"+number, 3, "[d_sae, layers, d_out]")
	if err != nil {
		return err
	}
	o.sized(in[1], in[0], out[2])
	if err := s.bind(file, []part{
		{name: "W_enc_" + number, why: "[d_sae, d_in]", into: &s.WEnc, shape: in, flip: true}, {name: "b_enc_" + number, why: "[d_sae]", into: &s.BEnc, shape: []int{c.DSAE}},
		{name: "b_dec_" + number, why: "[d_out]", into: &s.BDec, shape: []int{c.DOut}},
	}); err != nil {
		return err
	}
	if err := s.bind(decoder, []part{{name: "W_dec_" + number, why: "[d_sae, layers, d_out]", into: &s.WDec, shape: []int{c.DSAE, out[1], c.DOut}}}); err != nil {
		return err
	}
	s.sumLayers(out[1])
	return nil
}

// stated asks for what weights without a configuration leave open: how the input was normalised.
func (o *opening) stated() error {
	c := &o.sae.Config
	if o.facts.Normalization == "" {
		return &QuestionError{Path: o.path, Fact: "how the SAE's input is normalised", Why: "there is no configuration beside the weights", Choices: saeNormalizations(), Option: "--normalize"}
	}
	c.Normalization, c.FileNormalization = o.facts.Normalization, o.facts.Normalization
	c.learned("normalization", "option")
	return nil
}

// chosen asks how latents are chosen where the tensors leave it open, since standard and top-k have the same ones.
func (o *opening) chosen() error {
	c := &o.sae.Config
	switch o.facts.Architecture {
	case "standard":
	case "topk":
		if c.K = o.facts.K; c.K == 0 {
			return &QuestionError{Path: o.path, Fact: "k, the number of latents that a token keeps", Why: "there is no configuration beside the weights", Option: "--k"}
		}
		c.learned("k", "option")
	default:
		return &QuestionError{Path: o.path, Fact: "how latents are chosen", Why: "there is no configuration beside the weights, and these tensors fit several", Choices: []string{"standard", "topk"}, Option: "--architecture"}
	}
	c.Architecture = o.facts.Architecture
	c.learned("architecture", "option")
	return nil
}

// openMiStudio opens a training checkpoint of miStudio, whose tensors are torch's, with "model." before them (sparse_autoencoder.py).
// Nothing is subtracted from the input. A standard one adds two biases to its output, of which its own export keeps one.
func openMiStudio(o *opening, file *Safetensors) error {
	o.plain("mistudio", "miStudio", "jumprelu")
	o.sae.close = append(o.sae.close, file.Close)
	s, c := o.sae, &o.sae.Config
	names, prefix := file.Names(), ""
	if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "model.") }) {
		prefix = "model."
	}
	has := func(n string) bool { return slices.Contains(names, prefix+n) }
	if err := o.stated(); err != nil {
		return err
	}
	if o.facts.Hook == "" {
		return &QuestionError{Path: o.path, Fact: "the place that the SAE reads (its hook)", Why: "a checkpoint of miStudio does not say it, and its trainings read the MLP's input after its norm where they say residual", Option: "--hook"}
	}
	var ignored []string
	for _, n := range names { // the optimiser's state
		if prefix != "" && !strings.HasPrefix(n, prefix) {
			ignored = append(ignored, n)
		}
	}
	wEnc, bEnc, wDec, bDec := "encoder.weight", "encoder.bias", "decoder.weight", "decoder_bias"
	if has("W_enc") {
		wEnc, bEnc, wDec, bDec = "W_enc", "b_enc", "W_dec", "b_dec"
	} else if err := o.chosen(); err != nil {
		return err
	}
	parts, err := o.turned(file, prefix+wEnc, prefix+bEnc, prefix+wDec, prefix+bDec)
	if err != nil {
		return err
	}
	if !has(wDec) { // tied
		parts[2] = part{name: prefix + wEnc, why: "[d_sae, d_in]", into: &s.WDec, shape: parts[0].shape}
		c.Notes = append(c.Notes, "there is no decoder matrix: the decoder is the encoder, turned (tied)")
	}
	var more []float32
	switch {
	case has("W_enc"):
		parts = append(parts, part{name: prefix + "activation.log_threshold", why: "[d_sae]", into: &s.Threshold, shape: []int{c.DSAE}})
	case has("decoder.bias"):
		parts = append(parts, part{name: prefix + "decoder.bias", why: "[d_in]", into: &more, shape: []int{c.DOut}})
	}
	if err := s.bind(file, parts, ignored...); err != nil {
		return err
	}
	if more != nil {
		s.own()
		for i, v := range more {
			s.BDec[i] += v
		}
	}
	if s.Threshold != nil {
		s.Threshold = exponentials(s.Threshold)
	}
	return nil
}

// openBareSAELens opens SAELens's tensors without its cfg.json: shapes and names say much, the rest is asked for.
func openBareSAELens(o *opening, file *Safetensors) error {
	o.sae.close = append(o.sae.close, file.Close)
	s, c := o.sae, &o.sae.Config
	c.Format, c.Files = "saelens", append(c.Files, o.path)
	has := func(n string) bool { return slices.Contains(file.Names(), n) }
	in, err := shapeOf(file, "W_enc", 2, "[d_in, d_sae]")
	if err != nil {
		return err
	}
	out, err := shapeOf(file, "W_dec", 2, "[d_sae, d_out]")
	if err != nil {
		return err
	}
	o.sized(in[0], in[1], out[1])
	if err := o.stated(); err != nil {
		return err
	}
	switch {
	case has("threshold"):
		c.Architecture = "jumprelu"
		c.learned("architecture", "the tensor threshold")
	case has("b_gate"):
		c.Architecture = "gated"
		c.learned("architecture", "the tensor b_gate")
	default:
		if err := o.chosen(); err != nil {
			return err
		}
	}
	c.FileArchitecture = c.Architecture
	if has("W_skip") {
		c.FileArchitecture = "skip_transcoder"
	}
	if c.Transcoder = c.DOut != c.DIn || o.facts.HookOut != "" || has("W_skip"); !c.Transcoder {
		if o.facts.ApplyBDecToInput == nil {
			return &QuestionError{Path: o.path, Fact: "whether b_dec is subtracted from the input", Why: "there is no " + saeConfigFile + " beside the weights", Choices: []string{"true", "false"}, Option: "--apply-b-dec"}
		}
		c.ApplyBDecToInput = *o.facts.ApplyBDecToInput
		c.learned("apply_b_dec_to_input", "option")
	}
	none, err := parseDocument(o.at(saeConfigFile), []byte("{}"))
	if err != nil {
		return err
	}
	if err := s.readSAELens(none, file); err != nil {
		return err
	}
	return s.foldFinetuning(file, false)
}
