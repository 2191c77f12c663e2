package torch

// #include <stdlib.h>
// #include "native.h"
import "C"

import (
	"context"
	"fmt"
	"strings"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// tensor is a handle on a libtorch tensor; nil after a failed operation.
type tensor = lib.Ctensor

// gotch's numbers of the dtypes that we use.
const (
	int64Type    int32 = 4
	float16Type  int32 = 5
	float32Type  int32 = 6
	float64Type  int32 = 7
	bfloat16Type int32 = 15
)

// scope owns every tensor that is made in it, and frees them all at its end: the garbage collector
// does not see C memory. The first error stays; after it operations do nothing and return nil, so a
// chain of operations is checked once. A scope lives on the runtime's thread.
type scope struct {
	ctx    context.Context
	device device
	owned  []tensor
	err    error
}

// OpError is a libtorch operation that was refused: bad shapes, no memory, a device that is gone.
type OpError struct {
	Op     string
	Shapes []string // of its inputs
	Detail string   // libtorch's text
}

func (e *OpError) Error() string {
	return fmt.Sprintf("libtorch %s(%s): %s", e.Op, strings.Join(e.Shapes, ", "), e.Detail)
}

// Is finds ErrNoMemory: libtorch says it in words only.
func (e *OpError) Is(target error) bool {
	return target == ErrNoMemory &&
		(strings.Contains(e.Detail, "can't allocate memory") || strings.Contains(e.Detail, "not enough memory") || strings.Contains(e.Detail, "out of memory"))
}

func (s *scope) free() {
	for _, t := range s.owned {
		lib.AtFree(t)
	}
	s.owned = nil
}

// inner runs f in a scope of its own and hands its result to s.
func (s *scope) inner(f func(*scope) tensor) tensor {
	if s.err != nil {
		return nil
	}
	child := &scope{ctx: s.ctx, device: s.device}
	defer child.free()
	result := f(child)
	if child.err != nil {
		s.err = child.err
		return nil
	}
	for i, t := range child.owned {
		if t == result { // moved, not copied
			child.owned = append(child.owned[:i], child.owned[i+1:]...)
			s.owned = append(s.owned, result)
			break
		}
	}
	return result
}

// drop frees t before the scope ends.
func (s *scope) drop(t tensor) {
	for i, o := range s.owned {
		if o == t && t != nil {
			s.owned = append(s.owned[:i], s.owned[i+1:]...)
			lib.AtFree(t)
			return
		}
	}
}

// disown takes t out of the scope: the caller frees it.
func (s *scope) disown(t tensor) tensor {
	for i, o := range s.owned {
		if o == t {
			s.owned = append(s.owned[:i], s.owned[i+1:]...)
			break
		}
	}
	return t
}

// alive is false once something failed or the work was cancelled.
func (s *scope) alive() bool {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	return s.err == nil
}

func (s *scope) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

func (s *scope) failIf(err error) {
	if err != nil {
		s.fail(err)
	}
}

// op calls one of libtch's functions with an output slot of ours: gotch's own slots leak.
func (s *scope) op(name string, inputs []tensor, call func(out *tensor)) tensor {
	if s.err != nil {
		return nil
	}
	out := new(tensor)
	call(out)
	if text := lastError(); text != "" || *out == nil {
		s.fail(&OpError{Op: name, Shapes: shapesOf(inputs), Detail: text})
		if *out != nil {
			lib.AtFree(*out)
		}
		return nil
	}
	s.owned = append(s.owned, *out)
	return *out
}

// lastError takes libtorch's error text of this thread, without its C++ stack.
func lastError() string {
	p := lib.GetAndResetLastErr()
	if p == nil {
		return ""
	}
	text := goString((*C.char)(unsafe.Pointer(p)))
	text, _, _ = strings.Cut(text, "\nException raised from")
	text, _, _ = strings.Cut(text, "\nframe #")
	return text
}

func shapesOf(tensors []tensor) []string {
	shapes := make([]string, len(tensors))
	for i, t := range tensors {
		if t == nil {
			shapes[i] = "none"
		} else {
			shapes[i] = strings.ReplaceAll(fmt.Sprint(shapeOf(t)), " ", ", ")
		}
	}
	return shapes
}

func shapeOf(t tensor) []int64 {
	shape := make([]int64, lib.AtDim(t))
	if len(shape) > 0 {
		lib.AtShape(t, unsafe.Pointer(&shape[0]))
	}
	return shape
}

func dtypeOf(t tensor) int32 { return lib.AtScalarType(t) }

// rowStride is the distance of two rows of a matrix, in elements.
func rowStride(t tensor) int64 {
	strides := make([]int64, lib.AtDim(t))
	lib.AtStride(t, unsafe.Pointer(&strides[0]))
	return strides[0]
}

// blob makes a CPU tensor of memory that somebody else owns and that outlives it. stride is the
// distance of two rows of a matrix; other shapes are contiguous.
func (s *scope) blob(data unsafe.Pointer, stride int64, dtype int32, shape ...int64) tensor {
	if s.err != nil {
		return nil
	}
	strides := make([]int64, len(shape))
	next := int64(1)
	for i := len(shape) - 1; i >= 0; i-- {
		strides[i] = next
		next *= shape[i]
	}
	if len(shape) == 2 {
		strides[0] = stride
	}
	var out unsafe.Pointer
	message := C.fm_from_blob(data, (*C.int64_t)(&shape[0]), (*C.int64_t)(&strides[0]), C.int(len(shape)), C.int(dtype), &out) //nolint:gocritic // cgo writes a comparison here
	if message != nil {
		s.fail(&OpError{Op: "from_blob", Shapes: []string{fmt.Sprint(shape)}, Detail: goString(message)})
		return nil
	}
	t := tensor(out)
	s.owned = append(s.owned, t)
	return t
}

// floats copies a slice to the scope's device.
func (s *scope) floats(values []float32, shape ...int64) tensor {
	if len(values) == 0 {
		return s.empty(float32Type, shape...)
	}
	return s.copied(unsafe.Pointer(&values[0]), 4, float32Type, shape)
}

func (s *scope) ints(values []int64, shape ...int64) tensor {
	if len(values) == 0 {
		return s.empty(int64Type, shape...)
	}
	return s.copied(unsafe.Pointer(&values[0]), 8, int64Type, shape)
}

func (s *scope) copied(data unsafe.Pointer, size uint, dtype int32, shape []int64) tensor {
	t := s.op("tensor", nil, func(out *tensor) {
		*out = lib.AtTensorOfData(data, shape, uint(len(shape)), size, int(dtype))
	})
	return s.toDevice(t)
}

func (s *scope) toDevice(t tensor) tensor {
	if s.device == cpu {
		return t
	}
	moved := s.op("to", []tensor{t}, func(out *tensor) { lib.AtgTo(out, t, int32(s.device)) })
	s.drop(t)
	return moved
}

// converted is t in another dtype: t itself where it has that already, unless there must be a copy.
func (s *scope) converted(t tensor, dtype int32, mustCopy bool) tensor {
	var always int32
	if mustCopy {
		always = 1
	}
	return s.op("to", []tensor{t}, func(out *tensor) { lib.AtgToDtype(out, t, dtype, 0, always) })
}

// float32 is t, converted where it is not float32 already.
func (s *scope) float32(t tensor) tensor {
	if s.err != nil || dtypeOf(t) == float32Type {
		return t
	}
	return s.converted(t, float32Type, false)
}

// read copies a tensor's values as float32 into dst, from whatever device.
func (s *scope) read(t tensor, dst []float32) {
	if s.err != nil || len(dst) == 0 {
		return
	}
	if typed := s.float32(t); typed != t {
		t = typed
		defer s.drop(t)
	}
	if s.err != nil {
		return
	}
	lib.AtCopyData(t, unsafe.Pointer(&dst[0]), uint(len(dst)), 4)
	if text := lastError(); text != "" {
		s.fail(&OpError{Op: "copy_data", Shapes: shapesOf([]tensor{t}), Detail: text})
	}
}

func (s *scope) readInts(t tensor, dst []int64) {
	if s.err != nil || len(dst) == 0 {
		return
	}
	lib.AtCopyData(t, unsafe.Pointer(&dst[0]), uint(len(dst)), 8)
	if text := lastError(); text != "" {
		s.fail(&OpError{Op: "copy_data", Shapes: shapesOf([]tensor{t}), Detail: text})
	}
}
