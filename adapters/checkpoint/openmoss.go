package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"
)

const (
	llamaScopeConfig  = "hyperparams.json"
	llamaScopeWeights = "final.safetensors"
)

// openLlamaScope opens Llama Scope: hyperparams.json and checkpoints/final.safetensors. One threshold holds for all latents;
// SAELens multiplies it by the activation scale, on the word of the people who trained it, and so do we.
func openLlamaScope(o *opening) error {
	d, err := readDocument(o.at(llamaScopeConfig), maxConfig)
	if err != nil {
		return err
	}
	s, c := o.sae, &o.sae.Config
	c.Files = append(c.Files, d.path)
	for _, key := range []string{"d_model", "d_sae", "jump_relu_threshold", "dataset_average_activation_norm", "hook_point_in"} {
		if !d.has(key) {
			d.fail(key, "what hyperparams.json of Llama Scope has")
		}
	}
	c.DIn, c.DSAE = d.size("d_model", 1, 0), d.size("d_sae", 1, 0)
	c.DOut = c.DIn
	c.Architecture, c.FileArchitecture = "jumprelu", d.text("act_fn", "jumprelu")
	threshold := d.number("jump_relu_threshold", 0)
	norms := d.object("dataset_average_activation_norm")
	average, averageOut := norms.number("in", 0), norms.number("out", norms.number("in", 0))
	if d.failed() == nil && (!(average > 0) || !(averageOut > 0)) {
		norms.fail("in", "a number above 0")
	}
	if d.flag("use_glu_encoder", false) {
		return gluRefused(d)
	}
	if d.failed() == nil && c.FileArchitecture != "jumprelu" {
		return &UnsupportedError{Path: d.path, Kind: "act_fn", Name: c.FileArchitecture, Supported: []string{"jumprelu, as Llama Scope was published"}}
	}
	if d.flag("apply_decoder_bias_to_pre_encoder", false) {
		d.fail("apply_decoder_bias_to_pre_encoder", "false")
	}
	c.Hook, c.HookOut = d.text("hook_point_in", ""), d.text("hook_point_out", "")
	if err := d.failed(); err != nil {
		return err
	}
	for _, fact := range []string{"d_in", "d_sae", "architecture", "hook", "normalization"} {
		c.learned(fact, d.name())
	}
	o.byFormat("Llama Scope", "apply_b_dec_to_input")
	o.mossHooks(d)
	file, err := OpenSafetensors(filepath.Join(o.folder, "checkpoints", llamaScopeWeights))
	if err != nil {
		return err
	}
	o.opened(file)
	if err := s.bind(file, s.linearParts()); err != nil {
		return err
	}
	c.FileNormalization = NormExpected
	root := math.Sqrt(float64(c.DIn))
	s.Threshold = slices.Repeat([]float32{float32(threshold * root / average)}, c.DSAE)
	if d.flag("sparsity_include_decoder_norm", false) {
		s.gateByDecoderNorm()
	}
	c.Notes = append(c.Notes, "jump_relu_threshold is multiplied by the activation scale, as SAELens does for Llama Scope")
	return o.foldMossScale(root/average, root/averageOut, d.name())
}

// linearParts are the names that torch's Linear gives, both matrices turned.
func (s *SAE) linearParts() []part {
	c := &s.Config
	return []part{
		{name: "encoder.weight", why: "[d_sae, d_in]", into: &s.WEnc, shape: []int{c.DSAE, c.DIn}, flip: true},
		{name: "encoder.bias", why: "[d_sae]", into: &s.BEnc, shape: []int{c.DSAE}},
		{name: "decoder.weight", why: "[d_out, d_sae]", into: &s.WDec, shape: []int{c.DOut, c.DSAE}, flip: true},
		{name: "decoder.bias", why: "[d_out]", into: &s.BDec, shape: []int{c.DOut}},
	}
}

func gluRefused(d document) error {
	return &UnsupportedError{Path: d.path, Kind: "encoder", Name: "use_glu_encoder", Supported: []string{"linear encoders"}}
}

// mossHooks: an SAE says one hook twice, a transcoder two.
func (o *opening) mossHooks(d document) {
	c := &o.sae.Config
	if c.HookOut == c.Hook {
		c.HookOut = ""
	}
	if c.Transcoder = c.HookOut != ""; c.Transcoder {
		c.learned("hook_out", d.name())
	}
}

// gateByDecoderNorm: a latent fires by z × ‖its row of W_dec‖ and gives z, which is the same as a threshold divided by the norm.
// Rows of norm 1 (bfloat16 rounds them) need nothing.
func (s *SAE) gateByDecoderNorm() {
	norms := s.decoderNorms()
	if !slices.ContainsFunc(norms, func(n float32) bool { return math.Abs(float64(n)-1) > 0.01 }) {
		return
	}
	for i, n := range norms {
		s.Threshold[i] /= n
	}
	s.Config.Notes = append(s.Config.Notes, "sparsity_include_decoder_norm: thresholds are divided by the decoder's norms")
}

// foldMossScale folds what dataset-wise normalisation does: the input by sqrt(d) / its average norm, the output back by its own.
func (o *opening) foldMossScale(in, out float64, source string) error {
	s, c := o.sae, &o.sae.Config
	if o.facts.ScalingFactor != nil {
		if c.Transcoder {
			return &FoldError{Fact: o.path + ": a scaling factor was given for a transcoder, which needs two; its files have them"}
		}
		in, out, source = *o.facts.ScalingFactor, *o.facts.ScalingFactor, "option"
	}
	for _, f := range []float64{in, out} {
		if by := float32(f); !(by > 0) || math.IsInf(float64(by), 0) {
			return &FormatError{Path: o.path, Fact: fmt.Sprintf("the scaling factor is %v", f), Want: "a number above 0"}
		}
	}
	s.own()
	scale(s.WEnc, func(v float32) float32 { return v * float32(in) })
	scale(s.WDec, func(v float32) float32 { return v / float32(out) })
	scale(s.BDec, func(v float32) float32 { return v / float32(out) })
	c.Normalization, c.ScalingFactor = NormNone, in
	c.Folds = append(c.Folds, FoldScale)
	c.learned("scaling_factor", source)
	o.scaled = true
	return nil
}

// isMoss: config.json is the name of many configurations, so what it says decides.
func (o *opening) isMoss() bool {
	if o.has(saeConfigFile) || o.has(llamaScopeConfig) || !o.has(configFile) || o.file != "" && o.file != saeWeights {
		return false
	}
	d, err := readDocument(o.at(configFile), maxConfig)
	return err == nil && d.has("hook_point_in") && d.has("expansion_factor")
}

// openMoss opens a folder with OpenMOSS's config.json: Llama Scope R1 (encoder.*, decoder.*) or the library as it is now,
// llamascopium (W_E, W_D), by the names of its tensors.
func openMoss(o *opening) error {
	d, err := readDocument(o.at(configFile), maxConfig)
	if err != nil {
		return err
	}
	c := &o.sae.Config
	c.Files = append(c.Files, d.path)
	if kind := d.text("sae_type", "sae"); d.failed() == nil && kind != "sae" {
		return &UnsupportedError{Path: d.path, Kind: "sae_type", Name: kind, Supported: []string{"sae"}}
	}
	for _, key := range []string{"d_model", "expansion_factor", "hook_point_in"} {
		if !d.has(key) {
			d.fail(key, "what config.json of OpenMOSS's SAEs has")
		}
	}
	c.DIn = d.size("d_model", 1, 0)
	c.DOut = c.DIn
	wide := float64(c.DIn) * d.number("expansion_factor", 0)
	if d.failed() == nil && (wide != math.Trunc(wide) || wide < 1 || wide > maxSize) {
		d.fail("expansion_factor", "a factor that makes d_sae a whole number")
	}
	c.DSAE = int(wide)
	c.Hook, c.HookOut = d.text("hook_point_in", ""), d.text("hook_point_out", "")
	if d.flag("use_glu_encoder", false) {
		return gluRefused(d)
	}
	if err := d.failed(); err != nil {
		return err
	}
	for _, fact := range []string{"d_in", "d_sae", "hook"} {
		c.learned(fact, d.name())
	}
	o.byFormat("OpenMOSS", "apply_b_dec_to_input")
	o.mossHooks(d)
	if name := d.text("model_name", ""); name != "" {
		c.ModelName = name
		c.learned("model_name", d.name())
	}
	file, err := o.mossWeights()
	if err != nil {
		return err
	}
	o.opened(file)
	if slices.Contains(file.Names(), "encoder.weight") {
		return o.openLlamaScopeR1(d, file)
	}
	return o.openLlamascopium(d, file)
}

// mossWeights looks where OpenMOSS's loader looks, in its order.
func (o *opening) mossWeights() (tensorFile, error) {
	for _, stem := range []string{"sae_weights", "checkpoints/pruned", "checkpoints/final"} {
		file, err := OpenSafetensors(o.at(stem + ".safetensors"))
		if !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
		torch, err := openTorch(o.at(stem + ".pt"))
		if !errors.Is(err, fs.ErrNotExist) {
			return torch, err
		}
	}
	return nil, fmt.Errorf("%s: the weights are missing; expected sae_weights, checkpoints/pruned or checkpoints/final, each .safetensors or .pt (sharded .dcp folders are not read): %w", o.folder, fs.ErrNotExist)
}

func (o *opening) openLlamaScopeR1(d document, file tensorFile) error {
	s, c := o.sae, &o.sae.Config
	c.Format = "llama_scope_r1_distill"
	c.Architecture, c.FileArchitecture = "jumprelu", d.text("act_fn", "jumprelu")
	c.learned("architecture", "the tensor log_jumprelu_threshold")
	parts := append(s.linearParts(), part{name: "log_jumprelu_threshold", why: "[d_sae]", into: &s.Threshold, shape: []int{c.DSAE}})
	if err := s.bind(file, parts); err != nil {
		return err
	}
	s.Threshold = exponentials(s.Threshold)
	if d.flag("sparsity_include_decoder_norm", false) {
		s.gateByDecoderNorm()
	}
	if d.text("norm_activation", "dataset-wise") == "inference" {
		c.Normalization, c.FileNormalization = NormNone, NormNone
		c.learned("normalization", d.name())
		return d.failed()
	}
	c.FileNormalization, c.Normalization = NormExpected, NormExpected
	o.byFormat("Llama Scope R1", "normalization")
	norms := d.object("dataset_average_activation_norm")
	for _, key := range []string{"in", c.Hook} {
		if norms.has(key) {
			root, average := math.Sqrt(float64(c.DIn)), norms.number(key, 0)
			if d.failed() != nil {
				return d.failed()
			}
			return o.foldMossScale(root/average, root/average, d.name())
		}
	}
	return d.failed() // known.yaml's factor, an option's, or a question: finish folds it
}

func (o *opening) openLlamascopium(d document, file tensorFile) error {
	s, c := o.sae, &o.sae.Config
	c.Format = "llamascopium"
	c.FileArchitecture = d.text("act_fn", "relu")
	c.asked(d, "architecture", "act_fn")
	byNorm := d.flag("sparsity_include_decoder_norm", true)
	latents := []int{c.DSAE}
	parts := []part{
		{name: "W_E", why: "[d_model, d_sae]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}},
		{name: "b_E", why: "[d_sae]", into: &s.BEnc, shape: latents},
		{name: "W_D", why: "[d_sae, d_model]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}},
	}
	if d.flag("use_decoder_bias", true) {
		parts = append(parts, part{name: "b_D", why: "[d_model]", into: &s.BDec, shape: []int{c.DOut}})
	} else {
		s.BDec = make([]float32, c.DOut)
	}
	if err := o.mossActivation(d); err != nil {
		return err
	}
	if c.Architecture == "jumprelu" {
		parts = append(parts, part{name: "activation_function.log_jumprelu_threshold", why: "[d_sae]", into: &s.Threshold, shape: latents})
	}
	const norms = "dataset_average_activation_norm."
	var extra []string
	for _, name := range file.Names() {
		if strings.HasPrefix(name, norms) {
			extra = append(extra, name)
		}
	}
	if err := s.bind(file, parts, extra...); err != nil {
		return err
	}
	if c.Architecture == "jumprelu" {
		s.Threshold = exponentials(s.Threshold)
		if byNorm {
			s.gateByDecoderNorm()
		}
	}
	if c.Architecture == "topk" && byNorm { // chosen by z × norm: fold the norms, so that choice and activation agree
		c.RescaleActsByDecoderNorm = true
		if err := s.FoldDecoderNorm(); err != nil {
			return err
		}
		c.RescaleActsByDecoderNorm = false
		c.Notes = append(c.Notes, "sparsity_include_decoder_norm: decoder norms are folded, so activations are OpenMOSS's times the norms")
	}
	c.learned("normalization", d.name())
	switch mode := d.text("norm_activation", ""); mode {
	case "inference":
		c.Normalization, c.FileNormalization = NormNone, NormNone
	case "token-wise":
		c.Normalization, c.FileNormalization = NormConstant, NormConstant
	case "dataset-wise":
		c.FileNormalization = NormExpected
		in, err := readScalar(file, norms+c.Hook, 1)
		if err != nil {
			return err
		}
		out, root := in, math.Sqrt(float64(c.DIn))
		if c.Transcoder {
			if out, err = readScalar(file, norms+c.HookOut, 1); err != nil {
				return err
			}
		}
		return o.foldMossScale(root/float64(in[0]), root/float64(out[0]), "the tensors dataset_average_activation_norm")
	case "":
		d.fail("norm_activation", "dataset-wise, token-wise or inference")
	default:
		return &UnsupportedError{Path: d.path, Kind: "norm_activation", Name: mode, Supported: []string{"dataset-wise", "token-wise", "inference"}}
	}
	return d.failed()
}

// mossActivation reads how latents are chosen. Batch top-k has no threshold in these files: what a token gives would depend on
// the batch that it is in.
func (o *opening) mossActivation(d document) error {
	c := &o.sae.Config
	switch c.FileArchitecture {
	case "relu":
		c.Architecture = "standard"
	case "jumprelu":
		c.Architecture = "jumprelu"
	case "batchtopk":
		if o.facts.Architecture != "topk" {
			return &QuestionError{Path: d.path, Fact: "how latents are chosen", Why: "act_fn is batchtopk, by which a token's activations depend on its batch, and the files hold no threshold", Choices: []string{"topk: the largest top_k of each token"}, Option: "--architecture"}
		}
		fallthrough
	case "topk":
		c.Architecture = "topk"
		if c.K = d.size("top_k", 1, 0); c.K == 0 || c.K > c.DSAE {
			d.fail("top_k", fmt.Sprintf("a whole number from 1 to d_sae, %d", c.DSAE))
		}
		c.learned("k", d.name())
	default:
		return &UnsupportedError{Path: d.path, Kind: "act_fn", Name: c.FileArchitecture, Supported: []string{"relu", "jumprelu", "topk"}}
	}
	return d.failed()
}
