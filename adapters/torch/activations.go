package torch

import (
	"context"
	"fmt"
)

// Activations holds what one forward pass showed, padded to the longest sequence; places of padding
// hold zeros.
type Activations struct {
	Batch, Seq int
	DModel     int
	Hooks      map[Hook][]float32 // [Batch, Seq, Width]
	Widths     map[Hook]int       // DModel but for a few hooks (Model.Width)
	Vocab      int
	Logits     []float32 // [Batch, Seq, Vocab], nil unless asked for
}

// Activations runs sequences of any lengths through the model, up to the last hook only unless
// logits are asked for.
func (m *Model) Activations(ctx context.Context, sequences [][]int32, hooks []Hook, logits bool) (Activations, error) {
	wanted := map[Hook]bool{}
	for _, h := range hooks {
		if err := m.Check(h); err != nil {
			return Activations{}, err
		}
		wanted[h] = true
	}
	if err := checkIDs(sequences, m.config.Vocab); err != nil {
		return Activations{}, err
	}
	a := Activations{Batch: len(sequences), DModel: m.config.DModel, Hooks: map[Hook][]float32{}, Widths: map[Hook]int{}, Vocab: m.config.Vocab}
	for _, ids := range sequences {
		a.Seq = max(a.Seq, len(ids))
	}
	for h := range wanted {
		a.Widths[h] = m.Width(h)
		a.Hooks[h] = make([]float32, a.Batch*a.Seq*a.Widths[h])
	}
	if logits {
		a.Logits = make([]float32, a.Batch*a.Seq*a.Vocab)
	}
	for _, g := range groups(sequences, m.tokensPerForward) {
		err := m.runtime.do(ctx, func(s *scope) error {
			return m.activate(s, sequences[g[0]:g[1]], g[0], wanted, &a)
		})
		if err != nil {
			return Activations{}, fmt.Errorf("forward: %w", err)
		}
	}
	return a, nil
}

func (m *Model) activate(s *scope, sequences [][]int32, first int, wanted map[Hook]bool, a *Activations) error {
	b := pack(sequences, m.exec.padded())
	if b.rows() == 0 {
		return nil
	}
	rows := make([]float32, b.rows()*int64(max(a.DModel, m.config.DFF, m.config.Heads*m.config.DHead)))
	m.forward(s, b, wanted, a.Logits != nil, func(s *scope, h Hook, x tensor) {
		if h.Point == "" {
			m.readLogits(s, b, first, x, a)
			return
		}
		width := a.Widths[h]
		s.read(x, rows[:b.rows()*int64(width)])
		b.spread(rows, width, a.Hooks[h], first, a.Seq)
	})
	return s.err
}

// readLogits multiplies by the head a few rows at a time: all at once would be batch × vocabulary.
func (m *Model) readLogits(s *scope, b *packed, first int, x tensor, a *Activations) {
	const chunk = 256
	head := m.outputHead(s)
	rows := make([]float32, b.rows()*int64(a.Vocab))
	for start := int64(0); start < b.rows() && s.alive(); start += chunk {
		n := min(chunk, b.rows()-start)
		s.inner(func(s *scope) tensor {
			logits := s.mm(s.narrow(x, 0, start, n), head.weight.turn)
			if head.bias.t != nil {
				logits = s.add(logits, head.bias.t)
			}
			if c := m.config.LogitSoftcap; c > 0 {
				logits = s.softcap(logits, c)
			}
			s.read(logits, rows[start*int64(a.Vocab):(start+n)*int64(a.Vocab)])
			return nil
		})
	}
	b.spread(rows, a.Vocab, a.Logits, first, a.Seq)
}

// spread copies rows to [batch, seq, width], the packed batch being sequences first, first+1, ….
func (b *packed) spread(rows []float32, width int, to []float32, first, seq int) {
	for i, start := range b.starts {
		target := (first + i) * seq * width
		copy(to[target:target+int(b.lengths[i])*width], rows[int(start)*width:])
	}
}
