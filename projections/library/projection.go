package library

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/projector"
)

// Projection builds the library's tables.
type Projection struct{}

var _ projector.Projection = Projection{}

// Name of the projection, for those who wait for it.
const Name = "library"

// Name is "library".
func (Projection) Name() string { return Name }

// Version is the version of the tables.
func (Projection) Version() int { return 2 }

// Setup returns the statements that make the tables.
func (Projection) Setup() string { return setup }

// Views returns the tables that are seen in the schema public.
func (Projection) Views() []string { return slices.Clone(views) }

// Apply writes what an event says about a model, an SAE, a dataset, a corpus or a training.
func (Projection) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, data event.Data) error {
	_, id, _ := strings.Cut(rec.Stream, "-")
	w := writer{ctx: ctx, tx: tx, rec: rec, id: id}
	switch e := data.(type) {
	case model.Registered, model.DownloadRequested, model.Ready, model.Failed, model.Deleted:
		return w.model(e)
	case sae.Registered, sae.DownloadRequested, sae.Ready, sae.LinkedToModel, sae.SelfTestRequested, sae.SelfTested, sae.Renamed, sae.Failed, sae.Deleted:
		return w.sae(e)
	case dataset.Registered, dataset.DownloadRequested, dataset.Ready, dataset.Failed, dataset.Deleted:
		return w.dataset(e)
	case corpus.Requested, corpus.ChunkBuilt, corpus.Ready, corpus.Failed:
		return w.corpus(e)
	case training.Imported, training.Deleted:
		return w.training(e)
	}
	return nil
}

// writer holds what every statement of one event needs.
type writer struct {
	ctx context.Context
	tx  pgx.Tx
	rec event.Recorded
	id  string
}

// row runs a statement that must change exactly one row. Its first three parameters are the id, the
// stream version and the time of the event.
func (w writer) row(sql string, args ...any) error {
	tag, err := w.tx.Exec(w.ctx, sql, append([]any{w.id, w.rec.Version, w.rec.RecordedAt}, args...)...)
	if err != nil {
		return err
	}
	if n := tag.RowsAffected(); n != 1 {
		return fmt.Errorf("%s version %d: %d rows were changed instead of one", w.rec.Stream, w.rec.Version, n)
	}
	return nil
}

func (w writer) model(d event.Data) error {
	switch e := d.(type) {
	case model.Registered:
		return w.row(`insert into models (id, stream_version, created_at, updated_at, name, status, source, hf_repo_id, hf_revision, local_path)
			values ($1, $2, $3, $3, $4, 'pending', $5, $6, $7, $8)`,
			e.Name, e.Origin.Kind, known(e.Origin.Repo), known(e.Origin.Revision), known(e.Origin.Path))
	case model.DownloadRequested:
		return w.row(`update models set stream_version = $2, updated_at = $3, status = 'pending', hf_revision = $4, error_code = null, error_message = null where id = $1`, e.Commit)
	case model.Ready:
		f := e.Facts
		facts, err := json.Marshal(f)
		if err != nil {
			return err
		}
		return w.row(`update models set stream_version = $2, updated_at = $3, status = 'ready', ready_at = $3, error_code = null, error_message = null,
			family = $4, format = $5, dtype = $6, layers = $7, d_model = $8, vocab = $9, context_length = $10, params_count = $11,
			file_size_bytes = $12, files_sha256 = $13, tokenizer_sha256 = $14, facts = $15 where id = $1`,
			known(f.Family), known(f.Format), known(f.DType), known(f.Layers), known(f.DModel), known(f.Vocab), known(f.Context), known(f.Params),
			f.Files.Bytes(), f.Files.Digest(), known(f.Tokenizer), facts)
	case model.Failed:
		return w.row(`update models set stream_version = $2, updated_at = $3, status = 'failed', error_code = $4, error_message = $5 where id = $1`, e.Code, e.Detail)
	case model.Deleted:
		return w.row(`update models set stream_version = $2, updated_at = $3, status = 'deleted', deleted_at = $3 where id = $1`)
	}
	return nil
}

func (w writer) sae(d event.Data) error {
	switch e := d.(type) {
	case sae.Registered:
		var path string
		if e.Origin.TrainingID != "" {
			path = PathInTraining(e.Origin)
		}
		return w.row(`insert into external_saes (id, stream_version, created_at, updated_at, name, description, source, status, hf_repo_id, hf_filepath, hf_revision, local_path, training_id, training_path)
			values ($1, $2, $3, $3, $4, $5, $6, 'pending', $7, $8, $9, $10, $11, $12)`,
			e.Name, known(e.Description), e.Origin.Kind, known(e.Origin.Repo), known(e.Origin.File), known(e.Origin.Revision), known(e.Origin.Path), known(e.Origin.TrainingID), known(path))
	case sae.DownloadRequested:
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, status = 'pending', hf_revision = $4, error_code = null, error_message = null where id = $1`, e.Commit)
	case sae.Ready:
		f := e.Facts
		facts, err := json.Marshal(f)
		if err != nil {
			return err
		}
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, status = 'ready', downloaded_at = $3, error_code = null, error_message = null,
			model_name = $4, layer = $5, hook = $6, hook_out = $7, hook_type = $8, n_features = $9, d_model = $10, d_out = $11, k = $12,
			architecture = $13, format = $14, format_version = $15, normalization = $16, dtype = $17, context_length = $18, prepend_bos = $19,
			signed = $20, published_l0 = $21, file_size_bytes = $22, files_sha256 = $23, sae_metadata = $24 where id = $1`,
			known(f.ModelName), f.Layer, known(f.Hook), known(f.HookOut), known(HookType(f.Hook)), known(f.DSAE), known(f.DIn), known(f.DOut), known(f.K),
			known(f.Architecture), known(f.Format), known(f.FormatVersion), known(f.Normalization), known(f.DType), known(f.ContextLength), f.PrependBOS,
			f.Signed, f.PublishedL0, f.Files.Bytes(), f.Files.Digest(), facts)
	case sae.LinkedToModel:
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, model_id = $4, self_test = null, self_test_status = null where id = $1`, known(e.ModelID))
	case sae.SelfTestRequested:
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, self_test_status = 'pending' where id = $1`)
	case sae.SelfTested:
		test, err := json.Marshal(e)
		if err != nil {
			return err
		}
		status := "done"
		if e.Code != "" {
			status = "failed"
		}
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, self_test = $4, self_test_status = $5 where id = $1`, test, status)
	case sae.Renamed:
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, name = $4, description = $5 where id = $1`, e.Name, known(e.Description))
	case sae.Failed:
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, status = 'failed', error_code = $4, error_message = $5 where id = $1`, e.Code, e.Detail)
	case sae.Deleted:
		return w.row(`update external_saes set stream_version = $2, updated_at = $3, status = 'deleted', deleted_at = $3 where id = $1`)
	}
	return nil
}

func (w writer) dataset(d event.Data) error {
	switch e := d.(type) {
	case dataset.Registered:
		return w.row(`insert into datasets (id, stream_version, created_at, updated_at, name, status, source, hf_repo_id, hf_revision, local_path)
			values ($1, $2, $3, $3, $4, 'pending', $5, $6, $7, $8)`,
			e.Name, e.Origin.Kind, known(e.Origin.Repo), known(e.Origin.Revision), known(e.Origin.Path))
	case dataset.DownloadRequested:
		return w.row(`update datasets set stream_version = $2, updated_at = $3, status = 'pending', hf_revision = $4, error_code = null, error_message = null where id = $1`, e.Commit)
	case dataset.Ready:
		f := e.Facts
		facts, err := json.Marshal(f)
		if err != nil {
			return err
		}
		return w.row(`update datasets set stream_version = $2, updated_at = $3, status = 'ready', ready_at = $3, error_code = null, error_message = null,
			format = $4, text_column = $5, tokenised = $6, columns = $7, num_rows = $8, file_size_bytes = $9, files_sha256 = $10, facts = $11 where id = $1`,
			known(f.Format), known(f.TextColumn), f.Tokenised, f.Columns, f.Rows, f.Files.Bytes(), f.Files.Digest(), facts)
	case dataset.Failed:
		return w.row(`update datasets set stream_version = $2, updated_at = $3, status = 'failed', error_code = $4, error_message = $5 where id = $1`, e.Code, e.Detail)
	case dataset.Deleted:
		return w.row(`update datasets set stream_version = $2, updated_at = $3, status = 'deleted', deleted_at = $3 where id = $1`)
	}
	return nil
}

func (w writer) corpus(d event.Data) error {
	switch e := d.(type) {
	case corpus.Requested:
		options, err := json.Marshal(e.Options)
		if err != nil {
			return err
		}
		// A corpus is asked for again when more of it is wanted.
		return w.row(`insert into corpora as c (id, stream_version, created_at, updated_at, dataset_id, dataset_sha256, tokenizer_sha256, model_id, options, status, wanted)
			values ($1, $2, $3, $3, $4, $5, $6, $7, $8, 'building', $9)
			on conflict (id) do update set stream_version = excluded.stream_version, updated_at = excluded.updated_at, dataset_id = excluded.dataset_id,
				model_id = excluded.model_id, status = 'building', wanted = greatest(c.wanted, excluded.wanted), error_code = null, error_message = null`,
			e.DatasetID, e.DatasetDigest, e.TokenizerSHA256, e.ModelID, options, e.Sequences)
	case corpus.ChunkBuilt:
		_, err := w.tx.Exec(w.ctx, `insert into corpus_chunks (corpus_id, chunk, first_sequence, sequences, tokens, num_rows, sha256, bytes) values ($1, $2, $3, $4, $5, $6, $7, $8)`,
			w.id, e.Chunk, e.FirstSequence, e.Sequences, e.Tokens, e.Rows, e.SHA256, e.Bytes)
		if err != nil {
			return err
		}
		return w.row(`update corpora set stream_version = $2, updated_at = $3, chunks = chunks + 1, sequences = sequences + $4, tokens = tokens + $5,
			num_rows = num_rows + $6, bytes = bytes + $7 where id = $1`, e.Sequences, e.Tokens, e.Rows, e.Bytes)
	case corpus.Ready:
		return w.row(`update corpora set stream_version = $2, updated_at = $3, status = 'ready', exhausted = $4, vocabulary_sha256 = $5 where id = $1`,
			e.Exhausted, known(e.VocabularySHA256))
	case corpus.Failed:
		return w.row(`update corpora set stream_version = $2, updated_at = $3, status = 'failed', error_code = $4, error_message = $5 where id = $1`, e.Code, e.Detail)
	}
	return nil
}

func (w writer) training(d event.Data) error {
	switch e := d.(type) {
	case training.Imported:
		var bytes int64
		for _, one := range e.SAEs {
			facts, err := json.Marshal(one.Facts)
			if err != nil {
				return err
			}
			f := one.Facts
			bytes += f.Files.Bytes()
			_, err = w.tx.Exec(w.ctx, `insert into training_saes (training_id, path, layer, hook, hook_type, n_features, d_model, architecture, file_size_bytes, files_sha256, facts)
				values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
				w.id, one.Path, f.Layer, f.Hook, HookType(f.Hook), f.DSAE, f.DIn, f.Architecture, f.Files.Bytes(), f.Files.Digest(), facts)
			if err != nil {
				return err
			}
		}
		return w.row(`insert into trainings (id, stream_version, created_at, updated_at, completed_at, name, status, model_id, source, checkpoint_dir, hf_repo_id, saes, file_size_bytes)
			values ($1, $2, $3, $3, $3, $4, 'completed', $5, $6, $7, $8, $9, $10)`,
			e.Name, e.ModelID, e.Checkpoint.Kind, known(e.Checkpoint.Path), known(e.Checkpoint.Repo), len(e.SAEs), bytes)
	case training.Deleted:
		return w.row(`update trainings set stream_version = $2, updated_at = $3, status = 'deleted', deleted_at = $3 where id = $1`)
	}
	return nil
}

// known is null for a zero value: the events leave out what is not known.
func known[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// PathInTraining is the folder inside a training's checkpoint that an SAE was imported from.
func PathInTraining(o sae.Origin) string {
	if o.File != "" {
		return o.File
	}
	return o.Path
}

// HookType is the kind of a hook as existing clients name it: residual, mlp or attention; for any
// other hook, its own last part.
func HookType(hook string) string {
	last := hook[strings.LastIndexByte(hook, '.')+1:]
	last = strings.TrimPrefix(last, "hook_")
	switch {
	case strings.HasPrefix(last, "resid"):
		return "residual"
	case strings.HasPrefix(last, "mlp"):
		return "mlp"
	case strings.HasPrefix(last, "attn"):
		return "attention"
	}
	return last
}
