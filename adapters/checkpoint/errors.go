package checkpoint

import (
	"errors"
	"fmt"
	"strings"
)

// ErrClosed says that a file was used after Close.
var ErrClosed = errors.New("the checkpoint is closed")

// FormatError says that a file is damaged, cut short, or breaks a rule of its format.
type FormatError struct {
	Path string // empty where only a tensor is at hand
	Fact string // what was found
	Want string // what would be right; may be empty
}

func (e *FormatError) Error() string { return place(e.Path) + e.Fact + expected(e.Want) }

// UnsupportedError says that a file is well formed but asks for something that is not implemented.
type UnsupportedError struct {
	Path      string
	Kind      string // "SAE architecture", "model family", "rope scaling", …
	Name      string // what the file asks for
	Supported []string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s%s %q is not supported; supported: %s", place(e.Path), e.Kind, e.Name, strings.Join(e.Supported, ", "))
}

// ShapeError says that a tensor does not have the shape that the configuration calls for.
type ShapeError struct {
	Path   string
	Tensor string
	Found  []int
	Want   []int
	Why    string // where the wanted shape comes from: "[d_in, d_sae]"
}

func (e *ShapeError) Error() string {
	why := ""
	if e.Why != "" {
		why = ", that is " + e.Why
	}
	if len(e.Found) == 2 && len(e.Want) == 2 && e.Found[0] == e.Want[1] && e.Found[1] == e.Want[0] {
		why += " (it looks transposed)"
	}
	return fmt.Sprintf("%stensor %s has the shape %v; it should be %v%s", place(e.Path), e.Tensor, e.Found, e.Want, why)
}

// MissingTensorError names tensors that a checkpoint must have and has not.
type MissingTensorError struct {
	Path    string
	Tensors []string
	Why     string // may be empty
}

func (e *MissingTensorError) Error() string {
	names := e.Tensors
	more := ""
	if len(names) > 8 {
		names, more = names[:8], fmt.Sprintf(" and %d more", len(names)-8)
	}
	why := ""
	if e.Why != "" {
		why = " (" + e.Why + ")"
	}
	return fmt.Sprintf("%smissing tensors: %s%s%s", place(e.Path), strings.Join(names, ", "), more, why)
}

// NonFiniteError says that weights hold NaN or an infinity: whatever is computed with them is void.
type NonFiniteError struct {
	Path   string
	Tensor string
	Index  int // of the first such value, row-major
	Count  int
	Value  float32
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("%stensor %s holds %d values that are not finite, the first (%v) at index %d", place(e.Path), e.Tensor, e.Count, e.Value, e.Index)
}

// ScalingFactorError asks for a fact that the SAE's files do not hold: the factor that brings the model's activations to the
// scale the SAE was trained on.
type ScalingFactorError struct{ Path string }

func (e *ScalingFactorError) Error() string {
	return place(e.Path) + "normalize_activations is expected_average_only_in, which needs the scaling factor sqrt(d_in) / mean ‖x‖ of the training activations, " +
		"and no activation_scaler.json holds it; give the factor (scaling factor option)"
}

// ScaleNotWantedError refuses a scaling factor for an SAE that has no use for one: it would scale twice.
type ScaleNotWantedError struct {
	Path          string
	Normalization string
	Folded        bool // a factor was folded already
}

func (e *ScaleNotWantedError) Error() string {
	if e.Folded {
		return place(e.Path) + "a scaling factor was folded into this SAE already"
	}
	return fmt.Sprintf("%sa scaling factor was given, but the SAE's normalize_activations is %q: a factor belongs to expected_average_only_in only", place(e.Path), e.Normalization)
}

// FoldError says why a fold would change what the SAE computes.
type FoldError struct{ Fact string }

func (e *FoldError) Error() string { return e.Fact }

func place(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

func expected(want string) string {
	if want == "" {
		return ""
	}
	return "; expected " + want
}
