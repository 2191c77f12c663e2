package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	imports "github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/library"
)

// ListSAEs lists SAEs.
func (s *server) ListSAEs(ctx context.Context, r api.ListSAEsRequestObject) (api.ListSAEsResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	p := r.Params
	l := listing(nil, p.Limit, p.Search, string(or(p.Status, "")), string(or(p.Source, "")), string(or(p.Order, "")), or(p.SortBy, ""))
	l.Skip, l.ModelName = or(p.Skip, 0), or(p.ModelName, "")
	page, err := s.Library.ListSAEs(ctx, l)
	if err != nil {
		return nil, err
	}
	return api.ListSAEs200JSONResponse{Data: each(page.Items, encodeSAE), Pagination: skipped(l.Skip, l.Limit, len(page.Items), page.Total)}, nil
}

func skipped(skip, limit, here, total int) api.SkipPagination {
	return api.SkipPagination{Skip: skip, Limit: limit, Total: total, HasMore: skip+here < total}
}

// GetSAE returns an SAE.
func (s *server) GetSAE(ctx context.Context, r api.GetSAERequestObject) (api.GetSAEResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	one, err := s.Library.SAE(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	etag(ctx, one.StreamVersion)
	return api.GetSAE200JSONResponse(encodeSAE(one)), nil
}

// ImportSAE checks and registers an SAE.
func (s *server) ImportSAE(ctx context.Context, r api.ImportSAERequestObject) (api.ImportSAEResponseObject, error) {
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusCreated)
	done, replayed, err := s.replayed(ctx, call)
	if err != nil {
		return nil, err
	}
	var notes []string
	if !replayed {
		facts, err := s.Imports.SAE(ctx, r.Body.FilePath, sae.Stated{
			ScalingFactor: r.Body.ScalingFactor, Normalization: unset(r.Body.Normalization), Architecture: unset(r.Body.Architecture), K: or(r.Body.K, 0),
			ApplyBDecToInput: r.Body.ApplyBDecToInput, ModelName: unset(r.Body.ModelName), Hook: unset(r.Body.Hook), HookOut: unset(r.Body.HookOut), Layer: r.Body.Layer, SkipTransposed: r.Body.SkipTransposed,
		})
		if err != nil {
			return nil, err
		}
		modelID := unset(r.Body.ModelID)
		if modelID == "" {
			if modelID, notes, err = s.modelOf(ctx, facts); err != nil {
				return nil, err
			}
		}
		done, err = s.Commands.ImportSAE(ctx, call, sae.Import{
			ID: newID("sae"), Name: r.Body.Name, Description: unset(r.Body.Description), Origin: sae.Origin{Kind: "local", Path: r.Body.FilePath}, Facts: facts, ModelID: modelID,
		})
		if err != nil {
			return nil, err
		}
	}
	header(ctx, "Location", "/api/v1/saes/"+done.ID)
	there, err := s.shows(ctx, library.Name, done)
	if err != nil {
		return nil, err
	}
	if !there {
		return api.ImportSAE201JSONResponse{ID: done.ID, Name: r.Body.Name, Description: r.Body.Description, Source: api.SAESourceLocal, Status: api.SAEStatusReady, Progress: 100,
			CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC(), Warnings: late(ctx)}, nil
	}
	one, err := s.Library.SAE(ctx, done.ID)
	if err != nil {
		return nil, err
	}
	out := encodeSAE(one)
	out.Warnings = warnings(ctx, notes...)
	return api.ImportSAE201JSONResponse(out), nil
}

// modelOf finds the one ready model that an SAE belongs to.
func (s *server) modelOf(ctx context.Context, f sae.Facts) (id string, notes []string, err error) {
	found, err := s.Library.ModelsOf(ctx, f, imports.HubModelName(f.ModelName))
	switch {
	case err != nil:
		return "", nil, err
	case len(found) == 1:
		return found[0].ID, nil, nil
	}
	return "", []string{notLinked(f, found)}, nil
}

// linkedTo is the model that an extraction of an SAE runs: the one that the request names, else the one that the SAE is linked
// to, else the one that it names and fits. Where that leaves a choice, the refusal has the models to choose from.
func (s *server) linkedTo(ctx context.Context, saeID, asked string) (string, error) {
	if asked != "" {
		return asked, nil
	}
	one, _, err := command.Load[sae.State](ctx, s.Commands, sae.Stream(saeID))
	if err != nil || one.ModelID != "" {
		return one.ModelID, err
	}
	f, err := one.Usable(saeID)
	if err != nil {
		return "", err
	}
	found, err := s.Library.ModelsOf(ctx, f, imports.HubModelName(f.ModelName))
	if err != nil {
		return "", err
	}
	if len(found) == 1 {
		return found[0].ID, nil
	}
	detail := notLinked(f, found)
	if len(found) == 0 {
		if found, err = s.Library.Candidates(ctx, f); err != nil {
			return "", err
		}
	}
	return "", problem.New(problem.Invalid, "model_unknown", "%s", detail).With("candidates", each(found, func(m library.Model) map[string]any { return map[string]any{"id": m.ID, "name": m.Name} }))
}

// notLinked says why an SAE's model is not known.
func notLinked(f sae.Facts, found []library.Model) string {
	switch {
	case f.ModelName == "":
		return "the SAE is not linked to a model: its config names none; give model_id, here or when an extraction starts"
	case len(found) == 0:
		return fmt.Sprintf("the SAE is not linked to a model: it names %s, and no model of that name was imported; give model_id, here or when an extraction starts", f.ModelName)
	}
	return fmt.Sprintf("the SAE is not linked to a model: it names %s, and %s have that name; give the model_id of the one", f.ModelName, strings.Join(each(found, func(m library.Model) string { return m.ID }), ", "))
}

// ImportSAEsFromTraining registers SAEs of a training's checkpoint as SAEs of their own. Their files
// were checked and stored with the training.
func (s *server) ImportSAEsFromTraining(ctx context.Context, r api.ImportSAEsFromTrainingRequestObject) (api.ImportSAEsFromTrainingResponseObject, error) {
	id := r.Body.TrainingID
	t, _, err := command.Load[training.State](ctx, s.Commands, training.Stream(id))
	if err != nil {
		return nil, err
	}
	if t.Status != "ready" {
		return nil, training.NotFound(id)
	}
	chosen := chosenSAEs(t.SAEs, r.Body)
	if len(chosen) == 0 {
		return nil, problem.New(problem.Invalid, "no_sae_chosen", "training %s has no SAE of these layers and hook types; it has %s", id, strings.Join(each(t.SAEs, func(one training.SAE) string { return one.Facts.Hook }), ", "))
	}
	there, err := s.Library.ImportedSAEs(ctx, id)
	if err != nil {
		return nil, err
	}
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusCreated)
	out := api.ImportSAEsFromTraining201JSONResponse{TrainingID: id, SaeIds: []string{}, Saes: []api.SAE{}, Warnings: warnings(ctx)}
	var last command.Result
	for _, one := range chosen {
		if old, ok := there[one.Path]; ok {
			out.SaeIds = append(out.SaeIds, old)
			continue
		}
		done, err := s.Commands.ImportSAE(ctx, part(call, one.Path), sae.Import{
			ID: newID("sae"), Name: called(unset(r.Body.Name), t.Name) + " " + one.Path, Description: unset(r.Body.Description),
			Origin: sae.Origin{Kind: "trained", Path: t.Checkpoint.Path, File: one.Path, TrainingID: id}, Facts: one.Facts, ModelID: t.ModelID,
		})
		if err != nil {
			return nil, err
		}
		out.SaeIds = append(out.SaeIds, done.ID)
		out.ImportedCount++
		last = done
	}
	shown, err := s.shows(ctx, library.Name, last)
	if err != nil {
		return nil, err
	}
	if !shown {
		out.Warnings = late(ctx)
	}
	for _, id := range out.SaeIds {
		one, err := s.Library.SAE(ctx, id)
		if isNotFound(err) && !shown {
			continue
		}
		if err != nil {
			return nil, err
		}
		out.Saes = append(out.Saes, encodeSAE(one))
	}
	out.Message = fmt.Sprintf("%d of %d SAEs of training %s were imported", out.ImportedCount, len(chosen), id)
	return out, nil
}

func chosenSAEs(all []training.SAE, r *api.ImportSAEsFromTrainingRequest) []training.SAE {
	if or(r.ImportAll, true) {
		return all
	}
	layers, hooks := or(r.Layers, nil), or(r.HookTypes, nil)
	var out []training.SAE
	for _, one := range all {
		hook := one.Facts.Hook
		if (len(layers) == 0 || slices.Contains(layers, one.Facts.Layer)) && (len(hooks) == 0 || slices.Contains(hooks, library.HookType(hook)) || slices.Contains(hooks, hook)) {
			out = append(out, one)
		}
	}
	return out
}

// ListTrainingSAEs lists the SAEs of a training's checkpoint.
func (s *server) ListTrainingSAEs(ctx context.Context, r api.ListTrainingSAEsRequestObject) (api.ListTrainingSAEsResponseObject, error) {
	if err := s.reflects(ctx, library.Name); err != nil {
		return nil, err
	}
	t, err := s.Library.Training(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	imported, err := s.Library.ImportedSAEs(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out := api.ListTrainingSAEs200JSONResponse{TrainingID: r.ID, AvailableSaes: each(t.SAEs, encodeTrainingSAE), ImportedSaes: []api.ImportedSAE{}, TotalCount: len(t.SAEs)}
	for _, one := range t.SAEs {
		id, ok := imported[one.Path]
		if !ok {
			continue
		}
		sae, err := s.Library.SAE(ctx, id)
		if err != nil {
			return nil, err
		}
		out.ImportedSaes = append(out.ImportedSaes, api.ImportedSAE{Layer: one.Layer, HookType: one.HookType, Path: &one.Path, SaeID: id, SaeName: sae.Name, ImportedAt: sae.CreatedAt.UTC()})
	}
	return out, nil
}

// UpdateSAE renames an SAE or links it to a model.
func (s *server) UpdateSAE(ctx context.Context, r api.UpdateSAERequestObject) (api.UpdateSAEResponseObject, error) {
	version, err := expected(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusOK)
	call.IfVersion = version
	var last command.Result
	if r.Body.ModelID != nil { // first: it may be refused, and then nothing has changed
		if last, err = s.Commands.LinkSAE(ctx, part(call, "link"), r.ID, *r.Body.ModelID); err != nil {
			return nil, err
		}
		if last.Position > 0 {
			call.IfVersion = nil // it has just been checked
		}
	}
	if r.Body.Name != nil || r.Body.Description != nil {
		old, _, err := command.Load[sae.State](ctx, s.Commands, sae.Stream(r.ID))
		if err != nil {
			return nil, err
		}
		done, err := s.Commands.RenameSAE(ctx, part(call, "rename"), r.ID, or(r.Body.Name, old.Name), or(r.Body.Description, old.Description))
		if err != nil {
			return nil, err
		}
		if done.Position > 0 {
			last = done
		}
	}
	shown, err := s.shows(ctx, library.Name, last)
	if err != nil {
		return nil, err
	}
	one, err := s.Library.SAE(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out := encodeSAE(one)
	out.Warnings = warnings(ctx)
	if shown {
		etag(ctx, one.StreamVersion)
	} else {
		out.Warnings = late(ctx)
	}
	return api.UpdateSAE200JSONResponse(out), nil
}

// TestSAE asks for a self-test of an SAE at the model that it is linked to, or that it names.
func (s *server) TestSAE(ctx context.Context, r api.TestSAERequestObject) (api.TestSAEResponseObject, error) {
	one, _, err := command.Load[sae.State](ctx, s.Commands, sae.Stream(r.ID))
	if err != nil {
		return nil, err
	}
	f, err := one.Usable(r.ID)
	if err != nil {
		return nil, err
	}
	if err := f.Testable(r.ID); err != nil {
		return nil, err
	}
	modelID, err := s.linkedTo(ctx, r.ID, "")
	if err != nil {
		return nil, err
	}
	done, err := s.Commands.RequestSAESelfTest(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID, modelID)
	if err != nil {
		return nil, err
	}
	out, err := s.saeAfter(ctx, done)
	return api.TestSAE202JSONResponse(out), err
}

// DeleteSAE deletes an SAE.
func (s *server) DeleteSAE(ctx context.Context, r api.DeleteSAERequestObject) (api.DeleteSAEResponseObject, error) {
	_, err := s.did(ctx, library.Name)(s.Commands.DeleteSAE(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusOK), r.ID))
	return api.DeleteSAE200JSONResponse{Message: fmt.Sprintf("SAE %s is deleted", r.ID)}, err
}

// DeleteSAEs deletes several SAEs.
func (s *server) DeleteSAEs(ctx context.Context, r api.DeleteSAEsRequestObject) (api.DeleteSAEsResponseObject, error) {
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusOK)
	out := api.DeleteSAEs200JSONResponse{DeletedIds: []string{}, FailedIds: []string{}, Errors: map[string]string{}, Warnings: warnings(ctx)}
	var last command.Result
	for _, id := range slices.Compact(slices.Sorted(slices.Values(r.Body.SaeIds))) {
		done, err := s.Commands.DeleteSAE(ctx, part(call, id), id)
		if status, p := explain(err); err != nil && status >= http.StatusInternalServerError {
			return nil, err
		} else if err != nil {
			out.FailedIds, out.Errors[id] = append(out.FailedIds, id), p.Error()
			continue
		}
		out.DeletedIds = append(out.DeletedIds, id)
		if done.Position > 0 {
			last = done
		}
	}
	if _, err := s.shows(ctx, library.Name, last); err != nil {
		return nil, err
	}
	out.DeletedCount, out.FailedCount = len(out.DeletedIds), len(out.FailedIds)
	out.Message = fmt.Sprintf("%d deleted, %d not", out.DeletedCount, out.FailedCount)
	return out, nil
}
