package extractions

import (
	"encoding/json"
	"time"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/source"
)

// Finalizing is what a completed extraction is shown as while its features are folded.
const Finalizing = "finalizing"

// Extraction is an extraction as clients see it. A nil pointer is what is not known.
type Extraction struct {
	ID            string          `db:"id"`
	TrainingID    *string         `db:"training_id"`
	ExternalSAEID *string         `db:"external_sae_id"`
	SAEPath       *string         `db:"sae_path"`
	ModelID       string          `db:"model_id"`
	DatasetID     string          `db:"dataset_id"`
	SAEName       *string         `db:"sae_name"` // joined; for a training: the training's name
	ModelName     *string         `db:"model_name"`
	DatasetName   *string         `db:"dataset_name"`
	Hook          string          `db:"hook"`
	LayerIndex    int             `db:"layer_index"`
	Latents       int             `db:"latents"`
	Mask          json.RawMessage `db:"mask"`   // extraction.Mask
	Status        string          `db:"status"` // queued, extracting, finalizing, completed, failed, cancelled, deleted

	Config            json.RawMessage `db:"config"` // extraction.Config
	EvaluationSamples int             `db:"evaluation_samples"`
	NeedsPlan         bool            `db:"needs_plan"`
	SelfTest          json.RawMessage `db:"self_test"` // extraction.SelfTest; nil until it was made
	SelfTestForced    bool            `db:"self_test_forced"`
	CorpusID          *string         `db:"corpus_id"`
	BatchSize         *int            `db:"batch_size"`
	ComputeProfile    json.RawMessage `db:"compute_profile"` // extraction.ComputeProfile
	Plan              json.RawMessage `db:"plan"`            // [extraction.Part]

	SegmentsPlanned   int     `db:"segments_planned"`
	SequencesPlanned  int     `db:"sequences_planned"`
	TokensPlanned     int64   `db:"tokens_planned"`
	SegmentsRecorded  int     `db:"segments_recorded"`
	SequencesRecorded int     `db:"sequences_recorded"`
	Tokens            int64   `db:"tokens"`
	Postings          int64   `db:"postings"`
	ArtifactBytes     int64   `db:"artifact_bytes"`
	ComputeSeconds    float64 `db:"compute_seconds"` // of all workers together
	Mismatches        int     `db:"mismatches"`      // alarms: see Alarms

	ErrorCode      *string `db:"error_code"`
	ErrorMessage   *string `db:"error_message"` // of the failure, else of the fold
	ErrorSegment   *int    `db:"error_segment"`
	ErrorResumable *bool   `db:"error_resumable"`
	CancelReason   *string `db:"cancel_reason"`

	BatchID       *string `db:"batch_id"` // of extractions that were asked for together
	BatchPosition *int    `db:"batch_position"`
	BatchTotal    *int    `db:"batch_total"`

	TerminalVersion *int64     `db:"terminal_version"`
	StreamVersion   int64      `db:"stream_version"` // its ETag while it rests
	CreatedAt       time.Time  `db:"created_at"`
	UpdatedAt       time.Time  `db:"updated_at"`
	StartedAt       *time.Time `db:"started_at"`
	CompletedAt     *time.Time `db:"completed_at"` // when it ended, in whatever way
	DeletedAt       *time.Time `db:"deleted_at"`

	// Of the newest fold that is in use; nil before the first one.
	FoldedVersion *int64          `db:"folded_version"` // stream version that the tables of features show
	Generation    *int64          `db:"generation"`
	Features      *int64          `db:"features"`
	FoldError     *string         `db:"fold_error"`
	Statistics    json.RawMessage `db:"statistics"`
	FoldedAt      *time.Time      `db:"folded_at"`
}

// SourceType is "training" or "sae".
func (e Extraction) SourceType() string { return string(e.Source().Type()) }

// Source is where its SAE comes from. check_single_source proves that there is exactly one.
func (e Extraction) Source() source.Source {
	var s source.Source
	if e.TrainingID != nil {
		s, _ = source.FromTraining(*e.TrainingID)
	} else if e.ExternalSAEID != nil {
		s, _ = source.FromSAE(*e.ExternalSAEID)
	}
	return s
}

// ReadConfig decodes the config.
func (e Extraction) ReadConfig() (extraction.Config, error) {
	var c extraction.Config
	err := json.Unmarshal(e.Config, &c)
	return c, err
}

// Active reports whether it holds its source.
func (e Extraction) Active() bool { return extraction.Status(e.Status).Active() }

// Rests reports whether it stays as it is until somebody asks for something.
func (e Extraction) Rests() bool { return !e.Active() && e.Status != Finalizing }

// RecordedShare is the part of the planned tokens that is recorded, 0 to 1; 0 without a plan.
func (e Extraction) RecordedShare() float64 { return share(e.Tokens, e.TokensPlanned) }

func share(done, all int64) float64 {
	if all <= 0 {
		return 0
	}
	return min(1, max(0, float64(done)/float64(all)))
}

// Segment is a row of extraction_segments.
type Segment struct {
	Index         int       `db:"index"`
	FirstSequence int       `db:"first_sequence"`
	Sequences     int       `db:"sequences"`
	Tokens        int64     `db:"tokens"`
	ContentSHA256 string    `db:"content_sha256"` // of the rows
	FileSHA256    string    `db:"file_sha256"`    // of the bytes
	Bytes         int64     `db:"bytes"`
	Postings      int64     `db:"postings"`
	Seconds       float64   `db:"seconds"`
	Device        string    `db:"device"`
	Worker        string    `db:"worker"`
	Attempt       int       `db:"attempt"`
	RecordedAt    time.Time `db:"recorded_at"`
}

// Alarm is a row of extraction_alarms: a segment that was computed twice with two results.
type Alarm struct {
	ExtractionID          string    `db:"extraction_id"`
	Index                 int       `db:"index"`
	RecordedContentSHA256 string    `db:"recorded_content_sha256"`
	OfferedContentSHA256  string    `db:"offered_content_sha256"`
	Worker                string    `db:"worker"`
	RaisedAt              time.Time `db:"raised_at"`
}
