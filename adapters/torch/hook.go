package torch

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Point is a place in a decoder layer, in TransformerLens' words, or a module of Hugging Face's: "layers.*.mlp.input", * being
// the layer.
type Point string

// The points, in TransformerLens' meaning of them (sae-formats: what a Gemma-2's hook_attn_out is).
const (
	Embed         Point = "embed"               // hook_embed: token embeddings, scaled where the model scales them; no layer
	ResidPre      Point = "resid_pre"           // input of the layer
	LN1Normalized Point = "ln1.hook_normalized" // what attention's norm makes, before its weight
	AttnZ         Point = "attn.hook_z"         // mixed values of all heads, end to end: [tokens, heads × d_head]
	AttnOut       Point = "attn_out"            // what attention adds to the residual stream
	ResidMid      Point = "resid_mid"           // between attention and MLP
	LN2Normalized Point = "ln2.hook_normalized" // what the MLP's norm makes, before its weight
	MLPIn         Point = "mlp.hook_in"         // what the MLP reads: after the weight
	MLPPost       Point = "mlp.hook_post"       // what the MLP's last projection reads: [tokens, d_ff]
	MLPOut        Point = "mlp_out"             // what the MLP adds
	ResidPost     Point = "resid_post"          // output of the layer
)

// points are in the order in which a layer comes to them.
func points() []Point {
	return []Point{ResidPre, LN1Normalized, AttnZ, AttnOut, ResidMid, LN2Normalized, MLPIn, MLPPost, MLPOut, ResidPost}
}

// Hook names one activation of a model: [tokens, Model.Width].
type Hook struct {
	Layer int // 0 for Embed
	Point Point
	// Centred: as TransformerLens shows it with center_writing_weights, that is, minus the token's mean where something is
	// written to the residual stream of a model with LayerNorm. Elsewhere it changes nothing, as there.
	Centred bool
}

// HookError is a hook name that is not known.
type HookError struct{ Name string }

func (e *HookError) Error() string {
	known := []string{"hook_embed"}
	for _, p := range points() {
		known = append(known, "blocks.L."+p.name())
	}
	return fmt.Sprintf("hook %q is not known; known are %s, and Hugging Face's modules of a layer (model.layers.L.mlp, …, with .input or .output)", e.Name, strings.Join(known, ", "))
}

// LayerError is a hook on a layer that the model does not have.
type LayerError struct {
	Hook   Hook
	Layers int
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("hook %s: the model has %d layers, 0 to %d", e.Hook, e.Layers, e.Layers-1)
}

// NoHookError is a hook that other families have.
type NoHookError struct {
	Hook   Hook
	Family string
	Why    string
}

func (e *NoHookError) Error() string {
	return fmt.Sprintf("hook %s: a model of the family %s has none: %s", e.Hook, e.Family, e.Why)
}

func (p Point) name() string {
	if strings.Contains(string(p), ".") {
		return string(p)
	}
	return "hook_" + string(p)
}

// ParseHook reads "blocks.8.hook_resid_post", or the name of a Hugging Face module: "model.layers.8.mlp", "h.3.attn",
// "layers.2.self_attn.o_proj.input", "embed_tokens". Whether a model has that module Model.Check says.
func ParseHook(name string) (Hook, error) {
	if name == "hook_embed" {
		return Hook{Point: Embed}, nil
	}
	if found := regexp.MustCompile(`^blocks\.([0-9]{1,6})\.(.+)$`).FindStringSubmatch(name); found != nil {
		for _, p := range points() {
			if p.name() == found[2] {
				return layerHook(name, found[1], p)
			}
		}
		return Hook{}, &HookError{Name: name}
	}
	bodies := `(?:(?:model\.)?language_model\.(?:model\.)?|model\.|transformer\.|gpt_neox\.)?`
	if found := regexp.MustCompile(`^` + bodies + `(layers|h)\.([0-9]{1,6})((?:\.[a-z0-9_]+)*)$`).FindStringSubmatch(name); found != nil {
		return layerHook(name, found[2], Point(found[1]+".*"+found[3]))
	}
	if found := regexp.MustCompile(`^` + bodies + `(embed_tokens|embed_in|wte)((?:\.output)?)$`).FindStringSubmatch(name); found != nil {
		return Hook{Point: Point(found[1] + found[2])}, nil
	}
	return Hook{}, &HookError{Name: name}
}

func layerHook(name, layer string, p Point) (Hook, error) {
	n, err := strconv.Atoi(layer)
	if err != nil {
		return Hook{}, &HookError{Name: name}
	}
	return Hook{Layer: n, Point: p}, nil
}

func (h Hook) String() string {
	switch {
	case h.Point == Embed:
		return "hook_embed"
	case h.Point.isModule():
		return strings.Replace(string(h.Point), "*", strconv.Itoa(h.Layer), 1)
	}
	return fmt.Sprintf("blocks.%d.%s", h.Layer, h.Point.name())
}

func (p Point) isModule() bool {
	return strings.Contains(string(p), "*") || strings.HasPrefix(string(p), "embed_") || strings.HasPrefix(string(p), "wte")
}

// stage is what a forward pass has in hand, in the order in which it comes to it: several names may mean one stage, and one name
// different stages in different families.
type stage int

const (
	atEmbedding stage = iota // rows of the table
	atEmbed                  // times the scale
	atResidPre
	atLN1
	atAttnIn
	atZ
	atAttn // what attention's last projection makes
	atAttnOut
	atResidMid
	atLN2
	atMLPIn
	atMLPPost
	atMLP // what the MLP's last projection makes
	atMLPOut
	atResidPost
	stages
)

// site is a stage of a layer.
type site struct {
	layer int
	stage stage
}

// depth is how far a forward pass must go.
func (p site) depth() int { return p.layer*int(stages) + int(p.stage) }

// written are the stages that center_writing_weights changes.
func (a stage) written() bool {
	switch a {
	case atEmbedding, atEmbed, atResidPre, atAttn, atAttnOut, atResidMid, atMLP, atMLPOut, atResidPost:
		return true
	}
	return false
}

// site finds what a hook means in this model.
func (m *Model) site(h Hook) (site, error) {
	c := m.config
	none := func(why string) (site, error) { return site{}, &NoHookError{Hook: h, Family: c.Family, Why: why} }
	at := site{layer: h.Layer}
	if h.Layer < 0 || h.Layer >= c.Layers {
		return site{}, &LayerError{Hook: h, Layers: c.Layers}
	}
	switch h.Point {
	case Embed:
		at = site{0, atEmbed}
	case ResidPre:
		at.stage = atResidPre
	case LN1Normalized:
		at.stage = atLN1
	case AttnZ:
		at.stage = atZ
	case AttnOut:
		at.stage = atAttnOut
		if !c.PreNorms { // TransformerLens taps OLMo 2 before its only norms, Gemma 2 after its second ones
			at.stage = atAttn
		}
	case ResidMid:
		at.stage = atResidMid
	case LN2Normalized:
		at.stage = atLN2
	case MLPIn:
		at.stage = atMLPIn
	case MLPPost:
		at.stage = atMLPPost
	case MLPOut:
		at.stage = atMLPOut
		if !c.PreNorms {
			at.stage = atMLP
		}
	case ResidPost:
		at.stage = atResidPost
	default:
		found, ok := m.modules[string(h.Point)]
		if !ok {
			if h.Point.isModule() {
				return none("it has " + strings.Join(m.moduleNames(), ", "))
			}
			return site{}, &HookError{Name: h.String()}
		}
		if at.stage = found; found <= atEmbed {
			at.layer = 0
		}
	}
	switch {
	case at.stage == atResidMid && c.Parallel:
		return none("attention and MLP read the same residual stream, and there is none between them")
	case (at.stage == atLN1 || at.stage == atLN2) && !c.PreNorms:
		return none("no norm stands before attention and MLP")
	}
	return m.same(at), nil
}

// same gives stages that are one tensor one name.
func (m *Model) same(at site) site {
	c := m.config
	switch {
	case at.stage == atEmbedding && c.EmbeddingScale == 1:
		at.stage = atEmbed
	case at.stage == atAttn && !c.PostNorms:
		at.stage = atAttnOut
	case at.stage == atMLP && !c.PostNorms:
		at.stage = atMLPOut
	case at.stage == atAttnIn && !c.PreNorms:
		at.stage = atResidPre
	case at.stage == atMLPIn && !c.PreNorms:
		at.stage = atResidMid
	case at.stage == atMLPIn && c.SharedNorm:
		at.stage = atAttnIn
	case at.stage == atLN2 && c.SharedNorm:
		at.stage = atLN1
	}
	return at
}

// Check says whether the model has a hook.
func (m *Model) Check(h Hook) error {
	_, err := m.site(h)
	return err
}

// Width is how many numbers a token has at a hook: d_model, or what comes out of heads or the MLP's hidden layer. It is 0 for a
// hook that the model has not.
func (m *Model) Width(h Hook) int {
	at, err := m.site(h)
	if err != nil {
		return 0
	}
	switch at.stage {
	case atZ:
		return m.config.Heads * m.config.DHead
	case atMLPPost:
		return m.config.DFF
	}
	return m.config.DModel
}

// near are hooks with which the claimed one could have been confused: of equal width, up to reach layers away, each tensor once
// and the claimed one under its own name. Points in own are looked at in the claimed layer only.
func (m *Model) near(claimed Hook, reach int, own ...Point) []Hook {
	first, last := max(0, claimed.Layer-reach), min(m.config.Layers-1, claimed.Layer+reach)
	kinds := []Point{ResidPre, AttnOut, ResidMid, MLPOut, ResidPost}
	mine, err := m.site(claimed)
	if err != nil {
		return nil
	}
	// The input of a layer is the output of the one before.
	tensorOf := func(at site) site {
		if at.stage == atResidPre && at.layer > 0 {
			return site{at.layer - 1, atResidPost}
		}
		return at
	}
	seen := map[site]bool{tensorOf(mine): true}
	out := []Hook{claimed}
	for l := first; l <= last; l++ {
		known := kinds
		if mine.stage != atEmbed {
			known = append([]Point{claimed.Point}, kinds...)
		}
		if l == claimed.Layer {
			known = slices.Concat(known, own)
		}
		for _, p := range known {
			h := Hook{Layer: l, Point: p, Centred: claimed.Centred}
			at, err := m.site(h)
			if err != nil || seen[tensorOf(at)] || m.Width(h) != m.Width(claimed) {
				continue
			}
			seen[tensorOf(at)] = true
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(a, b Hook) int {
		first, _ := m.site(a)
		second, _ := m.site(b)
		return first.depth() - second.depth()
	})
	return out
}
