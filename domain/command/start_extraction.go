package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
)

// StartExtractionFromSAE asks for an extraction of an SAE. It takes the SAE as its source: a second
// start while the first is active is refused with the extraction that holds it.
type StartExtractionFromSAE struct {
	SAEID     string
	DatasetID string
	ModelID   string // "" = the one that the SAE is linked to
	Config    extraction.Config
	Batch     *extraction.Batch // nil where it is asked for alone
}

// StartExtractionFromTraining asks for an extraction of a training that has exactly one SAE.
type StartExtractionFromTraining struct {
	TrainingID string
	DatasetID  string
	Config     extraction.Config
	Imported   map[string]string // the paths that were imported as SAEs of their own → their ids, to name them in a refusal
}

// chosen is an SAE that an extraction may start from, wherever it came from.
type chosen struct {
	source  source.Source
	path    string
	modelID string
	facts   sae.Facts
	guard   eventlog.StreamVersion
}

// StartExtractionFromSAE returns the new extraction's id.
func (h *Handler) StartExtractionFromSAE(ctx context.Context, call Call, c StartExtractionFromSAE) (Result, error) {
	if _, err := source.FromSAE(c.SAEID); err != nil {
		return Result{}, sae.NotFound(c.SAEID)
	}
	return h.start(ctx, call, c.DatasetID, c.Config, c.Batch, func(ctx context.Context) (chosen, error) { return h.choose(ctx, c) })
}

func (h *Handler) choose(ctx context.Context, c StartExtractionFromSAE) (chosen, error) {
	src, err := source.FromSAE(c.SAEID)
	if err != nil {
		return chosen{}, sae.NotFound(c.SAEID)
	}
	s, version, err := Load[sae.State](ctx, h, sae.Stream(c.SAEID))
	if err != nil {
		return chosen{}, err
	}
	f, err := s.Usable(c.SAEID)
	if err != nil {
		return chosen{}, err
	}
	modelID := s.ModelID
	if c.ModelID != "" {
		modelID = c.ModelID
	}
	return chosen{source: src, modelID: modelID, facts: f, guard: eventlog.StreamVersion{Stream: sae.Stream(c.SAEID), Version: version}}, nil
}

// Prospect is what is known of an extraction before it is started.
type Prospect struct {
	Source source.Source
	SAE    sae.Facts
	Size   extraction.Size
}

// ConsiderExtraction refuses what a start would refuse, but a busy source, and changes nothing.
func (h *Handler) ConsiderExtraction(ctx context.Context, c StartExtractionFromSAE) (Prospect, error) {
	from, err := h.choose(ctx, c)
	if err == nil {
		err = c.Config.Validate()
	}
	if err != nil {
		return Prospect{}, err
	}
	_, size, err := h.check(ctx, from, c.DatasetID, c.Config)
	if err != nil {
		return Prospect{}, err
	}
	var none extraction.State
	return Prospect{Source: from.source, SAE: from.facts, Size: size}, none.Fits(size, c.Config.EvaluationSamples)
}

// StartExtractionFromTraining returns the new extraction's id.
func (h *Handler) StartExtractionFromTraining(ctx context.Context, call Call, c StartExtractionFromTraining) (Result, error) {
	src, err := source.FromTraining(c.TrainingID)
	if err != nil {
		return Result{}, training.NotFound(c.TrainingID)
	}
	return h.start(ctx, call, c.DatasetID, c.Config, nil, func(ctx context.Context) (chosen, error) {
		s, version, err := Load[training.State](ctx, h, training.Stream(c.TrainingID))
		if err != nil {
			return chosen{}, err
		}
		one, err := s.Only(c.TrainingID, c.Imported)
		if err != nil {
			return chosen{}, err
		}
		return chosen{source: src, path: one.Path, modelID: s.ModelID, facts: one.Facts, guard: eventlog.StreamVersion{Stream: training.Stream(c.TrainingID), Version: version}}, nil
	})
}

func (h *Handler) start(ctx context.Context, call Call, datasetID string, config extraction.Config, batch *extraction.Batch, choose func(context.Context) (chosen, error)) (Result, error) {
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		from, err := choose(ctx)
		if err != nil {
			return eventlog.Request{}, "", err
		}
		guards, size, err := h.check(ctx, from, datasetID, config)
		if err != nil {
			return eventlog.Request{}, "", err
		}
		id := from.source.ExtractionID(h.now())
		var none extraction.State
		data, err := none.DecideStart(extraction.Requested{
			ID: id, Source: from.source, SAEPath: from.path, ModelID: from.modelID, DatasetID: datasetID,
			Hook: from.facts.Hook, Layer: from.facts.Layer, Latents: from.facts.DSAE, Mask: mask(from.facts), Config: config, Batch: batch,
		})
		if err == nil {
			err = none.Fits(size, config.EvaluationSamples)
		}
		if err != nil {
			return eventlog.Request{}, "", err
		}
		return eventlog.Request{
			Streams:   []eventlog.StreamAppend{{Stream: extraction.Stream(id), Expected: 0, Events: h.propose(call, data)}},
			Unchanged: guards,
		}, id, nil
	})
}

func mask(f sae.Facts) extraction.Mask {
	m := extraction.Mask{SpecialTokens: f.ExcludeSpecialTokens}
	for _, id := range f.ExcludeTokenIDs {
		m.TokenIDs = append(m.TokenIDs, int32(id))
	}
	if s := f.SeqposSlice; s != nil {
		m.Seqpos = &extraction.Slice{Start: s.Start, Stop: s.Stop, Step: s.Step}
	}
	return m
}

// check refuses an SAE, model and dataset that do not go together. It returns the streams that must not change until the
// append, and what is known now of how the run will be cut into segments.
func (h *Handler) check(ctx context.Context, from chosen, datasetID string, config extraction.Config) ([]eventlog.StreamVersion, extraction.Size, error) {
	var size extraction.Size
	if err := from.facts.Extractable(from.source.ID()); err != nil {
		return nil, size, err
	}
	if from.modelID == "" {
		return nil, size, problem.New(problem.Invalid, "model_unknown", "%s is not linked to a model, and the request names none: give model_id, the id of the model that it was trained on%s", from.source, trainedOn(from.facts.ModelName))
	}
	if datasetID == "" {
		return nil, size, problem.InvalidFields("invalid_request", problem.Field{Name: "dataset_id", Detail: "is required"})
	}
	m, modelVersion, err := Load[model.State](ctx, h, model.Stream(from.modelID))
	if err != nil {
		return nil, size, err
	}
	facts, err := m.Usable(from.modelID)
	if err != nil {
		return nil, size, err
	}
	if err := from.facts.Fits(from.modelID, facts); err != nil {
		return nil, size, err
	}
	d, datasetVersion, err := Load[dataset.State](ctx, h, dataset.Stream(datasetID))
	if err != nil {
		return nil, size, err
	}
	if _, err := d.Usable(datasetID); err != nil {
		return nil, size, err
	}
	size = extraction.Size{Context: config.Context(from.facts.ContextLength, facts.Context), Batch: config.BatchSize, L0: from.facts.ExpectedL0()}
	return []eventlog.StreamVersion{
		from.guard,
		{Stream: model.Stream(from.modelID), Version: modelVersion},
		{Stream: dataset.Stream(datasetID), Version: datasetVersion},
	}, size, nil
}

func trainedOn(name string) string {
	if name == "" {
		return ""
	}
	return " (its config names " + name + ")"
}

// again re-validates what an extraction uses, for resume and extend.
func (h *Handler) again(ctx context.Context, s extraction.State) ([]eventlog.StreamVersion, extraction.Size, error) {
	r := s.Request
	if id := r.Source.SAEID(); id != "" {
		a, version, err := Load[sae.State](ctx, h, sae.Stream(id))
		if err != nil {
			return nil, extraction.Size{}, err
		}
		f, err := a.Usable(id)
		if err != nil {
			return nil, extraction.Size{}, err
		}
		return h.check(ctx, chosen{source: r.Source, modelID: r.ModelID, facts: f, guard: eventlog.StreamVersion{Stream: sae.Stream(id), Version: version}}, r.DatasetID, r.Config)
	}
	id := r.Source.TrainingID()
	a, version, err := Load[training.State](ctx, h, training.Stream(id))
	if err != nil {
		return nil, extraction.Size{}, err
	}
	one, err := a.Only(id, nil)
	if err != nil {
		return nil, extraction.Size{}, err
	}
	return h.check(ctx, chosen{source: r.Source, path: r.SAEPath, modelID: r.ModelID, facts: one.Facts, guard: eventlog.StreamVersion{Stream: training.Stream(id), Version: version}}, r.DatasetID, r.Config)
}

// reopen runs resume and extend: both take the source again.
func (h *Handler) reopen(ctx context.Context, call Call, id string, decide func(extraction.State) ([]event.Data, error)) (Result, error) {
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		s, version, err := Load[extraction.State](ctx, h, extraction.Stream(id))
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
		guards, size, err := h.again(ctx, s)
		if err == nil {
			err = stillFits(s, data, size)
		}
		if err != nil {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{
			Streams:   []eventlog.StreamAppend{{Stream: extraction.Stream(id), Expected: version, Events: h.propose(call, data)}},
			Unchanged: guards,
		}, id, nil
	})
}

// stillFits refuses an extension that has no room.
func stillFits(s extraction.State, decided []event.Data, size extraction.Size) error {
	for _, d := range decided {
		if e, ok := d.(extraction.Extended); ok {
			return s.Fits(s.Size(size.Context), e.EvaluationSamples)
		}
	}
	return nil
}
