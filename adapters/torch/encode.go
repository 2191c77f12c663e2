package torch

import (
	"context"
	"fmt"
)

// k is how many may fire; 0 = as many as the architecture lets.
func (a *SAE) k() int64 {
	switch {
	case a.temporal != nil:
		return int64(a.temporal.TopK)
	case a.config.Architecture == "topk":
		return int64(a.config.K)
	}
	return 0
}

// fixedL0 says whether L0 follows from the SAE's definition, so that it says nothing about where the SAE belongs.
func (a *SAE) fixedL0() bool { return a.k() > 0 || a.config.Architecture == "groupmax" }

// piece is a range of rows that is encoded in one go.
type piece struct{ first, rows int64 }

// pieces are chunks of tokens, or, for an SAE that looks back, whole sequences.
func (a *SAE) pieces(b *packed, rows int64) []piece {
	var out []piece
	if a.temporal != nil {
		for i, start := range b.starts {
			if b.lengths[i] > 0 {
				out = append(out, piece{start, b.lengths[i]})
			}
		}
		return out
	}
	for first := int64(0); first < rows; first += a.chunkTokens {
		out = append(out, piece{first, min(a.chunkTokens, rows-first)})
	}
	return out
}

// encode hands the firings of x's rows, [rows, d_in], to visit, a piece at a time, in order. b says
// which rows are a sequence; an SAE that looks back is not run on padding.
func (a *SAE) encode(s *scope, x tensor, b *packed, visit func(s *scope, first int64, x tensor, f *firings)) {
	if s.err != nil {
		return
	}
	x = s.rowMajor(x)
	if s.err != nil {
		return
	}
	if e, ok := a.encoder.(*composedEncoder); ok && e.ahead() {
		a.encodeAhead(s, e, x, a.pieces(b, shapeOf(x)[0]), visit)
		return
	}
	for _, p := range a.pieces(b, shapeOf(x)[0]) {
		if !s.alive() {
			return
		}
		s.inner(func(s *scope) tensor {
			part := s.narrow(x, 0, p.first, p.rows)
			if f := a.encoder.fire(s, part); s.err == nil {
				visit(s, p.first, part, f)
			}
			return nil
		})
	}
}

// forward is the whole reconstruction: decode, and what the SAE skips or predicts. decoded is used up.
func (a *SAE) forward(s *scope, x, dense, decoded tensor, f *firings) tensor {
	switch {
	case s.err != nil:
		return nil
	case f.predicted != nil:
		return a.encoder.decode(s, s.add(dense, f.predicted), f)
	case a.wSkip != nil:
		return s.accumulate(decoded, x, a.wSkip)
	}
	return decoded
}

// whole is true where forward is more than decode.
func (a *SAE) whole() bool { return a.temporal != nil || a.wSkip != nil }

// Encoding is what an SAE makes of n vectors.
type Encoding struct {
	Acts   []float32 // [n, d_sae]
	Decode []float32 // [n, d_out]: decode of Acts
	Recon  []float32 // [n, d_out]: the whole forward; differs from Decode where an SAE has a skip or predicted part
}

// Encode computes dense activations and reconstructions of x: [n, d_in]; to an SAE that looks back
// they are one sequence. For a handful of vectors; Engine.Batch is the sparse way.
func (a *SAE) Encode(ctx context.Context, x []float32, n int) (Encoding, error) {
	return a.EncodeSequences(ctx, x, 1, n)
}

// EncodeSequences is Encode for x: [batch, seq, d_in]. Only a temporal SAE sees the difference.
func (a *SAE) EncodeSequences(ctx context.Context, x []float32, batch, seq int) (Encoding, error) {
	n := batch * seq
	if len(x) != n*a.config.DIn {
		return Encoding{}, fmt.Errorf("encode: %d values for %d vectors of d_in %d", len(x), n, a.config.DIn)
	}
	e := Encoding{Acts: make([]float32, n*a.config.DSAE), Decode: make([]float32, n*a.config.DOut)}
	e.Recon = e.Decode
	if a.whole() {
		e.Recon = make([]float32, n*a.config.DOut)
	}
	b := &packed{}
	for i := range batch {
		b.starts, b.lengths = append(b.starts, int64(i*seq)), append(b.lengths, int64(seq))
	}
	err := a.runtime.do(ctx, func(s *scope) error {
		a.encode(s, s.floats(x, int64(n), int64(a.config.DIn)), b, func(s *scope, first int64, x tensor, f *firings) {
			rows := len(f.counts)
			at := int(first) * a.config.DOut
			dense := a.encoder.dense(s, f)
			s.read(dense, e.Acts[int(first)*a.config.DSAE:][:rows*a.config.DSAE])
			decoded := a.encoder.decode(s, dense, f)
			s.read(decoded, e.Decode[at:][:rows*a.config.DOut])
			if a.whole() {
				s.read(a.forward(s, x, dense, decoded, f), e.Recon[at:][:rows*a.config.DOut])
			}
		})
		return s.err
	})
	if err != nil {
		return Encoding{}, fmt.Errorf("encode: %w", err)
	}
	return e, nil
}
