package torch

import (
	"context"
	"fmt"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// Model is a decoder on a device.
type Model struct {
	runtime *Runtime
	source  *checkpoint.Model
	config  checkpoint.ModelConfig
	family  family
	inverse []float32 // rotary frequencies

	exec             executor
	weights          []weight // all that were loaded, to be freed
	embedding        weight
	finalNorm, head  weight
	layers           []*layer // nil until needed
	work             workspace
	tokensPerForward int
}

// forwardTokens bounds the rows of one forward pass, and with them the workspace: more makes matrix
// products no faster (measured with SmolLM2: equal within 2 % from 512 to 4,096).
const forwardTokens = 1024

// LoadModel binds a checkpoint's weights. m must stay open until the model is closed: float32
// weights are used where the file is mapped.
func (r *Runtime) LoadModel(ctx context.Context, m *checkpoint.Model) (*Model, error) {
	c := m.Config()
	f, err := familyOf(c)
	if err != nil {
		return nil, err
	}
	if c.Rope.Scaling != "" && c.Rope.Scaling != "llama3" {
		return nil, &checkpoint.UnsupportedError{Kind: "rope scaling", Name: c.Rope.Scaling, Supported: []string{"llama3"}}
	}
	model := &Model{
		runtime: r, source: m, config: c, family: f,
		inverse: inverseFrequencies(c), layers: make([]*layer, c.Layers), tokensPerForward: forwardTokens,
	}
	model.exec = newExecutor(model, r.device)
	err = r.do(ctx, func(s *scope) error {
		model.embedding = model.parameter(s, f.embedding+".weight")
		model.finalNorm = model.parameter(s, f.finalNorm+".weight")
		return s.err
	})
	if err != nil {
		return nil, fmt.Errorf("load model: %w", err)
	}
	return model, nil
}

// Config is the checkpoint's.
func (m *Model) Config() checkpoint.ModelConfig { return m.config }

// Close gives the weights back.
func (m *Model) Close() error {
	return m.runtime.do(context.Background(), func(*scope) error {
		for i := range m.weights {
			m.weights[i].free()
		}
		m.weights, m.layers = nil, nil
		m.work.free()
		return nil
	})
}

// Check says whether the model has a hook.
func (m *Model) Check(h Hook) error {
	if h.stages() < 0 {
		return &HookError{Name: h.String()}
	}
	if h.Layer < 0 || h.Layer >= m.config.Layers {
		return &LayerError{Hook: h, Layers: m.config.Layers}
	}
	return nil
}

// forward runs a packed batch up to the last hook that is wanted and hands each hook's activations,
// [rows, d_model], to visit while they are there. With logits it runs to the end and hands the final
// normalised state to visit as a zero Hook.
func (m *Model) forward(s *scope, b *packed, wanted map[Hook]bool, logits bool, visit func(*scope, Hook, tensor)) {
	last := -1
	for h := range wanted {
		last = max(last, h.stages())
	}
	if logits {
		last = m.config.Layers * len(points())
	}
	exec := m.exec
	exec.begin(s, b)
	x := exec.embed(s, b, m.embedding)
	tap := func(s *scope, l int, p Point, t tensor) {
		if h := (Hook{l, p}); wanted[h] && s.err == nil {
			visit(s, h, s.float32(t))
		}
	}
	for l := 0; l < m.config.Layers && (Hook{l, ResidPre}).stages() <= last; l++ {
		if !s.alive() {
			return
		}
		w := m.layerWeights(s, l)
		if s.err != nil {
			return
		}
		tap(s, l, ResidPre, x)
		if (Hook{l, AttnOut}).stages() > last {
			return
		}
		before := x
		x = s.inner(func(s *scope) tensor {
			mixed := exec.attention(s, b, w, exec.norm(s, before, w.attnNorm))
			if wanted[Hook{l, AttnOut}] {
				out := exec.project(s, mixed, w.o)
				tap(s, l, AttnOut, out)
				return exec.add(s, before, out)
			}
			return exec.addProjection(s, before, mixed, w.o)
		})
		s.drop(before)
		if (Hook{l, MLPOut}).stages() > last {
			return
		}
		middle := x
		x = s.inner(func(s *scope) tensor {
			hidden := exec.gated(s, exec.norm(s, middle, w.mlpNorm), w)
			if wanted[Hook{l, MLPOut}] {
				out := exec.project(s, hidden, w.down)
				tap(s, l, MLPOut, out)
				return exec.add(s, middle, out)
			}
			return exec.addProjection(s, middle, hidden, w.down)
		})
		s.drop(middle)
		tap(s, l, ResidPost, x)
	}
	if logits && s.err == nil {
		visit(s, Hook{}, exec.norm(s, x, m.finalNorm))
	}
}

// outputHead is lm_head, or the embedding where they are tied.
func (m *Model) outputHead(s *scope) weight {
	if m.config.TiedEmbeddings {
		return m.embedding
	}
	if m.head.t == nil {
		m.head = m.parameter(s, m.family.head+".weight")
	}
	return m.head
}
