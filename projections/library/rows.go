package library

import (
	"encoding/json"
	"time"
)

// Model is a row of models. A nil pointer is what is not known.
type Model struct {
	ID              string          `db:"id"`
	Name            string          `db:"name"`
	Status          string          `db:"status"` // pending, downloading, ready, failed, deleted
	Source          string          `db:"source"` // local, huggingface
	HFRepoID        *string         `db:"hf_repo_id"`
	HFRevision      *string         `db:"hf_revision"`
	LocalPath       *string         `db:"local_path"` // where it was imported from
	Family          *string         `db:"family"`
	Format          *string         `db:"format"`
	DType           *string         `db:"dtype"`
	Layers          *int            `db:"layers"`
	DModel          *int            `db:"d_model"`
	Vocab           *int            `db:"vocab"`
	ContextLength   *int            `db:"context_length"`
	ParamsCount     *int64          `db:"params_count"`
	FileSizeBytes   *int64          `db:"file_size_bytes"`
	FilesSHA256     *string         `db:"files_sha256"`
	TokenizerSHA256 *string         `db:"tokenizer_sha256"`
	Facts           json.RawMessage `db:"facts"` // model.Facts; nil until it is ready
	ErrorCode       *string         `db:"error_code"`
	ErrorMessage    *string         `db:"error_message"`
	Download        json.RawMessage `db:"download"`       // how far it is while it is downloading; else nil
	StreamVersion   int64           `db:"stream_version"` // its ETag
	CreatedAt       time.Time       `db:"created_at"`
	UpdatedAt       time.Time       `db:"updated_at"`
	ReadyAt         *time.Time      `db:"ready_at"`
	DeletedAt       *time.Time      `db:"deleted_at"`
}

// SAE is a row of external_saes.
type SAE struct {
	ID            string          `db:"id"`
	Name          string          `db:"name"`
	Description   *string         `db:"description"`
	Source        string          `db:"source"` // huggingface, local, trained
	Status        string          `db:"status"` // pending, downloading, ready, failed, deleted
	HFRepoID      *string         `db:"hf_repo_id"`
	HFFilepath    *string         `db:"hf_filepath"`
	HFRevision    *string         `db:"hf_revision"`
	TrainingID    *string         `db:"training_id"`
	TrainingPath  *string         `db:"training_path"`
	ModelName     *string         `db:"model_name"` // as its config says, else the linked model's
	ModelID       *string         `db:"model_id"`
	Layer         *int            `db:"layer"`
	Hook          *string         `db:"hook"`
	HookOut       *string         `db:"hook_out"`
	HookType      *string         `db:"hook_type"` // residual, mlp, attention
	NFeatures     *int            `db:"n_features"`
	DModel        *int            `db:"d_model"`
	DOut          *int            `db:"d_out"`
	K             *int            `db:"k"`
	Architecture  *string         `db:"architecture"`
	Format        *string         `db:"format"`
	FormatVersion *string         `db:"format_version"`
	Normalization *string         `db:"normalization"`
	DType         *string         `db:"dtype"`
	ContextLength *int            `db:"context_length"`
	PrependBOS    *bool           `db:"prepend_bos"`
	Signed        *bool           `db:"signed"`
	PublishedL0   *float64        `db:"published_l0"`
	LocalPath     *string         `db:"local_path"`
	FileSizeBytes *int64          `db:"file_size_bytes"`
	FilesSHA256   *string         `db:"files_sha256"`
	Metadata      json.RawMessage `db:"sae_metadata"`     // sae.Facts; nil until it is ready
	SelfTest      json.RawMessage `db:"self_test"`        // sae.SelfTested, the last one; nil until there is one
	TestStatus    *string         `db:"self_test_status"` // pending, done, failed
	ErrorCode     *string         `db:"error_code"`
	ErrorMessage  *string         `db:"error_message"`
	Download      json.RawMessage `db:"download"` // how far it is while it is downloading; else nil
	StreamVersion int64           `db:"stream_version"`
	CreatedAt     time.Time       `db:"created_at"`
	UpdatedAt     time.Time       `db:"updated_at"`
	DownloadedAt  *time.Time      `db:"downloaded_at"`
	DeletedAt     *time.Time      `db:"deleted_at"`
}

// Download is one download that is to be done.
type Download struct {
	Kind     string // model, sae, dataset
	ID       string
	Running  bool            // somebody does it
	Progress json.RawMessage // as its worker tells; nil = nothing yet
}

// Dataset is a row of datasets.
type Dataset struct {
	ID            string          `db:"id"`
	Name          string          `db:"name"`
	Status        string          `db:"status"`
	Source        string          `db:"source"`
	HFRepoID      *string         `db:"hf_repo_id"`
	HFRevision    *string         `db:"hf_revision"`
	LocalPath     *string         `db:"local_path"`
	Format        *string         `db:"format"`
	TextColumn    *string         `db:"text_column"`
	Tokenised     *bool           `db:"tokenised"`
	Columns       []string        `db:"columns"`
	NumRows       *int64          `db:"num_rows"`
	FileSizeBytes *int64          `db:"file_size_bytes"`
	FilesSHA256   *string         `db:"files_sha256"`
	Facts         json.RawMessage `db:"facts"` // dataset.Facts
	ErrorCode     *string         `db:"error_code"`
	ErrorMessage  *string         `db:"error_message"`
	Download      json.RawMessage `db:"download"` // how far it is while it is downloading; else nil
	StreamVersion int64           `db:"stream_version"`
	CreatedAt     time.Time       `db:"created_at"`
	UpdatedAt     time.Time       `db:"updated_at"`
	ReadyAt       *time.Time      `db:"ready_at"`
	DeletedAt     *time.Time      `db:"deleted_at"`
}

// Corpus is a row of corpora.
type Corpus struct {
	ID               string          `db:"id"`
	DatasetID        string          `db:"dataset_id"`
	DatasetSHA256    string          `db:"dataset_sha256"`
	TokenizerSHA256  string          `db:"tokenizer_sha256"`
	ModelID          string          `db:"model_id"`
	Options          json.RawMessage `db:"options"` // corpus.Options
	Status           string          `db:"status"`  // building, ready, failed
	Wanted           int             `db:"wanted"`
	Sequences        int             `db:"sequences"`
	Tokens           int64           `db:"tokens"`
	NumRows          int64           `db:"num_rows"`
	Chunks           int             `db:"chunks"`
	Bytes            int64           `db:"bytes"`
	Exhausted        bool            `db:"exhausted"`
	VocabularySHA256 *string         `db:"vocabulary_sha256"`
	ErrorCode        *string         `db:"error_code"`
	ErrorMessage     *string         `db:"error_message"`
	StreamVersion    int64           `db:"stream_version"`
	CreatedAt        time.Time       `db:"created_at"`
	UpdatedAt        time.Time       `db:"updated_at"`
}

// Chunk is a row of corpus_chunks.
type Chunk struct {
	Chunk         int    `db:"chunk"`
	FirstSequence int    `db:"first_sequence"`
	Sequences     int    `db:"sequences"`
	Tokens        int64  `db:"tokens"`
	NumRows       int64  `db:"num_rows"`
	SHA256        string `db:"sha256"`
	Bytes         int64  `db:"bytes"`
}

// Training is a row of trainings.
type Training struct {
	ID            string     `db:"id"`
	Name          string     `db:"name"`
	Status        string     `db:"status"` // completed, deleted
	ModelID       string     `db:"model_id"`
	ModelName     *string    `db:"model_name"` // of the model, joined
	Source        string     `db:"source"`
	CheckpointDir *string    `db:"checkpoint_dir"`
	HFRepoID      *string    `db:"hf_repo_id"`
	SAECount      int        `db:"saes"`
	FileSizeBytes int64      `db:"file_size_bytes"`
	StreamVersion int64      `db:"stream_version"`
	CreatedAt     time.Time  `db:"created_at"`
	UpdatedAt     time.Time  `db:"updated_at"`
	CompletedAt   time.Time  `db:"completed_at"`
	DeletedAt     *time.Time `db:"deleted_at"`

	SAEs []TrainingSAE `db:"-"` // in the order of layer and path
}

// TrainingSAE is a row of training_saes: one SAE of a training's checkpoint.
type TrainingSAE struct {
	TrainingID    string          `db:"training_id"`
	Path          string          `db:"path"`
	Layer         int             `db:"layer"`
	Hook          string          `db:"hook"`
	HookType      string          `db:"hook_type"`
	NFeatures     int             `db:"n_features"`
	DModel        int             `db:"d_model"`
	Architecture  string          `db:"architecture"`
	FileSizeBytes int64           `db:"file_size_bytes"`
	FilesSHA256   string          `db:"files_sha256"`
	Facts         json.RawMessage `db:"facts"` // sae.Facts
}
