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
	modules map[string]stage // what Hugging Face's modules read and write

	exec             executor
	weights          []weight // all that were loaded, to be freed
	embedding        weight
	learned          weight // positions
	finalNorm        gain
	head             linear
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
	model := &Model{runtime: r, source: m, config: c, modules: moduleStages(c), layers: make([]*layer, c.Layers), tokensPerForward: forwardTokens}
	model.exec = newExecutor(model, r.device)
	if r.device != cpu { // many small products keep a GPU waiting
		model.tokensPerForward *= 16
	}
	err := r.do(ctx, func(s *scope) error {
		names := c.Modules()
		model.embedding = model.parameter(s, names.Name(names.Embedding)+".weight")
		model.learned = model.optional(s, names.Name(names.Positions)+".weight", c.LearnedPositions)
		model.finalNorm = model.norm(s, names.Name(names.FinalNorm))
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

// forward runs a packed batch up to the last hook that is wanted and hands each hook's activations,
// [rows, Width], to visit while they are there. With logits it runs to the end and hands the final
// normalised state to visit as a zero Hook.
func (m *Model) forward(s *scope, b *packed, wanted map[Hook]bool, logits bool, visit func(*scope, Hook, tensor)) {
	p := &pass{m: m, b: b, visit: visit, hooks: map[site][]Hook{}, last: -1}
	for h := range wanted {
		at, err := m.site(h)
		if err != nil {
			s.fail(err)
			return
		}
		p.hooks[at] = append(p.hooks[at], h)
		p.last = max(p.last, at.depth())
	}
	if logits {
		p.last = m.config.Layers * int(stages)
	}
	if c := m.config; c.LearnedPositions && b.longest() > c.MaxPositions {
		s.fail(&LengthError{Tokens: b.longest(), Positions: c.MaxPositions})
		return
	}
	m.exec.begin(s, b)
	x := p.embed(s)
	for l := 0; l < m.config.Layers && !p.over(l, atResidPre) && s.alive(); l++ {
		w := m.layerWeights(s, l)
		if s.err != nil {
			return
		}
		before := x
		x = p.layer(s, w, before)
		s.drop(before)
		if x == nil {
			return
		}
	}
	if logits && s.err == nil {
		visit(s, Hook{}, m.exec.norm(s, x, m.finalNorm))
	}
}

// outputHead is the head, its weights the embedding's where they are tied.
func (m *Model) outputHead(s *scope) linear {
	if m.head.weight.t == nil {
		names := m.config.Modules()
		if m.head.weight = m.embedding; !m.config.TiedEmbeddings {
			m.head.weight = m.parameter(s, names.Name(names.Head)+".weight")
		}
		m.head.bias = m.optional(s, names.Name(names.Head)+".bias", m.config.HeadBias)
	}
	return m.head
}
