package generations

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Difference is a row that one of two generations has and the other has not.
type Difference struct {
	Table string
	Left  bool   // the first has it
	Row   string // as JSON
}

// Compare returns where two generations differ: at most so many rows of each table and side.
func (s *Store) Compare(ctx context.Context, left, right int64, most int) (out []Difference, err error) {
	err = s.in(ctx, func(tx pgx.Tx) error {
		for _, t := range tables {
			for _, side := range []struct {
				left       bool
				has, hasnt int64
			}{{true, left, right}, {false, right, left}} {
				// jsonb of everything but the generation: real and double precision are printed exactly.
				row := func(generation int64) string {
					return fmt.Sprintf(`select to_jsonb(t) - 'generation' as row from %s t`, Table(t.name, generation))
				}
				rows, _ := tx.Query(ctx, fmt.Sprintf(`(%s except all %s) limit %d`, row(side.has), row(side.hasnt), most))
				found, err := pgx.CollectRows(rows, pgx.RowTo[json.RawMessage])
				if err != nil {
					return fmt.Errorf("compare %s: %w", t.name, err)
				}
				for _, r := range found {
					out = append(out, Difference{Table: t.name, Left: side.left, Row: strings.TrimSpace(string(r))})
				}
			}
		}
		return nil
	})
	return out, err
}
