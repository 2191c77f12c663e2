package extraction

import (
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/source"
)

// Stream is the name of an extraction's stream.
func Stream(id string) string { return "extraction-" + id }

// Requested says that an extraction is wanted. It takes the source and holds model, SAE and dataset.
type Requested struct {
	ID        string        `json:"id"`
	Source    source.Source `json:"source"`
	SAEPath   string        `json:"sae_path,omitempty"` // for a training: the SAE's folder in the checkpoint
	ModelID   string        `json:"model_id"`
	DatasetID string        `json:"dataset_id"`
	Hook      string        `json:"hook"`
	Layer     int           `json:"layer"`
	Latents   int           `json:"latents"`
	Mask      Mask          `json:"mask"`
	Config    Config        `json:"config"`
	Batch     *Batch        `json:"batch,omitempty"` // of those that were started together
}

// Batch says that an extraction was asked for together with others.
type Batch struct {
	ID       string `json:"id"`
	Position int    `json:"position"` // 1, 2, 3 … in the request
	Total    int    `json:"total"`    // SAEs in the request; some may have been refused
}

// Mask is what the SAE's own config leaves out: positions and tokens that it was not trained on.
type Mask struct {
	Seqpos        *Slice  `json:"seqpos_slice,omitempty"` // if set, it says instead of skip_first which offsets count
	TokenIDs      []int32 `json:"token_ids,omitempty"`
	SpecialTokens bool    `json:"special_tokens,omitempty"` // every special token of the tokenizer
}

// Slice is Python's slice over the positions of a sequence; null is None.
type Slice struct {
	Start *int `json:"start"`
	Stop  *int `json:"stop"`
	Step  *int `json:"step"`
}

// Tap is how well the SAE reconstructs one tap of the model.
type Tap struct {
	Hook      string   `json:"hook"`
	HookOut   string   `json:"hook_out,omitempty"` // of a transcoder
	FVU       *float64 `json:"fvu"`                // null where it was not finite
	L0        *float64 `json:"l0"`
	Tokens    int      `json:"tokens,omitempty"` // measured on, where so few decided that it is not the better one; 0 = as many as the claimed one
	DeadShare *float64 `json:"dead_share,omitempty"`
	SinkShare *float64 `json:"sink_share,omitempty"`
	Rho       *float64 `json:"sparsity_rho,omitempty"`
}

// Alternative is how well the SAE would reconstruct its tap if one thing about it, or about what it is fed,
// were otherwise.
type Alternative struct {
	If  string   `json:"if"` // "normalize_activations were layer_norm", …
	FVU *float64 `json:"fvu"`
	L0  *float64 `json:"l0"`

	Tokens int `json:"tokens,omitempty"` // as a Tap's
}

// SelfTestRule is the version of how a self-test is made. It is raised with every change after which the same input may be
// reported otherwise: verdicts that were kept under another version are not used again.
const SelfTestRule = 1

// SelfTest is what was measured before the plan, on counted tokens without sinks.
type SelfTest struct {
	Hook        string        `json:"hook"`
	HookOut     string        `json:"hook_out,omitempty"` // of a transcoder
	Tokens      int           `json:"tokens"`
	FVU         *float64      `json:"fvu"`
	L0          *float64      `json:"l0"`
	L0All       float64       `json:"l0_all"` // over every fed token: what a segment's size is planned with
	PublishedL0 *float64      `json:"published_l0,omitempty"`
	DeadShare   float64       `json:"dead_share"`
	MedianNorm  float64       `json:"median_norm"` // ‖x‖₂ at the hook; a sink has more than 3 ×
	SinkShare   float64       `json:"sink_share"`
	PrependBOS  bool          `json:"prepend_bos"`
	BOS         int32         `json:"bos"` // −1 where none is inserted
	BOSTried    bool          `json:"bos_tried,omitempty"`
	Rho         *float64      `json:"sparsity_rho,omitempty"` // Spearman's ρ of log densities against the published ones
	Taps        []Tap         `json:"taps"`
	WhatIf      []Alternative `json:"what_if,omitempty"`
	Warnings    []string      `json:"warnings,omitempty"`
	Mismatch    string        `json:"mismatch,omitempty"`    // why the SAE does not fit, "" if it does
	ReusedFrom  string        `json:"reused_from,omitempty"` // the extraction that measured it, where all was as here; "" = measured here
}

// SelfTested says what the self-test found.
type SelfTested struct {
	SelfTest SelfTest `json:"self_test"`
	Forced   bool     `json:"forced,omitempty"` // it does not fit, and the request said to go on
}

// ComputeProfile is what a number may depend on beside model, SAE, corpus and config.
type ComputeProfile struct {
	Device   string `json:"device"` // cpu, or the GPU's name
	DType    string `json:"dtype"`
	Threads  int    `json:"threads"`
	ISA      string `json:"isa"`
	Libtorch string `json:"libtorch"`
	MKL      string `json:"mkl"`
}

// Part is a run of segments of equal size. A plan has one part; each extension adds one.
type Part struct {
	FirstSegment        int   `json:"first_segment"`
	FirstSequence       int   `json:"first_sequence"`
	Sequences           int   `json:"sequences"`
	SequencesPerSegment int   `json:"sequences_per_segment"`
	Tokens              int64 `json:"tokens"` // fed, padding never counts
}

// Segments is the number of segments of the part.
func (p Part) Segments() int {
	if p.SequencesPerSegment < 1 {
		return 0
	}
	return (p.Sequences + p.SequencesPerSegment - 1) / p.SequencesPerSegment
}

// Planned fixes what will be computed and on what. It opens the work on the part's segments.
type Planned struct {
	CorpusID  string         `json:"corpus_id"`
	Part      Part           `json:"part"`
	BatchSize int            `json:"batch_size"` // resolved
	Profile   ComputeProfile `json:"compute_profile"`
}

// Artifact names a segment's stored result.
type Artifact struct {
	ContentSHA256 string `json:"content_sha256"` // of the rows
	FileSHA256    string `json:"file_sha256"`    // of the bytes
	Bytes         int64  `json:"bytes"`
	Postings      int64  `json:"postings"`
}

// SegmentRecorded says that a segment's result is stored. The first result stands.
type SegmentRecorded struct {
	Index         int      `json:"index"`
	FirstSequence int      `json:"first_sequence"`
	Sequences     int      `json:"sequences"`
	Tokens        int64    `json:"tokens"`
	Artifact      Artifact `json:"artifact"`
	Seconds       float64  `json:"seconds"`
	Device        string   `json:"device"`
	Worker        string   `json:"worker"`
	Attempt       int      `json:"attempt"`
}

// SegmentMismatched is an alarm: two computations of one segment inside one profile differ.
type SegmentMismatched struct {
	Index    int    `json:"index"`
	Recorded string `json:"recorded_content_sha256"`
	Offered  string `json:"offered_content_sha256"`
	Worker   string `json:"worker"`
}

// Completed says that every segment is recorded.
type Completed struct {
	Segments int   `json:"segments"`
	Tokens   int64 `json:"tokens"`
	Postings int64 `json:"postings"`
}

// Failed says that the extraction stopped. What was computed stays.
type Failed struct {
	Code      string `json:"code"` // sae_mismatch, worker_lost, out_of_memory …
	Detail    string `json:"detail"`
	Segment   *int   `json:"segment,omitempty"`
	Resumable bool   `json:"resumable"`
}

// Clean implements event.Cleaner.
func (f Failed) Clean() event.Data {
	f.Detail = event.CleanText(f.Detail)
	return f
}

// Cancelled says that somebody called it off. What was computed stays.
type Cancelled struct {
	Segments int    `json:"segments"` // recorded so far
	Reason   string `json:"reason,omitempty"`
}

// Resumed says that it goes on with the missing segments, or with the plan where there is none.
type Resumed struct {
	SourceKey string         `json:"source_key"`
	SAEID     string         `json:"sae_id,omitempty"`
	ModelID   string         `json:"model_id"`
	DatasetID string         `json:"dataset_id"`
	Plan      bool           `json:"plan"` // there is no plan yet, or an extension waits for its part
	Missing   Runs           `json:"missing"`
	Profile   ComputeProfile `json:"compute_profile"`
}

// Extended says that more sequences are wanted. It opens the work on a plan for them.
type Extended struct {
	SourceKey         string `json:"source_key"`
	SAEID             string `json:"sae_id,omitempty"`
	ModelID           string `json:"model_id"`
	DatasetID         string `json:"dataset_id"`
	EvaluationSamples int    `json:"evaluation_samples"`
}

// Deleted says that the extraction and its features are gone.
type Deleted struct{}

// The type names, for ever.
func (Requested) EventType() string         { return "ExtractionRequested" }
func (SelfTested) EventType() string        { return "SelfTested" }
func (Planned) EventType() string           { return "ExtractionPlanned" }
func (SegmentRecorded) EventType() string   { return "SegmentRecorded" }
func (SegmentMismatched) EventType() string { return "SegmentMismatched" }
func (Completed) EventType() string         { return "ExtractionCompleted" }
func (Failed) EventType() string            { return "ExtractionFailed" }
func (Cancelled) EventType() string         { return "ExtractionCancelled" }
func (Resumed) EventType() string           { return "ExtractionResumed" }
func (Extended) EventType() string          { return "ExtractionExtended" }
func (Deleted) EventType() string           { return "ExtractionDeleted" }

// Requirement is the profile in one line: only a worker with an equal one may claim the segments.
func (p ComputeProfile) Requirement() string {
	return fmt.Sprintf("device=%s dtype=%s threads=%d isa=%s libtorch=%s mkl=%s", p.Device, p.DType, p.Threads, p.ISA, p.Libtorch, p.MKL)
}
