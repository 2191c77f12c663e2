package torch

type layer struct {
	attnNorm, mlpNorm weight
	q, k, v, o        linear
	gate, up, down    linear
}

// layerWeights loads a layer when it is first needed: what lies above the hook is never read.
func (m *Model) layerWeights(s *scope, n int) *layer {
	if m.layers[n] != nil || s.err != nil {
		return m.layers[n]
	}
	f, c := m.family, m.config
	load := func(pattern string, hasBias bool) linear {
		name := layerName(pattern, n)
		return linear{weight: m.parameter(s, name+".weight"), bias: m.optional(s, name+".bias", hasBias)}
	}
	l := &layer{
		attnNorm: m.parameter(s, layerName(f.attnNorm, n)+".weight"),
		mlpNorm:  m.parameter(s, layerName(f.mlpNorm, n)+".weight"),
		q:        load(f.q, c.AttentionBias),
		k:        load(f.k, c.AttentionBias),
		v:        load(f.v, c.AttentionBias),
		o:        load(f.o, c.OutputBias),
		gate:     load(f.gate, c.MLPBias),
		up:       load(f.up, c.MLPBias),
		down:     load(f.down, c.MLPBias),
	}
	if s.err == nil {
		m.layers[n] = l
	}
	return m.layers[n]
}
