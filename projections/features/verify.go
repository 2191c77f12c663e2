package features

import (
	"context"
	"errors"
	"fmt"

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
		rows, _ := tx.Query(ctx, `select e.extraction_id from extractions e join generations.current c using (extraction_id)
where c.generation is not null and c.folded_version = e.wanted_version and e.terminal and c.terminal and c.fold_version = $1 and not e.deleted order by e.extraction_id`, f.cfg.Version)
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
	j, err := f.job(ctx, id)
	if err != nil {
		return nil, err
	}
	current, _, err := f.store.Current(ctx, id)
	if err != nil || j == nil || current.Generation == nil || current.Folded != j.wanted {
		return nil, err // it has gone on meanwhile
	}
	r, err := f.read(ctx, j)
	if err != nil {
		return nil, err
	}
	in, closeAll, err := f.open(ctx, j, r, func() error { return nil })
	if err != nil {
		return nil, err
	}
	again, err := f.store.Load(ctx, f.sourceOf(j, r, "verify"), in)
	if err := errors.Join(err, closeAll()); err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, again.Close(context.WithoutCancel(ctx)))
		_, _, collected := f.store.Collect(context.WithoutCancel(ctx))
		err = errors.Join(err, collected)
	}()
	found, err := f.store.Compare(ctx, *current.Generation, again.Generation, shown)
	for _, d := range found {
		out = append(out, Difference{Extraction: id, Table: d.Table, Side: map[bool]string{true: "tables", false: "fold"}[d.Left], Row: d.Row})
	}
	return out, err
}
