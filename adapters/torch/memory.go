package torch

// #include "kernels.h"
import "C"

import (
	"errors"
	"fmt"
	"unsafe"
)

// ErrNoMemory is in the chain of every error that a smaller batch, or more memory, would have avoided.
var ErrNoMemory = errors.New("not enough memory")

// block is memory outside Go's heap: libtorch may keep its address, the garbage collector does not
// scan it, and giving it back is immediate. Pages are zero, and cost nothing until they are touched.
type block struct {
	data  unsafe.Pointer
	bytes int64
}

func newBlock(bytes int64) (block, error) {
	if bytes == 0 {
		return block{}, nil
	}
	p := C.fm_map(C.int64_t(bytes))
	if p == nil {
		return block{}, fmt.Errorf("%w for a buffer of %.1f MiB", ErrNoMemory, float64(bytes)/(1<<20))
	}
	return block{data: p, bytes: bytes}, nil
}

// copyToBlock is a float32 copy that outlives values.
func copyToBlock(values []float32) (block, error) {
	b, err := newBlock(4 * int64(len(values)))
	if err == nil && len(values) > 0 {
		copy(b.floats(), values)
	}
	return b, err
}

func (b *block) free() {
	if b.data != nil {
		C.fm_unmap(b.data, C.int64_t(b.bytes))
	}
	*b = block{}
}

func (b block) floats() []float32        { return unsafe.Slice((*float32)(b.data), b.bytes/4) }
func (b block) uint32s() []uint32        { return unsafe.Slice((*uint32)(b.data), b.bytes/4) }
func (b block) int32s() []int32          { return unsafe.Slice((*int32)(b.data), b.bytes/4) }
func (b block) cfloats() *C.float        { return (*C.float)(b.data) }
func (b block) float32s(n int) []float32 { return unsafe.Slice((*float32)(b.data), n) }

// workspace is memory that batches share: it grows to the largest batch, and stays.
type workspace struct{ blocks map[string]block }

// bytes gives the named buffer with room for at least n bytes; its content is what was left there.
func (w *workspace) bytes(name string, n int64) (block, error) {
	b := w.blocks[name]
	if b.bytes >= n {
		return b, nil
	}
	b.free()
	b, err := newBlock((n + 1<<16 - 1) >> 16 << 16)
	if w.blocks == nil {
		w.blocks = map[string]block{}
	}
	w.blocks[name] = b
	return b, err
}

func (w *workspace) free() {
	for _, b := range w.blocks {
		b.free()
	}
	w.blocks = nil
}

// matrix is a [rows, width] float32 view of the named buffer.
func (w *workspace) matrix(s *scope, name string, rows, width int64) tensor {
	if s.err != nil {
		return nil
	}
	b, err := w.bytes(name, 4*rows*width)
	if err != nil {
		s.fail(err)
		return nil
	}
	return s.blob(b.data, width, float32Type, rows, width)
}
