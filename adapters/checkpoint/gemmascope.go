package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const (
	gemmaParams  = "params.npz"
	gemma2Params = "params.safetensors"
)

// openGemmaScope opens params.npz of Gemma Scope: jumprelu, nothing subtracted, nothing normalised. The archive holds weights
// only: what they were trained on is in the name of the repository and of the folders.
func openGemmaScope(o *opening) error {
	file, err := openNPZ(o.at(gemmaParams))
	if err != nil {
		return err
	}
	o.opened(file)
	s, c := o.sae, &o.sae.Config
	c.Architecture, c.FileArchitecture = "jumprelu", "jumprelu"
	c.Normalization, c.FileNormalization = NormNone, NormNone
	o.byFormat("Gemma Scope", "architecture", "normalization", "apply_b_dec_to_input")
	name := func(canonical string) string { // some archives write W_enc as w_enc
		for _, n := range file.Names() {
			if strings.EqualFold(n, canonical) {
				return n
			}
		}
		return canonical
	}
	in, err := shapeOf(file, name("W_enc"), 2, "[d_in, d_sae]")
	if err != nil {
		return err
	}
	out, err := shapeOf(file, name("W_dec"), 2, "[d_sae, d_out]")
	if err != nil {
		return err
	}
	o.sized(in[0], in[1], out[1])
	embedding := o.facts.Hook == "hook_embed" || o.facts.Hook == "" && slices.Contains(strings.Split(filepath.ToSlash(o.folder), "/"), "embedding")
	if embedding {
		c.Hook = "hook_embed"
		c.learned("hook", "the path (embedding)")
	} else if err := o.hookOfRepo(layerFolder); err != nil {
		return err
	}
	hook := c.Hook
	if o.facts.Hook != "" {
		hook = o.facts.Hook
	}
	if strings.HasSuffix(hook, "hook_z") {
		c.Reshape = "hook_z"
	}
	if c.Transcoder = c.HookOut != "" || o.facts.HookOut != ""; !c.Transcoder && c.DOut != c.DIn {
		return &ShapeError{Path: file.Path(), Tensor: name("W_dec"), Found: out, Want: []int{c.DSAE, c.DIn}, Why: "[d_sae, d_in]"}
	}
	latents := func(canonical string, into *[]float32) part {
		return part{name: name(canonical), why: "[d_sae]", into: into, shape: []int{c.DSAE}}
	}
	if err := s.bind(file, []part{
		{name: name("W_enc"), why: "[d_in, d_sae]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}}, latents("b_enc", &s.BEnc),
		{name: name("W_dec"), why: "[d_sae, d_out]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}},
		{name: name("b_dec"), why: "[d_out]", into: &s.BDec, shape: []int{c.DOut}}, latents("threshold", &s.Threshold),
	}, finetuningFactor); err != nil {
		return err
	}
	if embedding {
		s.unscaleEmbedding()
	}
	return s.foldFinetuning(file, false)
}

// unscaleEmbedding: SAEs of embeddings were trained on rows times sqrt(d_in), as Gemma feeds them to its first layer, and hook_embed
// here is what SAELens reads (gemma_2 loader).
func (s *SAE) unscaleEmbedding() {
	s.own()
	by := float32(math.Sqrt(float64(s.Config.DIn)))
	scale(s.WEnc, func(v float32) float32 { return v / by })
	scale(s.WDec, func(v float32) float32 { return v * by })
	s.Config.Notes = append(s.Config.Notes, "an SAE of embeddings: W_enc is divided by sqrt(d_in) and W_dec multiplied, as SAELens does")
}

// openGemmaScope2 opens Gemma Scope 2: params.safetensors with config.json beside it, or one layer's file of a cross-layer
// transcoder.
func openGemmaScope2(o *opening, file *Safetensors) error {
	o.opened(file)
	s, c := o.sae, &o.sae.Config
	c.Format = "gemma_scope_2"
	path := filepath.ToSlash(o.path)
	if strings.Contains(path, "crosscoder") {
		return &UnsupportedError{Path: o.path, Kind: "SAE over several layers", Name: "crosscoder", Supported: []string{"SAEs, transcoders, and cross-layer transcoders one layer at a time"}}
	}
	d, err := o.gemma2Config()
	if err != nil {
		return err
	}
	c.Architecture, c.FileArchitecture = "jumprelu", "jump_relu"
	c.Normalization, c.FileNormalization = NormNone, NormNone
	o.byFormat("Gemma Scope 2", "architecture", "normalization", "apply_b_dec_to_input")
	c.HookOut = d.text("hf_hook_point_out", "")
	affine := d.flag("affine_connection", false)
	if c.ModelName = d.text("model_name", ""); c.ModelName != "" {
		c.ModelName = gemma3Name(c.ModelName)
		c.learned("model_name", d.name())
	}
	c.FileHook = d.text("hf_hook_point_in", "")
	if err := d.failed(); err != nil {
		return err
	}
	if err := o.gemma2Hook(d); err != nil {
		return err
	}
	in, err := shapeOf(file, "w_enc", 2, "[d_in, d_sae]")
	if err != nil {
		return err
	}
	out, err := file.Tensor("w_dec")
	if err != nil {
		return err
	}
	layers := len(out.Shape) == 3 // [d_sae, layers, d_out] of a cross-layer transcoder
	if !layers {
		if _, err := shapeOf(file, "w_dec", 2, "[d_sae, d_out]"); err != nil {
			return err
		}
	}
	o.sized(in[0], in[1], out.Shape[len(out.Shape)-1])
	latents := func(name string, into *[]float32) part {
		return part{name: name, why: "[d_sae]", into: into, shape: []int{c.DSAE}}
	}
	wDec := part{name: "w_dec", why: "[d_sae, d_out]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}}
	if layers {
		wDec.why, wDec.shape = "[d_sae, layers, d_out]", []int{c.DSAE, out.Shape[1], c.DOut}
	}
	parts := []part{
		{name: "w_enc", why: "[d_in, d_sae]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}}, latents("b_enc", &s.BEnc), wDec,
		{name: "b_dec", why: "[d_out]", into: &s.BDec, shape: []int{c.DOut}}, latents("threshold", &s.Threshold),
	}
	const skip = "affine_skip_connection"
	has := slices.Contains(file.Names(), skip)
	switch {
	case affine && !has:
		return &MissingTensorError{Path: file.Path(), Tensors: []string{skip}, Why: d.name() + " says affine_connection"}
	case has:
		parts = append(parts, part{name: skip, why: "[d_out, d_in]", into: &s.WSkip, shape: []int{c.DOut, c.DIn}})
	}
	if err := s.bind(file, parts); err != nil {
		return err
	}
	if layers {
		s.sumLayers(out.Shape[1])
	}
	if has {
		s.turnSkip(o.facts.SkipTransposed)
	}
	return nil
}

// turnSkip decides which way round a square affine skip connection is. SAELens 6.54 uses it as it is, y += x·Aᵀ; newer loaders
// transpose it first, and no file says which is right.
func (s *SAE) turnSkip(turned *bool) {
	note := "affine_skip_connection A is used as SAELens 6.54 does, y += x·Aᵀ; newer loaders transpose it, and no file says which is right: compare the reconstruction errors"
	if turned != nil && *turned {
		s.WSkip = transposed(s.WSkip, s.Config.DOut, s.Config.DIn)
		note = "affine_skip_connection A is transposed as the option says: y += x·A"
	}
	s.Config.Notes = append(s.Config.Notes, note)
}

// sumLayers makes one layer of a cross-layer transcoder look like a transcoder: its decoders are summed, which is good for
// nothing but a place to put them. Only the activations mean something.
func (s *SAE) sumLayers(layers int) {
	c := &s.Config
	sum := make([]float32, c.DSAE*c.DOut)
	inParallel(len(sum), func(from, to int) {
		for i := from; i < to; i++ {
			row, column, total := i/c.DOut, i%c.DOut, 0.0
			for l := range layers {
				total += float64(s.WDec[(row*layers+l)*c.DOut+column])
			}
			sum[i] = float32(total)
		}
	})
	s.WDec, c.ActivationsOnly, c.Transcoder = sum, true, true
	c.Notes = append(c.Notes, fmt.Sprintf("one layer of a cross-layer transcoder: its decoders to %d layers are summed, so only activations mean something, not the reconstruction", layers))
}

// gemma2Config reads config.json; repositories came out without it, and then the folders say what it would.
func (o *opening) gemma2Config() (document, error) {
	d, err := readDocument(o.at(configFile), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return parseDocument(o.at(configFile), []byte("{}"))
	}
	if err != nil {
		return d, err
	}
	if kind := d.text("architecture", ""); d.failed() == nil && kind != "jump_relu" {
		return d, &UnsupportedError{Path: d.path, Kind: "SAE architecture", Name: kind, Supported: []string{"jump_relu"}}
	}
	o.sae.Config.Files = append(o.sae.Config.Files, d.path)
	return d, d.failed()
}

// gemma2Hook turns the hook's own words into ours. What config.json says outranks the folder's name.
func (o *opening) gemma2Hook(d document) error {
	c := &o.sae.Config
	if layer, ok := o.layerInPath(layerFolder); ok {
		c.Layer = layer
		c.learned("layer", "the path")
	}
	source := d.name()
	if c.FileHook == "" {
		site := regexp.MustCompile(`(?:^|/)(resid_post|attn_out|mlp_out|transcoder|clt)(?:_all)?(?:/|$)`).FindStringSubmatch(filepath.ToSlash(o.path))
		if o.facts.Hook != "" {
			c.Transcoder = o.facts.HookOut != ""
			return nil
		}
		if site == nil || c.Layer < 0 {
			return &QuestionError{Path: o.path, Fact: "the place that the SAE reads (its hook)", Why: "there is no config.json with hf_hook_point_in, and the path does not say it as Gemma Scope 2 does (resid_post/layer_12_…)", Option: "--hook"}
		}
		source = "the path"
		prefix := fmt.Sprintf("model.layers.%d.", c.Layer)
		c.FileHook = prefix + map[string]string{"resid_post": "output", "attn_out": "self_attn.o_proj.input", "mlp_out": "post_feedforward_layernorm.output",
			"transcoder": "pre_feedforward_layernorm.output", "clt": "pre_feedforward_layernorm.output"}[site[1]]
		if site[1] == "transcoder" || site[1] == "clt" {
			c.HookOut = prefix + "post_feedforward_layernorm.output"
		}
	}
	if c.Hook = sameTensor(c.FileHook); strings.HasSuffix(c.Hook, "hook_z") {
		c.Reshape = "hook_z"
	}
	c.learned("hook", source)
	if c.Transcoder = c.HookOut != ""; c.Transcoder {
		c.HookOut = sameTensor(c.HookOut)
		c.learned("hook_out", source)
	}
	return nil
}

// sameTensor gives TransformerLens's name where it means the very same tensor in every family, else the module's name as it is.
func sameTensor(module string) string {
	found := regexp.MustCompile(`^model\.layers\.(\d{1,5})\.(output|self_attn\.o_proj\.input)$`).FindStringSubmatch(module)
	switch {
	case found == nil:
		return module
	case found[2] == "output":
		return "blocks." + found[1] + ".hook_resid_post"
	default:
		return "blocks." + found[1] + ".attn.hook_z"
	}
}

// gemma3Name turns the model's name in config.json into its repository: gemma-v3-270m-pt is google/gemma-3-270m.
func gemma3Name(name string) string {
	if !strings.Contains(name, "google") {
		name = "google/" + name
	}
	name = strings.Replace(name, "-v3", "-3", 1)
	if strings.Contains(name, "270m") {
		name = strings.Replace(name, "-pt", "", 1)
	}
	return name
}
