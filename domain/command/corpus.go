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

func (h *Handler) onCorpus(ctx context.Context, call Call, held *eventlog.Fence, decide func(corpus.State) ([]event.Data, error)) (Result, error) {
	id := held.Work.Subject
	return leased(ctx, h, call, held, corpus.Stream(id), id, decide)
}

// RecordCorpusChunk records a chunk that the lease's holder built.
func (h *Handler) RecordCorpusChunk(ctx context.Context, call Call, lease eventlog.Lease, c corpus.RecordChunk) (Result, error) {
	return h.onCorpus(ctx, call, lease.Held(), func(s corpus.State) ([]event.Data, error) { return s.DecideChunk(c) })
}

// FailCorpus records that a chunk cannot be built; every extraction that waits for the corpus fails with it.
func (h *Handler) FailCorpus(ctx context.Context, call Call, held *eventlog.Fence, c corpus.Failed) (Result, error) {
	return h.onCorpus(ctx, call, held, func(s corpus.State) ([]event.Data, error) { return s.DecideFail(c) })
}
