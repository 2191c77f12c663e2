// Package dataset is the aggregate of a dataset: rows of text (or of token ids) in files that were
// hashed when they were imported. Its facts come from the files; Decide does no I/O.
package dataset

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
)

// Stream is the name of a dataset's stream.
func Stream(id string) string { return "dataset-" + id }

// Facts is what the files say about a dataset.
type Facts struct {
	Format     string      `json:"format"`      // jsonl | txt | parquet | npy
	TextColumn string      `json:"text_column"` // "" where rows are token ids
	Tokenised  bool        `json:"tokenised"`   // rows are token ids
	Columns    []string    `json:"columns"`
	Rows       int64       `json:"rows"`
	MaxRows    int64       `json:"max_rows,omitempty"` // only the first rows of the files are the dataset; 0 = all
	Folder     bool        `json:"folder"`             // imported as a folder: of .txt files each is a row
	Files      fileset.Set `json:"files"`
}

// Path is what to open below the folder that holds the files.
func (f Facts) Path(folder string) string {
	if f.Folder || len(f.Files) != 1 {
		return folder
	}
	return folder + "/" + f.Files[0].Name
}

// Registered says that a dataset is wanted.
type Registered struct {
	ID     string       `json:"id"`
	Name   string       `json:"name"`
	Origin model.Origin `json:"origin"`
}

// DownloadRequested says that a registered dataset is to be fetched from a hub. It comes again when a download that failed
// is asked for again.
type DownloadRequested struct {
	Repo       string `json:"repo"`
	Revision   string `json:"revision,omitempty"` // as it was asked for, such as main
	Commit     string `json:"commit"`             // what it was then: the download is pinned to it
	Config     string `json:"config,omitempty"`   // of the repository's card; "" = it has none
	Split      string `json:"split"`
	TextColumn string `json:"text_column,omitempty"`
	MaxRows    int64  `json:"max_rows,omitempty"` // 0 = all
	Bytes      int64  `json:"bytes"`              // of the split's files; of fewer rows, fewer are fetched
}

// Ready says that the files are there, hashed and readable.
type Ready struct {
	Facts Facts `json:"facts"`
}

// Failed says that the dataset could not be made ready.
type Failed struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Clean implements event.Cleaner.
func (f Failed) Clean() event.Data {
	f.Detail = event.CleanText(f.Detail)
	return f
}

// Deleted says that the dataset is gone for new extractions.
type Deleted struct{}

// The type names, for ever.
func (Registered) EventType() string        { return "DatasetRegistered" }
func (DownloadRequested) EventType() string { return "DatasetDownloadRequested" }
func (Ready) EventType() string             { return "DatasetReady" }
func (Failed) EventType() string            { return "DatasetFailed" }
func (Deleted) EventType() string           { return "DatasetDeleted" }

// State is a folded dataset.
type State struct {
	ID     string
	Name   string
	Origin model.Origin
	Status model.Status
	Facts  Facts

	Download *DownloadRequested // nil = it was imported from this machine
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Registered:
		s.ID, s.Name, s.Origin, s.Status = e.ID, e.Name, e.Origin, model.Pending
	case DownloadRequested:
		s.Download, s.Status = &e, model.Pending
	case Ready:
		s.Facts, s.Status = e.Facts, model.IsReady
	case Failed:
		s.Status = model.IsFailed
	case Deleted:
		s.Status = model.Gone
	}
	return s
}

// Import registers a dataset whose files have been checked already.
type Import struct {
	ID, Name string
	Origin   model.Origin
	Facts    Facts
}

// DecideImport refuses an id that is taken.
func (s State) DecideImport(c Import) ([]event.Data, error) {
	if s.Status != model.Absent {
		return nil, problem.New(problem.Conflict, "dataset_exists", "dataset %s is registered already (%s)", c.ID, s.Status)
	}
	return []event.Data{Registered{ID: c.ID, Name: c.Name, Origin: c.Origin}, Ready{Facts: c.Facts}}, nil
}

// DecideDelete deletes a dataset; deleting twice is no change.
func (s State) DecideDelete() ([]event.Data, error) {
	switch s.Status {
	case model.Absent:
		return nil, NotFound(s.ID)
	case model.Gone:
		return nil, nil
	}
	return []event.Data{Deleted{}}, nil
}

// Usable returns the facts of a ready dataset, or says why there are none.
func (s State) Usable(id string) (Facts, error) {
	switch s.Status {
	case model.IsReady:
		return s.Facts, nil
	case model.Absent, model.Gone:
		return Facts{}, NotFound(id)
	}
	return Facts{}, problem.New(problem.Conflict, "dataset_not_ready", "dataset %s is %s; it must be ready", id, s.Status)
}

// NotFound says that there is no such dataset.
func NotFound(id string) error {
	return problem.New(problem.NotFound, "dataset_not_found", "there is no dataset %s", id)
}
