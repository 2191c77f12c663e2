// Package training is the aggregate of a training run. Today it records imported runs: a finished
// checkpoint folder with one or several SAEs, one for each layer and hook. Decide does no I/O.
package training

import (
	"fmt"
	"strings"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

// Stream is the name of a training's stream.
func Stream(id string) string { return "training-" + id }

// SAE is one SAE of a checkpoint: its folder inside the checkpoint and what its files say.
type SAE struct {
	Path  string    `json:"path"` // such as layer_8_residual
	Facts sae.Facts `json:"facts"`
}

// Imported says that a finished training's checkpoint folder was read, checked and stored.
type Imported struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Checkpoint model.Origin `json:"checkpoint"`
	ModelID    string       `json:"model_id"`
	SAEs       []SAE        `json:"saes"`
}

// Deleted says that the training is gone for new extractions.
type Deleted struct{}

// The type names, for ever.
func (Imported) EventType() string { return "TrainingImported" }
func (Deleted) EventType() string  { return "TrainingDeleted" }

// State is a folded training.
type State struct {
	ID         string
	Name       string
	Checkpoint model.Origin
	ModelID    string
	SAEs       []SAE
	Status     model.Status
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Imported:
		s.ID, s.Name, s.Checkpoint, s.ModelID, s.SAEs, s.Status = e.ID, e.Name, e.Checkpoint, e.ModelID, e.SAEs, model.IsReady
	case Deleted:
		s.Status = model.Gone
	}
	return s
}

// Import records a checkpoint folder whose files have been checked already.
type Import struct {
	ID, Name   string
	Checkpoint model.Origin
	ModelID    string
	Model      model.Facts
	SAEs       []SAE
}

// DecideImport refuses an id that is taken, an empty checkpoint, and SAEs that do not fit the model.
func (s State) DecideImport(c Import) ([]event.Data, error) {
	if s.Status != model.Absent {
		return nil, problem.New(problem.Conflict, "training_exists", "training %s is there already: a checkpoint is fixed once it was imported; use another id", c.ID)
	}
	if len(c.SAEs) == 0 {
		return nil, problem.New(problem.Invalid, "training_without_sae", "the checkpoint folder has no SAE: it should have a folder with cfg.json and sae_weights.safetensors for each layer and hook")
	}
	for _, one := range c.SAEs {
		if err := one.Facts.Fits(c.ModelID, c.Model); err != nil {
			return nil, err
		}
	}
	return []event.Data{Imported{ID: c.ID, Name: c.Name, Checkpoint: c.Checkpoint, ModelID: c.ModelID, SAEs: c.SAEs}}, nil
}

// DecideDelete deletes a training; deleting twice is no change.
func (s State) DecideDelete() ([]event.Data, error) {
	switch s.Status {
	case model.Absent:
		return nil, NotFound(s.ID)
	case model.Gone:
		return nil, nil
	}
	return []event.Data{Deleted{}}, nil
}

// Only returns the training's SAE if it has exactly one: only then is a training a source by itself.
// imported maps the paths that were imported as SAEs of their own to those SAEs' ids.
func (s State) Only(id string, imported map[string]string) (SAE, error) {
	if s.Status != model.IsReady {
		return SAE{}, NotFound(id)
	}
	if len(s.SAEs) == 1 {
		return s.SAEs[0], nil
	}
	var choices []map[string]any
	var lines []string
	for _, one := range s.SAEs {
		saeID := imported[one.Path]
		choices = append(choices, map[string]any{"layer": one.Facts.Layer, "hook": one.Facts.Hook, "path": one.Path, "sae_id": saeID})
		lines = append(lines, fmt.Sprintf("%s%s", one.Facts.Hook, suffix(saeID)))
	}
	return SAE{}, problem.New(problem.Invalid, "training_has_several_saes", "training %s has %d SAEs: import the one you mean and start from that SAE: %s", id, len(s.SAEs), strings.Join(lines, ", ")).With("choices", choices)
}

func suffix(saeID string) string {
	if saeID == "" {
		return ""
	}
	return " (" + saeID + ")"
}

// NotFound says that there is no such training.
func NotFound(id string) error {
	return problem.New(problem.NotFound, "training_not_found", "there is no training %s", id)
}
