package extractions

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/projector"
)

// Projection builds the tables of extractions.
type Projection struct{}

var _ projector.Projection = Projection{}

// Name is "extractions".
func (Projection) Name() string { return Name }

// Name of the projection, for those who wait for it.
const Name = "extractions"

// Version is the version of the tables.
func (Projection) Version() int { return 2 }

// Setup returns the statements that make the tables.
func (Projection) Setup() string { return setup }

// Views returns the tables that are seen in the schema public.
func (Projection) Views() []string { return slices.Clone(views) }

// Apply writes what an event says about an extraction.
func (Projection) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, data event.Data) error {
	_, id, _ := strings.Cut(rec.Stream, "-")
	w := writer{ctx: ctx, tx: tx, rec: rec, id: id}
	switch e := data.(type) {
	case extraction.Requested:
		return w.requested(e)
	case extraction.SelfTested:
		test, err := json.Marshal(e.SelfTest)
		if err != nil {
			return err
		}
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, self_test = $4, self_test_forced = $5 where id = $1`, test, e.Forced)
	case extraction.Planned:
		return w.planned(e)
	case extraction.SegmentRecorded:
		return w.segment(e)
	case extraction.SegmentMismatched:
		_, err := tx.Exec(ctx, `insert into extraction_alarms (extraction_id, stream_version, index, recorded_content_sha256, offered_content_sha256, worker, raised_at)
			values ($1, $2, $3, $4, $5, $6, $7)`, id, rec.Version, e.Index, e.Recorded, e.Offered, e.Worker, rec.RecordedAt)
		if err != nil {
			return err
		}
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, mismatches = mismatches + 1 where id = $1`)
	case extraction.Completed:
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = 'completed', completed_at = $3, terminal_version = $2 where id = $1`)
	case extraction.Failed:
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = 'failed', completed_at = $3, terminal_version = $2,
			error_code = $4, error_message = $5, error_segment = $6, error_resumable = $7 where id = $1`, e.Code, e.Detail, e.Segment, e.Resumable)
	case extraction.Cancelled:
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = 'cancelled', completed_at = $3, terminal_version = $2,
			cancel_reason = nullif($4, '') where id = $1`, e.Reason)
	case extraction.Resumed:
		status := extraction.Extracting
		if e.Plan {
			status = extraction.Queued
		}
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = $4, completed_at = null, terminal_version = null,
			error_code = null, error_message = null, error_segment = null, error_resumable = null, cancel_reason = null where id = $1`, string(status))
	case extraction.Extended:
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = 'queued', completed_at = null, terminal_version = null,
			error_code = null, error_message = null, error_segment = null, error_resumable = null, cancel_reason = null,
			needs_plan = true, evaluation_samples = $4 where id = $1`, e.EvaluationSamples)
	case extraction.Deleted:
		// The recorded set is empty now, so its files are garbage.
		if _, err := tx.Exec(ctx, `delete from extraction_segments where extraction_id = $1`, id); err != nil {
			return err
		}
		return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = 'deleted', deleted_at = $3, terminal_version = $2 where id = $1`)
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

func (w writer) requested(e extraction.Requested) error {
	config, err := json.Marshal(e.Config)
	if err != nil {
		return err
	}
	mask, err := json.Marshal(e.Mask)
	if err != nil {
		return err
	}
	batch := e.Batch
	if batch == nil {
		batch = &extraction.Batch{}
	}
	return w.row(`insert into extraction_jobs (id, stream_version, created_at, updated_at, training_id, external_sae_id, source_key, sae_path, model_id, dataset_id,
			hook, layer_index, latents, mask, status, config, evaluation_samples, needs_plan, batch_id, batch_position, batch_total)
		values ($1, $2, $3, $3, nullif($4, ''), nullif($5, ''), $6, nullif($7, ''), $8, $9, $10, $11, $12, $13, 'queued', $14, $15, true,
			nullif($16, ''), nullif($17, 0), nullif($18, 0))`,
		e.Source.TrainingID(), e.Source.SAEID(), e.Source.Key(), e.SAEPath, e.ModelID, e.DatasetID,
		e.Hook, e.Layer, e.Latents, mask, config, e.Config.EvaluationSamples, batch.ID, batch.Position, batch.Total)
}

func (w writer) planned(e extraction.Planned) error {
	part, err := json.Marshal(e.Part)
	if err != nil {
		return err
	}
	profile, err := json.Marshal(e.Profile)
	if err != nil {
		return err
	}
	return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, status = 'extracting', needs_plan = false, started_at = coalesce(started_at, $3),
			corpus_id = $4, batch_size = $5, compute_profile = $6, plan = (plan::jsonb || $7::jsonb)::json,
			segments_planned = segments_planned + $8, sequences_planned = sequences_planned + $9, tokens_planned = tokens_planned + $10 where id = $1`,
		e.CorpusID, e.BatchSize, profile, part, e.Part.Segments(), e.Part.Sequences, e.Part.Tokens)
}

func (w writer) segment(e extraction.SegmentRecorded) error {
	a := e.Artifact
	_, err := w.tx.Exec(w.ctx, `insert into extraction_segments (extraction_id, index, first_sequence, sequences, tokens, content_sha256, file_sha256, bytes, postings, seconds, device, worker, attempt, recorded_at)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		w.id, e.Index, e.FirstSequence, e.Sequences, e.Tokens, a.ContentSHA256, a.FileSHA256, a.Bytes, a.Postings, e.Seconds, e.Device, e.Worker, e.Attempt, w.rec.RecordedAt)
	if err != nil {
		return err
	}
	return w.row(`update extraction_jobs set stream_version = $2, updated_at = $3, segments_recorded = segments_recorded + 1, sequences_recorded = sequences_recorded + $4,
			tokens = tokens + $5, postings = postings + $6, artifact_bytes = artifact_bytes + $7, compute_seconds = compute_seconds + $8 where id = $1`,
		e.Sequences, e.Tokens, a.Postings, a.Bytes, e.Seconds)
}
