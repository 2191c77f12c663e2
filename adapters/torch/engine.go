package torch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/featuremill/featuremill/adapters/postings"
)

// Engine is the extraction loop's core: a model up to a hook, and the SAE that reads it there.
type Engine struct {
	model     *Model
	sae       *SAE
	hook, out Hook // out is what the SAE rebuilds: hook, unless it is a transcoder

	shared Taps // nil: every batch runs the model
	passes [sha256.Size]byte

	sparseTime atomic.Int64 // nanoseconds
}

// WidthError is an SAE that does not fit the model.
type WidthError struct {
	Hook  Hook
	Out   bool // it is what a transcoder predicts
	SAE   int  // d_in, or d_out
	Width int  // the hook's
}

func (e *WidthError) Error() string {
	does, dimension := "reads", "d_in"
	if e.Out {
		does, dimension = "predicts", "d_out"
	}
	return fmt.Sprintf("the SAE %s vectors of %s %d, but %s has %d numbers a token: it belongs to another model or hook", does, dimension, e.SAE, e.Hook, e.Width)
}

// NonFiniteError is a NaN or an infinity where there must be numbers.
type NonFiniteError struct {
	What             string
	Sequence, Offset int
}

func (e *NonFiniteError) Error() string {
	return fmt.Sprintf("%s is not finite at sequence %d, offset %d", e.What, e.Sequence, e.Offset)
}

// maxOffset is what postings can hold.
const maxOffset = math.MaxUint16

// NewEngine joins model and SAE at a hook. Both must be of one runtime. What a transcoder predicts its
// configuration says.
func NewEngine(m *Model, a *SAE, h Hook) (*Engine, error) {
	h.Centred = a.config.CenterWritingWeights
	e := &Engine{model: m, sae: a, hook: h, out: h}
	if a.config.Transcoder {
		var err error
		if e.out, err = ParseHook(a.config.HookOut); err != nil {
			return nil, fmt.Errorf("what the transcoder predicts: %w", err)
		}
		e.out.Centred = h.Centred
	}
	for _, end := range []struct {
		hook  Hook
		width int
		out   bool
	}{{e.hook, a.config.DIn, false}, {e.out, a.config.DOut, true}} {
		if err := m.Check(end.hook); err != nil {
			return nil, err
		}
		if width := m.Width(end.hook); width != end.width {
			return nil, &WidthError{Hook: end.hook, Out: end.out, SAE: end.width, Width: width}
		}
	}
	return e, nil
}

// Hook is where the engine reads the model.
func (e *Engine) Hook() Hook { return e.hook }

// SparseTime is how long Batch has spent so far on turning firings into postings: what is neither
// libtorch nor a kernel.
func (e *Engine) SparseTime() time.Duration { return time.Duration(e.sparseTime.Load()) }

// Batch runs sequences (of any lengths up to 65,536) to the hook, encodes every token and appends
// its firings to out in (sequence, offset, latent) order; sequence i is firstSequence + i. norms are
// ‖x‖₂ of the SAE's input at each token. What comes out depends on profile, model, SAE and the whole
// batch: the same batch gives the same bits. After an error out holds what it held before.
func (e *Engine) Batch(ctx context.Context, ids [][]int32, firstSequence uint32, out *postings.Columns) (norms [][]float32, err error) {
	if err := checkIDs(ids, e.model.config.Vocab); err != nil {
		return nil, err
	}
	norms = make([][]float32, len(ids))
	total := 0
	for i, sequence := range ids {
		if len(sequence) > maxOffset+1 {
			return nil, fmt.Errorf("sequence %d has %d tokens: at most %d fit an artifact's offsets", i, len(sequence), maxOffset+1)
		}
		total += len(sequence)
	}
	all := make([]float32, total)
	for i, sequence := range ids {
		norms[i], all = all[:len(sequence):len(sequence)], all[len(sequence):]
	}
	before := out.Len()
	for _, g := range groups(ids, e.model.tokensPerForward) {
		err := e.model.runtime.do(ctx, func(s *scope) error {
			return e.batch(s, ids[g[0]:g[1]], g[0], firstSequence, norms, out)
		})
		if err != nil {
			out.Latent, out.Sequence = out.Latent[:before], out.Sequence[:before]
			out.Offset, out.Activation = out.Offset[:before], out.Activation[:before]
			return nil, fmt.Errorf("batch of %d sequences: %w", len(ids), err)
		}
	}
	return norms, nil
}

func (e *Engine) batch(s *scope, ids [][]int32, first int, firstSequence uint32, norms [][]float32, out *postings.Columns) error {
	b := pack(ids, e.model.exec.padded())
	if b.rows() == 0 {
		return nil
	}
	place := b.places()
	lengths := make([]float32, b.rows())
	visit := func(s *scope, x tensor) {
		e.sae.encoder.norms(s, x, lengths)
		for r, p := range place {
			if p.offset < 0 || s.err != nil {
				continue
			}
			if !finite(lengths[r]) {
				s.fail(&NonFiniteError{What: "the model's " + e.hook.String(), Sequence: first + p.sequence, Offset: p.offset})
			}
			norms[first+p.sequence][p.offset] = lengths[r]
		}
		e.sae.encode(s, x, b, func(s *scope, start int64, _ tensor, f *firings) {
			began := time.Now()
			defer func() { e.sparseTime.Add(int64(time.Since(began))) }()
			for i := range f.counts {
				p := place[int(start)+i]
				if p.offset < 0 {
					continue
				}
				latents, values := f.token(i)
				for j, v := range values {
					if !finite(v) {
						s.fail(&NonFiniteError{What: fmt.Sprintf("the activation of latent %d", latents[j]), Sequence: first + p.sequence, Offset: p.offset})
						return
					}
					out.Append(latents[j], firstSequence+uint32(first+p.sequence), uint16(p.offset), v)
				}
			}
		})
	}
	if e.shared == nil {
		e.model.forward(s, b, map[Hook]bool{e.hook: true}, false, func(s *scope, _ Hook, x tensor) { visit(s, s.rowMajor(x)) })
		return s.err
	}
	key, kept := e.tapKey(ids), make([]float32, b.rows()*int64(e.sae.config.DIn))
	if e.shared.Load(key, kept) {
		visit(s, s.floats(kept, b.rows(), int64(e.sae.config.DIn)))
		return s.err
	}
	e.model.forward(s, b, map[Hook]bool{e.hook: true}, false, func(s *scope, _ Hook, x tensor) {
		x = s.rowMajor(x)
		if s.read(x, kept); s.err == nil {
			e.shared.Store(key, kept)
		}
		visit(s, x)
	})
	return s.err
}

// place says which token a row is; offset −1 is padding.
type place struct{ sequence, offset int }

func (b *packed) places() []place {
	out := make([]place, b.rows())
	for i := range out {
		out[i].offset = -1
	}
	for i, start := range b.starts {
		for j := range b.lengths[i] {
			out[start+j] = place{sequence: i, offset: int(j)}
		}
	}
	return out
}

func finite(v float32) bool { return math.Float32bits(v)&0x7f800000 != 0x7f800000 }
