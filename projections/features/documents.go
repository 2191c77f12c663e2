package features

import (
	"context"
	"errors"
	"math"

	"github.com/featuremill/featuremill/projections/features/fold"
)

// Documents counts the firings of some latents by document, from the artifacts of all recorded segments:
// for charts over what the dataset knows of its rows, such as a year.
func (f *Folder) Documents(ctx context.Context, extractionID string, latents []int) (fold.DocumentTable, error) {
	j, err := f.job(ctx, extractionID)
	if err != nil {
		return fold.DocumentTable{}, err
	}
	if j == nil || j.deleted {
		return fold.DocumentTable{}, ErrNotFolded
	}
	j.terminal, j.wanted = true, math.MaxInt64
	r, err := f.read(ctx, j)
	if err != nil {
		return fold.DocumentTable{}, err
	}
	if len(r.segments) == 0 {
		return fold.DocumentTable{}, ErrNotFolded
	}
	in, closeAll, err := f.open(ctx, j, r, func() error { return nil })
	if err != nil {
		return fold.DocumentTable{}, err
	}
	table, err := fold.Documents(ctx, in, latents)
	return table, errors.Join(err, closeAll())
}
