package library

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
)

// Queries reads the library through its stable views. It is safe for concurrent use.
//
// A method returns a *problem.Error for what is not there or cannot be asked, else the database's error.
type Queries struct{ pool *pgxpool.Pool }

// NewQueries returns queries; the projection's Setup must have run before the first one.
func NewQueries(pool *pgxpool.Pool) *Queries { return &Queries{pool: pool} }

var fileStatuses = []string{"pending", downloading, "ready", "failed", "deleted"}

// downloading is the status of what is pending and somebody works on. It is telemetry: the log knows only pending.
const downloading = "downloading"

// live says that somebody fetches a row's files.
const live = "(t.status = 'pending' and w.owner is not null and w.expires_at > clock_timestamp())"

// fetched joins the work of the download of a row, which streams' names begin with kind. While it lasts there is one row.
func fetched(kind string) string {
	return " left join public.work w on w.kind = '" + facts.DownloadWork + "' and w.subject = '" + kind + "-' || t.id"
}

const downloadColumns = `case when ` + live + ` then '` + downloading + `' else t.status end as status, case when ` + live + ` then w.progress end as download`

// told is a row's error_message: what its facts say, else that one of them could not be applied to these tables, else why
// its download is put off.
func told(kind string) string {
	putOff := ""
	if kind != "corpus" {
		putOff = `, case when t.status = 'pending' and w.owner is null then 'it is tried again: ' || (w.causes->-1->>'detail') end`
	}
	return `coalesce(t.error_message, (select format('event %s (%s) could not be applied to the tables: %s', p.position, p.type, p.error)
		from projections.parked p join projections.active_versions a on a.projection = p.projection and a.version = p.version
		where p.projection = 'library' and not p.rebuild and p.stream = '` + kind + `-' || t.id and p.error <> '' order by p.position limit 1)` + putOff + `) as error_message`
}

var saeColumns = `t.id, t.name, t.description, t.source, ` + downloadColumns + `, t.hf_repo_id, t.hf_filepath, t.hf_revision, t.training_id, t.training_path,
	coalesce(t.model_name, m.name) as model_name, t.model_id, t.layer, t.hook, t.hook_out, t.hook_type, t.n_features, t.d_model, t.d_out, t.k,
	t.architecture, t.format, t.format_version, t.normalization, t.dtype, t.context_length, t.prepend_bos, t.signed, t.published_l0,
	t.local_path, t.file_size_bytes, t.files_sha256, t.sae_metadata, t.self_test, t.self_test_status, t.error_code, ` + told("sae") + `, t.stream_version,
	t.created_at, t.updated_at, t.downloaded_at, t.deleted_at`

var modelColumns = `t.id, t.name, ` + downloadColumns + `, t.source, t.hf_repo_id, t.hf_revision, t.local_path, t.family, t.format, t.dtype, t.layers, t.d_model, t.vocab,
	t.context_length, t.params_count, t.file_size_bytes, t.files_sha256, t.tokenizer_sha256, t.facts, t.error_code, ` + told("model") + `, t.stream_version,
	t.created_at, t.updated_at, t.ready_at, t.deleted_at`

var datasetColumns = `t.id, t.name, ` + downloadColumns + `, t.source, t.hf_repo_id, t.hf_revision, t.local_path, t.format, t.text_column, t.tokenised, t.columns, t.num_rows,
	t.file_size_bytes, t.files_sha256, t.facts, t.error_code, ` + told("dataset") + `, t.stream_version, t.created_at, t.updated_at, t.ready_at, t.deleted_at`

const trainingColumns = `t.id, t.name, t.status, t.model_id, t.source, t.checkpoint_dir, t.hf_repo_id, t.saes, t.file_size_bytes, t.stream_version, t.created_at,
	t.updated_at, t.completed_at, t.deleted_at, m.name as model_name`

const trainingSAEColumns = `t.training_id, t.path, t.layer, t.hook, t.hook_type, t.n_features, t.d_model, t.architecture, t.file_size_bytes, t.files_sha256, t.facts`

var corpusColumns = `t.id, t.dataset_id, t.dataset_sha256, t.tokenizer_sha256, t.model_id, t.options, t.status, t.wanted, t.sequences, t.tokens, t.num_rows, t.chunks,
	t.bytes, t.exhausted, t.vocabulary_sha256, t.error_code, ` + told("corpus") + `, t.stream_version, t.created_at, t.updated_at`

func saeList() list {
	return list{
		from:    "public.external_saes t left join public.models m on m.id = t.model_id" + fetched("sae"),
		columns: saeColumns,
		search:  []string{"t.name", "t.description", "t.hf_repo_id"},
		model:   []string{"t.model_name", "m.name"},
		modelID: true,
		sorts: []string{"id", "name", "description", "source", "status", "hf_repo_id", "hf_filepath", "training_id", "model_name", "model_id", "layer",
			"hook_type", "n_features", "d_model", "architecture", "format", "file_size_bytes", "created_at", "updated_at", "downloaded_at"},
		statuses: fileStatuses,
		sources:  []string{"huggingface", "local", "trained"},
	}
}

func modelList() list {
	return list{
		from: "public.models t" + fetched("model"), columns: modelColumns,
		search:   []string{"t.name", "t.hf_repo_id", "t.family"},
		sorts:    []string{"id", "name", "status", "family", "params_count", "layers", "d_model", "file_size_bytes", "created_at", "updated_at"},
		statuses: fileStatuses, sources: []string{"huggingface", "local"},
	}
}

func datasetList() list {
	return list{
		from: "public.datasets t" + fetched("dataset"), columns: datasetColumns,
		search:   []string{"t.name", "t.hf_repo_id"},
		sorts:    []string{"id", "name", "status", "source", "format", "num_rows", "file_size_bytes", "created_at", "updated_at"},
		statuses: fileStatuses, sources: []string{"huggingface", "local"},
	}
}

func trainingList() list {
	return list{
		from:     "public.trainings t left join public.models m on m.id = t.model_id",
		columns:  trainingColumns,
		search:   []string{"t.name", "t.id"},
		modelID:  true,
		sorts:    []string{"id", "name", "status", "model_id", "saes", "created_at", "updated_at", "completed_at"},
		statuses: []string{"completed", "deleted"}, sources: []string{"huggingface", "local"},
	}
}

// ListSAEs lists SAEs.
func (q *Queries) ListSAEs(ctx context.Context, l Listing) (Page[SAE], error) {
	return page[SAE](ctx, q, l, saeList())
}

// ListModels lists models.
func (q *Queries) ListModels(ctx context.Context, l Listing) (Page[Model], error) {
	return page[Model](ctx, q, l, modelList())
}

// ListDatasets lists datasets.
func (q *Queries) ListDatasets(ctx context.Context, l Listing) (Page[Dataset], error) {
	return page[Dataset](ctx, q, l, datasetList())
}

// ListTrainings lists trainings with their SAEs.
func (q *Queries) ListTrainings(ctx context.Context, l Listing) (Page[Training], error) {
	out, err := page[Training](ctx, q, l, trainingList())
	if err != nil {
		return out, err
	}
	return out, q.addSAEs(ctx, out.Items)
}

// TrainingCounts says how many trainings there are by status, as existing clients count them:
// all, running, completed, failed.
func (q *Queries) TrainingCounts(ctx context.Context) (map[string]int, error) {
	out := map[string]int{"all": 0, "running": 0, "completed": 0, "failed": 0}
	rows, err := q.pool.Query(ctx, `select status, count(*) from public.trainings where status <> 'deleted' group by status`)
	if err != nil {
		return nil, err
	}
	var status string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&status, &n}, func() error {
		out[status] += n
		out["all"] += n
		return nil
	})
	return out, err
}

// one reads one row; notFound where there is none.
func one[T any](ctx context.Context, q *Queries, t list, id string, notFound error) (T, error) {
	rows, err := q.pool.Query(ctx, "select "+t.columns+" from "+t.from+" where t.id = $1", id)
	if err != nil {
		var none T
		return none, err
	}
	out, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
	if errors.Is(err, pgx.ErrNoRows) {
		err = notFound
	}
	return out, err
}

// SAE returns an SAE, also a deleted one.
func (q *Queries) SAE(ctx context.Context, id string) (SAE, error) {
	return one[SAE](ctx, q, saeList(), id, sae.NotFound(id))
}

// Model returns a model, also a deleted one.
func (q *Queries) Model(ctx context.Context, id string) (Model, error) {
	return one[Model](ctx, q, modelList(), id, model.NotFound(id))
}

// Dataset returns a dataset, also a deleted one.
func (q *Queries) Dataset(ctx context.Context, id string) (Dataset, error) {
	return one[Dataset](ctx, q, datasetList(), id, dataset.NotFound(id))
}

// Training returns a training with its SAEs, also a deleted one.
func (q *Queries) Training(ctx context.Context, id string) (Training, error) {
	t, err := one[Training](ctx, q, trainingList(), id, training.NotFound(id))
	if err != nil {
		return t, err
	}
	all := []Training{t}
	err = q.addSAEs(ctx, all)
	return all[0], err
}

// addSAEs reads the SAEs of all trainings at once.
func (q *Queries) addSAEs(ctx context.Context, trainings []Training) error {
	at := map[string]int{}
	ids := make([]string, len(trainings))
	for i, t := range trainings {
		at[t.ID], ids[i] = i, t.ID
	}
	rows, err := q.pool.Query(ctx, `select `+trainingSAEColumns+` from public.training_saes t where training_id = any($1) order by training_id, layer, path`, ids)
	if err != nil {
		return err
	}
	saes, err := pgx.CollectRows(rows, pgx.RowToStructByName[TrainingSAE])
	for _, s := range saes {
		t := &trainings[at[s.TrainingID]]
		t.SAEs = append(t.SAEs, s)
	}
	return err
}

// ImportedSAEs returns the SAEs that were imported from a training: its folder in the checkpoint → the
// newest SAE of ours that is not deleted.
func (q *Queries) ImportedSAEs(ctx context.Context, trainingID string) (map[string]string, error) {
	rows, err := q.pool.Query(ctx, `select training_path, id from public.external_saes
		where training_id = $1 and training_path is not null and status <> 'deleted' order by created_at, id`, trainingID)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	var path, id string
	_, err = pgx.ForEachRow(rows, []any{&path, &id}, func() error {
		out[path] = id
		return nil
	})
	return out, err
}

// ModelsNamed returns the ready models that a name, such as the one in an SAE's config, may mean:
// those with exactly this name or repository, else those whose name is the same after
// NormalModelName. More than one means that a person has to choose.
func (q *Queries) ModelsNamed(ctx context.Context, name string) ([]Model, error) {
	if strings.TrimSpace(name) == "" {
		return nil, nil
	}
	rows, err := q.pool.Query(ctx, `select `+modelColumns+` from `+modelList().from+` where t.status = 'ready' order by t.created_at desc, t.id desc`)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[Model])
	if err != nil {
		return nil, err
	}
	for _, same := range []func(string) bool{
		func(s string) bool { return s == name },
		func(s string) bool { return NormalModelName(s) == NormalModelName(name) },
	} {
		var found []Model
		for _, m := range all {
			if same(m.Name) || m.HFRepoID != nil && same(*m.HFRepoID) {
				found = append(found, m)
			}
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, nil
}

// NormalModelName leaves out the owner, case and punctuation: google/Gemma_2-2b and gemma-2-2b are the same.
func NormalModelName(name string) string {
	name = strings.ToLower(strings.TrimSuffix(strings.TrimSpace(name), "/"))
	name = name[strings.LastIndexByte(name, '/')+1:]
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, name)
}

// Corpora returns the corpora of a dataset, newest first; "" = of all.
func (q *Queries) Corpora(ctx context.Context, datasetID string) ([]Corpus, error) {
	rows, err := q.pool.Query(ctx, `select `+corpusColumns+` from public.corpora t where $1 = '' or dataset_id = $1 order by created_at desc, id`, datasetID)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Corpus])
}

// Corpus returns a corpus.
func (q *Queries) Corpus(ctx context.Context, id string) (Corpus, error) {
	return one[Corpus](ctx, q, list{from: "public.corpora t", columns: corpusColumns}, id,
		problem.New(problem.NotFound, "corpus_not_found", "there is no corpus %s", id))
}

// Chunks returns the chunks of a corpus in order.
func (q *Queries) Chunks(ctx context.Context, corpusID string) ([]Chunk, error) {
	rows, err := q.pool.Query(ctx, `select chunk, first_sequence, sequences, tokens, num_rows, sha256, bytes from public.corpus_chunks where corpus_id = $1 order by chunk`, corpusID)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Chunk])
}

// Downloading returns what is being fetched at this moment, with how far it is: models, SAEs and datasets, oldest first.
func (q *Queries) Downloading(ctx context.Context) ([]Download, error) {
	rows, err := q.pool.Query(ctx, `select subject, coalesce(owner is not null and expires_at > clock_timestamp(), false), progress from public.work where kind = $1 order by opened, subject limit 1000`, facts.DownloadWork)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (d Download, err error) {
		var subject string
		var progress []byte
		err = row.Scan(&subject, &d.Running, &progress)
		d.Kind, d.ID, _ = strings.Cut(subject, "-")
		d.Progress = progress
		return d, err
	})
}

// DownloadedModel returns the model that was fetched, or is being fetched, from this commit; "" = none.
func (q *Queries) DownloadedModel(ctx context.Context, repo, commit, file string) (id string, err error) {
	err = q.pool.QueryRow(ctx, `select id from public.models where hf_repo_id = $1 and hf_revision = $2 and coalesce(local_path, '') = $3 and status in ('pending', 'ready') order by created_at limit 1`,
		repo, commit, file).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	return id, err
}
