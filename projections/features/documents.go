package features

import (
	"context"
	"encoding/json"
	"errors"
	"math"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/projections/features/fold"
)

// Documents counts the firings of some latents by document, from the artifacts of all recorded segments:
// for charts over what the dataset knows of its rows, such as a year.
func (f *Folder) Documents(ctx context.Context, extractionID string, latents []int) (fold.DocumentTable, error) {
	j := &job{id: extractionID, terminal: true, wanted: math.MaxInt64}
	err := f.in(ctx, func(tx pgx.Tx) error {
		var mask, config []byte
		err := tx.QueryRow(ctx, `select source_key, latents, corpus_id, mask, config from extractions where extraction_id = $1 and not deleted`, extractionID).
			Scan(&j.sourceKey, &j.latents, &j.corpusID, &mask, &config)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFolded
		}
		return errors.Join(err, json.Unmarshal(mask, &j.mask), json.Unmarshal(config, &j.config))
	})
	if err != nil {
		return fold.DocumentTable{}, err
	}
	r, err := f.read(ctx, j)
	if err != nil {
		return fold.DocumentTable{}, err
	}
	if len(r.segments) == 0 {
		return fold.DocumentTable{}, ErrNotFolded
	}
	in, closeAll, err := f.open(ctx, j, r.segments, r.chunks, r.vocabulary)
	if err != nil {
		return fold.DocumentTable{}, err
	}
	table, err := fold.Documents(ctx, in, latents)
	return table, errors.Join(err, closeAll())
}
