package checkpoint

import (
	"bytes"
	_ "embed"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed known.yaml
var knownYAML []byte

// known is known.yaml: facts that no file of a published SAE holds, by repository, and TransformerLens's names of models.
type known struct {
	Sources      map[string]string    `yaml:"sources"`
	Repositories map[string]knownRepo `yaml:"repositories"`
	Models       map[string]string    `yaml:"models"`
}

type knownRepo struct {
	Source               string             `yaml:"source"`
	Model                string             `yaml:"model"`
	Hook                 string             `yaml:"hook"` // {layer} stands for the layer
	HookOut              string             `yaml:"hook_out"`
	K                    int                `yaml:"k"`
	Normalization        string             `yaml:"normalization"`
	ContextLength        int                `yaml:"context_length"`
	CenterWritingWeights bool               `yaml:"center_writing_weights"`
	ScalingFactors       map[string]float64 `yaml:"scaling_factors"` // by path in the repository
}

func readKnown() (known, error) {
	var k known
	decoder := yaml.NewDecoder(bytes.NewReader(knownYAML))
	decoder.KnownFields(true)
	if err := decoder.Decode(&k); err != nil {
		return k, fmt.Errorf("known.yaml: %w", err)
	}
	return k, nil
}

// HubModelName gives the repository of a model that TransformerLens has a name of its own for: gpt2-small is
// openai-community/gpt2. A name that is not known, or is a repository already, comes back as it is.
func HubModelName(name string) string {
	if k, err := readKnown(); err == nil && k.Models[name] != "" {
		return k.Models[name]
	}
	return name
}

// findKnown finds out which repository the files are from: an option, the hub's cache layout (models--owner--name/snapshots/…),
// or a folder with the very name of a repository that known.yaml has. It never fails: most SAEs are not in it.
func (o *opening) findKnown() error {
	k, err := readKnown()
	if err != nil {
		return err
	}
	c := &o.sae.Config
	parts := strings.Split(filepath.ToSlash(o.path), "/")
	if o.facts.Repo != "" {
		c.Repo, o.repoFrom = o.facts.Repo, "option"
	} else {
		for _, p := range parts {
			if name, ok := strings.CutPrefix(p, "models--"); ok && strings.Contains(name, "--") {
				c.Repo, o.repoFrom = strings.Replace(name, "--", "/", 1), "the path"
			}
		}
	}
	if c.Repo == "" {
		var matches []string
		for repo := range k.Repositories {
			if _, name, _ := strings.Cut(repo, "/"); slices.Contains(parts, name) {
				matches = append(matches, repo)
			}
		}
		if len(matches) == 1 {
			c.Repo, o.repoFrom = matches[0], "the path"
		}
	}
	if c.Repo == "" {
		return nil
	}
	c.learned("repo", o.repoFrom)
	if r, ok := k.Repositories[c.Repo]; ok {
		o.known = r
		o.knownFrom = fmt.Sprintf("known.yaml, %s (%s)", c.Repo, k.Sources[r.Source])
	}
	return nil
}

// applyKnown adds what the files left open. Only two of its facts outrank a file, since the publisher's file is wrong or silent
// about how the SAE was trained: normalization, and center_writing_weights.
func (o *opening) applyKnown() {
	c, r := &o.sae.Config, o.known
	fill := func(fact string, value *string, known string) {
		if *value == "" && known != "" {
			*value = known
			c.learned(fact, o.knownFrom)
		}
	}
	fill("model_name", &c.ModelName, r.Model)
	if r.ContextLength > 0 && c.ContextSize == 0 {
		c.ContextSize = r.ContextLength
		c.learned("context_length", o.knownFrom)
	}
	if r.CenterWritingWeights && !c.CenterWritingWeights {
		c.CenterWritingWeights = true
		c.learned("center_writing_weights", o.knownFrom)
	}
	if r.Normalization != "" && c.FileNormalization != r.Normalization && len(c.Folds) == 0 {
		c.Notes = append(c.Notes, fmt.Sprintf("normalization: known.yaml says %s, the files say %s", r.Normalization, c.FileNormalization))
		c.FileNormalization, c.Normalization = r.Normalization, r.Normalization
		c.learned("normalization", o.knownFrom)
	}
}

// knownScale finds the factor of a path in the repository: the longest that the SAE's path ends with.
func (o *opening) knownScale() (float64, bool) {
	folder := filepath.ToSlash(o.folder)
	best := ""
	for path := range o.known.ScalingFactors {
		if (folder == path || strings.HasSuffix(folder, "/"+path)) && len(path) > len(best) {
			best = path
		}
	}
	return o.known.ScalingFactors[best], best != ""
}

// layerInPath reads the layer from the last part of the path that names one: layer_12, layer3.sae.pt, L15R.
func (o *opening) layerInPath(patterns ...string) (int, bool) {
	if o.facts.Layer != nil {
		return *o.facts.Layer, true
	}
	parts := strings.Split(filepath.ToSlash(o.path), "/")
	for _, p := range slices.Backward(parts) {
		for _, pattern := range patterns {
			if found := regexp.MustCompile(pattern).FindStringSubmatch(p); found != nil {
				n, err := strconv.Atoi(found[1])
				return n, err == nil
			}
		}
	}
	return 0, false
}

const layerFolder = `layer_(\d{1,5})(?:\D|$)`

// hookOfRepo takes the hook from known.yaml, with the layer that the path names. It asks where either is missing, since every
// number depends on where an SAE reads; an explicit hook needs neither.
func (o *opening) hookOfRepo(patterns ...string) error {
	c := &o.sae.Config
	if o.facts.Hook != "" {
		return nil
	}
	if o.known.Hook == "" {
		return &QuestionError{Path: o.path, Fact: "the place that the SAE reads (its hook)", Why: "no file says it and the path names no known repository",
			Option: "--hook, or --repo with the repository on the hub", Choices: []string{"blocks.L.hook_resid_post", "blocks.L.hook_mlp_out", "blocks.L.attn.hook_z", "…"}}
	}
	c.Hook, c.HookOut = o.known.Hook, o.known.HookOut
	if strings.Contains(c.Hook, "{layer}") {
		layer, ok := o.layerInPath(patterns...)
		if !ok {
			return &QuestionError{Path: o.path, Fact: "the layer that the SAE reads", Why: "neither a file nor the path says it", Option: "--layer"}
		}
		c.Layer = layer
		c.Hook = strings.ReplaceAll(c.Hook, "{layer}", strconv.Itoa(layer))
		c.HookOut = strings.ReplaceAll(c.HookOut, "{layer}", strconv.Itoa(layer))
		c.learned("layer", "the path")
	}
	c.learned("hook", o.knownFrom)
	if c.HookOut != "" {
		c.learned("hook_out", o.knownFrom)
	}
	return nil
}

// byFormat notes that facts are a format's own definition.
func (o *opening) byFormat(format string, facts ...string) {
	for _, f := range facts {
		o.sae.Config.learned(f, "the format ("+format+")")
	}
}

// sized sets sizes that come from the weights.
func (o *opening) sized(dIn, dSAE, dOut int) {
	c := &o.sae.Config
	c.DIn, c.DSAE, c.DOut = dIn, dSAE, dOut
	c.learned("d_in", "the shapes of the weights")
	c.learned("d_sae", "the shapes of the weights")
	if dOut != dIn {
		c.learned("d_out", "the shapes of the weights")
	}
}
