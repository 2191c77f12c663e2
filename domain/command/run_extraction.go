package command

import (
	"context"
	"errors"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
)

// fenced runs a worker's command: it counts only while the worker holds the lease.
func (h *Handler) fenced(ctx context.Context, call Call, held *eventlog.Fence, id string, decide func(extraction.State) ([]event.Data, error)) (Result, error) {
	stream := extraction.Stream(id)
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		s, version, err := Load[extraction.State](ctx, h, stream)
		if err != nil {
			return eventlog.Request{}, id, err
		}
		if s.Status == extraction.Absent {
			return eventlog.Request{}, id, extraction.NotFound(id)
		}
		data, err := decide(s)
		if err != nil || len(data) == 0 {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{
			Streams: []eventlog.StreamAppend{{Stream: stream, Expected: version, Events: h.propose(call, data)}},
			Fence:   held,
		}, id, nil
	})
}

// RecordSelfTest records the self-test of the plan's lease. An SAE that does not fit fails the extraction.
func (h *Handler) RecordSelfTest(ctx context.Context, call Call, lease eventlog.Lease, id string, t extraction.SelfTest) (Result, error) {
	return h.fenced(ctx, call, lease.Held(), id, func(s extraction.State) ([]event.Data, error) { return s.DecideSelfTested(t) })
}

// PlanExtraction fixes corpus, segments and compute profile.
func (h *Handler) PlanExtraction(ctx context.Context, call Call, lease eventlog.Lease, id string, c extraction.Planned) (Result, error) {
	return h.fenced(ctx, call, lease.Held(), id, func(s extraction.State) ([]event.Data, error) { return s.DecidePlan(c) })
}

// FailWork fails the extraction whose lease the worker holds, or whose work was lost too often.
func (h *Handler) FailWork(ctx context.Context, call Call, held *eventlog.Fence, id string, c extraction.Failed) (Result, error) {
	return h.fenced(ctx, call, held, id, func(s extraction.State) ([]event.Data, error) { return s.DecideFail(c) })
}

// RecordSegment records a segment's artifact; the last one completes the extraction in the same
// append. A result that differs from the recorded one is recorded as an alarm and returned as a
// *extraction.SegmentMismatchError.
func (h *Handler) RecordSegment(ctx context.Context, call Call, lease eventlog.Lease, id string, c extraction.SegmentRecorded) (Result, error) {
	var mismatch *extraction.SegmentMismatchError
	res, err := h.fenced(ctx, call, lease.Held(), id, func(s extraction.State) ([]event.Data, error) { return s.DecideRecord(c) })
	if !errors.As(err, &mismatch) {
		return res, err
	}
	res, alarm := onExtraction(ctx, h, call, id, func(s extraction.State) ([]event.Data, error) {
		data, _ := s.DecideRecord(c)
		return data, nil
	})
	return res, errors.Join(mismatch, alarm)
}
