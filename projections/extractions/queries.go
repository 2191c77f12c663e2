package extractions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/source"
)

// Queries reads extractions through the stable views. It is safe for concurrent use.
//
// A method returns a *problem.Error for what is not there or cannot be asked, else the database's error.
type Queries struct {
	pool    *pgxpool.Pool
	workers Workers
}

// NewQueries returns queries; the Setup of this projection and of the library must have run before
// the first one. workers may be nil.
func NewQueries(pool *pgxpool.Pool, workers Workers) *Queries {
	return &Queries{pool: pool, workers: workers}
}

// shown is the status for clients. A completed extraction is finalizing until its features are folded
// as far as its end. Where that was given up nothing is going on any more: error_message says why, until somebody asks
// for the fold again.
const shown = `case when j.status = 'completed' and j.terminal_version > coalesce(f.folded_version, 0) and f.fold_error is null then 'finalizing' else j.status end`

const from = `
	from public.extraction_jobs j
	left join public.feature_folds f on f.extraction_id = j.id
	left join public.external_saes s on s.id = j.external_sae_id
	left join public.trainings t on t.id = j.training_id
	left join public.models m on m.id = j.model_id
	left join public.datasets d on d.id = j.dataset_id`

// parked says that an event of the extraction could not be applied to these tables, if so.
const parked = `(select format('event %s (%s) could not be applied to the tables: %s', p.position, p.type, p.error)
	from projections.parked p join projections.active_versions a on a.projection = p.projection and a.version = p.version
	where p.projection = 'extractions' and not p.rebuild and p.stream = 'extraction-' || j.id and p.error <> '' order by p.position limit 1)`

// selectExtraction is the beginning of a query for rows of Extraction, and of more columns.
func selectExtraction(more ...string) string {
	return `select ` + strings.Join(append([]string{columns}, more...), `, `) + from
}

const columns = `j.id, j.training_id, j.external_sae_id, j.sae_path, j.model_id, j.dataset_id,
	coalesce(s.name, t.name) as sae_name, m.name as model_name, d.name as dataset_name, j.hook, j.layer_index, j.latents, j.mask, ` + shown + ` as status,
	j.config, j.evaluation_samples, j.needs_plan, j.self_test, j.self_test_forced, j.corpus_id, j.batch_size, j.compute_profile, j.plan,
	j.segments_planned, j.sequences_planned, j.tokens_planned, j.segments_recorded, j.sequences_recorded, j.tokens, j.postings, j.artifact_bytes,
	j.compute_seconds, j.mismatches, j.error_code, coalesce(j.error_message, f.fold_error, ` + parked + `) as error_message, j.error_segment, j.error_resumable, j.cancel_reason, j.batch_id, j.batch_position, j.batch_total,
	j.terminal_version, j.stream_version, j.created_at, j.updated_at, j.started_at, j.completed_at, j.deleted_at,
	f.folded_version, f.generation, f.features, f.fold_error, f.statistics, f.folded_at`

// Listing says what a list shows. Zero values mean the defaults: the newest 50 of all that is not deleted.
type Listing struct {
	Statuses []string // of clients: queued, extracting, finalizing, completed, failed, cancelled
	Source   source.Source
	Limit    int
	Offset   int
}

func statuses() []string {
	return []string{string(extraction.Queued), string(extraction.Extracting), Finalizing,
		string(extraction.StatusCompleted), string(extraction.StatusFailed), string(extraction.StatusCancelled)}
}

// ParseStatuses reads a comma list, as in ?status_filter=queued,failed.
func ParseStatuses(list string) []string {
	var out []string
	for s := range strings.SplitSeq(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Page is one page of a list, and how many there are in all.
type Page struct {
	Items []Extraction
	Total int
}

// List lists extractions, newest first.
func (q *Queries) List(ctx context.Context, l Listing) (Page, error) {
	var wrong []problem.Field
	for _, s := range l.Statuses {
		if !slices.Contains(statuses(), s) {
			wrong = append(wrong, problem.Field{Name: "status_filter", Detail: fmt.Sprintf("%q is not one of %s", s, strings.Join(statuses(), ", "))})
		}
	}
	if l.Limit < 0 || l.Limit > 1000 {
		wrong = append(wrong, problem.Field{Name: "limit", Detail: "must be between 1 and 1000"})
	}
	if l.Offset < 0 {
		wrong = append(wrong, problem.Field{Name: "offset", Detail: "must not be negative"})
	}
	if len(wrong) > 0 {
		return Page{}, problem.InvalidFields("invalid_request", wrong...)
	}
	limit := l.Limit
	if limit == 0 {
		limit = 50
	}
	key := ""
	if !l.Source.IsZero() {
		key = l.Source.Key()
	}
	const where = ` where j.status <> 'deleted' and (cardinality($1::text[]) = 0 or ` + shown + ` = any($1)) and ($2 = '' or j.source_key = $2)`
	asked := append([]string{}, l.Statuses...)
	var out Page
	err := q.pool.QueryRow(ctx, `select count(*) from public.extraction_jobs j left join public.feature_folds f on f.extraction_id = j.id`+where, asked, key).Scan(&out.Total)
	if err != nil {
		return out, err
	}
	rows, err := q.pool.Query(ctx, selectExtraction()+where+` order by j.created_at desc, j.id desc limit $3 offset $4`, asked, key, limit, l.Offset)
	if err != nil {
		return out, err
	}
	out.Items, err = pgx.CollectRows(rows, pgx.RowToStructByName[Extraction])
	return out, err
}

// Get returns an extraction that is not deleted.
func (q *Queries) Get(ctx context.Context, id string) (Extraction, error) {
	e, err := q.get(ctx, ` where j.id = $1 and j.status <> 'deleted'`, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return e, extraction.NotFound(id)
	}
	return e, err
}

func (q *Queries) get(ctx context.Context, where string, args ...any) (Extraction, error) {
	rows, err := q.pool.Query(ctx, selectExtraction()+where, args...)
	if err != nil {
		return Extraction{}, err
	}
	return pgx.CollectOneRow(rows, pgx.RowToStructByName[Extraction])
}

// Holder returns the id of the extraction that holds a source at this moment, "" if none does. It
// comes from the log's reservations, so it is never behind.
func (q *Queries) Holder(ctx context.Context, s source.Source) (string, error) {
	var holder string
	err := q.pool.QueryRow(ctx, `select holder from public.reservations where key = $1 and not shared`, reservation(s)).Scan(&holder)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return holder, err
}

// reservation is the key under which domain/facts reserves a source.
func reservation(s source.Source) string { return "source:" + s.Key() }

// ForSource returns the extraction that holds a source, else its newest one that is not deleted.
func (q *Queries) ForSource(ctx context.Context, s source.Source) (Extraction, error) {
	holder, err := q.Holder(ctx, s)
	if err != nil {
		return Extraction{}, err
	}
	e, err := q.get(ctx, ` where j.source_key = $1 and j.status <> 'deleted' order by j.id = $2 desc, j.created_at desc, j.id desc limit 1`, s.Key(), holder)
	if errors.Is(err, pgx.ErrNoRows) {
		return e, problem.New(problem.NotFound, "extraction_not_found", "%s was never extracted", s)
	}
	return e, err
}

// Segments returns the recorded segments of an extraction in order.
func (q *Queries) Segments(ctx context.Context, id string) ([]Segment, error) {
	rows, err := q.pool.Query(ctx, `select index, first_sequence, sequences, tokens, content_sha256, file_sha256, bytes, postings, seconds, device, worker, attempt, recorded_at
		from public.extraction_segments where extraction_id = $1 order by index`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Segment])
}

// Alarms returns the alarms of an extraction in order; "" = of all extractions.
func (q *Queries) Alarms(ctx context.Context, id string) ([]Alarm, error) {
	rows, err := q.pool.Query(ctx, `select extraction_id, index, recorded_content_sha256, offered_content_sha256, worker, raised_at
		from public.extraction_alarms where $1 = '' or extraction_id = $1 order by raised_at, extraction_id, stream_version`, id)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Alarm])
}

// Orphan is an extraction that names something that the library has never heard of.
type Orphan struct {
	ExtractionID string `db:"extraction_id"`
	Kind         string `db:"kind"` // model, dataset, sae, training, corpus
	ID           string `db:"missing"`
}

// Orphans returns what extractions name and the library does not have, where both tables are at the
// same position. There are no foreign keys between projections; this proves that none is missed.
func (q *Queries) Orphans(ctx context.Context) ([]Orphan, error) {
	rows, err := q.pool.Query(ctx, `select j.id as extraction_id, n.kind, n.id as missing
		from public.extraction_jobs j,
			lateral (values ('model', j.model_id), ('dataset', j.dataset_id), ('sae', j.external_sae_id), ('training', j.training_id), ('corpus', j.corpus_id)) n (kind, id)
		where n.id is not null and not exists (
			select from public.models x where n.kind = 'model' and x.id = n.id union all
			select from public.datasets x where n.kind = 'dataset' and x.id = n.id union all
			select from public.external_saes x where n.kind = 'sae' and x.id = n.id union all
			select from public.trainings x where n.kind = 'training' and x.id = n.id union all
			select from public.corpora x where n.kind = 'corpus' and x.id = n.id)
		order by j.id, n.kind`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Orphan])
}
