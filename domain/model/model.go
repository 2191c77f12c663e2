// Package model is the aggregate of a language model: registered, checked, and ready to be run.
// Its facts come from the model's own files; Decide refuses what contradicts its history, and does no I/O.
package model

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/problem"
)

// Stream is the name of a model's stream.
func Stream(id string) string { return "model-" + id }

// Origin says where the files came from.
type Origin struct {
	Kind     string `json:"kind"` // local | huggingface
	Path     string `json:"path,omitempty"`
	Repo     string `json:"repo,omitempty"`
	Revision string `json:"revision,omitempty"`
}

// Facts is what the files say about a model.
type Facts struct {
	Family    string      `json:"family"` // llama …
	Format    string      `json:"format"` // safetensors | gguf
	Layers    int         `json:"layers"`
	DModel    int         `json:"d_model"`
	Heads     int         `json:"d_heads,omitempty"` // heads × d_head: the width of hook_z; 0 = not recorded
	MLP       int         `json:"d_mlp,omitempty"`   // the width inside the MLP; 0 = not recorded
	Vocab     int         `json:"vocab"`
	Context   int         `json:"context_length"`
	Params    int64       `json:"params"`
	DType     string      `json:"dtype"`
	BOS       *int        `json:"bos_token_id,omitempty"`
	EOS       *int        `json:"eos_token_id,omitempty"`
	Files     fileset.Set `json:"files"`            // weights, config, tokenizer
	Tokenizer string      `json:"tokenizer_sha256"` // of tokenizer.json, given or built from a GGUF
}

// Registered says that a model is wanted.
type Registered struct {
	ID     string `json:"id"`
	Name   string `json:"name"` // such as HuggingFaceTB/SmolLM2-135M-Instruct
	Origin Origin `json:"origin"`
}

// DownloadRequested says that a registered model is to be fetched from a hub. It comes again when a download that failed
// is asked for again.
type DownloadRequested struct {
	Repo         string `json:"repo"`
	Revision     string `json:"revision,omitempty"` // as it was asked for, such as main
	Commit       string `json:"commit"`             // what it was then: the download is pinned to it
	File         string `json:"file,omitempty"`     // a GGUF, or a folder; "" = the repository's own
	Quantization string `json:"quantization,omitempty"`
	Bytes        int64  `json:"bytes"` // of the files that are fetched
}

// Ready says that the files are there, hashed and checked.
type Ready struct {
	Facts Facts `json:"facts"`
}

// Failed says that the model could not be made ready.
type Failed struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Clean implements event.Cleaner.
func (f Failed) Clean() event.Data {
	f.Detail = event.CleanText(f.Detail)
	return f
}

// Deleted says that the model is gone for new extractions; what was computed with it stays.
type Deleted struct{}

// The type names, for ever.
func (Registered) EventType() string        { return "ModelRegistered" }
func (DownloadRequested) EventType() string { return "ModelDownloadRequested" }
func (Ready) EventType() string             { return "ModelReady" }
func (Failed) EventType() string            { return "ModelFailed" }
func (Deleted) EventType() string           { return "ModelDeleted" }

// Status is where a model stands.
type Status string

// The states of a model.
const (
	Absent   Status = ""
	Pending  Status = "pending"
	IsReady  Status = "ready"
	IsFailed Status = "failed"
	Gone     Status = "deleted"
)

// State is a folded model.
type State struct {
	ID     string
	Name   string
	Origin Origin
	Status Status
	Facts  Facts

	Download *DownloadRequested // nil = it was imported from this machine
	Failure  *Failed
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Registered:
		s.ID, s.Name, s.Origin, s.Status = e.ID, e.Name, e.Origin, Pending
	case DownloadRequested:
		s.Download, s.Status, s.Failure = &e, Pending, nil
	case Ready:
		s.Facts, s.Status, s.Failure = e.Facts, IsReady, nil
	case Failed:
		s.Status, s.Failure = IsFailed, &e
	case Deleted:
		s.Status = Gone
	}
	return s
}

// Import registers a model whose files have been checked already.
type Import struct {
	ID, Name string
	Origin   Origin
	Facts    Facts
}

// DecideImport refuses an id that is taken.
func (s State) DecideImport(c Import) ([]event.Data, error) {
	if s.Status != Absent {
		return nil, problem.New(problem.Conflict, "model_exists", "model %s is registered already (%s)", c.ID, s.Status)
	}
	return []event.Data{Registered{ID: c.ID, Name: c.Name, Origin: c.Origin}, Ready{Facts: c.Facts}}, nil
}

// DecideDelete deletes a model; deleting twice is no change.
func (s State) DecideDelete() ([]event.Data, error) {
	switch s.Status {
	case Absent:
		return nil, NotFound(s.ID)
	case Gone:
		return nil, nil
	}
	return []event.Data{Deleted{}}, nil
}

// Usable returns the facts of a ready model, or says why there are none.
func (s State) Usable(id string) (Facts, error) {
	switch s.Status {
	case IsReady:
		return s.Facts, nil
	case Absent, Gone:
		return Facts{}, NotFound(id)
	}
	return Facts{}, problem.New(problem.Conflict, "model_not_ready", "model %s is %s; it must be ready", id, s.Status)
}

// NotFound says that there is no such model.
func NotFound(id string) error {
	return problem.New(problem.NotFound, "model_not_found", "there is no model %s", id)
}
