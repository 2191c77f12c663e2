package torch

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Point is a place in a decoder layer, in TransformerLens' words.
type Point string

// The points that every family has.
const (
	ResidPre  Point = "resid_pre"  // input of the layer
	AttnOut   Point = "attn_out"   // what attention adds to the residual stream
	MLPOut    Point = "mlp_out"    // what the MLP adds
	ResidPost Point = "resid_post" // output of the layer
)

// points are in the order in which a layer comes to them.
func points() []Point { return []Point{ResidPre, AttnOut, MLPOut, ResidPost} }

// Hook names one activation of a model: [tokens, d_model].
type Hook struct {
	Layer int
	Point Point
}

// HookError is a hook name that is not known.
type HookError struct{ Name string }

func (e *HookError) Error() string {
	known := make([]string, 0, 4)
	for _, p := range points() {
		known = append(known, "blocks.L.hook_"+string(p))
	}
	return fmt.Sprintf("hook %q is not known; known are %s", e.Name, strings.Join(known, ", "))
}

// LayerError is a hook on a layer that the model does not have.
type LayerError struct {
	Hook   Hook
	Layers int
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("hook %s: the model has %d layers, 0 to %d", e.Hook, e.Layers, e.Layers-1)
}

// ParseHook reads "blocks.8.hook_resid_post".
func ParseHook(name string) (Hook, error) {
	found := regexp.MustCompile(`^blocks\.([0-9]{1,6})\.hook_([a-z_]+)$`).FindStringSubmatch(name)
	if found == nil {
		return Hook{}, &HookError{Name: name}
	}
	layer, err := strconv.Atoi(found[1])
	if err != nil {
		return Hook{}, &HookError{Name: name}
	}
	for _, p := range points() {
		if string(p) == found[2] {
			return Hook{Layer: layer, Point: p}, nil
		}
	}
	return Hook{}, &HookError{Name: name}
}

func (h Hook) String() string { return fmt.Sprintf("blocks.%d.hook_%s", h.Layer, h.Point) }

// stages is how many (layer, point) stages must run for the hook to be there: a depth to compare by.
func (h Hook) stages() int {
	for i, p := range points() {
		if p == h.Point {
			return h.Layer*len(points()) + i
		}
	}
	return -1
}
