package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
)

// ImportModel registers a model whose files were checked and stored: it is ready at once.
func (h *Handler) ImportModel(ctx context.Context, call Call, c model.Import) (Result, error) {
	return change(ctx, h, call, model.Stream(c.ID), c.ID, func(s model.State) ([]event.Data, error) { return s.DecideImport(c) })
}

// DeleteModel is refused while an extraction uses the model.
func (h *Handler) DeleteModel(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, model.Stream(id), id, func(s model.State) ([]event.Data, error) {
		if s.Status == model.Absent {
			return nil, model.NotFound(id)
		}
		return s.DecideDelete()
	})
}

// ImportDataset registers a dataset whose files were checked and stored: it is ready at once.
func (h *Handler) ImportDataset(ctx context.Context, call Call, c dataset.Import) (Result, error) {
	return change(ctx, h, call, dataset.Stream(c.ID), c.ID, func(s dataset.State) ([]event.Data, error) { return s.DecideImport(c) })
}

// DeleteDataset is refused while an extraction uses the dataset.
func (h *Handler) DeleteDataset(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, dataset.Stream(id), id, func(s dataset.State) ([]event.Data, error) {
		if s.Status == model.Absent {
			return nil, dataset.NotFound(id)
		}
		return s.DecideDelete()
	})
}

// ImportSAE registers an SAE whose files were checked and stored: it is ready at once. With a model, the SAE must fit it.
func (h *Handler) ImportSAE(ctx context.Context, call Call, c sae.Import) (Result, error) {
	beside := func(context.Context) ([]eventlog.StreamVersion, error) { return nil, nil }
	if c.ModelID != "" {
		c.Model = &model.Facts{}
		beside = h.usable(c.ModelID, c.Model)
	}
	return changeBeside(ctx, h, call, sae.Stream(c.ID), c.ID, beside, func(s sae.State) ([]event.Data, error) { return s.DecideImport(c) })
}

// LinkSAE links an SAE to a model that it fits.
func (h *Handler) LinkSAE(ctx context.Context, call Call, id, modelID string) (Result, error) {
	var f model.Facts
	return changeBeside(ctx, h, call, sae.Stream(id), id, h.usable(modelID, &f), func(s sae.State) ([]event.Data, error) {
		if s.Status == model.Absent {
			return nil, sae.NotFound(id)
		}
		return s.DecideLink(modelID, f)
	})
}

// RequestSAESelfTest asks for a self-test of an SAE at a model, and links it to the model.
func (h *Handler) RequestSAESelfTest(ctx context.Context, call Call, id, modelID string) (Result, error) {
	var f model.Facts
	return changeBeside(ctx, h, call, sae.Stream(id), id, h.usable(modelID, &f), func(s sae.State) ([]event.Data, error) {
		s.ID = id
		return s.DecideRequestSelfTest(modelID, f)
	})
}

// RecordSAESelfTest records what the lease's holder found.
func (h *Handler) RecordSAESelfTest(ctx context.Context, call Call, lease eventlog.Lease, id string, t sae.SelfTested) (Result, error) {
	return leased(ctx, h, call, lease.Held(), sae.Stream(id), id, func(s sae.State) ([]event.Data, error) { return s.DecideSelfTested(t) })
}

// FailSAESelfTest records why there is no self-test.
func (h *Handler) FailSAESelfTest(ctx context.Context, call Call, held *eventlog.Fence, id, code, detail string) (Result, error) {
	return leased(ctx, h, call, held, sae.Stream(id), id, func(s sae.State) ([]event.Data, error) { return s.DecideSelfTestFailed(code, detail) })
}

// RenameSAE changes what people call an SAE.
func (h *Handler) RenameSAE(ctx context.Context, call Call, id, name, description string) (Result, error) {
	return change(ctx, h, call, sae.Stream(id), id, func(s sae.State) ([]event.Data, error) {
		if s.Status == model.Absent {
			return nil, sae.NotFound(id)
		}
		return s.DecideRename(name, description)
	})
}

// DeleteSAE is refused while an extraction uses the SAE.
func (h *Handler) DeleteSAE(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, sae.Stream(id), id, func(s sae.State) ([]event.Data, error) {
		if s.Status == model.Absent {
			return nil, sae.NotFound(id)
		}
		return s.DecideDelete()
	})
}

// ImportTraining registers a finished training whose checkpoint folder was checked and stored.
func (h *Handler) ImportTraining(ctx context.Context, call Call, c training.Import) (Result, error) {
	return changeBeside(ctx, h, call, training.Stream(c.ID), c.ID, h.usable(c.ModelID, &c.Model), func(s training.State) ([]event.Data, error) { return s.DecideImport(c) })
}

// DeleteTraining is refused while an extraction uses the training.
func (h *Handler) DeleteTraining(ctx context.Context, call Call, id string) (Result, error) {
	return change(ctx, h, call, training.Stream(id), id, func(s training.State) ([]event.Data, error) {
		if s.Status == model.Absent {
			return nil, training.NotFound(id)
		}
		return s.DecideDelete()
	})
}

// usable reads the facts of a model that is ready, and has it stay so: what is linked to it must not outlive it unseen.
func (h *Handler) usable(id string, f *model.Facts) func(context.Context) ([]eventlog.StreamVersion, error) {
	return func(ctx context.Context) ([]eventlog.StreamVersion, error) {
		m, version, err := Load[model.State](ctx, h, model.Stream(id))
		if err != nil {
			return nil, err
		}
		*f, err = m.Usable(id)
		return []eventlog.StreamVersion{{Stream: model.Stream(id), Version: version}}, err
	}
}
