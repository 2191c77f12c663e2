package torch

// #include "kernels.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// firings is what fires in a chunk of tokens; it is good until the next chunk.
type firings struct {
	counts  []int32 // one a token
	latents []uint32
	values  []float32
	// Token i's firings are latents[latentStart(i):][:counts[i]], ascending, and likewise values.
	latentStride, valueStride int // 0: tokens lie end to end, at starts
	starts                    []int

	undo      tensor // what undoes the normalisation: encoder's own
	undo2     tensor
	dense     tensor // composed: activations, [tokens, d_sae]; nil where only the sparse form is there
	fires     tensor // composed: where dense counts
	predicted tensor // temporal: the codes that attention foresees, [tokens, d_sae]
	stats     []float32
}

func (f *firings) token(i int) (latents []uint32, values []float32) {
	n := int(f.counts[i])
	if f.starts != nil {
		at := f.starts[i]
		return f.latents[at : at+n], f.values[at : at+n]
	}
	return f.latents[i*f.latentStride:][:n], f.values[i*f.valueStride:][:n]
}

// encoder is the SAE's arithmetic, again twice: fusedEncoder for the CPU and the architectures that
// nearly all SAEs have, composedEncoder of libtorch's operations for any device and architecture.
type encoder interface {
	fire(s *scope, x tensor) *firings                 // x: [tokens, d_in]
	dense(s *scope, f *firings) tensor                // [tokens, d_sae]
	decode(s *scope, dense tensor, f *firings) tensor // [tokens, d_out]
	norms(s *scope, x tensor, out []float32)          // ‖x‖₂ of each row
}

type fusedEncoder struct {
	a       *SAE
	threads int
}

func optional(t tensor) *C.float {
	if t == nil {
		return nil
	}
	return pointer(t)
}

func (e *fusedEncoder) fire(s *scope, x tensor) *firings {
	a, c := e.a, e.a.config
	if s.err != nil {
		return nil
	}
	n, width, k := shapeOf(x)[0], int64(c.DSAE), max(a.k(), a.limit)
	mode := a.mode
	if mode == constantScalar {
		mode, x = asItIs, s.mulScalar(x, a.factor)
	}
	capacity := k
	if k == 0 {
		capacity = width
	}
	u := a.work.matrix(s, "input", n, int64(c.DIn))
	z := a.work.matrix(s, "z", n, width)
	stats, err := a.work.bytes("stats", 8*n)
	s.failIf(err)
	latents, err := a.work.bytes("latents", 4*n*capacity)
	s.failIf(err)
	counts, err := a.work.bytes("counts", 4*n)
	s.failIf(err)
	if s.err != nil {
		return nil
	}
	C.fm_sae_input(pointer(u), stats.cfloats(), pointer(x), optional(a.shift), C.int64_t(n), C.int64_t(c.DIn), C.int(mode), C.int(e.threads))
	s.mmInto(z, u, a.wEnc)
	if s.err != nil {
		return nil
	}
	// The bias is added where z is read anyway, which saves a pass over it.
	if C.fm_fire(pointer(z), (*C.uint32_t)(latents.data), C.int64_t(capacity), (*C.int32_t)(counts.data), pointer(a.bEnc),
		optional(a.scale), optional(a.threshold), C.int64_t(n), C.int64_t(width), C.int64_t(k), C.int(e.threads)) != 0 {
		s.fail(fmt.Errorf("%w to choose what fires", ErrNoMemory))
		return nil
	}
	return &firings{
		counts: counts.int32s()[:n], latents: latents.uint32s(), latentStride: int(capacity),
		values: unsafe.Slice((*float32)(unsafe.Pointer(pointer(z))), n*width), valueStride: int(width),
		stats: stats.floats()[:2*n],
	}
}

func (e *fusedEncoder) dense(s *scope, f *firings) tensor {
	n, width := int64(len(f.counts)), int64(e.a.config.DSAE)
	out := e.a.work.matrix(s, "dense", n, width)
	if s.err != nil {
		return nil
	}
	C.fm_scatter_rows(pointer(out), cfloats(f.values), C.int64_t(f.valueStride), (*C.uint32_t)(unsafe.SliceData(f.latents)), C.int64_t(f.latentStride),
		(*C.int32_t)(unsafe.SliceData(f.counts)), C.int64_t(n), C.int64_t(width), C.int(e.threads))
	return out
}

func (e *fusedEncoder) decode(s *scope, dense tensor, f *firings) tensor {
	a := e.a
	n, width := int64(len(f.counts)), int64(a.config.DOut)
	if a.unscale != nil {
		dense = s.mul(dense, a.unscale)
	}
	out := a.work.matrix(s, "decoded", n, width)
	if s.err != nil {
		return nil
	}
	s.addmmInto(out, a.bDec, dense, a.wDec)
	if a.undo == constantScalar {
		return s.mulScalar(out, 1/a.factor)
	}
	if s.err != nil {
		return nil
	}
	C.fm_sae_output(pointer(out), cfloats(f.stats), C.int64_t(n), C.int64_t(width), C.int(a.undo), C.int(e.threads))
	return out
}

func (e *fusedEncoder) norms(s *scope, x tensor, out []float32) {
	if s.err != nil || len(out) == 0 {
		return
	}
	shape := shapeOf(x)
	C.fm_row_norms(cfloats(out), pointer(x), C.int64_t(shape[0]), C.int64_t(shape[1]), C.int(e.threads))
}
