package torch

// #include "kernels.h"
import "C"

import (
	"fmt"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// fused computes in a workspace that batches share: matrix products by libtorch, all else by the
// kernels of kernels.h in one pass over memory. Sequences lie end to end, without padding.
type fused struct {
	m             *Model
	threads       int
	global, local turns
}

// turns is a rotary embedding, grown to the longest sequence.
type turns struct {
	inverse  []float32
	scale    float32   // of cosines and sines
	cos, sin []float32 // [positions, pairs]
}

func (t *turns) grow(r checkpoint.Rope, dims, positions int) {
	if t.inverse == nil {
		t.inverse, t.scale = frequencies(r, dims, 0)
	}
	have := len(t.cos) / len(t.inverse)
	if positions <= have {
		return
	}
	t.cos, t.sin = rotation(t.inverse, max(positions, 2*have))
	for i := range t.cos {
		t.cos[i], t.sin[i] = t.cos[i]*t.scale, t.sin[i]*t.scale
	}
}

func (*fused) padded() bool { return false }

func (e *fused) begin(_ *scope, b *packed) {
	c := e.m.config
	if c.Rotary == 0 {
		return
	}
	e.global.grow(c.Rope, c.Rotary, b.longest())
	if c.LocalRope != nil {
		e.local.grow(*c.LocalRope, c.Rotary, b.longest())
	}
}

func pointer(t tensor) *C.float { return (*C.float)(lib.AtDataPtr(t)) }

func cfloats(v []float32) *C.float { return (*C.float)(unsafe.Pointer(unsafe.SliceData(v))) }

func (e *fused) embed(s *scope, b *packed, table weight) tensor {
	d := int64(e.m.config.DModel)
	x := e.m.work.matrix(s, "residual", b.rows(), d)
	if s.err != nil {
		return nil
	}
	C.fm_gather_rows(pointer(x), (*C.float)(unsafe.Pointer(table.data)), (*C.int32_t)(&b.ids[0]), C.int64_t(b.rows()), C.int64_t(d), C.int(e.threads))
	return x
}

func (e *fused) norm(s *scope, x tensor, n gain) tensor {
	if n.bias.t != nil {
		return s.layerNorm(x, n, e.m.config.NormEps)
	}
	if s.err != nil {
		return nil
	}
	shape := shapeOf(x)
	out := e.m.work.matrix(s, "normed", shape[0], shape[1])
	if s.err != nil {
		return nil
	}
	C.fm_rms_norm(pointer(out), pointer(x), (*C.float)(unsafe.Pointer(n.weight.data)), C.int64_t(shape[0]), C.int64_t(shape[1]), C.float(e.m.config.NormEps), C.int(e.threads))
	return out
}

// into is out = x · Wᵀ + bias.
func (e *fused) into(s *scope, out, x tensor, w linear) {
	if w.bias.t == nil {
		s.mmInto(out, x, w.weight.turn)
		return
	}
	s.addmmInto(out, w.bias.t, x, w.weight.turn)
}

func (e *fused) project(s *scope, x tensor, w linear) tensor {
	if s.err != nil {
		return nil
	}
	out := e.m.work.matrix(s, "projected", shapeOf(x)[0], shapeOf(w.weight.t)[0])
	e.into(s, out, x, w)
	return out
}

func (e *fused) add(s *scope, x, y tensor) tensor { return s.addInto(x, y) }

func (e *fused) addProjection(s *scope, x, h tensor, w linear) tensor {
	x = s.accumulate(x, h, w.weight.turn)
	if w.bias.t != nil {
		x = s.addInto(x, w.bias.t)
	}
	return x
}

func (e *fused) hidden(s *scope, l *layer, x tensor) tensor {
	if s.err != nil {
		return nil
	}
	c := e.m.config
	rows, width := shapeOf(x)[0], int64(c.DFF)
	up := e.m.work.matrix(s, "up", rows, width)
	e.into(s, up, x, l.up)
	if !c.Gated {
		return s.activateInto(c.HiddenAct, up)
	}
	gate := e.m.work.matrix(s, "gate", rows, width)
	e.into(s, gate, x, l.gate)
	if s.err != nil {
		return nil
	}
	if c.HiddenAct != "silu" && c.HiddenAct != "swish" {
		return s.binary("mul_", lib.AtgMul_, s.activateInto(c.HiddenAct, gate), up)
	}
	C.fm_silu_gate(pointer(gate), pointer(up), C.int64_t(rows), C.int64_t(width), C.int(e.threads))
	return gate
}

func (e *fused) attention(s *scope, b *packed, l *layer, x tensor) tensor {
	if s.err != nil {
		return nil
	}
	c := e.m.config
	rows, width := b.rows(), int64(c.DHead)
	q, kv := int64(c.Heads)*width, int64(c.KVHeads)*width
	stride := q + 2*kv
	all, err := e.m.work.bytes("qkv", 4*rows*stride)
	if err != nil {
		s.fail(err)
		return nil
	}
	// Queries, keys and values are column ranges of one matrix: q and k turn in one pass.
	column := func(first int64) unsafe.Pointer { return unsafe.Add(all.data, 4*first) }
	e.into(s, s.blob(column(0), stride, float32Type, rows, q), x, l.q)
	e.into(s, s.blob(column(q), stride, float32Type, rows, kv), x, l.k)
	e.into(s, s.blob(column(q+kv), stride, float32Type, rows, kv), x, l.v)
	mixed := e.m.work.matrix(s, "mixed", rows, q)
	if s.err != nil {
		return nil
	}
	e.normHeads(all, stride, rows, q, c.Heads, l.qNorm)
	e.normHeads(block{data: column(q)}, stride, rows, kv, c.KVHeads, l.kNorm)
	if c.Rotary > 0 {
		by, pairs := &e.global, C.int(0)
		if c.LocalRope != nil && c.WindowOf(l.index) > 0 {
			by = &e.local
		}
		if c.RotaryPairs {
			pairs = 1
		}
		C.fm_rope(all.cfloats(), C.int64_t(stride), C.int64_t(rows), C.int64_t(c.Heads+c.KVHeads), C.int64_t(width), C.int64_t(c.Rotary), pairs,
			(*C.int32_t)(&b.positions[0]), cfloats(by.cos), cfloats(by.sin), C.int(e.threads))
	}
	scale := c.AttentionScale
	if c.ScaleByLayer {
		scale /= float64(l.index + 1)
	}
	if C.fm_attention(pointer(mixed), (*C.float)(column(0)), (*C.float)(column(q)), (*C.float)(column(q+kv)), C.int64_t(stride),
		(*C.int64_t)(&b.starts[0]), (*C.int64_t)(&b.lengths[0]), C.int64_t(len(b.starts)),
		C.int64_t(c.Heads), C.int64_t(c.KVHeads), C.int64_t(width), C.float(scale), C.float(c.AttentionSoftcap), C.int64_t(c.WindowOf(l.index)), C.int(e.threads)) != 0 {
		s.fail(fmt.Errorf("%w for attention scores", ErrNoMemory))
		return nil
	}
	return mixed
}

// normHeads is the norm of queries or keys, if there is one: of each head, or of all together.
func (e *fused) normHeads(x block, stride, rows, width int64, heads int, n gain) {
	if !n.there() {
		return
	}
	if e.m.config.QKNorm == checkpoint.NormProjections {
		heads = 1
	}
	C.fm_head_norm(x.cfloats(), C.int64_t(stride), (*C.float)(unsafe.Pointer(n.weight.data)), C.int64_t(rows), C.int64_t(heads), C.int64_t(width/int64(heads)),
		C.float(e.m.config.NormEps), C.int(e.threads))
}
