package sae

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
)

// Download registers an SAE whose files are to be fetched from a hub.
type Download struct {
	ID, Name, Description string
	From                  DownloadRequested
}

// DecideDownload refuses an id that is taken.
func (s State) DecideDownload(c Download) ([]event.Data, error) {
	if s.Status != model.Absent {
		return nil, problem.New(problem.Conflict, "sae_exists", "SAE %s is registered already (%s)", c.ID, s.Status)
	}
	origin := Origin{Kind: model.HuggingFace, Repo: c.From.Repo, Revision: c.From.Commit, File: c.From.File}
	return []event.Data{Registered{ID: c.ID, Name: c.Name, Description: c.Description, Origin: origin}, c.From}, nil
}

// DecideDownloadAgain asks again for a download that failed, pinned as it was.
func (s State) DecideDownloadAgain() ([]event.Data, error) {
	if err := model.Again("SAE", s.ID, s.Status, s.Download != nil, NotFound(s.ID)); err != nil {
		return nil, err
	}
	return []event.Data{*s.Download}, nil
}

// Fetched is a download that ended well. Model is nil where nothing is known of the model yet: the SAE is linked all the
// same, and an extraction will find out whether it fits.
type Fetched struct {
	Facts   Facts
	ModelID string // "" = not linked yet
	Model   *model.Facts
}

// DecideFetched records that the files are there, checked and stored. An SAE that does not fit its model fails.
func (s State) DecideFetched(c Fetched) ([]event.Data, error) {
	if err := model.Fetching("SAE", s.ID, s.Status); err != nil {
		return nil, err
	}
	out := []event.Data{Ready{Facts: c.Facts}}
	if c.ModelID == "" || c.ModelID == s.ModelID {
		return out, nil
	}
	if c.Model != nil {
		if err := c.Facts.Fits(c.ModelID, *c.Model); err != nil {
			return nil, err
		}
	}
	return append(out, c.Facts.linked(c.ModelID, c.Model)...), nil
}

// DecideFail records why there is no download.
func (s State) DecideFail(f Failed) ([]event.Data, error) {
	if err := model.Fetching("SAE", s.ID, s.Status); err != nil {
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
