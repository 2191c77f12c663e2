package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/problem"
)

// SkipEvent leaves one event out of one projection for good, now and in every rebuild. It is for an event
// that a projection has parked and that no new version of it will be able to take.
type SkipEvent struct {
	Projection string
	Position   int64
	Reason     string
}

// operations is what is folded of facts.OperationsStream: what each projection leaves out.
type operations struct{ skipped map[string]map[event.ID]bool }

func (o operations) Evolve(d event.Data) operations {
	if skip, ok := d.(facts.EventSkipped); ok {
		of := map[event.ID]bool{skip.EventID: true}
		for id := range o.skipped[skip.Projection] {
			of[id] = true
		}
		next := map[string]map[event.ID]bool{skip.Projection: of}
		for name, ids := range o.skipped {
			if name != skip.Projection {
				next[name] = ids
			}
		}
		o.skipped = next
	}
	return o
}

// SkipEvent records that an event is to be left out. Skipping it again changes nothing.
func (h *Handler) SkipEvent(ctx context.Context, call Call, c SkipEvent) (Result, error) {
	var wrong []problem.Field
	if c.Projection == "" {
		wrong = append(wrong, problem.Field{Name: "projection", Detail: "must name a projection"})
	}
	if c.Reason == "" {
		wrong = append(wrong, problem.Field{Name: "reason", Detail: "must say why: it stays in the log"})
	}
	if len(wrong) > 0 {
		return Result{}, problem.InvalidFields("invalid_request", wrong...)
	}
	found, err := h.log.ReadAll(ctx, c.Position-1, 1)
	if err != nil {
		return Result{}, err
	}
	if len(found) == 0 || found[0].Position != c.Position {
		return Result{}, problem.New(problem.NotFound, "unknown_event", "there is no event at position %d", c.Position)
	}
	rec := found[0]
	if rec.Stream == facts.OperationsStream {
		return Result{}, problem.New(problem.Invalid, "not_skippable", "position %d is itself about the log: such facts are never left out", c.Position)
	}
	return change(ctx, h, call, facts.OperationsStream, rec.ID.String(), func(o operations) ([]event.Data, error) {
		if o.skipped[c.Projection][rec.ID] {
			return nil, nil
		}
		return []event.Data{facts.EventSkipped{Projection: c.Projection, EventID: rec.ID, Reason: c.Reason, Actor: call.Metadata.Actor}}, nil
	})
}
