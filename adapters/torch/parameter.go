package torch

import (
	"fmt"
	"runtime"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// weight is one parameter: [out, in] of a projection, [width] of a norm or bias.
type weight struct {
	t     tensor   // on the model's device; lives as long as the model
	turn  tensor   // a projection's transposed view, [in, out]
	data  *float32 // float32 on the CPU, else nil
	owned block    // its memory, unless that is the checkpoint's mapping, or libtorch's
}

type linear struct{ weight, bias weight } // bias.t is nil where there is none

func (m *Model) optional(s *scope, name string, present bool) weight {
	if !present {
		return weight{}
	}
	return m.parameter(s, name)
}

// parameter binds a checkpoint's tensor: a file that is mapped and has the wanted dtype is used where
// it lies, all else is converted into memory of its own.
func (m *Model) parameter(s *scope, name string) weight {
	return m.parameterAs(s, name, m.runtime.dtype)
}

func (m *Model) parameterAs(s *scope, name string, dtype int32) weight {
	if s.err != nil {
		return weight{}
	}
	found, err := m.source.Tensor(name)
	if err == nil && found.Elements() == 0 {
		err = fmt.Errorf("tensor %s is empty", name)
	}
	if err != nil {
		s.fail(fmt.Errorf("weights: %w", err))
		return weight{}
	}
	var w weight
	if s.device == cpu && dtype == float32Type {
		err = bindFloat32(s, &w, found)
	} else {
		err = bindConverted(s, &w, found, dtype)
	}
	if err != nil {
		s.fail(fmt.Errorf("weights: tensor %s: %w", name, err))
	}
	if len(found.Shape) == 2 {
		w.turn = s.t(w.t)
	}
	if s.err != nil {
		w.owned.free()
		return weight{}
	}
	s.disown(w.t)
	if w.turn != nil {
		s.disown(w.turn)
	}
	m.weights = append(m.weights, w)
	return w
}

// bindFloat32 leaves float32 of a mapped file where it is.
func bindFloat32(s *scope, w *weight, found checkpoint.Tensor) error {
	values, err := found.Float32View()
	if err != nil || found.Fresh {
		if w.owned, err = newBlock(4 * int64(found.Elements())); err != nil {
			return err
		}
		values = w.owned.floats()
		if err := found.ReadFloat32(values); err != nil {
			return err
		}
	}
	w.data = &values[0]
	shape := shape64(found.Shape)
	w.t = s.blob(unsafe.Pointer(w.data), shape[len(shape)-1], float32Type, shape...)
	return nil
}

// bindConverted brings a tensor to the scope's device and to dtype. What is both already stays in the mapped file.
func bindConverted(s *scope, w *weight, found checkpoint.Tensor, dtype int32) error {
	from, ok := map[checkpoint.DType]int32{
		checkpoint.F32: float32Type, checkpoint.F64: float64Type, checkpoint.F16: float16Type, checkpoint.BF16: bfloat16Type,
	}[found.DType]
	if !ok {
		return &checkpoint.UnsupportedError{Kind: "dtype", Name: string(found.DType), Supported: []string{"F32", "F16", "BF16", "F64"}}
	}
	shape := shape64(found.Shape)
	lies := s.blob(unsafe.Pointer(unsafe.SliceData(found.Data)), shape[len(shape)-1], from, shape...)
	if s.device == cpu && from == dtype && !found.Fresh {
		w.t = lies
		return nil
	}
	// A copy that libtorch owns: what lies there may be Go's, and ends with this function.
	w.t = s.toDevice(s.converted(lies, dtype, s.device == cpu))
	runtime.KeepAlive(found.Data)
	return nil
}

// typed is t in the model's dtype.
func (m *Model) typed(s *scope, t tensor) tensor {
	if s.err != nil || dtypeOf(t) == m.runtime.dtype {
		return t
	}
	return s.converted(t, m.runtime.dtype, false)
}

func shape64(shape []int) []int64 {
	out := make([]int64, len(shape))
	for i, n := range shape {
		out[i] = int64(n)
	}
	return out
}

func (w *weight) free() {
	for _, t := range []tensor{w.turn, w.t} {
		if t != nil {
			lib.AtFree(t)
		}
	}
	w.t, w.turn, w.data = nil, nil, nil
	w.owned.free()
}
