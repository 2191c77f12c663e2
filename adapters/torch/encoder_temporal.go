package torch

import (
	"fmt"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// temporalLayer is an attention layer over the codes of a sequence's earlier tokens. Weights are
// [in, out].
type temporalLayer struct {
	k, q, v, c                 tensor
	kBias, qBias, vBias, cBias tensor // nil where there is none
}

func (a *SAE) loadTemporal(sc *scope, t *checkpoint.Temporal) error {
	c := a.config
	switch {
	case t == nil:
		return &checkpoint.FormatError{Fact: "a temporal SAE without attention layers", Want: "attn_layers"}
	case t.Heads < 1 || t.BottleneckDim < t.Heads || t.BottleneckDim%t.Heads != 0 || c.DSAE%t.Heads != 0:
		return &checkpoint.FormatError{Fact: fmt.Sprintf("%d heads over %d key dimensions and %d latents", t.Heads, t.BottleneckDim, c.DSAE), Want: "heads that divide both"}
	case t.TopK < 0 || t.TopK > c.DSAE:
		return &checkpoint.FormatError{Fact: fmt.Sprintf("temporal with d_sae %d and k %d", c.DSAE, t.TopK), Want: "a k from 0 to d_sae"}
	case !(t.Lambda > 0):
		return &checkpoint.FormatError{Fact: fmt.Sprintf("a temporal SAE with lambda %v", t.Lambda), Want: "1 / (4 d_in)"}
	}
	a.temporal = t
	n, bottleneck := int64(c.DSAE), int64(t.BottleneckDim)
	matrix := func(name string, values []float32, out int64) tensor {
		return a.keep(sc, sc.t(a.bind(sc, name, values, out, n)))
	}
	vector := func(name string, values []float32, out int64) tensor {
		if values == nil {
			return nil
		}
		return a.bind(sc, name, values, out)
	}
	for _, l := range t.Layers {
		a.attention = append(a.attention, temporalLayer{
			k: matrix("k_ctx.weight", l.KWeight, bottleneck), kBias: vector("k_ctx.bias", l.KBias, bottleneck),
			q: matrix("q_target.weight", l.QWeight, bottleneck), qBias: vector("q_target.bias", l.QBias, bottleneck),
			v: matrix("v_ctx.weight", l.VWeight, n), vBias: vector("v_ctx.bias", l.VBias, n),
			c: matrix("c_proj.weight", l.CWeight, n), cBias: vector("c_proj.bias", l.CBias, n),
		})
	}
	return sc.err
}

// latents is λ·u·W_enc.
func (e *composedEncoder) latents(s *scope, u tensor) tensor {
	return s.mm(s.mulScalar(u, e.a.temporal.Lambda), e.a.wEnc)
}

// novel takes from u, one sequence's [tokens, d_in], what attention foresees of it, and keeps the
// foreseen codes in f (SAELens 6.54, encode_with_predictions).
func (e *composedEncoder) novel(s *scope, u tensor, f *firings) tensor {
	a := e.a
	if s.err != nil {
		return nil
	}
	tokens := shapeOf(u)[0]
	f.predicted = s.zeros(tokens, int64(a.config.DSAE))
	for _, l := range a.attention {
		codes := s.relu(e.latents(s, u))
		earlier := s.cat(0, s.zeros(1, int64(a.config.DSAE)), s.narrow(codes, 0, 0, tokens-1))
		foreseen := s.relu(e.attend(s, l, earlier, codes))
		image := s.mm(foreseen, a.wDec)
		// The part of u along the image.
		size := s.square(s.addScalar(s.rowNorms(image), 1e-6))
		along := s.div(s.sumLast(s.mul(image, u)), size)
		f.predicted = s.add(f.predicted, s.mul(foreseen, along))
		u = s.sub(u, s.mul(along, image))
	}
	return u
}

// attend is causal attention: queries from every token's codes, keys and values from the codes of
// the token before it.
func (e *composedEncoder) attend(s *scope, l temporalLayer, earlier, codes tensor) tensor {
	if s.err != nil {
		return nil
	}
	heads, tokens := int64(e.a.temporal.Heads), shapeOf(codes)[0]
	project := func(x, w, bias tensor) tensor {
		x = s.mm(x, w)
		if bias != nil {
			x = s.add(x, bias)
		}
		return x
	}
	split := func(x tensor, width int64) tensor { // [1, heads, tokens, width of a head]
		return s.transpose(s.reshape(x, 1, tokens, heads, width/heads), 1, 2)
	}
	bottleneck, width := int64(e.a.temporal.BottleneckDim), int64(e.a.config.DSAE)
	q := split(project(codes, l.q, l.qBias), bottleneck)
	k := split(project(earlier, l.k, l.kBias), bottleneck)
	v := split(project(earlier, l.v, l.vBias), width)
	mixed := s.reshape(s.transpose(s.causalAttention(q, k, v), 1, 2), tokens, width)
	return project(mixed, l.c, l.cBias)
}
