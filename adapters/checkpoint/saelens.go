package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
)

const (
	saeConfigFile = "cfg.json"
	saeWeights    = "sae_weights.safetensors"
	saeSparsity   = "sparsity.safetensors"
	saeScaler     = "activation_scaler.json"
)

// OpenSAE opens a SAELens folder (cfg.json and sae_weights.safetensors), old flat form or version 6. Weights come out finite and
// of the shapes that the configuration calls for. An activation scale that the file asks for is folded; if the factor is not
// known, that is a ScalingFactorError.
func OpenSAE(path string, options ...SAEOption) (_ *SAE, err error) {
	var o saeOptions
	for _, option := range options {
		option(&o)
	}
	folder, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d, err := readSAEConfig(folder)
	if err != nil {
		return nil, err
	}
	config, err := saelensConfig(d)
	if err != nil {
		return nil, err
	}
	config.Files = []string{d.path}
	s := &SAE{Config: config}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err = s.readWeights(filepath.Join(folder, saeWeights), d.flag("finetuning_scaling_factor", false)); err != nil {
		return nil, err
	}
	if err = d.failed(); err != nil {
		return nil, err
	}
	if err = s.readSparsity(filepath.Join(folder, saeSparsity)); err != nil {
		return nil, err
	}
	if err = s.applyScale(folder, o); err != nil {
		return nil, err
	}
	s.Config.SHA256, err = HashFiles(s.Config.Files)
	return s, err
}

// readSAEConfig finds cfg.json, or says what the folder looks like instead.
func readSAEConfig(folder string) (document, error) {
	info, err := os.Stat(folder)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return document{}, fmt.Errorf("%s: there is no such folder: %w", folder, fs.ErrNotExist)
	case err != nil:
		return document{}, err
	case !info.IsDir():
		return document{}, &FormatError{Path: folder, Fact: "it is a file", Want: "the folder that holds " + saeConfigFile + " and " + saeWeights}
	}
	if _, err := os.Stat(filepath.Join(folder, saeWeights)); err != nil {
		for _, other := range []struct{ file, format string }{
			{"sae.safetensors", "sparsify"}, {"params.npz", "Gemma Scope"}, {"params.safetensors", "Gemma Scope 2"},
			{"ae.pt", "dictionary_learning"}, {"hyperparams.json", "Llama Scope"},
		} {
			if _, err := os.Stat(filepath.Join(folder, other.file)); err == nil {
				return document{}, &UnsupportedError{Path: folder, Kind: "SAE format", Name: other.format + " (" + other.file + ")", Supported: []string{"SAELens (" + saeConfigFile + " and " + saeWeights + ")"}}
			}
		}
	}
	return readDocument(filepath.Join(folder, saeConfigFile), maxConfig)
}

// readWeights binds the tensors by name and holds them against the configuration.
func (s *SAE) readWeights(path string, finetuned bool) error {
	file, err := OpenSafetensors(path)
	if err != nil {
		return err
	}
	s.close = append(s.close, file.Close)
	s.Config.Files = append(s.Config.Files, path)
	c := &s.Config
	type part struct {
		name, why string
		into      *[]float32
		shape     []int
	}
	parts := []part{
		{"W_enc", "[d_in, d_sae]", &s.WEnc, []int{c.DIn, c.DSAE}},
		{"b_enc", "[d_sae]", &s.BEnc, []int{c.DSAE}},
		{"W_dec", "[d_sae, d_in]", &s.WDec, []int{c.DSAE, c.DOut}},
		{"b_dec", "[d_in]", &s.BDec, []int{c.DOut}},
	}
	if c.Architecture == "jumprelu" {
		parts = append(parts, part{"threshold", "[d_sae]", &s.Threshold, []int{c.DSAE}})
	}
	const finetuning = "scaling_factor"
	var absent, stray []string
	known := map[string]bool{finetuning: true}
	for _, p := range parts {
		known[p.name] = true
		if _, ok := file.entries[p.name]; !ok {
			absent = append(absent, p.name)
		}
	}
	for _, name := range file.Names() {
		if !known[name] {
			stray = append(stray, name)
		}
	}
	switch {
	case len(absent) > 0:
		return &MissingTensorError{Path: path, Tensors: absent, Why: fmt.Sprintf("an SAE of the architecture %s has them; the file has %s", c.Architecture, abridged(file.Names()))}
	case len(stray) > 0:
		return &FormatError{Path: path, Fact: fmt.Sprintf("an SAE of the architecture %s has no tensor %s", c.Architecture, abridged(stray)), Want: "the architecture in " + saeConfigFile + " that these weights belong to"}
	}
	c.DType = string(file.entries["W_enc"].dtype)
	for _, p := range parts {
		if *p.into, err = readFloats(file, p.name, p.why, p.shape); err != nil {
			return err
		}
		if err := checkFinite(path, p.name, *p.into); err != nil {
			return err
		}
	}
	if _, ok := file.entries[finetuning]; ok {
		return s.foldFinetuning(file, finetuned)
	}
	return nil
}

func readFloats(file *Safetensors, name, why string, shape []int) ([]float32, error) {
	t, err := file.Tensor(name)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(t.Shape, shape) {
		return nil, &ShapeError{Path: file.Path(), Tensor: name, Found: t.Shape, Want: shape, Why: why}
	}
	values, err := t.Float32()
	var unsupported *UnsupportedError
	if errors.As(err, &unsupported) {
		unsupported.Path = file.Path()
	}
	return values, err
}

// foldFinetuning applies SAELens's old decode-time factor per latent: output = (activations × factor) W_dec + b_dec. All ones
// were written by every training for a while and mean nothing; others count only if the configuration says so.
func (s *SAE) foldFinetuning(file *Safetensors, finetuned bool) error {
	const name = "scaling_factor"
	factor, err := readFloats(file, name, "[d_sae]", []int{s.Config.DSAE})
	if err != nil {
		return err
	}
	if err := checkFinite(file.Path(), name, factor); err != nil {
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

// applyScale folds the factor of expected_average_only_in, from the caller or from activation_scaler.json. That file is also
// written beside SAEs that are folded already, where it must be ignored.
func (s *SAE) applyScale(folder string, o saeOptions) error {
	if s.Config.Normalization != NormExpected {
		if o.scaled {
			return &ScaleNotWantedError{Path: folder, Normalization: s.Config.Normalization}
		}
		return nil
	}
	factor := o.scalingFactor
	if !o.scaled {
		d, err := readDocument(filepath.Join(folder, saeScaler), maxConfig)
		if errors.Is(err, fs.ErrNotExist) {
			return &ScalingFactorError{Path: folder}
		}
		if err != nil {
			return err
		}
		if !d.has("scaling_factor") {
			return &ScalingFactorError{Path: folder}
		}
		factor = d.number("scaling_factor", 0)
		if d.failed() != nil {
			return d.failed()
		}
		s.Config.Files = append(s.Config.Files, d.path)
	}
	return s.FoldScalingFactor(factor)
}
