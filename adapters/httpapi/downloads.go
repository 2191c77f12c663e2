package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	imports "github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/projections/library"
)

func (s *server) hub() (Hub, error) {
	if s.Hub == nil {
		return nil, problem.New(problem.Unavailable, "no_hub", "this server has no hub to download from")
	}
	return s.Hub, nil
}

// PreviewSAEs says what SAEs a repository holds.
func (s *server) PreviewSAEs(ctx context.Context, r api.PreviewSAEsRequestObject) (api.PreviewSAEsResponseObject, error) {
	hub, err := s.hub()
	if err != nil {
		return nil, err
	}
	p, err := hub.PreviewSAEs(ctx, unset(r.Body.AccessToken), r.Body.RepoID, unset(r.Body.Revision))
	if err != nil {
		return nil, err
	}
	out := api.PreviewSAEs200JSONResponse{RepoID: p.Repo, RepoType: "model", Revision: p.Commit, Description: p.Description, ModelName: known(p.ModelName),
		Files: []api.PreviewFile{}, SaeFiles: []api.PreviewSAE{}, SaePaths: []string{}}
	for _, one := range p.SAEs {
		out.SaeFiles = append(out.SaeFiles, api.PreviewSAE{Filepath: one.Path, SizeBytes: one.Bytes, Layer: one.Layer, NFeatures: one.Features})
		out.SaePaths = append(out.SaePaths, one.Path)
	}
	for _, f := range p.Files {
		out.TotalSizeBytes += f.Size
		out.Files = append(out.Files, api.PreviewFile{Filepath: f.Path, SizeBytes: f.Size, IsSae: inSAE(p.SAEs, f.Path)})
	}
	return out, nil
}

func inSAE(all []imports.PreviewedSAE, file string) bool {
	for _, one := range all {
		if file == one.Path || strings.HasPrefix(file, one.Path+"/") {
			return true
		}
	}
	return false
}

// inRepository is a path as people may give it: the root has several names.
func inRepository(p *string) string {
	at := strings.Trim(unset(p), "/")
	if at == "." {
		return ""
	}
	return at
}

// quantization is what is asked of a GGUF's name; the full precisions mean the files as they are published.
func quantization(q *string) (string, []string, error) {
	switch name := strings.ToUpper(strings.TrimSpace(unset(q))); name {
	case "", "FP32", "FP16", "BF16":
		if name == "" {
			return "", nil, nil
		}
		return "", []string{fmt.Sprintf("quantization %s: files are kept as they are published; what is computed with is the dtype of an extraction", name)}, nil
	default:
		if strings.ContainsAny(name, "/\\ ") || len(name) > 20 {
			return "", nil, problem.InvalidFields("invalid_request", problem.Field{Name: "quantization", Detail: "want FP32, FP16, or what a GGUF's name has, such as Q8_0 or Q4_K_M"})
		}
		return name, nil, nil
	}
}

// DownloadModel asks for a model from the hub.
func (s *server) DownloadModel(ctx context.Context, r api.DownloadModelRequestObject) (api.DownloadModelResponseObject, error) {
	b := r.Body
	if or(b.TrustRemoteCode, false) {
		return nil, problem.InvalidFields("invalid_request", problem.Field{Name: "trust_remote_code", Detail: "no code of a repository is ever run: leave it out, and a model whose family is known is read from its weights alone"})
	}
	q, notes, err := quantization(b.Quantization)
	if err != nil {
		return nil, err
	}
	from := model.DownloadRequested{Repo: b.RepoID, Revision: unset(b.Revision), File: inRepository(b.Filename), Quantization: q}
	name := called(unset(b.Name), b.RepoID)
	done, err := asked(ctx, s, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), unset(b.AccessToken), "m", model.Stream, func(ctx context.Context, hub Hub, call command.Call, id string) (command.Result, error) {
		from, err := hub.PinModel(ctx, unset(b.AccessToken), from)
		if err != nil {
			return command.Result{}, err
		}
		if other, err := s.Library.DownloadedModel(ctx, from.Repo, from.Commit, from.File); err != nil || other != "" {
			if err == nil {
				err = problem.New(problem.Conflict, "model_exists", "model %s is %s at this commit already", other, from.Repo).With("model_id", other)
			}
			return command.Result{}, err
		}
		return s.Commands.DownloadModel(ctx, call, model.Download{ID: id, Name: name, From: from})
	})
	if err != nil {
		return nil, err
	}
	header(ctx, "Location", "/api/v1/models/"+done.ID)
	out, err := s.modelAfter(ctx, done, notes...)
	return api.DownloadModel202JSONResponse(out), err
}

// DownloadSAE asks for an SAE from the hub.
func (s *server) DownloadSAE(ctx context.Context, r api.DownloadSAERequestObject) (api.DownloadSAEResponseObject, error) {
	b := r.Body
	at := inRepository(b.Filepath)
	from := sae.DownloadRequested{Repo: b.RepoID, Revision: unset(b.Revision), File: at, ModelID: unset(b.ModelID), Stated: sae.Stated{
		ScalingFactor: b.ScalingFactor, Normalization: unset(b.Normalization), Architecture: unset(b.Architecture), K: or(b.K, 0), ApplyBDecToInput: b.ApplyBDecToInput,
		ModelName: unset(b.ModelName), Hook: unset(b.Hook), HookOut: unset(b.HookOut), Layer: b.Layer, SkipTransposed: b.SkipTransposed,
	}}
	name := called(unset(b.Name), strings.TrimSuffix(b.RepoID+"/"+at, "/"))
	done, err := asked(ctx, s, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), unset(b.AccessToken), "sae", sae.Stream, func(ctx context.Context, hub Hub, call command.Call, id string) (command.Result, error) {
		from, err := hub.PinSAE(ctx, unset(b.AccessToken), from)
		if err != nil {
			return command.Result{}, err
		}
		return s.Commands.DownloadSAE(ctx, call, sae.Download{ID: id, Name: name, Description: unset(b.Description), From: from})
	})
	if err != nil {
		return nil, err
	}
	header(ctx, "Location", "/api/v1/saes/"+done.ID)
	out, err := s.saeAfter(ctx, done)
	return api.DownloadSAE202JSONResponse(out), err
}

// DownloadDataset asks for a split of a dataset from the hub.
func (s *server) DownloadDataset(ctx context.Context, r api.DownloadDatasetRequestObject) (api.DownloadDatasetResponseObject, error) {
	b := r.Body
	from := dataset.DownloadRequested{Repo: b.RepoID, Revision: unset(b.Revision), Config: unset(b.Config), Split: unset(b.Split), TextColumn: unset(b.TextColumn), MaxRows: or(b.MaxRows, 0)}
	done, err := asked(ctx, s, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), unset(b.AccessToken), "ds", dataset.Stream, func(ctx context.Context, hub Hub, call command.Call, id string) (command.Result, error) {
		from, err := hub.PinDataset(ctx, unset(b.AccessToken), from)
		if err != nil {
			return command.Result{}, err
		}
		name := called(unset(b.Name), path.Join(b.RepoID, from.Config, from.Split))
		return s.Commands.DownloadDataset(ctx, call, dataset.Download{ID: id, Name: name, From: from})
	})
	if err != nil {
		return nil, err
	}
	header(ctx, "Location", "/api/v1/datasets/"+done.ID)
	out, err := s.datasetAfter(ctx, done)
	return api.DownloadDataset202JSONResponse(out), err
}

// asked runs one request for a download. Its token is put where whoever fetches will look, before there is anything to fetch.
func asked(ctx context.Context, s *server, call command.Call, token, prefix string, stream func(string) string, do func(context.Context, Hub, command.Call, string) (command.Result, error)) (command.Result, error) {
	hub, err := s.hub()
	if err != nil {
		return command.Result{}, err
	}
	done, replayed, err := s.replayed(ctx, call)
	if err != nil || replayed {
		return done, err
	}
	id := newID(prefix)
	s.Tokens.Put(stream(id), token)
	done, err = do(ctx, hub, call, id)
	if err != nil || done.ID != id {
		s.Tokens.Put(stream(id), "")
	}
	return done, err
}

func (s *server) modelAfter(ctx context.Context, done command.Result, notes ...string) (api.Model, error) {
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return api.Model{}, err
	}
	if !there {
		return api.Model{ID: done.ID, Name: done.ID, Status: api.ModelStatusPending, Source: model.HuggingFace, CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	m, err := s.Library.Model(ctx, done.ID)
	if err != nil {
		return api.Model{}, err
	}
	out := encodeModel(m)
	out.Warnings = warnings(ctx, notes...)
	return out, nil
}

func (s *server) saeAfter(ctx context.Context, done command.Result) (api.SAE, error) {
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return api.SAE{}, err
	}
	if !there {
		return api.SAE{ID: done.ID, Name: done.ID, Status: api.SAEStatusPending, Source: api.SAESourceHuggingface, CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	one, err := s.Library.SAE(ctx, done.ID)
	if err != nil {
		return api.SAE{}, err
	}
	out := encodeSAE(one)
	out.Warnings = warnings(ctx)
	return out, nil
}

func (s *server) datasetAfter(ctx context.Context, done command.Result) (api.Dataset, error) {
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return api.Dataset{}, err
	}
	if !there {
		return api.Dataset{ID: done.ID, Name: done.ID, Status: api.DatasetStatusPending, Source: model.HuggingFace, CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	d, err := s.Library.Dataset(ctx, done.ID)
	if err != nil {
		return api.Dataset{}, err
	}
	out := encodeDataset(d)
	out.Warnings = warnings(ctx)
	return out, nil
}

// RedownloadModel asks again for a download that failed.
func (s *server) RedownloadModel(ctx context.Context, r api.RedownloadModelRequestObject) (api.RedownloadModelResponseObject, error) {
	done, err := s.Commands.DownloadModelAgain(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.modelAfter(ctx, done)
	return api.RedownloadModel202JSONResponse(out), err
}

// CancelModelDownload calls a download off.
func (s *server) CancelModelDownload(ctx context.Context, r api.CancelModelDownloadRequestObject) (api.CancelModelDownloadResponseObject, error) {
	done, err := s.Commands.CancelModelDownload(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusOK), r.ID)
	if err != nil {
		return nil, err
	}
	s.Tokens.Put(model.Stream(r.ID), "")
	out, err := s.modelAfter(ctx, done)
	return api.CancelModelDownload200JSONResponse(out), err
}

// RedownloadSAE asks again for a download that failed.
func (s *server) RedownloadSAE(ctx context.Context, r api.RedownloadSAERequestObject) (api.RedownloadSAEResponseObject, error) {
	done, err := s.Commands.DownloadSAEAgain(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.saeAfter(ctx, done)
	return api.RedownloadSAE202JSONResponse(out), err
}

// CancelSAEDownload calls a download off.
func (s *server) CancelSAEDownload(ctx context.Context, r api.CancelSAEDownloadRequestObject) (api.CancelSAEDownloadResponseObject, error) {
	done, err := s.Commands.CancelSAEDownload(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusOK), r.ID)
	if err != nil {
		return nil, err
	}
	s.Tokens.Put(sae.Stream(r.ID), "")
	out, err := s.saeAfter(ctx, done)
	return api.CancelSAEDownload200JSONResponse(out), err
}

// RedownloadDataset asks again for a download that failed.
func (s *server) RedownloadDataset(ctx context.Context, r api.RedownloadDatasetRequestObject) (api.RedownloadDatasetResponseObject, error) {
	done, err := s.Commands.DownloadDatasetAgain(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.datasetAfter(ctx, done)
	return api.RedownloadDataset202JSONResponse(out), err
}

// CancelDatasetDownload calls a download off.
func (s *server) CancelDatasetDownload(ctx context.Context, r api.CancelDatasetDownloadRequestObject) (api.CancelDatasetDownloadResponseObject, error) {
	done, err := s.Commands.CancelDatasetDownload(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusOK), r.ID)
	if err != nil {
		return nil, err
	}
	s.Tokens.Put(dataset.Stream(r.ID), "")
	out, err := s.datasetAfter(ctx, done)
	return api.CancelDatasetDownload200JSONResponse(out), err
}
