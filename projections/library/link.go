package library

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

// ModelsOf returns the ready models that an SAE may belong to: those that its config names, by the
// exact name or repository, else by the normalised name; and where there is none, those of the other
// names that it is known to go by. Of several, those that
// it fits; more than one means that a person has to choose. One that it does not fit is returned too: who
// links the SAE to it is told why that cannot be.
func (q *Queries) ModelsOf(ctx context.Context, f sae.Facts, aliases ...string) ([]Model, error) {
	for _, name := range append([]string{f.ModelName}, aliases...) {
		found, err := q.ModelsNamed(ctx, name)
		if err != nil {
			return nil, err
		}
		if len(found) == 1 {
			return found, nil
		}
		var fitting []Model
		for _, m := range found {
			var facts model.Facts
			if err := json.Unmarshal(m.Facts, &facts); err != nil {
				return nil, fmt.Errorf("model %s: facts: %w", m.ID, err)
			}
			if f.Fits(m.ID, facts) == nil {
				fitting = append(fitting, m)
			}
		}
		switch {
		case len(fitting) > 0:
			return fitting, nil
		case len(found) > 0:
			return found, nil
		}
	}
	return nil, nil
}

// Candidates returns the ready models that an SAE fits, whatever their names: what a person may choose from.
func (q *Queries) Candidates(ctx context.Context, f sae.Facts) ([]Model, error) {
	page, err := q.ListModels(ctx, Listing{Status: "ready", Limit: 1000})
	if err != nil {
		return nil, err
	}
	var out []Model
	for _, m := range page.Items {
		var facts model.Facts
		if json.Unmarshal(m.Facts, &facts) == nil && f.Fits(m.ID, facts) == nil {
			out = append(out, m)
		}
	}
	return out, nil
}
