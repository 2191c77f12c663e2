package dataset

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
)

// Download registers a dataset whose files are to be fetched from a hub.
type Download struct {
	ID, Name string
	From     DownloadRequested
}

// DecideDownload refuses an id that is taken.
func (s State) DecideDownload(c Download) ([]event.Data, error) {
	if s.Status != model.Absent {
		return nil, problem.New(problem.Conflict, "dataset_exists", "dataset %s is registered already (%s)", c.ID, s.Status)
	}
	origin := model.Origin{Kind: model.HuggingFace, Repo: c.From.Repo, Revision: c.From.Commit}
	return []event.Data{Registered{ID: c.ID, Name: c.Name, Origin: origin}, c.From}, nil
}

// DecideDownloadAgain asks again for a download that failed, pinned as it was.
func (s State) DecideDownloadAgain() ([]event.Data, error) {
	if err := model.Again("dataset", s.ID, s.Status, s.Download != nil, NotFound(s.ID)); err != nil {
		return nil, err
	}
	return []event.Data{*s.Download}, nil
}

// DecideFetched records that the files are there, checked and stored.
func (s State) DecideFetched(f Facts) ([]event.Data, error) {
	if err := model.Fetching("dataset", s.ID, s.Status); err != nil {
		return nil, err
	}
	return []event.Data{Ready{Facts: f}}, nil
}

// DecideFail records why there is no download.
func (s State) DecideFail(f Failed) ([]event.Data, error) {
	if err := model.Fetching("dataset", s.ID, s.Status); err != nil {
		return nil, err
	}
	return []event.Data{f}, nil
}

// DecideCancel calls a download off.
func (s State) DecideCancel() ([]event.Data, error) {
	if s.Status == model.Absent || s.Status == model.Gone {
		return nil, NotFound(s.ID)
	}
	return s.DecideFail(Failed{Code: model.Cancelled, Detail: model.CancelledDetail})
}
