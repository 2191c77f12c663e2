package sae

import (
	"slices"
	"strings"

	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
)

// points are the places in a decoder layer that an SAE may read, in TransformerLens' words.
func points() []string {
	return []string{"hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z", "mlp.hook_post", "mlp.hook_in", "ln1.hook_normalized", "ln2.hook_normalized"}
}

// KnownHooks lists the hooks of a layer L.
func KnownHooks() []string {
	out := points()
	for i, p := range out {
		out[i] = "blocks.L." + p
	}
	return out
}

// point is a hook without its layer; "" for a module of transformers.
func point(hook string) string {
	rest, ok := strings.CutPrefix(hook, "blocks.")
	if !ok {
		return ""
	}
	_, p, _ := strings.Cut(rest, ".")
	return p
}

// KnownHook reports whether a hook's name says which tensor it is. Whether a model has it is the worker's to say.
func KnownHook(hook string) bool {
	if p := point(hook); p != "" {
		return slices.Contains(points(), p)
	}
	return hook == "hook_embed" || strings.Contains(hook, "layers.") || strings.Contains(hook, ".h.") || strings.HasPrefix(hook, "h.") || strings.Contains(hook, "embed")
}

// widthAt is how many values a token has at a hook; 0 = not known here.
func widthAt(hook string, m model.Facts) int {
	switch p := point(hook); {
	case p == "attn.hook_z":
		return m.Heads
	case p == "mlp.hook_post":
		return m.MLP
	case p != "" || hook == "hook_embed":
		return m.DModel
	}
	return 0
}

// Fits refuses a model whose hook has another width, or that has no such layer.
func (f Facts) Fits(modelID string, m model.Facts) error {
	width := widthAt(f.Hook, m)
	switch {
	case width != 0 && f.DIn != width:
		return problem.New(problem.Invalid, "sae_does_not_fit_model", "the SAE reads %d values a token at %s, but model %s has %d there: it was made for another model%s", f.DIn, f.Hook, modelID, width, named(f.ModelName))
	case f.Layer >= m.Layers, f.Layer < 0 && point(f.Hook) != "":
		return problem.New(problem.Invalid, "sae_does_not_fit_model", "the SAE hooks layer %d, but model %s has layers 0 to %d%s", f.Layer, modelID, m.Layers-1, named(f.ModelName))
	}
	return nil
}
