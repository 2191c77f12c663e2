package command

import (
	"context"
	"strings"

	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

// DownloadModel registers a model and asks for its files.
func (h *Handler) DownloadModel(ctx context.Context, call Call, c model.Download) (Result, error) {
	return change(ctx, h, call, model.Stream(c.ID), c.ID, func(s model.State) ([]event.Data, error) { return s.DecideDownload(c) })
}

// DownloadModelAgain asks again for a download that failed.
func (h *Handler) DownloadModelAgain(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, model.Stream(id), id, func(s model.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideDownloadAgain()
	})
}

// CancelModelDownload calls a download off: whoever does it stops at its next piece.
func (h *Handler) CancelModelDownload(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, model.Stream(id), id, func(s model.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideCancel()
	})
}

// RecordModel records the files that the lease's holder fetched.
func (h *Handler) RecordModel(ctx context.Context, call Call, lease eventlog.Lease, id string, f model.Facts) (Result, error) {
	return leased(ctx, h, call, lease.Held(), model.Stream(id), id, func(s model.State) ([]event.Data, error) { return s.DecideFetched(f) })
}

// DownloadSAE registers an SAE and asks for its files. A model that it is to be linked to must be there, or on its way.
func (h *Handler) DownloadSAE(ctx context.Context, call Call, c sae.Download) (Result, error) {
	if id := c.From.ModelID; id != "" {
		m, _, err := Load[model.State](ctx, h, model.Stream(id))
		if err != nil {
			return Result{}, err
		}
		if _, err := m.Usable(id); err != nil && m.Status != model.Pending {
			return Result{}, err
		}
	}
	return change(ctx, h, call, sae.Stream(c.ID), c.ID, func(s sae.State) ([]event.Data, error) { return s.DecideDownload(c) })
}

// DownloadSAEAgain asks again for a download that failed.
func (h *Handler) DownloadSAEAgain(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, sae.Stream(id), id, func(s sae.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideDownloadAgain()
	})
}

// CancelSAEDownload calls a download off.
func (h *Handler) CancelSAEDownload(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, sae.Stream(id), id, func(s sae.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideCancel()
	})
}

// RecordSAE records the files that the lease's holder fetched, and links the SAE to a model. A model that is not ready yet is
// linked unseen: an extraction checks whether the two fit.
func (h *Handler) RecordSAE(ctx context.Context, call Call, lease eventlog.Lease, id string, f sae.Facts, modelID string) (Result, error) {
	stream := sae.Stream(id)
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		c := sae.Fetched{Facts: f, ModelID: modelID}
		var unchanged []eventlog.StreamVersion
		if modelID != "" {
			m, version, err := Load[model.State](ctx, h, model.Stream(modelID))
			if err != nil {
				return eventlog.Request{}, id, err
			}
			if facts, err := m.Usable(modelID); err == nil {
				c.Model = &facts
				unchanged = []eventlog.StreamVersion{{Stream: model.Stream(modelID), Version: version}}
			}
		}
		state, version, err := Load[sae.State](ctx, h, stream)
		if err != nil {
			return eventlog.Request{}, id, err
		}
		data, err := state.DecideFetched(c)
		if err != nil || len(data) == 0 {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: version, Events: h.propose(call, data)}}, Unchanged: unchanged, Fence: lease.Held()}, id, nil
	})
}

// DownloadDataset registers a dataset and asks for its files.
func (h *Handler) DownloadDataset(ctx context.Context, call Call, c dataset.Download) (Result, error) {
	return change(ctx, h, call, dataset.Stream(c.ID), c.ID, func(s dataset.State) ([]event.Data, error) { return s.DecideDownload(c) })
}

// DownloadDatasetAgain asks again for a download that failed.
func (h *Handler) DownloadDatasetAgain(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, dataset.Stream(id), id, func(s dataset.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideDownloadAgain()
	})
}

// CancelDatasetDownload calls a download off.
func (h *Handler) CancelDatasetDownload(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, dataset.Stream(id), id, func(s dataset.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideCancel()
	})
}

// RecordDataset records the files that the lease's holder fetched.
func (h *Handler) RecordDataset(ctx context.Context, call Call, lease eventlog.Lease, id string, f dataset.Facts) (Result, error) {
	return leased(ctx, h, call, lease.Held(), dataset.Stream(id), id, func(s dataset.State) ([]event.Data, error) { return s.DecideFetched(f) })
}

// FailDownload records why a download ended.
func (h *Handler) FailDownload(ctx context.Context, call Call, held *eventlog.Fence, code, detail string) (Result, error) {
	stream := held.Work.Subject
	kind, id := splitStream(stream)
	switch kind {
	case "model":
		return leased(ctx, h, call, held, stream, id, func(s model.State) ([]event.Data, error) {
			return s.DecideFail(model.Failed{Code: code, Detail: detail})
		})
	case "sae":
		return leased(ctx, h, call, held, stream, id, func(s sae.State) ([]event.Data, error) { return s.DecideFail(sae.Failed{Code: code, Detail: detail}) })
	default:
		return leased(ctx, h, call, held, stream, id, func(s dataset.State) ([]event.Data, error) {
			return s.DecideFail(dataset.Failed{Code: code, Detail: detail})
		})
	}
}

// leased runs a use case on one stream that counts only while the lease is held, or, for work that was lost too
// often, while nobody has been given it since.
func leased[S aggregate[S]](ctx context.Context, h *Handler, call Call, held *eventlog.Fence, stream, id string, decide func(S) ([]event.Data, error)) (Result, error) {
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		state, version, err := Load[S](ctx, h, stream)
		if err != nil {
			return eventlog.Request{}, id, err
		}
		data, err := decide(state)
		if err != nil || len(data) == 0 {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: version, Events: h.propose(call, data)}}, Fence: held}, id, nil
	})
}

// splitStream returns the kind of a stream and the id in its name.
func splitStream(stream string) (kind, id string) {
	kind, id, _ = strings.Cut(stream, "-")
	return kind, id
}
