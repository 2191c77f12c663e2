package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// RequestCorpus asks for a corpus with at least so many sequences; what is there or on the way is not asked for again.
func (h *Handler) RequestCorpus(ctx context.Context, call Call, c corpus.Requested) (Result, error) {
	return change(ctx, h, call, corpus.Stream(c.ID), c.ID, func(s corpus.State) ([]event.Data, error) { return s.DecideRequest(c) })
}

func (h *Handler) onCorpus(ctx context.Context, call Call, lease eventlog.Lease, decide func(corpus.State) ([]event.Data, error)) (Result, error) {
	id, stream := lease.Work.Subject, corpus.Stream(lease.Work.Subject)
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		s, version, err := Load[corpus.State](ctx, h, stream)
		if err != nil {
			return eventlog.Request{}, id, err
		}
		data, err := decide(s)
		if err != nil || len(data) == 0 {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: version, Events: h.propose(call, data)}}, Fence: lease.Held()}, id, nil
	})
}

// RecordCorpusChunk records a chunk that the lease's holder built.
func (h *Handler) RecordCorpusChunk(ctx context.Context, call Call, lease eventlog.Lease, c corpus.RecordChunk) (Result, error) {
	return h.onCorpus(ctx, call, lease, func(s corpus.State) ([]event.Data, error) { return s.DecideChunk(c) })
}

// FailCorpus records that a chunk cannot be built; every extraction that waits for the corpus fails with it.
func (h *Handler) FailCorpus(ctx context.Context, call Call, lease eventlog.Lease, c corpus.Failed) (Result, error) {
	return h.onCorpus(ctx, call, lease, func(s corpus.State) ([]event.Data, error) { return s.DecideFail(c) })
}

// FailLostCorpus records that a chunk was given to worker after worker and none came back.
func (h *Handler) FailLostCorpus(ctx context.Context, call Call, id string, c corpus.Failed) (Result, error) {
	return change(ctx, h, call, corpus.Stream(id), id, func(s corpus.State) ([]event.Data, error) { return s.DecideFail(c) })
}
