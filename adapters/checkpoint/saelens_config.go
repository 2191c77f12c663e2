package checkpoint

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func saeArchitectures() []string {
	return []string{"standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk", "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "matching_pursuit", "temporal", "abstopk"}
}

// splitArchitecture takes apart what SAELens has in one name: how latents are chosen, and whether it is a transcoder. Batch top-k
// chooses by a threshold once it is trained.
func splitArchitecture(name string) (chosen string, transcoder bool) {
	switch name {
	case "transcoder", "skip_transcoder":
		return "standard", true
	case "jumprelu_transcoder", "jumprelu_skip_transcoder":
		return "jumprelu", true
	case "batchtopk", "matryoshka_batchtopk":
		return "jumprelu", false
	}
	return name, false
}

func saeNormalizations() []string { return []string{NormNone, NormExpected, NormConstant, NormLayer} }

// saelensConfig reads both forms of cfg.json: the flat one of SAELens before 6.0.0-rc.0, where facts about the model lie beside
// facts about the SAE, and the later one, where they lie under metadata. Defaults are SAELens's (handle_pre_6_0_config).
func saelensConfig(d document) (SAEConfig, error) {
	c := SAEConfig{Format: "saelens", Layer: -1}
	meta := d.object("metadata")
	c.FormatVersion = d.text("sae_lens_version", "")
	if c.FormatVersion == "" {
		c.FormatVersion = meta.text("sae_lens_version", "")
	}
	if d.failed() != nil {
		return c, d.failed()
	}
	old, err := beforeVersion6(d.path, c.FormatVersion)
	if err != nil {
		return c, err
	}
	c.DIn, c.DSAE = d.size("d_in", 1, 0), d.size("d_sae", 1, 0)
	for _, key := range []string{"d_in", "d_sae"} {
		if !d.has(key) {
			d.fail(key, "a whole number of at least 1")
		}
	}
	c.learned("d_in", d.name())
	c.learned("d_sae", d.name())
	c.Signed = d.flag("signed", false)
	kIn := d
	if old {
		meta = d
		kIn = oldArchitecture(d, &c)
	} else {
		c.FileArchitecture = d.text("architecture", "")
		if !d.has("architecture") {
			d.fail("architecture", "one of "+strings.Join(saeArchitectures(), ", "))
		}
	}
	if d.failed() != nil {
		return c, d.failed()
	}
	if err := readArchitecture(d, kIn, &c); err != nil {
		return c, err
	}
	if c.Architecture, c.Transcoder = splitArchitecture(c.FileArchitecture); c.Transcoder {
		c.DOut = d.size("d_out", 1, 0)
		c.ApplyBDecToInput = d.flag("apply_b_dec_to_input", false)
		if c.ApplyBDecToInput {
			return c, &FormatError{Path: d.path, Fact: "apply_b_dec_to_input is true for a transcoder", Want: "false: b_dec belongs to what it predicts"}
		}
	} else {
		c.DOut = c.DIn
		c.ApplyBDecToInput = d.flag("apply_b_dec_to_input", true)
	}
	c.asked(d, "apply_b_dec_to_input", "apply_b_dec_to_input")
	if err := readNormalization(d, old, &c); err != nil {
		return c, err
	}
	return c, readMetadata(d, meta, old, &c)
}

// learned notes where a fact came from.
func (c *SAEConfig) learned(fact, source string) {
	if c.Origins == nil {
		c.Origins = map[string]string{}
	}
	c.Origins[fact] = source
}

// asked notes whether a fact with a default of SAELens's was in the file.
func (c *SAEConfig) asked(d document, fact, key string) {
	if d.has(key) {
		c.learned(fact, d.name())
	} else {
		c.learned(fact, "what SAELens takes where the file is silent")
	}
}

// beforeVersion6 compares with 6.0.0-rc.0, the first of the new form; no version means the old one.
func beforeVersion6(path, version string) (bool, error) {
	if version == "" {
		return true, nil
	}
	m := regexp.MustCompile(`^v?(\d+)(?:\.(\d+))?(?:\.(\d+))?[-_.]?([a-z]*)`).FindStringSubmatch(version)
	if m == nil {
		return false, &FormatError{Path: path, Fact: fmt.Sprintf("sae_lens_version is %q", version), Want: "a version such as 6.5.1"}
	}
	major, err := strconv.Atoi(m[1])
	if err != nil || major != 6 {
		return major < 6 && err == nil, nil
	}
	first := (m[2] == "" || strings.Trim(m[2], "0") == "") && (m[3] == "" || strings.Trim(m[3], "0") == "")
	return first && slices.Contains([]string{"a", "alpha", "b", "beta", "dev"}, m[4]), nil
}

// oldArchitecture reads the flat form, where top-k is an activation function; it says where k is.
func oldArchitecture(d document, c *SAEConfig) (kIn document) {
	c.FileArchitecture = d.text("architecture", "standard")
	activation := d.first("activation_fn_str", "activation_fn")
	switch name := d.text(activation, "relu"); name {
	case "relu":
	case "topk":
		c.FileArchitecture = "topk"
	default:
		if *d.err == nil {
			*d.err = &UnsupportedError{Path: d.path, Kind: activation, Name: name, Supported: []string{"relu", "topk"}}
		}
	}
	if kwargs := d.object("activation_fn_kwargs"); kwargs.has("k") {
		return kwargs
	}
	return d
}

func readArchitecture(d, kIn document, c *SAEConfig) error {
	c.asked(d, "architecture", "architecture")
	switch c.FileArchitecture {
	case "topk", "abstopk":
		c.Signed = c.Signed || c.FileArchitecture == "abstopk"
		c.learned("k", kIn.name())
		c.RescaleActsByDecoderNorm = d.flag("rescale_acts_by_decoder_norm", false)
		c.K = kIn.size("k", 1, 0)
		if want := fmt.Sprintf("a whole number from 1 to d_sae, %d", c.DSAE); c.K == 0 || c.K > c.DSAE {
			kIn.fail("k", want)
		}
	default:
		if !slices.Contains(saeArchitectures(), c.FileArchitecture) {
			return &UnsupportedError{Path: d.path, Kind: "SAE architecture", Name: c.FileArchitecture, Supported: saeArchitectures()}
		}
	}
	return d.failed()
}

func readNormalization(d document, old bool, c *SAEConfig) error {
	const key = "normalize_activations"
	c.FileNormalization = NormNone
	if raw := string(d.fields[key]); old && (raw == "true" || raw == "false") {
		if raw == "true" {
			c.FileNormalization = NormExpected
		}
	} else {
		c.FileNormalization = d.text(key, NormNone)
	}
	if d.failed() != nil {
		return d.failed()
	}
	c.asked(d, "normalization", key)
	if c.FileNormalization == normScalar && c.FileArchitecture == "temporal" {
		c.Normalization = NormNone // its factor is Temporal.ActivationScale
		return nil
	}
	if !slices.Contains(saeNormalizations(), c.FileNormalization) {
		return &UnsupportedError{Path: d.path, Kind: key, Name: c.FileNormalization, Supported: saeNormalizations()}
	}
	c.Normalization = c.FileNormalization
	return nil
}

// readMetadata reads what the SAE was trained on.
func readMetadata(d, meta document, old bool, c *SAEConfig) error {
	hookKey, headKey := "hook_name", "hook_head_index"
	if old {
		hookKey, headKey = meta.first("hook_point", "hook_name"), meta.first("hook_point_head_index", "hook_head_index")
	}
	c.Hook = meta.text(hookKey, "")
	c.HookOut = meta.text("hook_name_out", "")
	c.ModelName = meta.text("model_name", "")
	for fact, key := range map[string]string{"hook": hookKey, "hook_out": "hook_name_out", "layer": hookKey, "model_name": "model_name", "prepend_bos": "prepend_bos", "context_length": "context_size"} {
		if meta.has(key) {
			c.learned(fact, meta.name())
		}
	}
	c.CenterWritingWeights = meta.object("model_from_pretrained_kwargs").flag("center_writing_weights", false)
	c.ContextSize = meta.size("context_size", 1, 0)
	if meta.has("prepend_bos") {
		b := meta.flag("prepend_bos", true)
		c.PrependBOS = &b
	} else if old {
		b := true
		c.PrependBOS = &b
		c.asked(meta, "prepend_bos", "prepend_bos")
	}
	var layer int
	if c.HookPoint, layer = ParseHookName(c.Hook); layer >= 0 {
		c.Layer = layer
	} else {
		c.Layer = meta.size(meta.first("hook_point_layer", "hook_layer"), 0, -1)
	}
	c.Reshape = d.text("reshape_activations", "")
	if c.Reshape == "" {
		c.Reshape = "none"
		if old && strings.Contains(c.Hook, "hook_z") {
			c.Reshape = "hook_z"
		}
	}
	c.SeqposSlice = positionSlice(meta)
	c.ExcludeSpecialTokens = excludedTokens(meta)
	if d.failed() != nil {
		return d.failed()
	}
	if meta.has(headKey) {
		return &UnsupportedError{Path: d.path, Kind: headKey, Name: string(meta.fields[headKey]), Supported: []string{"null: an SAE on one head's output needs a tap of its own"}}
	}
	if c.Reshape != "none" && c.Reshape != "hook_z" {
		return &UnsupportedError{Path: d.path, Kind: "reshape_activations", Name: c.Reshape, Supported: []string{"none", "hook_z"}}
	}
	return nil
}

// ParseHookName splits a TransformerLens hook name: blocks.8.hook_resid_post is resid_post of layer 8, blocks.8.attn.hook_z is
// attn.hook_z. A name of another form gives "", −1.
func ParseHookName(hook string) (point string, layer int) {
	rest, ok := strings.CutPrefix(hook, "blocks.")
	if !ok {
		return "", -1
	}
	number, rest, ok := strings.Cut(rest, ".")
	n, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || rest == "" || strings.TrimLeft(number, "0123456789") != "" {
		return "", -1
	}
	return strings.TrimPrefix(rest, "hook_"), int(n)
}

// positionSlice reads seqpos_slice, the arguments of Python's slice: [stop], [start, stop] or [start, stop, step], with nulls.
func positionSlice(meta document) *PositionSlice {
	const key, want = "seqpos_slice", "[stop], [start, stop] or [start, stop, step], step above 0"
	var raw []*int
	if !meta.decode(key, want, &raw) {
		return nil
	}
	var s PositionSlice
	switch len(raw) {
	case 0:
		return nil
	case 1:
		s.Stop = raw[0]
	case 2:
		s.Start, s.Stop = raw[0], raw[1]
	case 3:
		s.Start, s.Stop, s.Step = raw[0], raw[1], raw[2]
	default:
		meta.fail(key, want)
	}
	if s.Step != nil && *s.Step < 1 {
		meta.fail(key, want)
		return nil
	}
	if s.Start == nil && s.Stop == nil && s.Step == nil {
		return nil
	}
	return &s
}

// excludedTokens reads exclude_special_tokens: a flag or a list of ids.
func excludedTokens(meta document) ExcludedTokens {
	const key = "exclude_special_tokens"
	if raw := meta.fields[key]; len(raw) > 0 && raw[0] == '[' {
		return ExcludedTokens{IDs: meta.integers(key)}
	}
	return ExcludedTokens{All: meta.flag(key, false)}
}
