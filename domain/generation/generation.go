package generation

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
)

// Stream is the name of the stream of an extraction's tables.
func Stream(extractionID string) string { return "generation-" + extractionID }

// FoldRequested says that somebody wants the tables folded again.
type FoldRequested struct {
	Reason string `json:"reason"` // asked for, a new version of the fold, the tables are lost …
}

// Folded says that the tables show the extraction through a version of its stream.
type Folded struct {
	Through     int64   `json:"through"`      // version of the extraction's stream
	Key         string  `json:"key"`          // what the generation is made of: a digest of artifacts, options and fold version; "" where nothing was recorded
	FoldVersion int     `json:"fold_version"` // of the code that folded
	Segments    int     `json:"segments"`
	Latents     int     `json:"latents"` // rows; dead ones too
	Seconds     float64 `json:"seconds"`
}

// FoldFailed says that the tables cannot be made as things stand. What was shown before stays.
type FoldFailed struct {
	Through int64  `json:"through"`
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

// Clean implements event.Cleaner.
func (f FoldFailed) Clean() event.Data {
	f.Detail = event.CleanText(f.Detail)
	return f
}

// EventType is the type's name, for ever.
func (FoldRequested) EventType() string { return "FoldRequested" }

// EventType is the type's name, for ever.
func (Folded) EventType() string { return "Folded" }

// EventType is the type's name, for ever.
func (FoldFailed) EventType() string { return "FoldFailed" }

// State is what is folded of the stream.
type State struct {
	Folded  Folded      // the latest
	Failure *FoldFailed // nil: the latest fold did not fail
	Wanted  bool        // it was asked for again, and neither done nor failed since
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case FoldRequested:
		s.Wanted, s.Failure = true, nil
	case Folded:
		s.Wanted, s.Failure, s.Folded = false, nil, e
	case FoldFailed:
		s.Wanted, s.Failure = false, &e
	}
	return s
}

// DecideRequest asks for the tables again. of is the extraction.
func (s State) DecideRequest(of extraction.State, id, reason string) ([]event.Data, error) {
	if of.Status == extraction.Absent || of.Status == extraction.StatusDeleted {
		return nil, extraction.NotFound(id)
	}
	if of.Status.Active() {
		return nil, problem.New(problem.Conflict, "wrong_status", "extraction %s is %s: its tables are folded as it goes on, and at its end", id, of.Status).With("status", string(of.Status))
	}
	if s.Wanted {
		return nil, nil
	}
	return []event.Data{FoldRequested{Reason: reason}}, nil
}

// DecideFolded records what a fold has made.
func (s State) DecideFolded(c Folded) ([]event.Data, error) { return []event.Data{c}, nil }

// DecideFail records that a fold cannot be done.
func (s State) DecideFail(c FoldFailed) ([]event.Data, error) { return []event.Data{c}, nil }
