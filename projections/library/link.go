package library

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

// aliases are names of models that differ from their repositories' by more than owner, case and
// punctuation: those of TransformerLens, which SAEs' configs have.
func aliases() map[string]string {
	return map[string]string{
		"gpt2small":             "openai-community/gpt2",
		"gemma2b":               "google/gemma-2b",
		"llama38b":              "meta-llama/Meta-Llama-3-8B",
		"llama318b":             "meta-llama/Llama-3.1-8B",
		"mistral7b":             "mistralai/Mistral-7B-v0.1",
		"pythia70m":             "EleutherAI/pythia-70m",
		"metallama318b":         "meta-llama/Llama-3.1-8B",
		"metallama318binstruct": "meta-llama/Llama-3.1-8B-Instruct",
		"tinystories1lines33m":  "roneneldan/TinyStories-1Layer-21M",
	}
}

// ModelsOf returns the ready models that an SAE may belong to: those that its config names, by the
// exact name or repository, else by the normalised name, else by a known alias. Of several, those that
// it fits; more than one means that a person has to choose. One that it does not fit is returned too: who
// links the SAE to it is told why that cannot be.
func (q *Queries) ModelsOf(ctx context.Context, f sae.Facts) ([]Model, error) {
	names := []string{f.ModelName}
	if alias := aliases()[NormalModelName(f.ModelName)]; alias != "" {
		names = append(names, alias)
	}
	for _, name := range names {
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
