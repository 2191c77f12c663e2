package projectiontest

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// Row is one row of a table; a column that is not there is null.
type Row map[string]any

// Rows holds tables by name.
type Rows map[string][]Row

// Dump returns the canonical dump of tables.
func Dump(t require.TestingT, pool *pgxpool.Pool, schema string, tables []string, volatile ...string) string {
	help(t)
	all := Rows{}
	for _, table := range tables {
		rows, err := pool.Query(background(t), "select to_jsonb(t)::text from "+pgx.Identifier{schema, table}.Sanitize()+" t")
		require.NoError(t, err)
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		for _, text := range texts {
			all[table] = append(all[table], decode(t, []byte(text)))
		}
	}
	return lines(t, all, volatile)
}

// Render returns the canonical dump of rows in memory. Values may be whatever has the JSON form that
// PostgreSQL gives the column; a time.Time is written as PostgreSQL does.
func Render(t require.TestingT, rows Rows, volatile ...string) string {
	help(t)
	plain := Rows{}
	for table, all := range rows {
		for _, row := range all {
			shown := Row{}
			for column, v := range row {
				switch at := v.(type) {
				case time.Time:
					v = stamp(at)
				case *time.Time:
					if at != nil {
						v = stamp(*at)
					}
				}
				shown[column] = v
			}
			b, err := json.Marshal(shown)
			require.NoError(t, err)
			plain[table] = append(plain[table], decode(t, b))
		}
	}
	return lines(t, plain, volatile)
}

func stamp(at time.Time) string { return at.UTC().Format("2006-01-02T15:04:05.999999") + "+00:00" }

func decode(t require.TestingT, b []byte) Row {
	help(t)
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	row := Row{}
	require.NoError(t, d.Decode(&row))
	return row
}

func lines(t require.TestingT, all Rows, volatile []string) string {
	help(t)
	var out strings.Builder
	for _, table := range slices.Sorted(maps.Keys(all)) {
		var text []string
		for _, row := range all[table] {
			for column, v := range row {
				if v == nil || slices.Contains(volatile, table+"."+column) {
					delete(row, column)
				}
			}
			b, err := json.Marshal(canonical(map[string]any(row)))
			require.NoError(t, err)
			text = append(text, table+" "+string(b)+"\n")
		}
		slices.Sort(text)
		for _, line := range text {
			out.WriteString(line)
		}
	}
	return out.String()
}

// canonical writes every number in one way: 1.0 and 1 are the same to JSON.
func canonical(v any) any {
	switch v := v.(type) {
	case json.Number:
		if _, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return v
		}
		f, err := v.Float64()
		if err != nil {
			return v.String()
		}
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64))
	case map[string]any:
		for k, e := range v {
			v[k] = canonical(e)
		}
	case []any:
		for i, e := range v {
			v[i] = canonical(e)
		}
	}
	return v
}

// background is the test's context; a rapid.T has one as well.
func background(t require.TestingT) context.Context {
	if c, ok := t.(interface{ Context() context.Context }); ok {
		return c.Context()
	}
	return context.Background()
}
