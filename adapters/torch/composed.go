package torch

import (
	"math"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// composed computes with libtorch's own operations. Where a model's dtype is not float32 it rounds where
// transformers does: norms and rotation angles are computed in float32, all else is in the model's dtype.
type composed struct {
	m             *Model
	global, local angles // of the batch in hand
}

// angles are cosines and sines, [tokens, d] or, where a sequence's length matters, [batch, 1, tokens, d].
type angles struct{ cos, sin tensor }

func (*composed) padded() bool { return true }

func (e *composed) begin(s *scope, b *packed) {
	c := e.m.config
	if c.Rotary == 0 {
		return
	}
	e.global = e.angles(s, b, c.Rope)
	if c.LocalRope != nil {
		e.local = e.angles(s, b, *c.LocalRope)
	}
}

func (e *composed) angles(s *scope, b *packed, r checkpoint.Rope) angles {
	pairs, tokens := int64(e.m.config.Rotary/2), b.longest()
	lengths := []int64{int64(tokens)}
	if bySequence(r) {
		lengths = b.lengths
	}
	var cos, sin []float32
	for _, n := range lengths {
		inverse, scale := frequencies(r, e.m.config.Rotary, int(n))
		c, n := rotation(inverse, tokens)
		if scale != 1 {
			for i := range c {
				c[i], n[i] = c[i]*scale, n[i]*scale
			}
		}
		cos, sin = append(cos, c...), append(sin, n...)
	}
	shape := []int64{int64(tokens), pairs}
	if bySequence(r) {
		shape = []int64{int64(len(lengths)), 1, int64(tokens), pairs}
	}
	c, n := e.m.typed(s, s.floats(cos, shape...)), e.m.typed(s, s.floats(sin, shape...))
	if e.m.config.RotaryPairs {
		return angles{c, n}
	}
	return angles{s.cat(-1, c, c), s.cat(-1, n, n)}
}

func (e *composed) embed(s *scope, b *packed, table weight) tensor { return e.rows(s, table, b.ids) }

func (e *composed) rows(s *scope, table weight, index []int32) tensor {
	ids := make([]int64, len(index))
	for i, id := range index {
		ids[i] = int64(id)
	}
	return s.rows(table.t, s.ints(ids, int64(len(ids))))
}

// norm is weight · (x · rsqrt(mean(x²) + eps)) in float32, or a layer norm. Where that is not the model's
// dtype, most families round before the weight too.
func (e *composed) norm(s *scope, x tensor, n gain) tensor {
	if n.bias.t != nil {
		return s.layerNorm(x, n, e.m.config.NormEps)
	}
	x = s.float32(x)
	x = s.mul(x, s.rsqrt(s.addScalar(s.meanLast(s.square(x)), e.m.config.NormEps)))
	if !e.m.config.NormRoundsOnce {
		x = e.m.typed(s, x)
	}
	return e.m.typed(s, s.mul(n.weight.t, x))
}

func (e *composed) project(s *scope, x tensor, w linear) tensor {
	if w.bias.t == nil {
		return s.mm(x, w.weight.turn)
	}
	return s.op("linear", []tensor{x, w.weight.t, w.bias.t}, func(o *tensor) { lib.AtgLinear(o, x, w.weight.t, w.bias.t) })
}

func (e *composed) add(s *scope, x, y tensor) tensor { return s.add(x, y) }

func (e *composed) addProjection(s *scope, x, h tensor, w linear) tensor {
	return s.add(x, e.project(s, h, w))
}

func (e *composed) hidden(s *scope, l *layer, x tensor) tensor {
	act := e.m.config.HiddenAct
	if !e.m.config.Gated {
		return s.activate(act, e.project(s, x, l.up))
	}
	return s.mul(s.activate(act, e.project(s, x, l.gate)), e.project(s, x, l.up))
}

func (e *composed) attention(s *scope, b *packed, l *layer, x tensor) tensor {
	c := e.m.config
	batch, tokens, width := int64(len(b.sequences)), b.padded, int64(c.DHead)
	heads := func(w linear, n int, norm gain) tensor { // [batch, n, tokens, d_head]
		t := e.project(s, x, w)
		if c.QKNorm == checkpoint.NormProjections && norm.there() {
			t = e.norm(s, t, norm)
		}
		t = s.reshape(t, batch, tokens, int64(n), width)
		if c.QKNorm == checkpoint.NormHeads && norm.there() {
			t = e.norm(s, t, norm)
		}
		return s.transpose(t, 1, 2)
	}
	repeat := func(t tensor) tensor { // each key/value head serves Heads/KVHeads query heads
		group := int64(c.Heads / c.KVHeads)
		if group == 1 {
			return t
		}
		kv := int64(c.KVHeads)
		wide := s.expand(s.reshape(t, batch, kv, 1, tokens, width), batch, kv, group, tokens, width)
		return s.reshape(wide, batch, int64(c.Heads), tokens, width)
	}
	q := e.rotate(s, l, heads(l.q, c.Heads, l.qNorm))
	k := repeat(e.rotate(s, l, heads(l.k, c.KVHeads, l.kNorm)))
	v := repeat(heads(l.v, c.KVHeads, gain{}))
	mixed := s.transpose(e.mix(s, l, q, k, v, tokens), 1, 2)
	return s.reshape(mixed, batch*tokens, int64(c.Heads)*width)
}

// mix is causal attention: q, k, v [batch, heads, tokens, d_head].
func (e *composed) mix(s *scope, l *layer, q, k, v tensor, tokens int64) tensor {
	c := e.m.config
	scale := c.AttentionScale
	if c.ScaleByLayer {
		scale /= float64(l.index + 1)
	}
	window := int64(c.WindowOf(l.index))
	if window == 0 || window > tokens {
		window = tokens
	}
	if c.AttentionSoftcap == 0 && window == tokens {
		if by := scale * math.Sqrt(float64(c.DHead)); math.Abs(by-1) > 1e-12 {
			q = s.mulScalar(q, by)
		}
		return s.causalAttention(q, k, v)
	}
	// A block of queries at a time: what none of them sees is never computed.
	const block = 256
	var blocks []tensor
	for first := int64(0); first < tokens && s.alive(); first += block {
		n := min(block, tokens-first)
		from := max(0, first-window+1)
		seen := first + n - from
		blocks = append(blocks, s.inner(func(s *scope) tensor {
			scores := s.matmul(s.narrow(q, 2, first, n), s.transpose(s.narrow(k, 2, from, seen), 2, 3))
			scores = s.mulScalar(s.float32(scores), scale)
			if c.AttentionSoftcap > 0 {
				scores = s.softcap(scores, c.AttentionSoftcap)
			}
			weights := e.m.typed(s, s.softmaxLast(s.add(scores, causalMask(s, first, n, from, seen, window))))
			return s.matmul(weights, s.narrow(v, 2, from, seen))
		}))
	}
	if len(blocks) == 1 {
		return blocks[0]
	}
	return s.cat(2, blocks...)
}

// causalMask is −∞ where query first+i must not see key from+j: it sees itself and what is less than window tokens before.
func causalMask(s *scope, first, queries, from, keys, window int64) tensor {
	mask := make([]float32, queries*keys)
	for i := range queries {
		for j := range keys {
			if back := first + i - from - j; back < 0 || back >= window {
				mask[i*keys+j] = float32(math.Inf(-1))
			}
		}
	}
	return s.floats(mask, queries, keys)
}

// rotate turns the first Rotary dimensions of each head.
func (e *composed) rotate(s *scope, l *layer, x tensor) tensor {
	c := e.m.config
	if c.Rotary == 0 || s.err != nil {
		return x
	}
	by := e.global
	if c.LocalRope != nil && c.WindowOf(l.index) > 0 {
		by = e.local
	}
	turning, dims := x, int64(c.Rotary)
	if c.Rotary < c.DHead {
		turning = s.narrow(x, -1, 0, dims)
	}
	half := dims / 2
	var turned tensor
	if c.RotaryPairs { // (a, b) of neighbours
		shape := shapeOf(turning)
		pairs := s.reshape(turning, shape[0], shape[1], shape[2], half, 2)
		part := func(i int64) tensor {
			return s.reshape(s.narrow(pairs, -1, i, 1), shape[0], shape[1], shape[2], half)
		}
		a, b := part(0), part(1)
		first := s.sub(s.mul(a, by.cos), s.mul(b, by.sin))
		second := s.add(s.mul(b, by.cos), s.mul(a, by.sin))
		column := func(t tensor) tensor { return s.reshape(t, shape[0], shape[1], shape[2], half, 1) }
		turned = s.reshape(s.cat(-1, column(first), column(second)), shape...)
	} else { // apply_rotary_pos_emb: x · cos + rotate_half(x) · sin
		swapped := s.cat(-1, s.neg(s.narrow(turning, -1, half, half)), s.narrow(turning, -1, 0, half))
		turned = s.add(s.mul(turning, by.cos), s.mul(swapped, by.sin))
	}
	if c.Rotary == c.DHead {
		return turned
	}
	return s.cat(-1, turned, s.narrow(x, -1, dims, int64(c.DHead)-dims))
}
