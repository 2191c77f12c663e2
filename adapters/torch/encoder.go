package torch

// #include "kernels.h"
import "C"

import (
	"fmt"
	"math"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// firings is what fires in a chunk of tokens; it is good until the next chunk.
type firings struct {
	counts  []int32 // one a token
	latents []uint32
	values  []float32
	// Token i's firings are latents[latentStart(i):][:counts[i]], ascending, and likewise values.
	latentStride, valueStride int // 0: tokens lie end to end, at starts
	starts                    []int

	undo  tensor // what undoes the normalisation: encoder's own
	undo2 tensor
	dense tensor // composed: activations, [tokens, d_sae]
	stats []float32
}

func (f *firings) token(i int) (latents []uint32, values []float32) {
	n := int(f.counts[i])
	if f.starts != nil {
		at := f.starts[i]
		return f.latents[at : at+n], f.values[at : at+n]
	}
	return f.latents[i*f.latentStride:][:n], f.values[i*f.valueStride:][:n]
}

// encoder is the SAE's arithmetic, again twice: fusedEncoder for the CPU, composedEncoder of
// libtorch's operations for any device.
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
	n, width, k := shapeOf(x)[0], int64(c.DSAE), e.a.k()
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
	var shift tensor
	if c.ApplyBDecToInput {
		shift = a.bDec
	}
	C.fm_sae_input(pointer(u), stats.cfloats(), pointer(x), optional(shift), C.int64_t(n), C.int64_t(c.DIn), C.int(a.mode), C.int(e.threads))
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
	if s.err != nil {
		return nil
	}
	C.fm_sae_output(pointer(out), cfloats(f.stats), C.int64_t(n), C.int64_t(width), C.int(a.mode), C.int(e.threads))
	return out
}

func (e *fusedEncoder) norms(s *scope, x tensor, out []float32) {
	if s.err != nil || len(out) == 0 {
		return
	}
	shape := shapeOf(x)
	C.fm_row_norms(cfloats(out), pointer(x), C.int64_t(shape[0]), C.int64_t(shape[1]), C.int(e.threads))
}

type composedEncoder struct{ a *SAE }

func (e *composedEncoder) fire(s *scope, x tensor) *firings {
	a := e.a
	f := &firings{}
	u := x
	switch a.mode {
	case constantNorm:
		factor := s.mulScalar(s.reciprocal(s.rowNorms(x)), math.Sqrt(float64(a.config.DIn)))
		u, f.undo = s.mul(x, factor), factor
	case layerNorm:
		mean := s.meanLast(x)
		centred := s.sub(x, mean)
		deviation := s.stdLast(centred)
		u, f.undo, f.undo2 = s.div(centred, s.addScalar(deviation, 1e-5)), deviation, mean
	}
	if a.config.ApplyBDecToInput {
		u = s.sub(u, a.bDec)
	}
	z := s.add(s.mm(u, a.wEnc), a.bEnc)
	if a.scale != nil {
		z = s.mul(z, a.scale)
	}
	z = s.relu(z)
	fires := s.greaterThan(z, 0)
	switch {
	case a.threshold != nil:
		fires = s.binary("gt", lib.AtgGtTensor, z, a.threshold)
	case a.k() > 0:
		// Among equals at the k-th place the lowest latents come first: count them in order.
		last := s.largest(z, a.k())
		larger := s.binary("gt", lib.AtgGtTensor, z, last)
		equal := s.binary("eq", lib.AtgEqTensor, z, last)
		room := s.addScalar(s.neg(s.sumLast(larger)), float64(a.k()))
		chosen := s.binary("logical_and", lib.AtgLogicalAnd, equal, s.binary("le", lib.AtgLeTensor, s.cumsumLast(equal), room))
		fires = s.binary("logical_and", lib.AtgLogicalAnd, fires, s.binary("logical_or", lib.AtgLogicalOr, larger, chosen))
	}
	f.dense = s.mul(z, fires)
	e.readSparse(s, f, fires)
	return f
}

// readSparse brings coordinates and values to the host: nonzero lists them by token, then latent.
func (e *composedEncoder) readSparse(s *scope, f *firings, fires tensor) {
	at := s.nonzero(fires)
	values := s.masked(f.dense, fires)
	if s.err != nil {
		return
	}
	n := shapeOf(at)[0]
	pairs := make([]int64, 2*n)
	s.readInts(at, pairs)
	f.values = make([]float32, n)
	s.read(values, f.values)
	tokens := int(shapeOf(f.dense)[0])
	f.counts, f.starts, f.latents = make([]int32, tokens), make([]int, tokens), make([]uint32, n)
	for i := range f.latents {
		f.counts[pairs[2*i]]++
		f.latents[i] = uint32(pairs[2*i+1])
	}
	for i := 1; i < tokens; i++ {
		f.starts[i] = f.starts[i-1] + int(f.counts[i-1])
	}
}

func (e *composedEncoder) dense(_ *scope, f *firings) tensor { return f.dense }

func (e *composedEncoder) decode(s *scope, dense tensor, f *firings) tensor {
	a := e.a
	if a.unscale != nil {
		dense = s.mul(dense, a.unscale)
	}
	y := s.add(s.mm(dense, a.wDec), a.bDec)
	switch a.mode {
	case constantNorm:
		y = s.div(y, f.undo)
	case layerNorm:
		y = s.add(s.mul(y, f.undo), f.undo2)
	}
	return y
}

func (e *composedEncoder) norms(s *scope, x tensor, out []float32) { s.read(s.rowNorms(x), out) }
