package checkpoint

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	saeConfigFile = "cfg.json"
	saeWeights    = "sae_weights.safetensors"
	saeSparsity   = "sparsity.safetensors"
	saeScaler     = "activation_scaler.json"

	finetuningFactor = "scaling_factor"
)

// openSAELens opens a folder as SAELens writes it, old flat form or version 6: cfg.json and sae_weights.safetensors.
func openSAELens(o *opening) error {
	d, err := readDocument(filepath.Join(o.folder, saeConfigFile), maxConfig)
	if err != nil {
		return err
	}
	if o.sae.Config, err = saelensConfig(d); err != nil {
		return err
	}
	c := &o.sae.Config
	c.Files = []string{d.path}
	file, err := OpenSafetensors(filepath.Join(o.folder, saeWeights))
	if err != nil {
		return err
	}
	o.opened(file)
	if err := o.sae.readSAELens(d, file); err != nil {
		return err
	}
	if err := o.sae.foldFinetuning(file, d.flag("finetuning_scaling_factor", false)); err != nil {
		return err
	}
	if err := d.failed(); err != nil {
		return err
	}
	return o.sae.readSparsity(filepath.Join(o.folder, saeSparsity))
}

// readSAELens binds the tensors of an architecture by SAELens's names (the architecture's file in sae_lens/saes).
func (s *SAE) readSAELens(d document, file *Safetensors) error {
	c := &s.Config
	if c.DOut == 0 { // a transcoder's cfg.json without d_out
		shape, err := shapeOf(file, "W_dec", 2, "[d_sae, d_out]")
		if err != nil {
			return err
		}
		c.DOut = shape[1]
		c.learned("d_out", "the shape of W_dec")
	}
	wEnc := part{name: "W_enc", why: "[d_in, d_sae]", into: &s.WEnc, shape: []int{c.DIn, c.DSAE}}
	wDec := part{name: "W_dec", why: "[d_sae, d_out]", into: &s.WDec, shape: []int{c.DSAE, c.DOut}}
	if !c.Transcoder {
		wDec.why = "[d_sae, d_in]"
	}
	latents := func(name string, into *[]float32) part {
		return part{name: name, why: "[d_sae]", into: into, shape: []int{c.DSAE}}
	}
	bDec := part{name: "b_dec", why: "[d_out]", into: &s.BDec, shape: []int{c.DOut}}
	var parts []part
	switch c.Architecture {
	case "gated":
		parts = append(parts, wEnc, latents("b_gate", &s.BGate), latents("b_mag", &s.BMag), latents("r_mag", &s.RMag))
	case "matching_pursuit":
		s.Pursuit = &Pursuit{ResidualThreshold: d.number("residual_threshold", 1e-2), MaxIterations: d.size("max_iterations", 1, 0),
			StopOnDuplicateSupport: d.flag("stop_on_duplicate_support", true)}
	case "temporal":
		more, err := s.temporalParts(d, file)
		if err != nil {
			return err
		}
		parts = append(parts, more...)
	case "jumprelu":
		parts = append(parts, wEnc, latents("b_enc", &s.BEnc))
		threshold, err := s.thresholdPart(d, file)
		if err != nil {
			return err
		}
		parts = append(parts, threshold)
	default:
		parts = append(parts, wEnc, latents("b_enc", &s.BEnc))
	}
	parts = append(parts, wDec, bDec)
	if strings.Contains(c.FileArchitecture, "skip_transcoder") {
		parts = append(parts, part{name: "W_skip", why: "[d_out, d_in]", into: &s.WSkip, shape: []int{c.DOut, c.DIn}})
	}
	if err := d.failed(); err != nil {
		return err
	}
	if err := s.bind(file, parts, finetuningFactor); err != nil {
		return err
	}
	return s.finishThreshold(d, file)
}

const (
	logThreshold  = "log_threshold"  // checkpoints of a training before 6.35 keep the logarithm
	topkThreshold = "topk_threshold" // checkpoints of a batch top-k training keep one number
)

// thresholdPart says under which name the thresholds are.
func (s *SAE) thresholdPart(d document, file *Safetensors) (part, error) {
	p := part{name: "threshold", why: "[d_sae]", into: &s.Threshold, shape: []int{s.Config.DSAE}}
	if slices.Contains(file.Names(), logThreshold) {
		p.name = logThreshold
	}
	if slices.Contains(file.Names(), topkThreshold) {
		if !d.has("rescale_acts_by_decoder_norm") { // SAELens's default is true in training and false after it
			return p, &FormatError{Path: d.path, Fact: "it is the checkpoint of a batch top-k training and does not say rescale_acts_by_decoder_norm", Want: "true or false: it decides what the threshold is held against"}
		}
		p = part{name: topkThreshold, into: &s.Threshold, wide: s.Config.DSAE}
	}
	return p, nil
}

// finishThreshold turns what a training's checkpoint keeps into thresholds, as SAELens does when it saves for inference.
func (s *SAE) finishThreshold(d document, file *Safetensors) error {
	switch names := file.Names(); {
	case s.Config.Architecture != "jumprelu":
	case slices.Contains(names, logThreshold):
		s.Threshold = exponentials(s.Threshold)
	case slices.Contains(names, topkThreshold) && d.flag("rescale_acts_by_decoder_norm", false):
		threshold := s.Threshold // already on the scale of z × ‖W_dec row‖ (batchtopk_sae.py)
		s.Threshold = nil
		if err := s.FoldDecoderNorm(); err != nil {
			return err
		}
		s.Threshold = threshold
	}
	return d.failed()
}

func exponentials(logs []float32) []float32 {
	out := make([]float32, len(logs))
	for i, v := range logs {
		out[i] = float32(math.Exp(float64(v)))
	}
	return out
}

// foldFinetuning applies SAELens's old decode-time factor per latent: output = (activations × factor) W_dec + b_dec. All ones
// were written by every training for a while and mean nothing; others count only if the configuration says so.
func (s *SAE) foldFinetuning(file tensorFile, finetuned bool) error {
	if !slices.Contains(file.Names(), finetuningFactor) {
		return nil
	}
	factor, err := readPart(file, part{name: finetuningFactor, why: "[d_sae]", shape: []int{s.Config.DSAE}})
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(factor, func(f float32) bool { return math.Abs(float64(f)-1) > 1e-5 }) { // torch.allclose
		return nil
	}
	switch {
	case !finetuned:
		return &FormatError{Path: file.Path(), Fact: "the tensor scaling_factor is not all ones and finetuning_scaling_factor is false", Want: "finetuning_scaling_factor true in " + saeConfigFile + ", or no such tensor"}
	case s.Config.RescaleActsByDecoderNorm:
		return &FoldError{Fact: file.Path() + ": a finetuning scaling_factor together with rescale_acts_by_decoder_norm has no definition"}
	}
	s.own()
	for i, f := range factor {
		row := s.WDec[i*s.Config.DOut : (i+1)*s.Config.DOut]
		for j := range row {
			row[j] *= f
		}
	}
	s.Config.Folds = append(s.Config.Folds, FoldFinetuning)
	return nil
}

func (s *SAE) readSparsity(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil // not every SAE has it
	}
	file, err := OpenSafetensors(path)
	if err != nil {
		return err
	}
	values, err := readFloats(file, "sparsity", "[d_sae]", []int{s.Config.DSAE})
	if err == nil {
		s.sparsity = slices.Clone(values)
	}
	return errors.Join(err, file.Close())
}
