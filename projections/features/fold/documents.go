package fold

import (
	"context"
	"fmt"
)

// DocumentTable says how often latents fire in each document (row of the dataset) with a token in a covered
// sequence. Documents are in ascending order of their rows.
type DocumentTable struct {
	Rows          []int64
	CountedTokens []int64   // of each document
	Firings       [][]int64 // of each latent that was asked for, of each document
}

// Documents counts the firings of some latents by document, for charts over what the dataset knows of its rows
// (a year, an author). It reads these latents and the corpus; examples and the vocabulary's pieces are not looked at.
func Documents(ctx context.Context, in Input, latents []int) (DocumentTable, error) {
	o, err := in.Options.effective()
	if err != nil {
		return DocumentTable{}, err
	}
	l, err := newLedger(in, o)
	if err != nil {
		return DocumentTable{}, err
	}
	d := &l.documents
	t := DocumentTable{Rows: make([]int64, len(d.rows)), CountedTokens: make([]int64, len(d.rows)), Firings: make([][]int64, len(latents))}
	for document, rank := range d.rank {
		t.Rows[rank] = d.rows[document]
		t.CountedTokens[rank] = d.counted[document]
	}
	for i, latent := range latents {
		if latent < 0 || latent >= in.Latents {
			return DocumentTable{}, fmt.Errorf("%w: latent %d of %d", ErrInput, latent, in.Latents)
		}
		t.Firings[i] = make([]int64, len(d.rows))
		for k, a := range in.Artifacts {
			s := l.spans[k]
			err := a.Scan(ctx, uint32(latent), uint32(latent)+1, func(_, sequence []uint32, offset []uint16, _ []float32) error {
				for j, number := range sequence {
					at := int(number) - s.first
					if at < 0 || at >= s.count || int(offset[j]) >= l.length(s.index+at) {
						return fmt.Errorf("%w: latent %d fires at sequence %d, offset %d, out of place", ErrInput, latent, number, offset[j])
					}
					if !l.counted.has(l.base[s.index+at] + int64(offset[j])) {
						continue
					}
					p, _, _, _ := l.bounds(s.index+at, int(offset[j]))
					t.Firings[i][d.rank[p.document]]++
				}
				return nil
			})
			if err != nil {
				return DocumentTable{}, err
			}
		}
	}
	return t, nil
}
