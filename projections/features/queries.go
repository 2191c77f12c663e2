package features

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/generations"
)

// ErrNotFolded says that the extraction is not there, or has no folded numbers yet.
var ErrNotFolded = errors.New("no features yet")

// Queries reads what is current. It is safe for concurrent use.
type Queries struct {
	pool         *pgxpool.Pool
	vocabularies vocabularies
}

// NewQueries returns queries on the views of the schema public.
func NewQueries(pool *pgxpool.Pool) *Queries { return &Queries{pool: pool} }

func (q *Queries) vocabulary(ctx context.Context, g Generation) (*vocabulary, error) {
	return q.vocabularies.get(ctx, q, g.vocabulary)
}

// Generation is the current fold of an extraction.
type Generation struct {
	Extraction    string
	Source        source.Source
	Generation    int64
	FoldedVersion int64
	FoldedAt      time.Time
	Features      int // alive latents
	Latents       int
	CorpusID      string
	Newest        bool // the source's newest extraction with a fold
	Statistics    Statistics

	vocabulary string // sha256
}

// Statistics are the numbers of a whole extraction, as the fold found them.
type Statistics = generations.Statistics

// table is where the rows of a generation are.
func (g Generation) table(name string) string { return generations.Table(name, g.Generation) }

// ErrReplaced says that the generation was replaced, and dropped since: ask for the extraction's current one.
var ErrReplaced = errors.New("these numbers have been replaced by newer ones")

// replaced tells a generation that is gone from other errors.
func replaced(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
		return fmt.Errorf("%w: %w", ErrReplaced, err)
	}
	return err
}

// Of returns the current fold of an extraction; ErrNotFolded if there is none.
func (q *Queries) Of(ctx context.Context, extractionID string) (Generation, error) {
	return q.generation(ctx, `e.extraction_id = $1`, extractionID)
}

// Newest returns the fold of the source's newest extraction that has one.
func (q *Queries) Newest(ctx context.Context, s source.Source) (Generation, error) {
	return q.generation(ctx, `e.source_key = $1`, s.Key())
}

// Resolve returns the fold that a latent's numbers come from: of the extraction that was asked for, else the newest.
func (q *Queries) Resolve(ctx context.Context, l source.Latent) (Generation, error) {
	if l.Extraction == "" {
		return q.Newest(ctx, l.Source)
	}
	g, err := q.Of(ctx, l.Extraction)
	if err == nil && g.Source != l.Source {
		return Generation{}, ErrNotFolded
	}
	return g, err
}

func (q *Queries) generation(ctx context.Context, where string, arg string) (Generation, error) {
	var g Generation
	var key string
	var corpusID, vocabulary *string
	var statistics []byte
	err := q.pool.QueryRow(ctx, `
select e.extraction_id, e.source_key, f.generation, f.folded_version, f.folded_at, f.features, e.latents, e.corpus_id, c.vocabulary_sha256, f.statistics,
    not exists (select from feature_extractions n join feature_folds nf using (extraction_id)
                where n.source_key = e.source_key and not n.deleted and nf.generation is not null and n.requested > e.requested)
from feature_extractions e join feature_folds f using (extraction_id) left join feature_corpora c on c.corpus_id = e.corpus_id
where `+where+` and not e.deleted and f.generation is not null
order by e.requested desc limit 1`, arg).
		Scan(&g.Extraction, &key, &g.Generation, &g.FoldedVersion, &g.FoldedAt, &g.Features, &g.Latents, &corpusID, &vocabulary, &statistics, &g.Newest)
	if errors.Is(err, pgx.ErrNoRows) {
		return Generation{}, ErrNotFolded
	}
	if err != nil {
		return Generation{}, err
	}
	if corpusID != nil {
		g.CorpusID = *corpusID
	}
	if vocabulary != nil {
		g.vocabulary = *vocabulary
	}
	if g.Source, err = source.FromKey(key); err != nil {
		return Generation{}, err
	}
	return g, json.Unmarshal(statistics, &g.Statistics)
}

// ID is how a latent is named in lists of this generation: without a suffix where it is the newest.
func (g Generation) ID(latent int) string {
	id := g.Source.FeatureID(latent)
	if !g.Newest {
		id += "@" + g.Extraction
	}
	return id
}

// Feature is a latent with its numbers and its label.
type Feature struct {
	Latent                int
	Firings               int64
	FiringDocuments       int64
	Density               float64
	DensityLow            *float64
	DensityHigh           *float64
	ActivationFrequency   float64
	MaxActivation         float32
	MeanActivation        float64
	StdActivation         float64
	SinkShare             float64
	InterpretabilityScore float64
	TopToken              string // piece; "" for a dead latent
	TopTokenShare         float64
	DistinctTokens        int

	Name, Category, Description, Notes string
	NameSource                         string // user, llm, import; "" where nobody named it
	Starred                            bool
	LabelledAt                         *time.Time

	Example *Example // in lists: the strongest example
}

const featureColumns = `f.latent, f.firings, f.firing_documents, f.density, f.density_low, f.density_high, f.activation_frequency, f.max_activation,
f.mean_activation, f.std_activation, f.sink_share, f.interpretability_score, coalesce(f.top_token, -1), f.top_token_share, f.distinct_tokens,
coalesce(l.name, ''), coalesce(l.category, ''), coalesce(l.description, ''), coalesce(l.notes, ''), coalesce(l.name_source, ''), coalesce(l.starred, false), l.updated_at`

func scanFeature(v *vocabulary) pgx.RowToFunc[Feature] {
	return func(row pgx.CollectableRow) (f Feature, err error) {
		top := int32(-1)
		err = row.Scan(&f.Latent, &f.Firings, &f.FiringDocuments, &f.Density, &f.DensityLow, &f.DensityHigh, &f.ActivationFrequency, &f.MaxActivation,
			&f.MeanActivation, &f.StdActivation, &f.SinkShare, &f.InterpretabilityScore, &top, &f.TopTokenShare, &f.DistinctTokens,
			&f.Name, &f.Category, &f.Description, &f.Notes, &f.NameSource, &f.Starred, &f.LabelledAt)
		f.TopToken = v.Piece(top)
		return f, err
	}
}

// ListOptions choose and order features. Nil and "" = no such filter.
type ListOptions struct {
	Search             string // digits: this latent; else in name, category, description, or in one of the ten tokens that it fires on most
	Sort               string // see Sorts; "" = density
	Ascending          bool
	Starred            *bool
	MinFrequency       *float64 // of activation_frequency, fraction
	MaxFrequency       *float64
	MinDensity         *float64
	MaxDensity         *float64
	MinMaxActivation   *float64
	MaxMaxActivation   *float64
	MinTopTokenShare   *float64
	MaxTopTokenShare   *float64
	MinFiringDocuments *int64
	IncludeDead        bool
	Limit, Offset      int
	Examples           bool // with each feature's strongest example
}

// sorts maps the names that clients send to columns.
var sorts = map[string]string{
	"":                       "f.density",
	"density":                "f.density",
	"activation_freq":        "f.activation_frequency",
	"activation_frequency":   "f.activation_frequency",
	"max_activation":         "f.max_activation",
	"mean_activation":        "f.mean_activation",
	"sink_share":             "f.sink_share",
	"top_token_share":        "f.top_token_share",
	"firing_documents":       "f.firing_documents",
	"interpretability":       "f.interpretability_score",
	"interpretability_score": "f.interpretability_score",
	"feature_id":             "f.latent",
	"neuron_index":           "f.latent",
	"name":                   "l.name",
	"category":               "l.category",
}

// Sorts returns the names by which features can be ordered.
func Sorts() []string {
	return []string{"density", "activation_freq", "max_activation", "mean_activation", "sink_share", "top_token_share", "firing_documents", "interpretability", "feature_id", "name", "category"}
}

// Page is a part of a list.
type Page struct {
	Features []Feature
	Total    int // that the filters let through
	Neurons  int // all latents, dead ones too
	// Of what the filters let through:
	MeanFrequency        float64
	InterpretablePercent float64 // share with interpretability_score > 0.5, in per cent; for old clients only
}

// List returns features of a generation.
func (q *Queries) List(ctx context.Context, g Generation, o ListOptions) (Page, error) {
	column, ok := sorts[o.Sort]
	if !ok {
		return Page{}, fmt.Errorf("sort %q: want one of %s", o.Sort, strings.Join(Sorts(), ", "))
	}
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return Page{}, fmt.Errorf("list features: %w", err)
	}
	args := []any{g.Generation, g.Source.Key()}
	where := []string{"f.generation = $1"}
	add := func(format string, v any) {
		args = append(args, v)
		where = append(where, fmt.Sprintf(format, len(args)))
	}
	if !o.IncludeDead {
		where = append(where, "f.firings > 0")
	}
	for _, b := range []struct {
		v      *float64
		format string
	}{
		{o.MinFrequency, "f.activation_frequency >= $%d"}, {o.MaxFrequency, "f.activation_frequency <= $%d"},
		{o.MinDensity, "f.density >= $%d"}, {o.MaxDensity, "f.density <= $%d"},
		{o.MinMaxActivation, "f.max_activation >= $%d"}, {o.MaxMaxActivation, "f.max_activation <= $%d"},
		{o.MinTopTokenShare, "f.top_token_share >= $%d"}, {o.MaxTopTokenShare, "f.top_token_share <= $%d"},
	} {
		if b.v != nil {
			add(b.format, *b.v)
		}
	}
	if o.MinFiringDocuments != nil {
		add("f.firing_documents >= $%d", *o.MinFiringDocuments)
	}
	if o.Starred != nil {
		not := map[bool]string{true: "", false: "not "}[*o.Starred]
		where = append(where, "f.latent "+not+"in (select s.latent from feature_labels s where s.source_key = $2 and s.starred)")
	}
	if s := strings.TrimSpace(o.Search); s != "" {
		if n := latentNumber(s); n >= 0 {
			add("f.latent = $%d", n)
		} else {
			found, err := q.matching(ctx, g, s)
			if err != nil {
				return Page{}, fmt.Errorf("search features: %w", replaced(err))
			}
			add("get_bit($%d::bytea, f.latent) = 1", found)
		}
	}
	// Ascending is the same list backwards, ties too, so that one index gives both.
	direction, tie := "desc", ", f.latent"
	if o.Ascending {
		direction, tie = "asc", ", f.latent desc"
	}
	if column == "f.latent" {
		tie = ""
	}
	conditions := strings.Join(where, " and ")
	page := Page{Neurons: g.Latents}
	// The page and the numbers over all that the filters let through are two passes over the same rows: each gets a connection.
	both, ctx2 := errgroup.WithContext(ctx)
	both.Go(func() error {
		// The parameter that only other queries use is named too: PostgreSQL wants to know the type of each.
		count := fmt.Sprintf(`select count(*), coalesce(avg(f.activation_frequency), 0), coalesce(100.0 * count(*) filter (where f.interpretability_score > 0.5) / nullif(count(*), 0), 0) from %s f where %s and $2::text is not null`, g.table("features"), conditions)
		return q.custom(ctx2, count, args, func(rows pgx.Rows) error {
			counted, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[counts])
			page.Total, page.MeanFrequency, page.InterpretablePercent = int(counted.Total), counted.MeanFrequency, counted.InterpretablePercent
			return err
		})
	})
	var latents []int32
	both.Go(func() (err error) {
		latents, err = q.order(ctx2, g.table("features"), conditions, column, direction, tie, args, o.Limit, o.Offset)
		return err
	})
	if err := both.Wait(); err != nil {
		return Page{}, fmt.Errorf("list features: %w", replaced(err))
	}
	if page.Features, err = q.featuresOf(ctx, g, words, latents); err != nil {
		return Page{}, fmt.Errorf("list features: %w", replaced(err))
	}
	if o.Examples {
		err = replaced(q.strongest(ctx, g, page.Features))
	}
	return page, err
}

// counts are the numbers over all features of a list.
type counts struct {
	Total                int64
	MeanFrequency        float64
	InterpretablePercent float64
}

// custom runs a query with a plan of its own: a plan for any generation would open the tables of every
// one, and a deep page sorts all features.
func (q *Queries) custom(ctx context.Context, sql string, args []any, read func(pgx.Rows) error) error {
	batch := &pgx.Batch{}
	batch.Queue(`select set_config('work_mem', '32MB', true), set_config('plan_cache_mode', 'force_custom_plan', true)`)
	batch.Queue(sql, args...)
	results := q.pool.SendBatch(ctx, batch)
	_, err := results.Exec()
	if err == nil {
		var rows pgx.Rows
		if rows, err = results.Query(); err == nil {
			err = read(rows)
		}
	}
	return errors.Join(err, results.Close())
}

// order returns the latents of a page in order.
func (q *Queries) order(ctx context.Context, features, conditions, column, direction, tie string, args []any, limit, offset int) (latents []int32, err error) {
	collect := func(into *[]int32) func(pgx.Rows) error {
		return func(rows pgx.Rows) (err error) {
			*into, err = pgx.CollectRows(rows, pgx.RowTo[int32])
			return err
		}
	}
	paged := func(limit, offset int) []any { return append(args[:len(args):len(args)], limit, offset) }
	n := len(args)
	if !strings.HasPrefix(column, "l.") {
		err = q.custom(ctx, fmt.Sprintf(`select f.latent from %s f where %s and $2::text is not null order by %s %s%s limit $%d offset $%d`, features, conditions, column, direction, tie, n+1, n+2), paged(limit, offset), collect(&latents))
		return latents, err
	}
	// Few are labelled, and nobody looks for a missing label: the others come after them by number, whatever the direction.
	labelled := fmt.Sprintf(`from %s f join feature_labels l on l.source_key = $2 and l.latent = f.latent where %s and %s <> ''`, features, conditions, column)
	if err := q.custom(ctx, fmt.Sprintf(`select f.latent %s order by %s %s, f.latent limit $%d offset $%d`, labelled, column, direction, n+1, n+2), paged(limit, offset), collect(&latents)); err != nil || len(latents) == limit {
		return latents, err
	}
	var first []int32
	if err := q.custom(ctx, `select count(*)::int `+labelled, args, collect(&first)); err != nil {
		return nil, err
	}
	var rest []int32
	err = q.custom(ctx, fmt.Sprintf(`select f.latent from %s f where %s and f.latent not in (select l.latent from feature_labels l where l.source_key = $2 and %s <> '') order by f.latent limit $%d offset $%d`, features, conditions, column, n+1, n+2),
		paged(limit-len(latents), max(0, offset-int(first[0]))), collect(&rest))
	return append(latents, rest...), err
}

// featuresOf returns the features of these latents, in their order.
func (q *Queries) featuresOf(ctx context.Context, g Generation, words *vocabulary, latents []int32) ([]Feature, error) {
	var found []Feature
	// The page's labels are taken out first: before the planner knows how many labels there are, it would look through all of them for each feature.
	err := q.custom(ctx, `with l as materialized (select * from feature_labels where source_key = $2 and latent = any($3))
select `+featureColumns+` from unnest($3::int[]) with ordinality page (latent, place)
join `+g.table("features")+` f on f.generation = $1 and f.latent = page.latent
left join l on l.latent = f.latent
order by page.place`, []any{g.Generation, g.Source.Key(), latents}, func(rows pgx.Rows) (err error) {
		found, err = pgx.CollectRows(rows, scanFeature(words))
		return err
	})
	return found, err
}

// matching finds latents by their labels, and by the ten tokens that each fires on most: bit n is latent n.
func (q *Queries) matching(ctx context.Context, g Generation, search string) (found []byte, err error) {
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return nil, err
	}
	batch := &pgx.Batch{}
	batch.Queue(`select array_agg(latent) from feature_labels where source_key = $1 and (name ilike $2 or category ilike $2 or description ilike $2)`, g.Source.Key(), "%"+likeEscaper.Replace(search)+"%")
	batch.Queue(`select latents from `+g.table("token_features")+` where generation = $1 and token = any($2)`, g.Generation, words.containing(search))
	results := q.pool.SendBatch(ctx, batch)
	found = make([]byte, (g.Latents+7)/8)
	for range batch.Len() {
		var rows pgx.Rows
		if rows, err = results.Query(); err != nil {
			break
		}
		var latents []int32
		_, err = pgx.ForEachRow(rows, []any{&latents}, func() error {
			for _, l := range latents {
				if int(l) < g.Latents {
					found[l/8] |= 1 << (l % 8)
				}
			}
			return nil
		})
		if err != nil {
			break
		}
	}
	return found, errors.Join(err, results.Close())
}

// likeEscaper makes a string match itself in LIKE.
var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

func latentNumber(s string) int {
	n := 0
	for _, r := range s {
		if r < '0' || r > '9' || n > 1<<24 {
			return -1
		}
		n = n*10 + int(r-'0')
	}
	return n
}
