package features

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/generation"
)

// Projection is version 2 of the features' read model: what folds make is not in it any more.
type Projection struct{}

// Name of the projection.
func (Projection) Name() string { return "features" }

// Version of the tables.
func (Projection) Version() int { return 2 }

// Setup makes the tables.
func (Projection) Setup() string { return setup }

// Views that SQL users see in the schema public.
func (Projection) Views() []string {
	return []string{"feature_folds", "feature_extractions", "feature_corpora", "feature_labels"}
}

// Apply folds one event into rows of its own stream.
func (Projection) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, data event.Data) error {
	_, id, _ := strings.Cut(rec.Stream, "-")
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	switch e := data.(type) {
	case extraction.Requested:
		config, err := json.Marshal(e.Config)
		if err != nil {
			return err
		}
		mask, err := json.Marshal(e.Mask)
		if err != nil {
			return err
		}
		return exec(`insert into extractions (extraction_id, source_key, training_id, external_sae_id, model_id, dataset_id, latents, mask, config, requested, running_since)
values ($1, $2, nullif($3, ''), nullif($4, ''), $5, $6, $7, $8, $9, $10, $11)`,
			id, e.Source.Key(), e.Source.TrainingID(), e.Source.SAEID(), e.ModelID, e.DatasetID, e.Latents, mask, config, rec.Position, rec.RecordedAt)
	case extraction.Planned:
		return exec(`update extractions set corpus_id = $2 where extraction_id = $1`, id, e.CorpusID)
	case extraction.SegmentRecorded:
		if err := exec(`insert into segments values ($1, $2, $3, $4, $5, $6)`, id, e.Index, e.FirstSequence, e.Sequences, e.Artifact.FileSHA256, rec.Version); err != nil {
			return err
		}
		return exec(`update extractions set wanted_version = $2 where extraction_id = $1`, id, rec.Version)
	case extraction.Completed, extraction.Failed, extraction.Cancelled:
		return exec(`update extractions set wanted_version = $2, terminal = true where extraction_id = $1`, id, rec.Version)
	case extraction.Resumed, extraction.Extended:
		return exec(`update extractions set terminal = false, running_since = $2 where extraction_id = $1`, id, rec.RecordedAt)
	case extraction.Deleted:
		if err := exec(`update extractions set deleted = true where extraction_id = $1`, id); err != nil {
			return err
		}
		return exec(`delete from segments where extraction_id = $1`, id)
	case generation.FoldFailed:
		return exec(`insert into fold_failures values ($1, $2, $3, $4) on conflict (extraction_id) do update set through = excluded.through, code = excluded.code, detail = excluded.detail`, id, e.Through, e.Code, e.Detail)
	case generation.Folded, generation.FoldRequested:
		return exec(`delete from fold_failures where extraction_id = $1`, id)
	case corpus.Requested:
		return exec(`insert into corpora (corpus_id) values ($1) on conflict do nothing`, id)
	case corpus.ChunkBuilt:
		return exec(`insert into corpus_chunks values ($1, $2, $3, $4)`, id, e.Chunk, e.SHA256, e.Sequences)
	case corpus.Ready:
		return exec(`update corpora set vocabulary_sha256 = $2 where corpus_id = $1`, id, e.VocabularySHA256)
	case feature.Named:
		return label(ctx, tx, e.Latent, rec, `name = excluded.name, category = excluded.category, name_source = excluded.name_source`,
			map[string]any{"name": e.Name, "category": e.Category, "name_source": string(e.By)})
	case feature.Described:
		return label(ctx, tx, e.Latent, rec, `description = excluded.description, description_source = excluded.description_source`,
			map[string]any{"description": e.Description, "description_source": string(e.By)})
	case feature.Noted:
		return label(ctx, tx, e.Latent, rec, `notes = excluded.notes`, map[string]any{"notes": e.Notes})
	case feature.Starred:
		return label(ctx, tx, e.Latent, rec, `starred = excluded.starred`, map[string]any{"starred": e.Starred})
	}
	return nil
}

func label(ctx context.Context, tx pgx.Tx, l feature.Latent, rec event.Recorded, set string, values map[string]any) error {
	row := map[string]any{"name": "", "category": "", "description": "", "notes": "", "starred": false, "name_source": "", "description_source": ""}
	for k, v := range values {
		row[k] = v
	}
	_, err := tx.Exec(ctx, `insert into feature_labels (source_key, latent, name, category, description, notes, starred, name_source, description_source, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (source_key, latent) do update set updated_at = excluded.updated_at, `+set,
		l.Source.Key(), l.Index, row["name"], row["category"], row["description"], row["notes"], row["starred"], row["name_source"], row["description_source"], rec.RecordedAt)
	return err
}

// PureTables names the projection's tables: a function of the log alone.
func PureTables() []string {
	return []string{"extractions", "segments", "corpora", "corpus_chunks", "fold_failures", "feature_labels"}
}
