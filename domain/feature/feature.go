// Package feature is the aggregate of a latent's label: its name, description, category, notes and
// star. Labels are history: nothing is overwritten in silence. They hang on the source's latent, so
// they outlive a re-extraction. Decide does no I/O.
package feature

import (
	"strconv"
	"unicode/utf8"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/source"
)

// Stream is the name of a latent's stream.
func Stream(s source.Source, index int) string {
	return "latent-" + s.Key() + "-" + strconv.Itoa(index)
}

// LabelSource says who gave a label.
type LabelSource string

// Who gives labels.
const (
	User   LabelSource = "user"
	LLM    LabelSource = "llm"
	Import LabelSource = "import"
)

// Latent names the latent in every event of its stream.
type Latent struct {
	Source source.Source `json:"source"`
	Index  int           `json:"index"`
}

// Named says what a latent is called.
type Named struct {
	Latent   Latent      `json:"latent"`
	Name     string      `json:"name"`
	Category string      `json:"category,omitempty"`
	By       LabelSource `json:"label_source"`
}

// Described says what a latent is about.
type Described struct {
	Latent      Latent      `json:"latent"`
	Description string      `json:"description"`
	By          LabelSource `json:"label_source"`
}

// Noted is somebody's remark.
type Noted struct {
	Latent Latent `json:"latent"`
	Notes  string `json:"notes"`
}

// Starred says whether a latent is a favourite.
type Starred struct {
	Latent  Latent `json:"latent"`
	Starred bool   `json:"starred"`
}

// The type names, for ever.
func (Named) EventType() string     { return "FeatureNamed" }
func (Described) EventType() string { return "FeatureDescribed" }
func (Noted) EventType() string     { return "FeatureNoted" }
func (Starred) EventType() string   { return "FeatureStarred" }

// State is a folded label.
type State struct {
	Name, Category, Description, Notes string
	NameBy, DescriptionBy              LabelSource
	Starred                            bool
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Named:
		s.Name, s.Category, s.NameBy = e.Name, e.Category, e.By
	case Described:
		s.Description, s.DescriptionBy = e.Description, e.By
	case Noted:
		s.Notes = e.Notes
	case Starred:
		s.Starred = e.Starred
	}
	return s
}

// Label changes a label; nil = unchanged, "" = cleared.
type Label struct {
	Latent      Latent
	Name        *string
	Category    *string
	Description *string
	Notes       *string
	Starred     *bool
	By          LabelSource
}

// DecideLabel writes one event for each thing that changes.
func (s State) DecideLabel(c Label) ([]event.Data, error) {
	var wrong []problem.Field
	for _, f := range []struct {
		name  string
		value *string
		most  int
	}{{"name", c.Name, 500}, {"category", c.Category, 500}, {"description", c.Description, 10_000}, {"notes", c.Notes, 10_000}} {
		if f.value != nil && utf8.RuneCountInString(*f.value) > f.most {
			wrong = append(wrong, problem.Field{Name: f.name, Detail: "at most " + strconv.Itoa(f.most) + " characters"})
		}
	}
	if len(wrong) > 0 {
		return nil, problem.InvalidFields("invalid_request", wrong...)
	}
	var out []event.Data
	name, category := or(c.Name, s.Name), or(c.Category, s.Category)
	if name != s.Name || category != s.Category {
		out = append(out, Named{Latent: c.Latent, Name: name, Category: category, By: c.By})
	}
	if d := or(c.Description, s.Description); d != s.Description {
		out = append(out, Described{Latent: c.Latent, Description: d, By: c.By})
	}
	if n := or(c.Notes, s.Notes); n != s.Notes {
		out = append(out, Noted{Latent: c.Latent, Notes: n})
	}
	if c.Starred != nil && *c.Starred != s.Starred {
		out = append(out, Starred{Latent: c.Latent, Starred: *c.Starred})
	}
	return out, nil
}

func or(v *string, old string) string {
	if v == nil {
		return old
	}
	return *v
}
