package torch

import (
	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// gain is what a norm multiplies by and adds; bias.t is nil for an RMS norm.
type gain struct{ weight, bias weight }

// layer holds what a layer multiplies by; parts that a family does not have are empty.
type layer struct {
	index                                int
	attnNorm, attnPostNorm, qNorm, kNorm gain
	mlpNorm, mlpPostNorm                 gain
	q, k, v, o                           linear
	gate, up, down                       linear
}

func (n gain) there() bool { return n.weight.t != nil }

// layerWeights loads a layer when it is first needed: what lies above the hook is never read.
func (m *Model) layerWeights(s *scope, n int) *layer {
	if m.layers[n] != nil || s.err != nil {
		return m.layers[n]
	}
	c, names := m.config, m.config.Modules()
	load := func(part string, hasBias bool) linear {
		if part == "" {
			return linear{}
		}
		name := names.InLayer(n, part)
		return linear{weight: m.parameter(s, name+".weight"), bias: m.optional(s, name+".bias", hasBias)}
	}
	norms := func(part string) gain {
		if part == "" {
			return gain{}
		}
		return m.norm(s, names.InLayer(n, part))
	}
	l := &layer{
		index:        n,
		attnNorm:     norms(names.AttnNorm),
		attnPostNorm: norms(names.AttnPostNorm),
		mlpNorm:      norms(names.MLPNorm),
		mlpPostNorm:  norms(names.MLPPostNorm),
		q:            load(names.Q, c.AttentionBias),
		k:            load(names.K, c.AttentionBias),
		v:            load(names.V, c.AttentionBias),
		o:            load(names.O, c.OutputBias),
		gate:         load(names.Gate, c.MLPBias),
		up:           load(names.Up, c.MLPBias),
		down:         load(names.Down, c.MLPBias),
	}
	if c.QKNorm != "" {
		l.qNorm, l.kNorm = norms(names.QNorm), norms(names.KNorm)
	}
	if s.err == nil {
		m.layers[n] = l
	}
	return m.layers[n]
}

// norm loads what a norm multiplies by: in float32 for an RMS norm, whatever the model's dtype.
func (m *Model) norm(s *scope, name string) gain {
	if m.config.Norm == checkpoint.LayerNorm {
		return gain{weight: m.parameter(s, name+".weight"), bias: m.parameter(s, name+".bias")}
	}
	return gain{weight: m.parameterAs(s, name+".weight", float32Type)}
}
