// Package sae is the aggregate of a sparse autoencoder: where it came from, what its files say, and
// the model it belongs to. Its facts come from the checkpoint; Decide does no I/O.
package sae

import (
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
)

// Stream is the name of an SAE's stream.
func Stream(id string) string { return "sae-" + id }

// Origin says where an SAE came from.
type Origin struct {
	Kind       string `json:"kind"` // huggingface | local | trained
	Path       string `json:"path,omitempty"`
	Repo       string `json:"repo,omitempty"`
	Revision   string `json:"revision,omitempty"`
	File       string `json:"file,omitempty"`
	TrainingID string `json:"training_id,omitempty"`
}

// Facts is what the files say about an SAE.
type Facts struct {
	Format                   string      `json:"format"` // saelens, sparsify, gemma_scope, …
	FormatVersion            string      `json:"format_version,omitempty"`
	Architecture             string      `json:"architecture"`                // how latents are chosen: standard, topk, jumprelu, …
	FileArchitecture         string      `json:"file_architecture,omitempty"` // in the file's own words
	Transcoder               bool        `json:"transcoder,omitempty"`        // reads Hook and predicts HookOut
	DIn                      int         `json:"d_in"`
	DSAE                     int         `json:"d_sae"`
	DOut                     int         `json:"d_out"`
	K                        int         `json:"k,omitempty"`
	Hook                     string      `json:"hook"` // blocks.8.hook_resid_post
	HookOut                  string      `json:"hook_out,omitempty"`
	Layer                    int         `json:"layer"`
	ModelName                string      `json:"model_name,omitempty"`
	Normalization            string      `json:"normalization"`
	ScalingFactor            float64     `json:"scaling_factor,omitempty"`
	ApplyBDecToInput         bool        `json:"apply_b_dec_to_input"`
	RescaleActsByDecoderNorm bool        `json:"rescale_acts_by_decoder_norm,omitempty"`
	PrependBOS               *bool       `json:"prepend_bos,omitempty"`
	ContextLength            int         `json:"context_length,omitempty"`
	SeqposSlice              *Slice      `json:"seqpos_slice,omitempty"`
	ExcludeTokenIDs          []int       `json:"exclude_token_ids,omitempty"`
	ExcludeSpecialTokens     bool        `json:"exclude_special_tokens,omitempty"` // every special token of the tokenizer
	Signed                   bool        `json:"signed,omitempty"`
	DType                    string      `json:"dtype"`
	PublishedL0              *float64    `json:"published_l0,omitempty"`
	HasSparsity              bool        `json:"has_sparsity,omitempty"`
	Files                    fileset.Set `json:"files"`

	CenterWritingWeights bool              `json:"center_writing_weights,omitempty"` // trained on a residual stream of mean 0 at every token
	ActivationsOnly      bool              `json:"activations_only,omitempty"`       // its decoder is no reconstruction
	Reshape              string            `json:"reshape,omitempty"`                // hook_z: heads are flattened
	Folds                []string          `json:"folds,omitempty"`                  // what was folded into the weights when they were read, in order
	Origins              map[string]string `json:"origins,omitempty"`                // where each fact came from, by its name here
	Notes                []string          `json:"notes,omitempty"`                  // what a reader of the numbers should know
	Open                 string            `json:"open,omitempty"`                   // the folder or file to open, among the files; "" = the folder of all
	Stated               Stated            `json:"stated,omitzero"`                  // what a person, or the place on the hub, said; opening needs it again
}

// Slice is Python's slice over the positions of a sequence: the only ones that the SAE was trained on.
type Slice struct {
	Start *int `json:"start"`
	Stop  *int `json:"stop"`
	Step  *int `json:"step"`
}

// Registered says that an SAE is wanted.
type Registered struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Origin      Origin `json:"origin"`
}

// DownloadRequested says that a registered SAE is to be fetched from a hub. It comes again when a download that failed is
// asked for again.
type DownloadRequested struct {
	Repo     string `json:"repo"`
	Revision string `json:"revision,omitempty"` // as it was asked for, such as main
	Commit   string `json:"commit"`             // what it was then: the download is pinned to it
	File     string `json:"file,omitempty"`     // a folder or a file; "" = the repository's root
	ModelID  string `json:"model_id,omitempty"` // that it is to be linked to; "" = the one that it names
	Stated   Stated `json:"stated"`
	Bytes    int64  `json:"bytes"` // of the files that are fetched
}

// Stated is what a person says about an SAE where its files do not.
type Stated struct {
	ScalingFactor    *float64 `json:"scaling_factor,omitempty"` // sqrt(d_in) / mean ‖x‖, for expected_average_only_in
	Normalization    string   `json:"normalization,omitempty"`
	Architecture     string   `json:"architecture,omitempty"`
	K                int      `json:"k,omitempty"`
	ApplyBDecToInput *bool    `json:"apply_b_dec_to_input,omitempty"`
	ModelName        string   `json:"model_name,omitempty"`
	Hook             string   `json:"hook,omitempty"`
	HookOut          string   `json:"hook_out,omitempty"`
	Layer            *int     `json:"layer,omitempty"`
	SkipTransposed   *bool    `json:"skip_transposed,omitempty"` // Gemma Scope 2: the affine skip connection is transposed in the file
	Repo             string   `json:"repo,omitempty"`            // on the hub: some facts are known by it
}

// Ready says that the files are there, hashed and checked.
type Ready struct {
	Facts Facts `json:"facts"`
}

// LinkedToModel says which model the SAE belongs to.
type LinkedToModel struct {
	ModelID string `json:"model_id"`
}

// Renamed says that people call it otherwise now.
type Renamed struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
}

// Failed says that the SAE could not be made ready.
type Failed struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Clean implements event.Cleaner.
func (f Failed) Clean() event.Data {
	f.Detail = event.CleanText(f.Detail)
	return f
}

// Deleted says that the SAE is gone for new extractions.
type Deleted struct{}

// The type names, for ever.
func (Registered) EventType() string        { return "SAERegistered" }
func (DownloadRequested) EventType() string { return "SAEDownloadRequested" }
func (Ready) EventType() string             { return "SAEReady" }
func (LinkedToModel) EventType() string     { return "SAELinkedToModel" }
func (Renamed) EventType() string           { return "SAERenamed" }
func (Failed) EventType() string            { return "SAEFailed" }
func (Deleted) EventType() string           { return "SAEDeleted" }

// State is a folded SAE.
type State struct {
	ID          string
	Name        string
	Description string
	Origin      Origin
	Status      model.Status
	ModelID     string
	Facts       Facts

	Download *DownloadRequested // nil = it was imported from this machine

	SelfTestWanted bool
	SelfTest       *SelfTested // the last one at its model; nil = none yet
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Registered:
		s.ID, s.Name, s.Description, s.Origin, s.Status = e.ID, e.Name, e.Description, e.Origin, model.Pending
	case DownloadRequested:
		s.Download, s.Status = &e, model.Pending
	case Ready:
		s.Facts, s.Status = e.Facts, model.IsReady
	case LinkedToModel:
		s.ModelID, s.SelfTestWanted, s.SelfTest = e.ModelID, false, nil
	case SelfTestRequested:
		s.SelfTestWanted = true
	case SelfTested:
		s.SelfTestWanted, s.SelfTest = false, &e
	case Renamed:
		s.Name, s.Description = e.Name, e.Description
	case Failed:
		s.Status = model.IsFailed
	case Deleted:
		s.Status = model.Gone
	}
	return s
}

// Import registers an SAE whose files have been checked already.
type Import struct {
	ID, Name, Description string
	Origin                Origin
	Facts                 Facts
	ModelID               string // "" = not linked yet
	Model                 *model.Facts
}

// DecideImport refuses an id that is taken and a model that the SAE does not fit.
func (s State) DecideImport(c Import) ([]event.Data, error) {
	if s.Status != model.Absent {
		return nil, problem.New(problem.Conflict, "sae_exists", "SAE %s is registered already (%s)", c.ID, s.Status)
	}
	out := []event.Data{Registered{ID: c.ID, Name: c.Name, Description: c.Description, Origin: c.Origin}, Ready{Facts: c.Facts}}
	if c.ModelID != "" {
		if c.Model != nil {
			if err := c.Facts.Fits(c.ModelID, *c.Model); err != nil {
				return nil, err
			}
		}
		out = append(out, c.Facts.linked(c.ModelID, c.Model)...)
	}
	return out, nil
}

// DecideLink links the SAE to a model that it fits.
func (s State) DecideLink(modelID string, m model.Facts) ([]event.Data, error) {
	f, err := s.Usable(s.ID)
	if err != nil {
		return nil, err
	}
	if err := f.Fits(modelID, m); err != nil {
		return nil, err
	}
	if s.ModelID == modelID {
		return nil, nil
	}
	return f.linked(modelID, &m), nil
}

// DecideRename changes the name.
func (s State) DecideRename(name, description string) ([]event.Data, error) {
	switch {
	case s.Status == model.Absent || s.Status == model.Gone:
		return nil, NotFound(s.ID)
	case name == "":
		return nil, problem.InvalidFields("invalid_request", problem.Field{Name: "name", Detail: "must not be empty"})
	case name == s.Name && description == s.Description:
		return nil, nil
	}
	return []event.Data{Renamed{Name: name, Description: description}}, nil
}

// DecideDelete deletes an SAE; deleting twice is no change.
func (s State) DecideDelete() ([]event.Data, error) {
	switch s.Status {
	case model.Absent:
		return nil, NotFound(s.ID)
	case model.Gone:
		return nil, nil
	}
	return []event.Data{Deleted{}}, nil
}

// Usable returns the facts of a ready SAE, or says why there are none.
func (s State) Usable(id string) (Facts, error) {
	switch s.Status {
	case model.IsReady:
		return s.Facts, nil
	case model.Absent, model.Gone:
		return Facts{}, NotFound(id)
	}
	return Facts{}, problem.New(problem.Conflict, "sae_not_ready", "SAE %s is %s; it must be ready", id, s.Status)
}

func named(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" (it names %s)", name)
}

// Extractable refuses what can be read but not extracted.
func (f Facts) Extractable(id string) error {
	if f.Signed {
		return problem.New(problem.Invalid, "signed_sae", "SAE %s has signed activations (%s): an extraction would need statistics for both signs, which are not there yet", id, f.Architecture)
	}
	return nil
}

// ExpectedL0 is the number of active latents a token that is known before anything is measured; 0 where none is.
func (f Facts) ExpectedL0() float64 {
	switch {
	case f.K > 0:
		return float64(f.K)
	case f.PublishedL0 != nil:
		return *f.PublishedL0
	}
	return 0
}

// NotFound says that there is no such SAE.
func NotFound(id string) error {
	return problem.New(problem.NotFound, "sae_not_found", "there is no SAE %s", id)
}
