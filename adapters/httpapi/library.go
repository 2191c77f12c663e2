package httpapi

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	imports "github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/library"
)

// newID makes an id for something of ours: m_…, sae_…, ds_….
func newID(prefix string) string { return prefix + "_" + uuid.NewString() }

// called is the name that people see: as given, else the first that says something.
func called(names ...string) string {
	for _, n := range names {
		if n = strings.TrimSpace(n); n != "" && n != "." && n != "/" {
			return n
		}
	}
	return "unnamed"
}

func fileName(path string) string {
	base := filepath.Base(path)
	for _, ext := range []string{".gguf", ".jsonl", ".parquet", ".txt", ".npy"} {
		base = strings.TrimSuffix(base, ext)
	}
	return base
}

// listing reads the parameters that all lists of the library share.
func listing(page, limit *int, search *string, status, source, order, sortBy string) library.Listing {
	size := or(limit, 50)
	return library.Listing{Skip: (or(page, 1) - 1) * size, Limit: size, Search: unset(search), Status: status, Source: source, SortBy: sortBy, Order: order}
}

func pagination(l library.Listing, total int) api.Pagination {
	page := l.Skip/l.Limit + 1
	pages := (total + l.Limit - 1) / l.Limit
	return api.Pagination{Page: page, Limit: l.Limit, Total: total, TotalPages: pages, HasNext: page < pages, HasPrev: page > 1 && total > 0}
}

func each[T, U any](items []T, encode func(T) U) []U {
	out := make([]U, len(items))
	for i, item := range items {
		out[i] = encode(item)
	}
	return out
}

// ListModels lists models.
func (s *server) ListModels(ctx context.Context, r api.ListModelsRequestObject) (api.ListModelsResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	p := r.Params
	l := listing(p.Page, p.Limit, p.Search, string(or(p.Status, "")), "", string(or(p.Order, "")), modelColumn(or(p.SortBy, "")))
	page, err := s.Library.ListModels(ctx, l)
	if err != nil {
		return nil, err
	}
	return api.ListModels200JSONResponse{Data: each(page.Items, encodeModel), Pagination: pagination(l, page.Total)}, nil
}

// modelColumn maps the names that existing clients sort by.
func modelColumn(name string) string {
	if name == "architecture" {
		return "family"
	}
	return name
}

func datasetColumn(name string) string {
	switch name {
	case "num_samples":
		return "num_rows"
	case "size_bytes":
		return "file_size_bytes"
	}
	return name
}

// ImportModel checks and registers a model.
func (s *server) ImportModel(ctx context.Context, r api.ImportModelRequestObject) (api.ImportModelResponseObject, error) {
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusCreated)
	done, replayed, err := s.replayed(ctx, call)
	if err != nil {
		return nil, err
	}
	if !replayed {
		facts, name, err := s.Imports.Model(ctx, r.Body.Path)
		if err != nil {
			return nil, err
		}
		id := unset(r.Body.ID)
		if id == "" {
			id = newID("m")
		}
		done, err = s.Commands.ImportModel(ctx, call, model.Import{
			ID: id, Name: called(unset(r.Body.Name), name, fileName(r.Body.Path)),
			Origin: model.Origin{Kind: "local", Path: r.Body.Path}, Facts: facts,
		})
		if err != nil {
			return nil, err
		}
	}
	header(ctx, "Location", "/api/v1/models/"+done.ID)
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return nil, err
	}
	if !there {
		return api.ImportModel201JSONResponse{ID: done.ID, Name: called(unset(r.Body.Name), fileName(r.Body.Path)), Status: api.ModelStatusReady, Source: "local", Progress: 100,
			CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	m, err := s.Library.Model(ctx, done.ID)
	if err != nil {
		return nil, err
	}
	out := encodeModel(m)
	out.Warnings = warnings(ctx)
	return api.ImportModel201JSONResponse(out), nil
}

// late tells that an answer is made without the tables.
func late(ctx context.Context) *[]string {
	return warnings(ctx, "the read models are behind: what was asked for has happened, and they will show all of it soon")
}

// GetModel returns a model.
func (s *server) GetModel(ctx context.Context, r api.GetModelRequestObject) (api.GetModelResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	m, err := s.Library.Model(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	etag(ctx, m.StreamVersion)
	return api.GetModel200JSONResponse(encodeModel(m)), nil
}

// DeleteModel deletes a model.
func (s *server) DeleteModel(ctx context.Context, r api.DeleteModelRequestObject) (api.DeleteModelResponseObject, error) {
	_, err := s.did(ctx, library.Name)(s.Commands.DeleteModel(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusNoContent), r.ID))
	return api.DeleteModel204Response{}, err
}

// did waits until a read model shows the result of a command.
func (s *server) did(ctx context.Context, projection string) func(command.Result, error) (command.Result, error) {
	return func(done command.Result, err error) (command.Result, error) {
		if err != nil {
			return done, err
		}
		_, err = s.shows(ctx, projection, done)
		return done, err
	}
}

// ListDatasets lists datasets.
func (s *server) ListDatasets(ctx context.Context, r api.ListDatasetsRequestObject) (api.ListDatasetsResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	p := r.Params
	l := listing(p.Page, p.Limit, p.Search, string(or(p.Status, "")), string(or(p.Source, "")), string(or(p.Order, "")), datasetColumn(or(p.SortBy, "")))
	page, err := s.Library.ListDatasets(ctx, l)
	if err != nil {
		return nil, err
	}
	return api.ListDatasets200JSONResponse{Data: each(page.Items, encodeDataset), Pagination: pagination(l, page.Total)}, nil
}

// ImportDataset checks and registers a dataset.
func (s *server) ImportDataset(ctx context.Context, r api.ImportDatasetRequestObject) (api.ImportDatasetResponseObject, error) {
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusCreated)
	done, replayed, err := s.replayed(ctx, call)
	if err != nil {
		return nil, err
	}
	name := called(unset(r.Body.Name), fileName(r.Body.Path))
	if !replayed {
		o := imports.DatasetOptions{TextColumn: unset(r.Body.TextColumn), Split: unset(r.Body.Split)}
		if r.Body.MaxRows != nil {
			o.MaxRows = int(*r.Body.MaxRows)
		}
		facts, err := s.Imports.Dataset(ctx, r.Body.Path, o)
		if err != nil {
			return nil, err
		}
		done, err = s.Commands.ImportDataset(ctx, call, dataset.Import{ID: newID("ds"), Name: name, Origin: model.Origin{Kind: "local", Path: r.Body.Path}, Facts: facts})
		if err != nil {
			return nil, err
		}
	}
	header(ctx, "Location", "/api/v1/datasets/"+done.ID)
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return nil, err
	}
	if !there {
		return api.ImportDataset201JSONResponse{ID: done.ID, Name: name, Status: api.DatasetStatusReady, Source: "local", Progress: 100,
			CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	d, err := s.Library.Dataset(ctx, done.ID)
	if err != nil {
		return nil, err
	}
	out := encodeDataset(d)
	out.Warnings = warnings(ctx)
	return api.ImportDataset201JSONResponse(out), nil
}

// GetDataset returns a dataset.
func (s *server) GetDataset(ctx context.Context, r api.GetDatasetRequestObject) (api.GetDatasetResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	d, err := s.Library.Dataset(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	etag(ctx, d.StreamVersion)
	return api.GetDataset200JSONResponse(encodeDataset(d)), nil
}

// DeleteDataset deletes a dataset.
func (s *server) DeleteDataset(ctx context.Context, r api.DeleteDatasetRequestObject) (api.DeleteDatasetResponseObject, error) {
	_, err := s.did(ctx, library.Name)(s.Commands.DeleteDataset(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusNoContent), r.ID))
	return api.DeleteDataset204Response{}, err
}

// ListCorpora lists corpora.
func (s *server) ListCorpora(ctx context.Context, r api.ListCorporaRequestObject) (api.ListCorporaResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	all, err := s.Library.Corpora(ctx, or(r.Params.DatasetID, ""))
	if err != nil {
		return nil, err
	}
	out := api.ListCorpora200JSONResponse{Data: make([]api.Corpus, len(all))}
	for i, c := range all {
		if out.Data[i], err = encodeCorpus(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// GetCorpus returns a corpus with its chunks.
func (s *server) GetCorpus(ctx context.Context, r api.GetCorpusRequestObject) (api.GetCorpusResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	c, err := s.Library.Corpus(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	chunks, err := s.Library.Chunks(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out, err := encodeCorpus(c)
	if err != nil {
		return nil, err
	}
	encoded := each(chunks, encodeChunk)
	out.Chunks = &encoded
	if c.Status != "building" {
		etag(ctx, c.StreamVersion)
	}
	return api.GetCorpus200JSONResponse(out), nil
}

// ListTrainings lists trainings.
func (s *server) ListTrainings(ctx context.Context, r api.ListTrainingsRequestObject) (api.ListTrainingsResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	p := r.Params
	l := listing(p.Page, p.Limit, p.Search, string(or(p.Status, "")), "", string(or(p.Order, "")), or(p.SortBy, ""))
	l.ModelID = or(p.ModelID, "")
	counts, err := s.Library.TrainingCounts(ctx)
	if err != nil {
		return nil, err
	}
	out := api.ListTrainings200JSONResponse{Data: []api.Training{}}
	out.StatusCounts.All, out.StatusCounts.Running, out.StatusCounts.Completed, out.StatusCounts.Failed = counts["all"], counts["running"], counts["completed"], counts["failed"]
	total := 0
	if l.Status != "running" && l.Status != "failed" { // trainings are imported when they have ended well
		page, err := s.Library.ListTrainings(ctx, l)
		if err != nil {
			return nil, err
		}
		out.Data, total = each(page.Items, encodeTraining), page.Total
	}
	out.Pagination = pagination(l, total)
	return out, nil
}

// ImportTraining checks and registers a finished training's checkpoint folder.
func (s *server) ImportTraining(ctx context.Context, r api.ImportTrainingRequestObject) (api.ImportTrainingResponseObject, error) {
	if _, err := source.FromTraining(r.Body.TrainingID); err != nil {
		return nil, problem.InvalidFields("invalid_request", problem.Field{Name: "training_id", Detail: err.Error()})
	}
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusCreated)
	done, replayed, err := s.replayed(ctx, call)
	if err != nil {
		return nil, err
	}
	name := called(unset(r.Body.Name), r.Body.TrainingID)
	if !replayed {
		saes, err := s.Imports.Training(ctx, r.Body.Path)
		if err != nil {
			return nil, err
		}
		done, err = s.Commands.ImportTraining(ctx, call, training.Import{
			ID: r.Body.TrainingID, Name: name, Checkpoint: model.Origin{Kind: "local", Path: r.Body.Path}, ModelID: r.Body.ModelID, SAEs: saes,
		})
		if err != nil {
			return nil, err
		}
	}
	header(ctx, "Location", "/api/v1/trainings/"+done.ID)
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return nil, err
	}
	if !there {
		return api.ImportTraining201JSONResponse{ID: done.ID, Name: name, Status: api.TrainingStatusCompleted, ModelID: r.Body.ModelID, Progress: 100, Saes: []api.TrainingSAE{},
			Hyperparameters: api.Hyperparameters{TrainingLayers: []int{}, HookTypes: []string{}}, CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	t, err := s.Library.Training(ctx, done.ID)
	if err != nil {
		return nil, err
	}
	out := encodeTraining(t)
	out.Warnings = warnings(ctx)
	return api.ImportTraining201JSONResponse(out), nil
}

// GetTraining returns a training.
func (s *server) GetTraining(ctx context.Context, r api.GetTrainingRequestObject) (api.GetTrainingResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	t, err := s.Library.Training(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	etag(ctx, t.StreamVersion)
	return api.GetTraining200JSONResponse(encodeTraining(t)), nil
}

// DeleteTraining deletes a training.
func (s *server) DeleteTraining(ctx context.Context, r api.DeleteTrainingRequestObject) (api.DeleteTrainingResponseObject, error) {
	_, err := s.did(ctx, library.Name)(s.Commands.DeleteTraining(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusNoContent), r.ID))
	return api.DeleteTraining204Response{}, err
}
