// Package facts knows every type of event that was ever shipped, and what each does to the log's side
// tables: who holds what, and what is to be done. Both are pure, so the side tables can be rebuilt
// from the log and compared with it. A new event type is added here, in the same change.
package facts

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/generation"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
)

// Kinds of work.
const (
	PlanWork    = "plan"    // self-test and plan of an extraction
	CorpusWork  = "corpus"  // one chunk of a corpus
	SegmentWork = "segment" // one segment of an extraction

	DownloadWork = "download" // fetch a model, an SAE or a dataset from a hub; its subject is the stream
	SelfTestWork = "selftest" // test an SAE at its model; its subject is the stream
	FoldWork     = "fold"     // fold an extraction's artifacts into tables; open while there is something to fold
)

// Registry returns the registry of every event type.
func Registry() (*event.Registry, error) {
	r := event.NewRegistry()
	// Version 2 only says more: what version 1 left out is what was so then.
	more := map[int]event.Upcast{1: func(b json.RawMessage) (json.RawMessage, error) { return b, nil }}
	return r, errors.Join(
		event.Register[model.Registered](r, 1, nil),
		event.Register[model.DownloadRequested](r, 1, nil),
		event.Register[model.Ready](r, 2, more),
		event.Register[model.Failed](r, 1, nil),
		event.Register[model.Deleted](r, 1, nil),
		event.Register[sae.Registered](r, 1, nil),
		event.Register[sae.DownloadRequested](r, 1, nil),
		event.Register[sae.Ready](r, 2, more),
		event.Register[sae.LinkedToModel](r, 1, nil),
		event.Register[sae.SelfTestRequested](r, 1, nil),
		event.Register[sae.SelfTested](r, 1, nil),
		event.Register[sae.Renamed](r, 1, nil),
		event.Register[sae.Failed](r, 1, nil),
		event.Register[sae.Deleted](r, 1, nil),
		event.Register[dataset.Registered](r, 1, nil),
		event.Register[dataset.DownloadRequested](r, 1, nil),
		event.Register[dataset.Ready](r, 2, more),
		event.Register[dataset.Failed](r, 1, nil),
		event.Register[dataset.Deleted](r, 1, nil),
		event.Register[corpus.Requested](r, 1, nil),
		event.Register[corpus.ChunkBuilt](r, 1, nil),
		event.Register[corpus.Ready](r, 1, nil),
		event.Register[corpus.Failed](r, 1, nil),
		event.Register[training.Imported](r, 2, more),
		event.Register[training.Deleted](r, 1, nil),
		event.Register[extraction.Requested](r, 1, nil),
		event.Register[extraction.SelfTested](r, 1, nil),
		event.Register[extraction.Planned](r, 1, nil),
		event.Register[extraction.SegmentRecorded](r, 1, nil),
		event.Register[extraction.SegmentMismatched](r, 1, nil),
		event.Register[extraction.Completed](r, 1, nil),
		event.Register[extraction.Failed](r, 1, nil),
		event.Register[extraction.Cancelled](r, 1, nil),
		event.Register[extraction.Resumed](r, 2, map[int]event.Upcast{1: extraction.ResumedFrom1}),
		event.Register[extraction.Extended](r, 1, nil),
		event.Register[extraction.Deleted](r, 1, nil),
		event.Register[generation.FoldRequested](r, 1, nil),
		event.Register[generation.Folded](r, 1, nil),
		event.Register[generation.FoldFailed](r, 1, nil),
		event.Register[feature.Named](r, 1, nil),
		event.Register[feature.Described](r, 1, nil),
		event.Register[feature.Noted](r, 1, nil),
		event.Register[feature.Starred](r, 1, nil),
		event.Register[EventSkipped](r, 1, nil),
		eventlog.Register(r),
	)
}

// Storable refuses a fact that read models could not hold: most of what it says comes from strangers' files.
func Storable(eventType string, data []byte) error {
	if field := event.NulField(data); field != "" {
		return &eventlog.UnstorableError{Type: eventType, Field: field, What: "the character U+0000"}
	}
	if !ofFiles[eventType] {
		return nil
	}
	if field := event.FindField(data, func(key string, v any) bool {
		number, ok := v.(json.Number)
		if !ok || !counts[key] {
			return false
		}
		n, err := number.Int64()
		return err != nil || n < math.MinInt32 || n > math.MaxInt32
	}); field != "" {
		return &eventlog.UnstorableError{Type: eventType, Field: field, What: "a number beyond 2,147,483,647"}
	}
	if field := event.FindField(data, func(key string, v any) bool {
		text, ok := v.(string)
		return ok && key == "name" && len(text) > mostName
	}); field != "" {
		return &eventlog.UnstorableError{Type: eventType, Field: field, What: fmt.Sprintf("a name of more than %d bytes", mostName)}
	}
	return nil
}

const mostName = 1000 // bytes: an index entry of PostgreSQL holds some 2,700

// ofFiles are the facts that files tell of themselves, and counts the numbers of theirs that columns of 32 bits hold.
var (
	ofFiles = map[string]bool{"ModelRegistered": true, "ModelReady": true, "SAERegistered": true, "SAEReady": true, "SAERenamed": true, "DatasetRegistered": true, "DatasetReady": true, "TrainingImported": true}
	counts  = map[string]bool{"layers": true, "d_model": true, "d_heads": true, "d_mlp": true, "vocab": true, "context_length": true, "bos_token_id": true, "eos_token_id": true,
		"d_in": true, "d_sae": true, "d_out": true, "k": true, "layer": true}
)

// Keys of reservations.
func sourceKey(key string) string { return "source:" + key }

// ModelKey, SAEKey, TrainingKey and DatasetKey name what an active extraction uses.
func ModelKey(id string) string    { return "model:" + id }
func SAEKey(id string) string      { return "sae:" + id }
func TrainingKey(id string) string { return "training:" + id }
func DatasetKey(id string) string  { return "dataset:" + id }

// IsSource reports whether a reservation's key is the exclusive one of a source.
func IsSource(key string) bool { return strings.HasPrefix(key, "source:") }

func reserve(holder string, src source.Source, sae, model, dataset string) []eventlog.Effect {
	out := []eventlog.Effect{
		eventlog.Reserve{Key: sourceKey(src.Key()), Holder: holder},
		eventlog.Reserve{Key: ModelKey(model), Holder: holder, Shared: true},
		eventlog.Reserve{Key: DatasetKey(dataset), Holder: holder, Shared: true},
	}
	if sae != "" {
		out = append(out, eventlog.Reserve{Key: SAEKey(sae), Holder: holder, Shared: true})
	} else {
		out = append(out, eventlog.Reserve{Key: TrainingKey(src.ID()), Holder: holder, Shared: true})
	}
	return out
}

func segments(id string, runs []extraction.Run, requirement string) []eventlog.Effect {
	var out []eventlog.Effect
	for _, r := range runs {
		if r.From < r.To {
			out = append(out, eventlog.OpenWork{Work: eventlog.Work{Kind: SegmentWork, Subject: id, Index: r.From}, Until: r.To, Requirement: requirement})
		}
	}
	return out
}

// Effects says what an event does to reservations and work. It fails for what would otherwise make an
// extraction active without a reservation.
func Effects(stream string, d event.Data) ([]eventlog.Effect, error) {
	_, id, _ := strings.Cut(stream, "-")
	plan := eventlog.Work{Kind: PlanWork, Subject: id}
	switch e := d.(type) {
	case extraction.Requested:
		if e.Source.IsZero() {
			return nil, fmt.Errorf("%s names no source", e.EventType())
		}
		return append(reserve(id, e.Source, e.Source.SAEID(), e.ModelID, e.DatasetID), eventlog.OpenWork{Work: plan}), nil
	case extraction.Extended:
		src, err := source.FromKey(e.SourceKey)
		if err != nil {
			return nil, err
		}
		return append(reserve(id, src, e.SAEID, e.ModelID, e.DatasetID), eventlog.OpenWork{Work: plan}), nil
	case extraction.Resumed:
		src, err := source.FromKey(e.SourceKey)
		if err != nil {
			return nil, err
		}
		out := reserve(id, src, e.SAEID, e.ModelID, e.DatasetID)
		if e.Plan {
			out = append(out, eventlog.OpenWork{Work: plan})
		}
		return append(out, segments(id, e.Missing, e.Profile.Requirement())...), nil
	}
	return changes(stream, id, d), nil
}

// changes are the effects of events that take no reservation.
func changes(stream, id string, d event.Data) []eventlog.Effect {
	plan := eventlog.Work{Kind: PlanWork, Subject: id}
	fold := eventlog.Work{Kind: FoldWork, Subject: id}
	end := []eventlog.Effect{eventlog.CloseAllWork{Subject: id}, eventlog.Release{Holder: id}}
	switch e := d.(type) {
	case extraction.Planned:
		run := extraction.Run{From: e.Part.FirstSegment, To: e.Part.FirstSegment + e.Part.Segments()}
		return append([]eventlog.Effect{eventlog.CloseWork{Work: plan}}, segments(id, []extraction.Run{run}, e.Profile.Requirement())...)
	case extraction.SegmentRecorded:
		return []eventlog.Effect{eventlog.CloseWork{Work: eventlog.Work{Kind: SegmentWork, Subject: id, Index: e.Index}}, eventlog.OpenWork{Work: fold}}
	case extraction.Completed, extraction.Failed, extraction.Cancelled:
		// Whoever folds what was recorded so far loses the lease: the end is folded at once.
		return append(end, eventlog.OpenWork{Work: fold})
	case extraction.Deleted:
		return end
	case generation.FoldRequested:
		// Whoever folds what was there before loses the lease.
		return []eventlog.Effect{eventlog.CloseWork{Work: fold}, eventlog.OpenWork{Work: fold}}
	case generation.Folded, generation.FoldFailed:
		return []eventlog.Effect{eventlog.CloseWork{Work: fold}}
	case corpus.Requested:
		return []eventlog.Effect{eventlog.OpenWork{Work: eventlog.Work{Kind: CorpusWork, Subject: id, Index: e.FirstChunk}}}
	case corpus.ChunkBuilt:
		out := []eventlog.Effect{eventlog.CloseWork{Work: eventlog.Work{Kind: CorpusWork, Subject: id, Index: e.Chunk}}}
		if e.More {
			out = append(out, eventlog.OpenWork{Work: eventlog.Work{Kind: CorpusWork, Subject: id, Index: e.Chunk + 1}})
		}
		return out
	case corpus.Failed:
		return []eventlog.Effect{eventlog.CloseAllWork{Subject: id}}
	case model.DownloadRequested, sae.DownloadRequested, dataset.DownloadRequested:
		return []eventlog.Effect{eventlog.OpenWork{Work: eventlog.Work{Kind: DownloadWork, Subject: stream}}}
	case model.Ready, model.Failed, sae.Ready, sae.Failed, dataset.Ready, dataset.Failed:
		return []eventlog.Effect{eventlog.CloseAllWork{Subject: stream}}
	case model.Deleted:
		return []eventlog.Effect{eventlog.RefuseIfReserved{Key: ModelKey(id)}, eventlog.CloseAllWork{Subject: stream}}
	case sae.SelfTestRequested:
		// Whoever tests the SAE at another model loses the lease.
		test := eventlog.Work{Kind: SelfTestWork, Subject: stream}
		return []eventlog.Effect{eventlog.CloseWork{Work: test}, eventlog.OpenWork{Work: test}}
	case sae.SelfTested:
		return []eventlog.Effect{eventlog.CloseWork{Work: eventlog.Work{Kind: SelfTestWork, Subject: stream}}}
	case sae.Deleted:
		return []eventlog.Effect{eventlog.RefuseIfReserved{Key: SAEKey(id)}, eventlog.CloseAllWork{Subject: stream}}
	case dataset.Deleted:
		return []eventlog.Effect{eventlog.RefuseIfReserved{Key: DatasetKey(id)}, eventlog.CloseAllWork{Subject: stream}}
	case training.Deleted:
		return []eventlog.Effect{eventlog.RefuseIfReserved{Key: TrainingKey(id)}}
	}
	return nil
}

// EventSkipped says that a projection is to leave an event out for good: rebuild and verify honour it.
type EventSkipped struct {
	Projection string   `json:"projection"`
	EventID    event.ID `json:"event_id"`
	Reason     string   `json:"reason"`
	Actor      string   `json:"actor"`
}

// EventType is the type's name, for ever.
func (EventSkipped) EventType() string { return "EventSkipped" }

// OperationsStream holds what operators did to the log and its projections.
const OperationsStream = "operations-log"

// Describe names a reservation's key for people.
func Describe(key string) string {
	kind, id, _ := strings.Cut(key, ":")
	if kind == "source" {
		if src, err := source.FromKey(id); err == nil {
			return fmt.Sprintf("%s %s", src.Type(), src.ID())
		}
	}
	return kind + " " + id
}
