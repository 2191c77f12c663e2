package fold

import (
	"context"
	"fmt"
	"math"
)

// posting is a row of an artifact with what its token's block says. Rows of a latent are in (sequence, offset) order.
type posting struct {
	context    uint64
	sequence   int32 // number in the ledger
	token      int32
	activation float32
	offset     uint16
	flags      tokenFlags
}

// worker folds ranges of latents, one after the other. Its tables are empty between latents.
type worker struct {
	*folder
	rows    []posting
	starts  []int32 // of each part and latent of the range, its first row in rows; one more for each part
	gather  []posting
	values  []uint32 // float bits of the firings
	scratch []uint32
	bins    []int64 // by float bits >> 21

	firings   []int64 // of each document
	best      []int32 // of each document, its strongest eligible posting + 1
	documents []int32 // with a firing

	tokenCount []int64
	tokenSum   []float64
	tokens     []int32 // with a firing

	groups contextGroups
	order  []uint64
}

func newWorker(f *folder) *worker {
	return &worker{
		folder:     f,
		bins:       make([]int64, 1<<11),
		firings:    make([]int64, len(f.ledger.documents.rows)),
		best:       make([]int32, len(f.ledger.documents.rows)),
		tokenCount: make([]int64, len(f.ledger.occurrences)),
		tokenSum:   make([]float64, len(f.ledger.occurrences)),
	}
}

// foldRange reads a range of latents from every part and folds them one by one.
func (w *worker) foldRange(ctx context.Context, r latentRange) ([]*Latent, error) {
	if err := w.read(ctx, r); err != nil {
		return nil, err
	}
	n := r.to - r.from
	latents := make([]*Latent, 0, n)
	for i := range n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		w.gather = w.gather[:0]
		for p := range w.parts {
			at := p*(n+1) + i
			w.gather = append(w.gather, w.rows[w.starts[at]:w.starts[at+1]]...)
		}
		latents = append(latents, w.latent(r.from+i, w.gather))
	}
	return latents, nil
}

func (w *worker) read(ctx context.Context, r latentRange) error {
	var held int64
	for _, n := range w.census.postings[r.from:r.to] {
		held += n
	}
	if held > math.MaxInt32 {
		return fmt.Errorf("latents %d … %d have %d postings, more than %d", r.from, r.to-1, held, math.MaxInt32)
	}
	if int64(cap(w.rows)) < held {
		w.rows = make([]posting, 0, held+held/8)
	}
	w.rows, w.starts = w.rows[:0], w.starts[:0]
	for _, p := range w.parts {
		if err := w.readPart(ctx, p, r); err != nil {
			return err
		}
	}
	if int64(len(w.rows)) != held {
		return fmt.Errorf("%w: latents %d … %d had %d postings and now have %d", ErrInput, r.from, r.to-1, held, len(w.rows))
	}
	return nil
}

func (w *worker) readPart(ctx context.Context, p part, r latentRange) error {
	l := w.ledger
	b, err := w.blocks.of(p.from, p.to)
	if err != nil {
		return err
	}
	spans := l.spans[p.from:p.to]
	next := r.from // the first latent whose start is not known yet
	err = p.artifact.Scan(ctx, uint32(r.from), uint32(r.to), func(latent, sequence []uint32, offset []uint16, activation []float32) error {
		if err := w.beat(); err != nil {
			return err
		}
		s := spans[0]
		for i, n := range latent {
			for ; next <= min(int(n), r.to-1); next++ {
				w.starts = append(w.starts, int32(len(w.rows)))
				s = spans[0]
			}
			number := int(sequence[i])
			if number < s.first || number >= s.first+s.count {
				s = spanOf(spans, number)
			}
			a := activation[i]
			if !(a > 0) || a > math.MaxFloat32 {
				return fmt.Errorf("%w: latent %d has the activation %g at sequence %d, offset %d: only finite positive ones have these statistics",
					ErrInput, n, a, number, offset[i])
			}
			index := s.index + number - s.first
			if number < s.first || number >= s.first+s.count || int(n) != next-1 || int(offset[i]) >= l.length(index) {
				return fmt.Errorf("%w: latent %d fires at sequence %d, offset %d, out of place", ErrInput, n, number, offset[i])
			}
			at := l.base[index] + int64(offset[i]) - b.first
			w.rows = append(w.rows, posting{
				context:    b.context[at],
				sequence:   int32(index),
				token:      b.tokens[at],
				activation: a,
				offset:     offset[i],
				flags:      b.flags[at],
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for ; next <= r.to; next++ {
		w.starts = append(w.starts, int32(len(w.rows)))
	}
	return nil
}

// spanOf returns the last span that starts at or before a sequence.
func spanOf(spans []span, sequence int) span {
	low, high := 0, len(spans)
	for high-low > 1 {
		if middle := (low + high) / 2; spans[middle].first <= sequence {
			low = middle
		} else {
			high = middle
		}
	}
	return spans[low]
}
