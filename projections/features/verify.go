package features

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Difference is a row of a generation's tables that a new fold of the same artifacts does not give, or the reverse.
type Difference struct {
	Extraction string
	Table      string
	Side       string // "tables": it should not be there; "fold": it is missing
	Row        string // as JSON
}

func (d Difference) String() string {
	return fmt.Sprintf("%s of %s: only in the %s: %s", d.Table, d.Extraction, d.Side, d.Row)
}

// shown bounds how many rows of a table and a side are named.
const shown = 20

// Verify folds every extraction again whose tables are as far as the log, and compares the tables row by
// row. No difference means that the tables are the fold of the log and the artifacts. It reads every
// artifact again, and needs the room of one more generation.
func (f *Folder) Verify(ctx context.Context) (checked int, out []Difference, err error) {
	var ids []string
	err = f.in(ctx, func(tx pgx.Tx) (err error) {
		rows, _ := tx.Query(ctx, `select f.extraction_id from folds f join extractions e using (extraction_id)
where f.generation is not null and f.folded_version = f.wanted_version and f.terminal and not e.deleted order by f.extraction_id`)
		ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	for _, id := range ids {
		differences, err := f.verify(ctx, id)
		if err != nil {
			return checked, out, fmt.Errorf("fold %s again: %w", id, err)
		}
		checked++
		out = append(out, differences...)
	}
	return checked, out, nil
}

func (f *Folder) verify(ctx context.Context, id string) (out []Difference, err error) {
	j := &job{id: id, terminal: true}
	var current int64
	err = f.in(ctx, func(tx pgx.Tx) error {
		var mask, config []byte
		err := tx.QueryRow(ctx, `select f.generation, f.folded_version, e.source_key, e.training_id, e.external_sae_id, e.latents, e.corpus_id, e.mask, e.config
from folds f join extractions e using (extraction_id) where f.extraction_id = $1`, id).
			Scan(&current, &j.wanted, &j.sourceKey, &j.trainingID, &j.externalSAEID, &j.latents, &j.corpusID, &mask, &config)
		return errors.Join(err, json.Unmarshal(mask, &j.mask), json.Unmarshal(config, &j.config))
	})
	if err != nil {
		return nil, err
	}
	r, err := f.read(ctx, j)
	if err != nil {
		return nil, err
	}
	var again int64
	err = f.in(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, `insert into generations values (nextval('generation'), $1, 'verifying') returning generation`, id).Scan(&again)
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, f.in(context.WithoutCancel(ctx), func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `update generations set state = 'old' where generation = $1`, again)
			return err
		}), f.sweep(context.WithoutCancel(ctx)))
	}()
	in, closeAll, err := f.open(ctx, j, r.segments, r.chunks, r.vocabulary)
	if err != nil {
		return nil, err
	}
	_, err = f.load(ctx, j, in, again, r.vocabulary)
	if err := errors.Join(err, closeAll()); err != nil {
		return nil, err
	}
	return out, f.in(ctx, func(tx pgx.Tx) error {
		for _, t := range partitioned {
			for _, side := range []struct {
				name        string
				left, right int64
			}{{"tables", current, again}, {"fold", again, current}} {
				// jsonb of everything but the generation: real and double precision are printed exactly.
				row := func(generation int64) string {
					return fmt.Sprintf(`select to_jsonb(t) - 'generation' as row from %s t`, partition(t.name, generation))
				}
				rows, _ := tx.Query(ctx, fmt.Sprintf(`(%s except all %s) limit %d`, row(side.left), row(side.right), shown))
				found, err := pgx.CollectRows(rows, pgx.RowTo[json.RawMessage])
				if err != nil {
					return fmt.Errorf("compare %s: %w", t.name, err)
				}
				for _, r := range found {
					out = append(out, Difference{Extraction: id, Table: t.name, Side: side.name, Row: strings.TrimSpace(string(r))})
				}
			}
		}
		return nil
	})
}
