package checkpoint

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

const sparsifyWeights = "sae.safetensors"

// openSparsify opens a folder of EleutherAI's sparsify: cfg.json and sae.safetensors, in a folder that is named after the module
// (sparsify 1.3.3, sparse_coder.py). Its encoder takes relu first and the largest k afterwards, which chooses the same latents
// as top-k before relu. An SAE always subtracts b_dec from its input, a transcoder never does.
func openSparsify(o *opening) error {
	d, err := readDocument(o.at(saeConfigFile), maxConfig)
	if err != nil {
		return err
	}
	c := &o.sae.Config
	c.Files = []string{d.path}
	if err := sparsifyConfig(d, c); err != nil {
		return err
	}
	if err := o.sparsifyHook(d); err != nil {
		return err
	}
	o.sparsifyRun()
	file, err := OpenSafetensors(o.at(sparsifyWeights))
	if err != nil {
		return err
	}
	o.opened(file)
	s := o.sae
	parts := []part{
		{name: "encoder.weight", why: "[num_latents, d_in]", into: &s.WEnc, shape: []int{c.DSAE, c.DIn}, flip: true},
		{name: "encoder.bias", why: "[num_latents]", into: &s.BEnc, shape: []int{c.DSAE}},
		{name: "W_dec", why: "[num_latents, d_in]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}},
		{name: "b_dec", why: "[d_in]", into: &s.BDec, shape: []int{c.DOut}},
	}
	if d.flag("skip_connection", false) {
		parts = append(parts, part{name: "W_skip", why: "[d_in, d_in]", into: &s.WSkip, shape: []int{c.DOut, c.DIn}})
	}
	if err := d.failed(); err != nil {
		return err
	}
	return s.bind(file, parts)
}

func sparsifyConfig(d document, c *SAEConfig) error {
	for _, key := range []string{"d_in", "k"} {
		if !d.has(key) {
			d.fail(key, "a whole number of at least 1")
		}
	}
	c.DIn, c.K = d.size("d_in", 1, 0), d.size("k", 1, 0)
	c.DOut = c.DIn
	c.DSAE = d.size("num_latents", 0, 0)
	if c.DSAE == 0 { // 0 and absent mean a multiple of d_in
		if !d.has("expansion_factor") {
			d.fail("expansion_factor", "a whole number of at least 1, or num_latents above 0")
		}
		c.DSAE = c.DIn * d.size("expansion_factor", 1, 0)
	}
	if c.DSAE > maxSize {
		d.fail("expansion_factor", "sizes that a machine can address")
	}
	c.Architecture = d.text("activation", "topk") // files from before groupmax do not say it
	c.FileArchitecture = c.Architecture
	c.Transcoder = d.flag("transcode", false)
	c.Signed = d.flag("signed", false)
	c.ApplyBDecToInput = !c.Transcoder
	c.Normalization, c.FileNormalization = NormNone, NormNone
	for _, fact := range []string{"architecture", "d_in", "d_sae", "k"} {
		c.learned(fact, d.name())
	}
	for _, fact := range []string{"apply_b_dec_to_input", "normalization"} {
		c.learned(fact, "the format (sparsify)")
	}
	switch {
	case d.failed() != nil:
		return d.failed()
	case c.Architecture != "topk" && c.Architecture != "groupmax":
		return &UnsupportedError{Path: d.path, Kind: "activation", Name: c.Architecture, Supported: []string{"topk", "groupmax"}}
	case c.Signed:
		return &UnsupportedError{Path: d.path, Kind: "top-k by magnitude", Name: "signed", Supported: []string{"signed false: activations that are never negative"}}
	case c.K > c.DSAE:
		d.fail("k", fmt.Sprintf("a whole number from 1 to num_latents, %d", c.DSAE))
	case c.Architecture == "groupmax" && c.DSAE%c.K != 0:
		d.fail("k", fmt.Sprintf("a number of groups that divides num_latents, %d", c.DSAE))
	}
	return d.failed()
}

// sparsifyHook reads the module from the folder's name, as sparsify names it below the base model: layers.10, h.0.attn,
// embed_tokens. What a decoder layer puts out is resid_post; every other module keeps its own name, since a norm may lie between
// it and the hook of the same sound (Gemma 2).
func (o *opening) sparsifyHook(d document) error {
	c := &o.sae.Config
	module := filepath.Base(o.folder)
	layer := regexp.MustCompile(`^(?:model\.)?(?:layers|h|transformer\.h|gpt_neox\.layers)[._](\d{1,5})(\..+)?$`).FindStringSubmatch(module)
	switch {
	case layer != nil:
		n, err := strconv.Atoi(layer[1])
		if err != nil {
			return err
		}
		c.Layer, c.FileHook = n, module
		switch {
		case layer[2] == "" && c.Transcoder:
			c.Hook, c.HookOut = fmt.Sprintf("blocks.%d.hook_resid_pre", n), fmt.Sprintf("blocks.%d.hook_resid_post", n)
		case layer[2] == "":
			c.Hook = fmt.Sprintf("blocks.%d.hook_resid_post", n)
		case c.Transcoder:
			c.Hook, c.HookOut = module+".input", module+".output"
		default:
			c.Hook = module + ".output"
		}
	case slices.Contains([]string{"embed_tokens", "model.embed_tokens", "wte", "embed_in"}, module):
		c.FileHook = module
		if c.Hook = "hook_embed"; c.Transcoder {
			return &UnsupportedError{Path: o.folder, Kind: "transcoder of a module whose input is token ids", Name: module, Supported: []string{"transcoders of decoder layers and of their parts"}}
		}
	case o.facts.Hook == "":
		return &QuestionError{Path: o.folder, Fact: "the module that the SAE reads", Why: fmt.Sprintf("sparsify keeps it in the folder's name, and %q names none (layers.10, layers.10.mlp, embed_tokens)", module), Option: "--hook"}
	default:
		return d.failed()
	}
	c.learned("hook", "the folder's name, "+module)
	if c.HookOut != "" {
		c.learned("hook_out", "the folder's name, "+module)
	}
	return nil
}

// sparsifyRun reads the configuration of the whole run, which lies one folder up, for what it says about the model. Repositories
// without it are common, and any other config.json may lie there.
func (o *opening) sparsifyRun() {
	d, err := readDocument(filepath.Join(filepath.Dir(o.folder), configFile), maxConfig)
	if err != nil || !d.has("sae") || !d.has("model") {
		return
	}
	name, length := d.text("model", ""), d.size("ctx_len", 1, 0)
	if d.failed() != nil {
		return
	}
	c := &o.sae.Config
	c.ModelName, c.ContextSize = name, length
	c.learned("model_name", "../"+d.name())
	c.learned("context_length", "../"+d.name())
}
