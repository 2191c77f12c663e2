package torch

import (
	"fmt"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// weight is one parameter: [out, in] of a projection, [width] of a norm or bias.
type weight struct {
	t     tensor   // on the model's device; lives as long as the model
	turn  tensor   // a projection's transposed view, [in, out]
	data  *float32 // on the CPU, else nil
	owned block    // its memory, unless that is the checkpoint's mapping
}

type linear struct{ weight, bias weight } // bias.t is nil where there is none

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

func (m *Model) optional(s *scope, name string, present bool) weight {
	if !present {
		return weight{}
	}
	return m.parameter(s, name)
}

// parameter binds a checkpoint's tensor. Float32 in a mapped file is used where it lies; all else is
// converted into memory of our own.
func (m *Model) parameter(s *scope, name string) weight {
	if s.err != nil {
		return weight{}
	}
	found, err := m.source.Tensor(name)
	if err != nil {
		s.fail(fmt.Errorf("weights: %w", err))
		return weight{}
	}
	values, err := found.Float32()
	if err != nil || len(values) == 0 {
		s.fail(fmt.Errorf("weights: tensor %s: %w", name, err))
		return weight{}
	}
	var w weight
	w.data = &values[0]
	mapped := m.source.GGUF() == nil && unsafe.Pointer(w.data) == unsafe.Pointer(unsafe.SliceData(found.Data))
	if !mapped {
		if w.owned, err = copyToBlock(values); err != nil {
			s.fail(fmt.Errorf("weights: tensor %s: %w", name, err))
			return weight{}
		}
		w.data = (*float32)(w.owned.data)
	}
	shape := make([]int64, len(found.Shape))
	for i, n := range found.Shape {
		shape[i] = int64(n)
	}
	t := s.blob(unsafe.Pointer(w.data), shape[len(shape)-1], float32Type, shape...)
	if s.device != cpu {
		w.data = nil
		t = s.toDevice(t)
		w.owned.free()
	}
	if len(shape) == 2 {
		w.turn = s.t(t)
	}
	if s.err != nil {
		w.owned.free()
		return weight{}
	}
	w.t = s.disown(t)
	if w.turn != nil {
		s.disown(w.turn)
	}
	m.weights = append(m.weights, w)
	return w
}

func (w *weight) free() {
	for _, t := range []tensor{w.turn, w.t} {
		if t != nil {
			lib.AtFree(t)
		}
	}
	w.t, w.turn, w.data = nil, nil, nil
	w.owned.free()
}
