package library

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/problem"
)

// Page is one page of a list, and how many there are in all.
type Page[T any] struct {
	Items []T
	Total int
}

// Listing says what a list shows. Zero values mean the defaults: 50 rows, newest first, everything that is not deleted.
type Listing struct {
	Skip      int
	Limit     int
	Search    string // part of a name, a description, a repository; upper and lower case are the same
	Source    string
	Status    string // deleted shows what was deleted
	ModelName string // part of a model's name; SAEs only
	ModelID   string // SAEs and trainings only
	SortBy    string // a column; what cannot be sorted by reads as created_at
	Order     string // asc | desc
}

// list is how one table is listed.
type list struct {
	from     string // with the alias t
	columns  string
	search   []string // columns that Search looks at
	model    []string // columns that ModelName looks at; nil = it is refused
	modelID  bool
	sorts    []string
	statuses []string
	sources  []string
}

func (l Listing) check(t list) error {
	var wrong []problem.Field
	oneOf := func(field, value string, choices []string) {
		if value != "" && !slices.Contains(choices, value) {
			wrong = append(wrong, problem.Field{Name: field, Detail: fmt.Sprintf("%q is not one of %s", value, strings.Join(choices, ", "))})
		}
	}
	if l.Skip < 0 {
		wrong = append(wrong, problem.Field{Name: "skip", Detail: "must not be negative"})
	}
	if l.Limit < 0 || l.Limit > 1000 {
		wrong = append(wrong, problem.Field{Name: "limit", Detail: "must be between 1 and 1000"})
	}
	oneOf("status", l.Status, t.statuses)
	oneOf("source", l.Source, t.sources)
	oneOf("order", l.Order, []string{"asc", "desc"})
	for field, text := range map[string]string{"search": l.Search, "model_name": l.ModelName, "model_id": l.ModelID} {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			wrong = append(wrong, problem.Field{Name: field, Detail: "is not text"})
		}
	}
	if l.ModelName != "" && t.model == nil {
		wrong = append(wrong, problem.Field{Name: "model_name", Detail: "cannot be asked for here"})
	}
	if l.ModelID != "" && !t.modelID {
		wrong = append(wrong, problem.Field{Name: "model_id", Detail: "cannot be asked for here"})
	}
	if len(wrong) > 0 {
		return problem.InvalidFields("invalid_request", wrong...)
	}
	return nil
}

// contains makes a pattern that finds the text anywhere; nothing in it is a wildcard.
func contains(text string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(text) + "%"
}

// where returns the condition and its parameters.
func (l Listing) where(t list) (string, []any) {
	var conditions []string
	var args []any
	add := func(format string, v any) {
		args = append(args, v)
		conditions = append(conditions, strings.ReplaceAll(format, "?", fmt.Sprintf("$%d", len(args))))
	}
	anyOf := func(columns []string, pattern string) {
		add("("+strings.Join(columns, " ilike ? or ")+" ilike ?)", pattern)
	}
	switch {
	case l.Status == downloading:
		conditions = append(conditions, live)
	case l.Status == "pending" && slices.Contains(t.statuses, downloading):
		conditions = append(conditions, "t.status = 'pending' and not coalesce("+live+", false)")
	case l.Status != "":
		add("t.status = ?", l.Status)
	default:
		conditions = append(conditions, "t.status <> 'deleted'")
	}
	if l.Source != "" {
		add("t.source = ?", l.Source)
	}
	if l.Search != "" {
		anyOf(t.search, contains(l.Search))
	}
	if l.ModelName != "" {
		anyOf(t.model, contains(l.ModelName))
	}
	if l.ModelID != "" {
		add("t.model_id = ?", l.ModelID)
	}
	return strings.Join(conditions, " and "), args
}

func (l Listing) orderBy(t list) string {
	column, direction := "created_at", "desc"
	if slices.Contains(t.sorts, l.SortBy) {
		column = l.SortBy
	}
	if l.Order == "asc" {
		direction = "asc"
	}
	return fmt.Sprintf("t.%s %s nulls last, t.id %s", column, direction, direction)
}

// page reads one page of a table.
func page[T any](ctx context.Context, q *Queries, l Listing, t list) (Page[T], error) {
	if err := l.check(t); err != nil {
		return Page[T]{}, err
	}
	where, args := l.where(t)
	var out Page[T]
	if err := q.pool.QueryRow(ctx, "select count(*) from "+t.from+" where "+where, args...).Scan(&out.Total); err != nil {
		return out, err
	}
	limit := l.Limit
	if limit == 0 {
		limit = 50
	}
	sql := fmt.Sprintf("select %s from %s where %s order by %s limit %d offset %d", t.columns, t.from, where, l.orderBy(t), limit, l.Skip)
	rows, err := q.pool.Query(ctx, sql, args...)
	if err != nil {
		return out, err
	}
	out.Items, err = pgx.CollectRows(rows, pgx.RowToStructByName[T])
	return out, err
}
