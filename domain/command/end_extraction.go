package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
)

func onExtraction(ctx context.Context, h *Handler, call Call, id string, decide func(extraction.State) ([]event.Data, error)) (Result, error) {
	return change(ctx, h, call, extraction.Stream(id), id, func(s extraction.State) ([]event.Data, error) {
		if s.Status == extraction.Absent {
			return nil, extraction.NotFound(id)
		}
		return decide(s)
	})
}

// CancelExtraction calls an extraction off at once: its source is free again, its workers stop at the
// next batch, and what was computed stays.
func (h *Handler) CancelExtraction(ctx context.Context, call Call, id, reason string) (Result, error) {
	return onExtraction(ctx, h, call, id, func(s extraction.State) ([]event.Data, error) { return s.DecideCancel(reason) })
}

// ResumeExtraction goes on from the recorded segments. What the extraction uses must still be there and fit.
func (h *Handler) ResumeExtraction(ctx context.Context, call Call, id string) (Result, error) {
	return h.reopen(ctx, call, id, func(s extraction.State) ([]event.Data, error) {
		return s.DecideResume(s.Request.Source.SAEID())
	})
}

// ExtendExtraction asks a completed extraction for more sequences. The recorded segments stay.
func (h *Handler) ExtendExtraction(ctx context.Context, call Call, id string, evaluationSamples int) (Result, error) {
	return h.reopen(ctx, call, id, func(s extraction.State) ([]event.Data, error) {
		return s.DecideExtend(evaluationSamples, s.Request.Source.SAEID())
	})
}

// DeleteExtraction deletes an extraction that does not run, with its features. Labels stay: they hang on the latent.
func (h *Handler) DeleteExtraction(ctx context.Context, call Call, id string) (Result, error) {
	return onExtraction(ctx, h, call, id, func(s extraction.State) ([]event.Data, error) { return s.DecideDelete() })
}
