package model

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/problem"
)

// HuggingFace is the kind of an origin that is a hub.
const HuggingFace = "huggingface"

// Cancelled is the code of a download that was called off.
const Cancelled = "download_cancelled"

// Download registers a model whose files are to be fetched from a hub.
type Download struct {
	ID, Name string
	From     DownloadRequested
}

// DecideDownload refuses an id that is taken.
func (s State) DecideDownload(c Download) ([]event.Data, error) {
	if s.Status != Absent {
		return nil, problem.New(problem.Conflict, "model_exists", "model %s is registered already (%s)", c.ID, s.Status)
	}
	origin := Origin{Kind: HuggingFace, Path: c.From.File, Repo: c.From.Repo, Revision: c.From.Commit}
	return []event.Data{Registered{ID: c.ID, Name: c.Name, Origin: origin}, c.From}, nil
}

// DecideDownloadAgain asks again for a download that failed, pinned as it was.
func (s State) DecideDownloadAgain() ([]event.Data, error) {
	if err := Again("model", s.ID, s.Status, s.Download != nil, NotFound(s.ID)); err != nil {
		return nil, err
	}
	return []event.Data{*s.Download}, nil
}

// Again refuses to fetch anew what did not fail. Models, SAEs and datasets share the rule.
func Again(kind, id string, status Status, fromHub bool, notFound error) error {
	switch {
	case status == Absent || status == Gone:
		return notFound
	case !fromHub:
		return problem.New(problem.Conflict, "not_from_hub", "%s %s was imported from files on this machine: import it again from there", kind, id)
	case status == Pending:
		return problem.New(problem.Conflict, "download_running", "%s %s is being downloaded already", kind, id)
	case status != IsFailed:
		return problem.New(problem.Conflict, "wrong_status", "%s %s is %s: only a download that failed can be asked for again", kind, id, status)
	}
	return nil
}

// DecideFetched records that the files are there, checked and stored.
func (s State) DecideFetched(f Facts) ([]event.Data, error) {
	if err := Fetching("model", s.ID, s.Status); err != nil {
		return nil, err
	}
	return []event.Data{Ready{Facts: f}}, nil
}

// DecideFail records why there is no download.
func (s State) DecideFail(f Failed) ([]event.Data, error) {
	if err := Fetching("model", s.ID, s.Status); err != nil {
		return nil, err
	}
	return []event.Data{f}, nil
}

// DecideCancel calls a download off.
func (s State) DecideCancel() ([]event.Data, error) {
	if s.Status == Absent || s.Status == Gone {
		return nil, NotFound(s.ID)
	}
	return s.DecideFail(Failed{Code: Cancelled, Detail: CancelledDetail})
}

// CancelledDetail is what people read of a download that was called off.
const CancelledDetail = "the download was cancelled; what has arrived is kept, and is not fetched again when it is asked for again"

// Fetching refuses the end of a download that does not run. Models, SAEs and datasets share the rule.
func Fetching(kind, id string, status Status) error {
	if status != Pending {
		return problem.New(problem.Conflict, "wrong_status", "%s %s is %s: no download of it is running", kind, id, or(status))
	}
	return nil
}

func or(s Status) Status {
	if s == Absent {
		return "not there"
	}
	return s
}
