package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// opening is one OpenSAE: what was asked for, what lies there, and the SAE as far as it is known.
type opening struct {
	path   string // absolute: a folder or a file
	folder string // path itself, or the folder of the file
	file   string // base name when path is a file, else ""
	names  []string
	facts  SAEFacts
	sae    *SAE

	repoFrom, knownFrom string
	known               knownRepo

	scaled     bool    // the format has folded its scale itself
	factor     float64 // above 0: the scale, from where the format keeps it
	factorFrom string
}

// saeFormat is one way in which SAEs are published, known by the files that make it up.
type saeFormat struct {
	name  string
	files string
	found func(o *opening) bool
	open  func(o *opening) error
}

func saeFormats() []saeFormat {
	return []saeFormat{
		{"saelens", saeConfigFile + " and " + saeWeights, func(o *opening) bool { return o.holds(saeWeights) && o.has(saeConfigFile) }, openSAELens},
		{"sparsify", saeConfigFile + " and " + sparsifyWeights, func(o *opening) bool { return o.holds(sparsifyWeights) && o.has(saeConfigFile) }, openSparsify},
		{"gemma_scope", gemmaParams, func(o *opening) bool { return o.holds(gemmaParams) }, openGemmaScope},
		{"llama_scope", llamaScopeConfig + " and checkpoints/" + llamaScopeWeights, func(o *opening) bool { return o.file == "" && o.has(llamaScopeConfig) }, openLlamaScope},
		{"openmoss", configFile + " with sae_weights, checkpoints/pruned or checkpoints/final", (*opening).isMoss, openMoss},
		{"temporal", temporalConfig + " and " + temporalWeights, func(o *opening) bool { return o.holds(temporalWeights) && o.has(temporalConfig) }, openTemporal},
	}
}

// looseFormats are those whose weights are one file of any name: they are asked when no folder has a form of its own.
func looseFormats() []saeFormat {
	return []saeFormat{
		{"torch", "a .pt or .pth file", func(o *opening) bool { return len(o.torchNames()) > 0 }, openTorchSAE},
		{"safetensors", "a .safetensors file", func(o *opening) bool { return len(o.safetensorsNames()) > 0 }, openSafetensorsSAE},
	}
}

// SAEFormats names the formats that OpenSAE reads.
func SAEFormats() []string {
	return []string{"saelens", "sparsify", "gemma_scope", "gemma_scope_2", "llama_scope", "llama_scope_r1_distill", "llamascopium", "dictionary_learning",
		"openai", "goodfire", "deepseek_r1", "qwen_scope", "connor_rob_hook_z", "mwhanna_transcoder", "mntss_clt", "temporal", "mistudio"}
}

// OpenSAE opens a published SAE: a folder, or the file with its weights. The format is found by what lies there; a fact that no
// file holds comes from known.yaml or an option, or is asked for (QuestionError, ScalingFactorError, AmbiguousError): none has a
// default of ours. Weights come out finite, in the canonical orientation and of the shapes that the configuration calls for. An
// activation scale that the SAE needs is folded.
func OpenSAE(path string, options ...SAEOption) (_ *SAE, err error) {
	o := &opening{sae: &SAE{Config: SAEConfig{Layer: -1}}}
	for _, option := range options {
		option(&o.facts)
	}
	if err := o.look(path); err != nil {
		return nil, err
	}
	format, err := o.detect()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.sae.Close())
		}
	}()
	if err = o.findKnown(); err != nil {
		return nil, err
	}
	if err = format.open(o); err != nil {
		return nil, err
	}
	if o.sae.Config.Format == "" {
		o.sae.Config.Format = format.name
	}
	if err = o.finish(); err != nil {
		return nil, err
	}
	return o.sae, nil
}

// look finds out what lies at the path.
func (o *opening) look(path string) (err error) {
	if o.path, err = filepath.Abs(path); err != nil {
		return err
	}
	info, err := os.Stat(o.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no such file or folder: %w", o.path, fs.ErrNotExist)
	case err != nil:
		return err
	}
	o.folder = o.path
	if !info.IsDir() {
		o.folder, o.file = filepath.Split(o.path)
		o.folder = filepath.Clean(o.folder)
	}
	entries, err := os.ReadDir(o.folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		o.names = append(o.names, e.Name())
	}
	return nil
}

// has says whether a file lies in the folder.
func (o *opening) has(name string) bool { return slices.Contains(o.names, name) }

// holds says whether the SAE's weights are in that file: it is the file that was named, or it lies in the folder that was.
func (o *opening) holds(name string) bool { return o.file == name || o.file == "" && o.has(name) }

func (o *opening) at(name string) string { return filepath.Join(o.folder, name) }

func (o *opening) opened(file tensorFile) {
	o.sae.close = append(o.sae.close, file.Close)
	o.sae.Config.Files = append(o.sae.Config.Files, file.Path())
}

func (o *opening) detect() (saeFormat, error) {
	found := o.among(saeFormats())
	if len(found) == 0 && (o.file != "" || !o.has(saeConfigFile)) { // beside a cfg.json any other file is none of its weights
		found = o.among(looseFormats())
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return saeFormat{}, o.nothing()
	}
	e := &AmbiguousError{Path: o.path, Fact: "the folder holds SAEs in several formats", How: "give the path of the weights' file"}
	for _, f := range found {
		e.Choices = append(e.Choices, f.name+" ("+f.files+")")
	}
	return saeFormat{}, e
}

func (o *opening) among(formats []saeFormat) (found []saeFormat) {
	for _, f := range formats {
		if f.found(o) {
			found = append(found, f)
		}
	}
	return found
}

// nothing says what is missing: SAEs may lie one folder further down, or a part of one may not be there.
func (o *opening) nothing() error {
	if o.file != "" {
		return &FormatError{Path: o.path, Fact: "it is a file that holds no SAE of a known format", Want: o.layouts()}
	}
	if below := foldersWithSAEs(o.folder); len(below) > 0 {
		return &AmbiguousError{Path: o.path, Fact: "the folder holds several SAEs", Choices: below, How: "give the path of one of them"}
	}
	if o.has(saeConfigFile) {
		return fmt.Errorf("%s: the file is missing; beside a %s it should be there (or %s): %w", o.at(saeWeights), saeConfigFile, sparsifyWeights, fs.ErrNotExist)
	}
	return fmt.Errorf("%s: there is no SAE of a known format; expected %s: %w", o.folder, o.layouts(), fs.ErrNotExist)
}

func (o *opening) layouts() string {
	var all []string
	for _, f := range append(saeFormats(), looseFormats()...) {
		all = append(all, f.files+" ("+f.name+")")
	}
	return "a folder with " + strings.Join(all, ", or ")
}

// foldersWithSAEs lists folders below, by their path in it, that hold an SAE: a repository's root is no SAE.
func foldersWithSAEs(root string) []string {
	const deepest, most = 6, 1000
	var found []string
	seen := 0
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if seen++; err != nil || seen > 100*most || len(found) == most {
			return fs.SkipAll
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if !entry.IsDir() || relative == "." {
			return nil
		}
		if strings.Count(relative, string(filepath.Separator)) >= deepest {
			return fs.SkipDir
		}
		o := &opening{}
		if o.look(path) == nil && (len(o.among(saeFormats())) > 0 || len(o.among(looseFormats())) > 0) {
			found = append(found, filepath.ToSlash(relative))
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// finish does what is the same for every format: what a person said, the scale, the digest.
func (o *opening) finish() error {
	s := o.sae
	c := &s.Config
	o.applyKnown()
	if err := o.applyOptions(); err != nil {
		return err
	}
	if point, layer := ParseHookName(c.Hook); layer >= 0 {
		c.HookPoint, c.Layer = point, layer
		if c.Origins["layer"] == "" {
			c.learned("layer", c.Origins["hook"])
		}
	} else if layer := layerOfModule(c.Hook); layer >= 0 {
		c.Layer = layer
	}
	if c.Reshape == "" {
		c.Reshape = "none"
	}
	if err := o.applyScale(); err != nil {
		return err
	}
	if err := o.stillFinite(); err != nil {
		return err
	}
	s.noteDeadRows()
	var err error
	c.SHA256, err = HashFiles(c.Files)
	return err
}

// layerOfModule reads the layer from a module's name, model.layers.8.mlp.input; −1 where there is none.
func layerOfModule(name string) int {
	found := regexp.MustCompile(`(?:^|\.)(?:layers|h)\.(\d{1,5})(?:\.|$)`).FindStringSubmatch(name)
	if found == nil {
		return -1
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		return -1
	}
	return n
}

// override gives a fact that a person stated, and notes it where the files say otherwise.
func override[T comparable](c *SAEConfig, fact string, value *T, stated T) {
	var none T
	if *value != none && *value != stated {
		c.Notes = append(c.Notes, fmt.Sprintf("%s: the option says %v, the files say %v (%s)", fact, stated, *value, c.Origins[fact]))
	}
	if *value != stated {
		c.learned(fact, "option")
	}
	*value = stated
}

func (o *opening) applyOptions() error {
	c, p := &o.sae.Config, o.facts
	if p.ModelName != "" {
		override(c, "model_name", &c.ModelName, p.ModelName)
	}
	if p.Hook != "" {
		override(c, "hook", &c.Hook, p.Hook)
		c.HookPoint, c.Layer = "", -1
	}
	if p.HookOut != "" {
		override(c, "hook_out", &c.HookOut, p.HookOut)
	}
	if p.Layer != nil {
		if _, layer := ParseHookName(c.Hook); layer >= 0 && layer != *p.Layer {
			return &FormatError{Path: o.path, Fact: fmt.Sprintf("the option says layer %d and the SAE's hook is %s", *p.Layer, c.Hook), Want: "the layer of the hook, or no layer"}
		}
		if c.Layer != *p.Layer {
			c.Layer = *p.Layer
			c.learned("layer", "option")
		}
	}
	if p.K != 0 {
		if c.K == 0 {
			return &FormatError{Path: o.path, Fact: fmt.Sprintf("k was given and the SAE's architecture is %s", c.Architecture), Want: "k for a top-k SAE only"}
		}
		override(c, "k", &c.K, p.K)
	}
	if c.K < 0 || c.K > c.DSAE {
		return &FormatError{Path: o.path, Fact: fmt.Sprintf("k is %d", c.K), Want: fmt.Sprintf("a whole number from 1 to d_sae, %d", c.DSAE)}
	}
	if p.ApplyBDecToInput != nil && *p.ApplyBDecToInput != c.ApplyBDecToInput {
		if c.Transcoder && *p.ApplyBDecToInput {
			return &FormatError{Path: o.path, Fact: "apply_b_dec_to_input was given for a transcoder", Want: "false: b_dec belongs to what it predicts"}
		}
		c.Notes = append(c.Notes, fmt.Sprintf("apply_b_dec_to_input: the option says %v, the files say %v (%s)", *p.ApplyBDecToInput, c.ApplyBDecToInput, c.Origins["apply_b_dec_to_input"]))
		c.ApplyBDecToInput = *p.ApplyBDecToInput
		c.learned("apply_b_dec_to_input", "option")
	}
	if p.Normalization != "" {
		if !slices.Contains(saeNormalizations(), p.Normalization) {
			return &UnsupportedError{Path: o.path, Kind: "normalisation", Name: p.Normalization, Supported: saeNormalizations()}
		}
		override(c, "normalization", &c.FileNormalization, p.Normalization)
		c.Normalization = p.Normalization
	}
	return nil
}

// applyScale folds the factor of expected_average_only_in: the caller's, the format's own, activation_scaler.json's or known.yaml's,
// in this order. The scaler's file is also written beside SAEs that are folded already, where it must be ignored.
func (o *opening) applyScale() error {
	s, given := o.sae, o.facts.ScalingFactor
	if o.scaled {
		return nil
	}
	if s.Config.Normalization != NormExpected {
		if given != nil {
			return &ScaleNotWantedError{Path: o.path, Normalization: s.Config.Normalization, Folded: slices.Contains(s.Config.Folds, FoldScale)}
		}
		return nil
	}
	factor, source := o.factor, o.factorFrom
	switch {
	case given != nil:
		factor, source = *given, "option"
	case source != "":
	default:
		d, err := readDocument(o.at(saeScaler), maxScaler)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && d.has("scaling_factor") {
			if factor, source = d.number("scaling_factor", 0), d.name(); d.failed() != nil {
				return d.failed()
			}
			s.Config.Files = append(s.Config.Files, d.path)
			break
		}
		known, ok := o.knownScale()
		if !ok {
			return &ScalingFactorError{Path: o.folder}
		}
		factor, source = known, o.knownFrom
	}
	s.Config.learned("scaling_factor", source)
	return s.FoldScalingFactor(factor)
}

// stillFinite looks again at what was computed from the files: an exponential or a factor may have left float32's range.
func (o *opening) stillFinite() error {
	s := o.sae
	computed := map[string][]float32{"threshold": s.Threshold}
	if s.owned {
		computed["W_enc"], computed["W_dec"], computed["b_enc"], computed["b_dec"] = s.WEnc, s.WDec, s.BEnc, s.BDec
	}
	for name, values := range computed {
		if err := checkFinite(o.path, name+" after what is folded into it,", values); err != nil {
			return err
		}
	}
	return nil
}

// noteDeadRows says how many latents add nothing to the output: SAELens accepts them too, in silence.
func (s *SAE) noteDeadRows() {
	dead := 0
	for i := range s.Config.DSAE {
		if !slices.ContainsFunc(s.WDec[i*s.Config.DOut:(i+1)*s.Config.DOut], func(v float32) bool { return math.Abs(float64(v)) > 0 }) {
			dead++
		}
	}
	if dead > 0 {
		s.Config.Notes = append(s.Config.Notes, fmt.Sprintf("%d of %d rows of W_dec are zero: those latents add nothing to the output", dead, s.Config.DSAE))
	}
}
