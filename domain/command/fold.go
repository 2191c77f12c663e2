package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/generation"
)

// RequestFold asks for an extraction's tables again: a fold that has failed is tried again, and one that was done is done anew.
func (h *Handler) RequestFold(ctx context.Context, call Call, id, reason string) (Result, error) {
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		of, version, err := Load[extraction.State](ctx, h, extraction.Stream(id))
		if err != nil {
			return eventlog.Request{}, id, err
		}
		stream := generation.Stream(id)
		state, at, err := Load[generation.State](ctx, h, stream)
		if err != nil {
			return eventlog.Request{}, id, err
		}
		data, err := state.DecideRequest(of, id, reason)
		if err != nil || len(data) == 0 {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{
			Streams:   []eventlog.StreamAppend{{Stream: stream, Expected: at, Events: h.propose(call, data)}},
			Unchanged: []eventlog.StreamVersion{{Stream: extraction.Stream(id), Version: version}},
		}, id, nil
	})
}

// RecordFold records what the lease's holder has folded; the tables show it already.
func (h *Handler) RecordFold(ctx context.Context, call Call, lease eventlog.Lease, c generation.Folded) (Result, error) {
	id := lease.Work.Subject
	return leased(ctx, h, call, lease.Held(), generation.Stream(id), id, func(s generation.State) ([]event.Data, error) { return s.DecideFolded(c) })
}

// FailFold records why the tables cannot be made of what is recorded until now.
func (h *Handler) FailFold(ctx context.Context, call Call, held *eventlog.Fence, code, detail string) (Result, error) {
	id := held.Work.Subject
	_, through, err := Load[extraction.State](ctx, h, extraction.Stream(id))
	if err != nil {
		return Result{}, err
	}
	failed := generation.FoldFailed{Through: through, Code: code, Detail: detail}
	return leased(ctx, h, call, held, generation.Stream(id), id, func(s generation.State) ([]event.Data, error) { return s.DecideFail(failed) })
}
