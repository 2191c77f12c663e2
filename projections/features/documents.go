package features

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/projections/features/fold"
)

// Documents counts the firings of some latents by document, from the artifacts of all recorded segments:
// for charts over what the dataset knows of its rows, such as a year.
func (f *Folder) Documents(ctx context.Context, extractionID string, latents []int) (fold.DocumentTable, error) {
	j := &job{id: extractionID, terminal: true}
	var segments []segment
	var chunks []Chunk
	var vocabulary *string
	err := f.in(ctx, func(tx pgx.Tx) error {
		var mask, config []byte
		err := tx.QueryRow(ctx, `select e.source_key, e.latents, e.corpus_id, e.mask, e.config, c.vocabulary_sha256 from extractions e join corpora c using (corpus_id) where e.extraction_id = $1 and not e.deleted`, extractionID).
			Scan(&j.sourceKey, &j.latents, &j.corpusID, &mask, &config, &vocabulary)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNotFolded
		}
		if err := errors.Join(err, json.Unmarshal(mask, &j.mask), json.Unmarshal(config, &j.config)); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `select index, first_sequence, sequences, file_sha256 from segments where extraction_id = $1 order by index`, extractionID)
		if segments, err = pgx.CollectRows(rows, pgx.RowToStructByPos[segment]); err != nil {
			return err
		}
		rows, _ = tx.Query(ctx, `select chunk, sha256 from corpus_chunks where corpus_id = $1 order by chunk`, *j.corpusID)
		chunks, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Chunk])
		return err
	})
	if err != nil {
		return fold.DocumentTable{}, err
	}
	if vocabulary == nil || len(segments) == 0 {
		return fold.DocumentTable{}, ErrNotFolded
	}
	in, closeAll, err := f.open(ctx, j, segments, chunks, *vocabulary)
	if err != nil {
		return fold.DocumentTable{}, err
	}
	table, err := fold.Documents(ctx, in, latents)
	return table, errors.Join(err, closeAll())
}
