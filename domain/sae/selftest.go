package sae

import (
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
)

// SelfTestRequested says that the SAE is to be tested at its model: with its link, or because a person asked.
type SelfTestRequested struct {
	ModelID string `json:"model_id"`
}

// SelfTested says what a self-test found, or why there is none. An extraction makes one of its own, on its own dataset,
// and that one decides.
type SelfTested struct {
	ModelID string               `json:"model_id"`
	Text    string               `json:"text,omitempty"` // what it was made on
	Report  *extraction.SelfTest `json:"report,omitempty"`
	Code    string               `json:"code,omitempty"` // why there is no report: not_finite, worker_lost, …
	Detail  string               `json:"detail,omitempty"`
}

// Clean implements event.Cleaner.
func (t SelfTested) Clean() event.Data {
	t.Detail = event.CleanText(t.Detail)
	return t
}

// The type names, for ever.
func (SelfTestRequested) EventType() string { return "SAESelfTestRequested" }
func (SelfTested) EventType() string        { return "SAESelfTested" }

// Testable refuses an SAE of which a self-test says nothing.
func (f Facts) Testable(id string) error {
	switch {
	case f.Signed:
		return problem.New(problem.Invalid, "signed_sae", "SAE %s has signed activations (%s): there is no self-test of those yet", id, f.Architecture)
	case f.ActivationsOnly:
		return problem.New(problem.Invalid, "activations_only", "SAE %s has no reconstruction of its own, so nothing says whether it belongs at %s", id, f.Hook)
	}
	return nil
}

// linked is the link to a model, and the test that comes with it where the model is there.
func (f Facts) linked(modelID string, m *model.Facts) []event.Data {
	out := []event.Data{LinkedToModel{ModelID: modelID}}
	if m != nil && f.Testable("") == nil {
		out = append(out, SelfTestRequested{ModelID: modelID})
	}
	return out
}

// DecideRequestSelfTest asks for a self-test at a model, and links the SAE to it. One that is wanted already is no change.
func (s State) DecideRequestSelfTest(modelID string, m model.Facts) ([]event.Data, error) {
	f, err := s.Usable(s.ID)
	if err != nil {
		return nil, err
	}
	if err := f.Testable(s.ID); err != nil {
		return nil, err
	}
	if s.ModelID != modelID {
		return s.DecideLink(modelID, m)
	}
	if err := f.Fits(modelID, m); err != nil || s.SelfTestWanted {
		return nil, err
	}
	return []event.Data{SelfTestRequested{ModelID: modelID}}, nil
}

// DecideSelfTested records a self-test. One that is not wanted any more, or was made at another model, is none.
func (s State) DecideSelfTested(e SelfTested) ([]event.Data, error) {
	if s.Status != model.IsReady || !s.SelfTestWanted || e.ModelID != s.ModelID {
		return nil, nil
	}
	return []event.Data{e}, nil
}

// DecideSelfTestFailed records why a self-test cannot be made. The SAE stays as it is.
func (s State) DecideSelfTestFailed(code, detail string) ([]event.Data, error) {
	return s.DecideSelfTested(SelfTested{ModelID: s.ModelID, Code: code, Detail: detail})
}
