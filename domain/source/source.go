// Package source names where an extraction's SAE comes from: a training of ours, or an SAE of its own
// (from a hub, a local file, or imported from a training). Exactly one of the two: a Source cannot
// hold both, and the zero Source, which holds neither, is refused wherever a Source is used.
//
// The package also owns the ids that are made from a source. They are read from the right, and a
// training's id never begins with "sae_", so every id says which kind of source it has.
package source

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Type is the kind of a source.
type Type string

// The two kinds of source.
const (
	Training Type = "training"
	SAE      Type = "sae"
)

// Source is a training or an SAE.
type Source struct {
	typ Type
	id  string
}

const maxID = 200

func checkID(id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("id %q: want 1 to %d characters", id, maxID)
	}
	for _, r := range id {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-' || r == '.') {
			return fmt.Errorf("id %q: only letters, digits, '_', '-' and '.' are allowed", id)
		}
	}
	return nil
}

// FromTraining names a training as the source.
func FromTraining(id string) (Source, error) {
	if err := checkID(id); err != nil {
		return Source{}, fmt.Errorf("training %w", err)
	}
	if strings.HasPrefix(id, "sae_") {
		return Source{}, fmt.Errorf("training id %q: must not begin with sae_", id)
	}
	return Source{typ: Training, id: id}, nil
}

// FromSAE names an SAE as the source.
func FromSAE(id string) (Source, error) {
	if err := checkID(id); err != nil {
		return Source{}, fmt.Errorf("SAE %w", err)
	}
	return Source{typ: SAE, id: id}, nil
}

// IsZero reports whether the source holds neither.
func (s Source) IsZero() bool { return s.typ == "" }

// Type says which kind of source it is.
func (s Source) Type() Type { return s.typ }

// ID is the training's or the SAE's id.
func (s Source) ID() string { return s.id }

// TrainingID is the id if the source is a training, else "".
func (s Source) TrainingID() string {
	if s.typ == Training {
		return s.id
	}
	return ""
}

// SAEID is the id if the source is an SAE, else "".
func (s Source) SAEID() string {
	if s.typ == SAE {
		return s.id
	}
	return ""
}

// Key is the id as it stands in other ids: the training's id, or "sae_" and the SAE's id.
func (s Source) Key() string {
	if s.typ == SAE {
		return "sae_" + s.id
	}
	return s.id
}

func (s Source) String() string { return string(s.typ) + " " + s.id }

// FromKey reads what Key wrote.
func FromKey(key string) (Source, error) {
	if id, ok := strings.CutPrefix(key, "sae_"); ok {
		return FromSAE(id)
	}
	return FromTraining(key)
}

type wire struct {
	TrainingID    string `json:"training_id,omitempty"`
	ExternalSAEID string `json:"external_sae_id,omitempty"`
}

// MarshalJSON writes {"training_id": …} or {"external_sae_id": …}; the zero Source is an error.
func (s Source) MarshalJSON() ([]byte, error) {
	if s.IsZero() {
		return nil, fmt.Errorf("a source must be a training or an SAE")
	}
	return json.Marshal(wire{TrainingID: s.TrainingID(), ExternalSAEID: s.SAEID()})
}

// UnmarshalJSON refuses both and neither.
func (s *Source) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	var err error
	switch {
	case w.TrainingID != "" && w.ExternalSAEID != "":
		return fmt.Errorf("a source cannot be both training %q and SAE %q", w.TrainingID, w.ExternalSAEID)
	case w.TrainingID != "":
		*s, err = FromTraining(w.TrainingID)
	case w.ExternalSAEID != "":
		*s, err = FromSAE(w.ExternalSAEID)
	default:
		err = fmt.Errorf("a source needs training_id or external_sae_id")
	}
	return err
}

// timestamp is UTC to the microsecond, without an underscore: 20060102T150405000000.
func timestamp(at time.Time) string {
	return strings.Replace(at.UTC().Format("20060102T150405.000000"), ".", "", 1)
}

// ExtractionID is ext_{training_id}_{timestamp} or ext_sae_{sae_id}_{timestamp}.
func (s Source) ExtractionID(at time.Time) string { return "ext_" + s.Key() + "_" + timestamp(at) }

// ParseExtractionID returns the source of an extraction id.
func ParseExtractionID(id string) (Source, error) {
	rest, ok := strings.CutPrefix(id, "ext_")
	i := strings.LastIndexByte(rest, '_')
	if !ok || i < 1 || len(rest)-i-1 != len("20060102T150405000000") {
		return Source{}, fmt.Errorf("extraction id %q: want ext_{training_id}_{timestamp} or ext_sae_{sae_id}_{timestamp}", id)
	}
	return FromKey(rest[:i])
}

// FeatureID is feat_{training_id}_{index} or feat_sae_{sae_id}_{index}: it names the latent, whatever
// extraction its numbers come from.
func (s Source) FeatureID(index int) string { return "feat_" + s.Key() + "_" + strconv.Itoa(index) }

// Latent is a latent of a source, and the extraction that is asked for ("" = the newest).
type Latent struct {
	Source     Source
	Index      int
	Extraction string
}

// ParseFeatureID reads feat_{…}_{index}, with or without @{extraction_id}.
func ParseFeatureID(id string) (Latent, error) {
	name, extraction, _ := strings.Cut(id, "@")
	rest, ok := strings.CutPrefix(name, "feat_")
	i := strings.LastIndexByte(rest, '_')
	if !ok || i < 1 {
		return Latent{}, fmt.Errorf("feature id %q: want feat_{training_id}_{index} or feat_sae_{sae_id}_{index}", id)
	}
	index, err := strconv.ParseUint(rest[i+1:], 10, 31)
	if err != nil || strconv.FormatUint(index, 10) != rest[i+1:] {
		return Latent{}, fmt.Errorf("feature id %q: %q is not a latent's index", id, rest[i+1:])
	}
	src, err := FromKey(rest[:i])
	if err != nil {
		return Latent{}, err
	}
	if extraction != "" {
		if _, err := ParseExtractionID(extraction); err != nil {
			return Latent{}, err
		}
	}
	return Latent{Source: src, Index: int(index), Extraction: extraction}, nil
}
