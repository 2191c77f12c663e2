package torch

import (
	lib "github.com/sugarme/gotch/libtch"
)

// composed computes with libtorch's own operations. Where a model's dtype is not float32 it rounds where
// transformers does: norms and rotation angles are computed in float32, all else is in the model's dtype.
type composed struct {
	m        *Model
	cos, sin tensor // [tokens, d_head], of the batch in hand
}

func (*composed) padded() bool { return true }

func (e *composed) begin(s *scope, b *packed) {
	half := int64(len(e.m.inverse))
	tokens := int64(b.longest())
	cos, sin := rotation(e.m.inverse, int(tokens))
	c, n := e.m.typed(s, s.floats(cos, tokens, half)), e.m.typed(s, s.floats(sin, tokens, half))
	e.cos, e.sin = s.cat(-1, c, c), s.cat(-1, n, n)
}

func (e *composed) embed(s *scope, b *packed, table weight) tensor {
	ids := make([]int64, len(b.ids))
	for i, id := range b.ids {
		ids[i] = int64(id)
	}
	return s.rows(table.t, s.ints(ids, int64(len(ids))))
}

// norm is LlamaRMSNorm: weight · (x · rsqrt(mean(x²) + eps)), in float32 but for the weight.
func (e *composed) norm(s *scope, x tensor, w weight) tensor {
	x = s.float32(x)
	scale := s.rsqrt(s.addScalar(s.meanLast(s.square(x)), e.m.config.NormEps))
	return s.mul(w.t, e.m.typed(s, s.mul(x, scale)))
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

func (e *composed) gated(s *scope, x tensor, l *layer) tensor {
	return s.mul(s.silu(e.project(s, x, l.gate)), e.project(s, x, l.up))
}

func (e *composed) attention(s *scope, b *packed, l *layer, x tensor) tensor {
	c := e.m.config
	batch, tokens, width := int64(len(b.sequences)), b.padded, int64(c.DHead)
	heads := func(w linear, n int) tensor { // [batch, n, tokens, d_head]
		return s.transpose(s.reshape(e.project(s, x, w), batch, tokens, int64(n), width), 1, 2)
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
	q := e.rotate(s, heads(l.q, c.Heads))
	k := repeat(e.rotate(s, heads(l.k, c.KVHeads)))
	v := repeat(heads(l.v, c.KVHeads))
	mixed := s.transpose(s.causalAttention(q, k, v), 1, 2)
	return s.reshape(mixed, batch*tokens, int64(c.Heads)*width)
}

// rotate is apply_rotary_pos_emb: x · cos + rotate_half(x) · sin.
func (e *composed) rotate(s *scope, x tensor) tensor {
	half := int64(len(e.m.inverse))
	turned := s.cat(-1, s.neg(s.narrow(x, -1, half, half)), s.narrow(x, -1, 0, half))
	return s.add(s.mul(x, e.cos), s.mul(turned, e.sin))
}
