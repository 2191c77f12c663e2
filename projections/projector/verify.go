package projector

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Difference is a row that only one side has.
type Difference struct {
	Table string `db:"table_name"`
	Side  string `db:"side"` // "tables": it should not be there; "log": it is missing
	Row   string `db:"row"`  // as JSON
}

// shownDifferences bounds how many rows of a table and a side are named.
const shownDifferences = 20

// Verify builds this version's tables anew beside the ones in use and compares them, row by row, at
// the same position. No difference means that the tables are the fold of the log. Without names, the
// tables of Views are compared. A runner that is active meanwhile waits for a moment at the end.
func (r *Runner) Verify(ctx context.Context, tables ...string) ([]Difference, error) {
	if len(tables) == 0 {
		tables = r.p.Views()
	}
	var out []Difference
	err := r.beside(ctx, func(b *Runner) error {
		s, err := b.open(ctx)
		if err != nil {
			return err
		}
		defer s.close()
		live, err := r.checkpoint(ctx)
		if err != nil {
			return err
		}
		if err := s.catchUpTo(ctx, live); err != nil {
			return err
		}
		if out, err = r.compare(ctx, s, tables); err != nil {
			return err
		}
		return b.administer(ctx, func(ctx context.Context, tx pgx.Tx) error {
			if err := b.forget(ctx, tx, b.slot); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "drop schema "+b.slot.schema+" cascade")
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("verify %s: %w", r.slot.schema, err)
	}
	return out, nil
}

func (r *Runner) checkpoint(ctx context.Context) (position int64, err error) {
	err = r.cfg.Pool.QueryRow(ctx, `select position from projections.projection_checkpoints where projection = $1 and version = $2 and not rebuild`,
		r.slot.projection, r.slot.version).Scan(&position)
	return position, err
}

// compare holds the live checkpoint, so that nothing is committed to the live tables meanwhile.
func (r *Runner) compare(ctx context.Context, beside *session, tables []string) ([]Difference, error) {
	conn, err := r.connect(ctx, r.slot.schema)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var out []Difference
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0`); err != nil {
			return err
		}
		var position int64
		var hash []byte
		err := tx.QueryRow(ctx, `select position, hash from projections.projection_checkpoints where projection = $1 and version = $2 and not rebuild for update`,
			r.slot.projection, r.slot.version).Scan(&position, &hash)
		if err != nil {
			return err
		}
		if err := beside.catchUpTo(ctx, position); err != nil {
			return err
		}
		if beside.position != position || string(beside.hash[:]) != string(hash) {
			found := beside.hash
			if beside.position != position {
				found = [32]byte{}
			}
			copy(beside.hash[:], hash)
			return beside.restored(position, found)
		}
		for _, table := range tables {
			sql := fmt.Sprintf(`
				(select '%[1]s' as table_name, 'tables' as side, row from (select to_jsonb(t)::text as row from %[2]s.%[1]s t except all select to_jsonb(t)::text from %[3]s.%[1]s t) d order by row collate "C" limit %[4]d)
				union all
				(select '%[1]s', 'log', row from (select to_jsonb(t)::text as row from %[3]s.%[1]s t except all select to_jsonb(t)::text from %[2]s.%[1]s t) d order by row collate "C" limit %[4]d)`,
				table, r.slot.schema, beside.r.slot.schema, shownDifferences)
			rows, err := tx.Query(ctx, sql)
			if err != nil {
				return err
			}
			found, err := pgx.CollectRows(rows, pgx.RowToStructByName[Difference])
			if err != nil {
				return err
			}
			out = append(out, found...)
		}
		return nil
	})
	return out, err
}
