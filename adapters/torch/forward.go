package torch

import (
	"math"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// pass is one batch on its way through the layers.
type pass struct {
	m     *Model
	b     *packed
	hooks map[site][]Hook // what is wanted, and where
	last  int             // depth of the last of them
	visit func(*scope, Hook, tensor)
}

// over says that nothing is wanted from here on.
func (p *pass) over(layer int, a stage) bool { return (site{layer, a}).depth() > p.last }

func (p *pass) wants(layer int, a stage) bool { return len(p.hooks[site{layer, a}]) > 0 }

// tap shows t to all hooks that mean this stage.
func (p *pass) tap(s *scope, layer int, a stage, t tensor) {
	for _, h := range p.hooks[site{layer, a}] {
		s.inner(func(s *scope) tensor {
			shown := s.float32(t)
			if h.Centred && a.written() && p.m.config.Norm == checkpoint.LayerNorm {
				shown = s.centred(shown)
			}
			if s.err == nil {
				p.visit(s, h, shown)
			}
			return nil
		})
	}
}

// embed is the residual stream before the first layer.
func (p *pass) embed(s *scope) tensor {
	m := p.m
	x := m.exec.embed(s, p.b, m.embedding)
	p.tap(s, 0, atEmbedding, x)
	if m.config.EmbeddingScale != 1 {
		x = s.mulScalar(x, m.rounded(m.config.EmbeddingScale))
	}
	p.tap(s, 0, atEmbed, x)
	if m.config.LearnedPositions {
		x = s.add(x, s.rows(m.learned.t, s.ints(p.b.index(), p.b.rows())))
	}
	return x
}

// rounded is a constant as it is in the model's dtype, in which transformers keeps it.
func (m *Model) rounded(x float64) float64 {
	switch bits := math.Float32bits(float32(x)); m.runtime.dtype {
	case bfloat16Type: // to nearest, ties to even
		return float64(math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff))
	case float16Type:
		return float64(math.Float32frombits((bits + 0xfff + bits>>13&1) &^ 0x1fff))
	}
	return x
}

// layer gives the residual stream after a layer, or nil where nothing after it is wanted.
func (p *pass) layer(s *scope, w *layer, x tensor) tensor {
	l := w.index
	p.tap(s, l, atResidPre, x)
	if p.over(l, atLN1) {
		return nil
	}
	y := s.inner(func(s *scope) tensor {
		in := p.read(s, l, x, w.attnNorm, atLN1, atAttnIn)
		if p.over(l, atZ) {
			return nil
		}
		mixed := p.m.exec.attention(s, p.b, w, in)
		p.tap(s, l, atZ, mixed)
		switch {
		case p.over(l, atAttn):
			return nil
		case p.m.config.Parallel:
			return p.parallel(s, w, x, in, mixed)
		}
		return p.write(s, l, x, mixed, w.o, w.attnPostNorm, atAttn, atAttnOut)
	})
	if y != nil && !p.m.config.Parallel {
		p.tap(s, l, atResidMid, y)
		z := s.inner(func(s *scope) tensor {
			if p.over(l, atLN2) {
				return nil
			}
			return p.mlp(s, w, y, p.read(s, l, y, w.mlpNorm, atLN2, atMLPIn))
		})
		s.drop(y)
		y = z
	}
	if y != nil {
		p.tap(s, l, atResidPost, y)
	}
	return y
}

// mlp reads in and adds to x; it is nil where nothing of it is wanted.
func (p *pass) mlp(s *scope, w *layer, x, in tensor) tensor {
	l := w.index
	if p.over(l, atMLPPost) {
		return nil
	}
	hidden := p.m.exec.hidden(s, w, in)
	p.tap(s, l, atMLPPost, hidden)
	if p.over(l, atMLP) {
		return nil
	}
	return p.write(s, l, x, hidden, w.down, w.mlpPostNorm, atMLP, atMLPOut)
}

// parallel: attention and MLP read x, and both are added to it. in is what attention read.
func (p *pass) parallel(s *scope, w *layer, x, in, mixed tensor) tensor {
	l := w.index
	attended := p.m.exec.project(s, mixed, w.o)
	p.tap(s, l, atAttnOut, attended)
	if p.over(l, atLN2) {
		return nil
	}
	if !p.m.config.SharedNorm {
		in = p.read(s, l, x, w.mlpNorm, atLN2, atMLPIn)
	}
	if p.over(l, atMLPPost) {
		return nil
	}
	return p.mlp(s, w, p.m.exec.add(s, x, attended), in)
}

// read is x as a block reads it: through its norm, if it has one.
func (p *pass) read(s *scope, l int, x tensor, n gain, normed, in stage) tensor {
	if p.wants(l, normed) {
		s.inner(func(s *scope) tensor {
			p.tap(s, l, normed, p.m.normalized(s, x))
			return nil
		})
	}
	if p.over(l, in) {
		return nil
	}
	if n.there() {
		x = p.m.exec.norm(s, x, n)
	}
	p.tap(s, l, in, x)
	return x
}

// write adds a block's last projection to the residual stream: through a norm, if one stands there.
func (p *pass) write(s *scope, l int, x, h tensor, w linear, post gain, raw, out stage) tensor {
	exec := p.m.exec
	if !post.there() && !p.wants(l, out) {
		return exec.addProjection(s, x, h, w)
	}
	y := exec.project(s, h, w)
	if post.there() {
		p.tap(s, l, raw, y)
		y = exec.norm(s, y, post)
	}
	p.tap(s, l, out, y)
	return exec.add(s, x, y)
}

// normalized is x as a norm makes it before its weight.
func (m *Model) normalized(s *scope, x tensor) tensor {
	x = s.float32(x)
	if m.config.Norm == checkpoint.LayerNorm {
		x = s.centred(x)
	}
	return s.mul(x, s.rsqrt(s.addScalar(s.meanLast(s.square(x)), m.config.NormEps)))
}
