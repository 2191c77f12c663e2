package httpapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/extractions"
)

// answer shows an extraction after a command.
func (s *server) answer(ctx context.Context, done command.Result) (api.Extraction, error) {
	header(ctx, "Location", "/api/v1/extractions/"+done.ID)
	there, err := s.shows(ctx, extractions.Name, done)
	if err != nil {
		return api.Extraction{}, err
	}
	if !there {
		return s.fromLog(ctx, done.ID)
	}
	e, err := s.Extractions.Get(ctx, done.ID)
	if err != nil {
		return api.Extraction{}, err
	}
	out, err := s.encodeExtraction(ctx, e)
	out.Warnings = warnings(ctx)
	return out, err
}

// fromLog makes an answer from the extraction's history while its tables are behind.
func (s *server) fromLog(ctx context.Context, id string) (api.Extraction, error) {
	state, _, err := command.Load[extraction.State](ctx, s.Commands, extraction.Stream(id))
	if err != nil {
		return api.Extraction{}, err
	}
	e, err := rowOf(state, s.Now())
	if err != nil {
		return api.Extraction{}, err
	}
	out, err := encodeRow(e)
	out.Warnings = late(ctx)
	return out, err
}

// ListExtractions lists extractions.
func (s *server) ListExtractions(ctx context.Context, r api.ListExtractionsRequestObject) (api.ListExtractionsResponseObject, error) {
	if err := s.reflects(ctx, extractions.Name); err != nil {
		return nil, err
	}
	p := r.Params
	l := extractions.Listing{Statuses: extractions.ParseStatuses(or(p.StatusFilter, "")), Limit: or(p.Limit, 50), Offset: or(p.Offset, 0)}
	page, err := s.Extractions.List(ctx, l)
	if err != nil {
		return nil, err
	}
	shown, err := s.encodeExtractions(ctx, page.Items...)
	return api.ListExtractions200JSONResponse{Data: shown, Meta: api.OffsetMeta{Total: page.Total, Limit: l.Limit, Offset: l.Offset}}, err
}

// GetExtraction returns an extraction.
func (s *server) GetExtraction(ctx context.Context, r api.GetExtractionRequestObject) (api.GetExtractionResponseObject, error) {
	if r.Params.AsOf != nil {
		out, err := s.asOf(ctx, r.ID, *r.Params.AsOf)
		return api.GetExtraction200JSONResponse(out), err
	}
	if err := s.reflects(ctx, extractions.Name); err != nil {
		return nil, err
	}
	e, err := s.Extractions.Get(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	if e.Rests() {
		etag(ctx, e.StreamVersion)
	}
	out, err := s.encodeExtraction(ctx, e)
	if err != nil {
		return nil, err
	}
	waiting, err := s.Extractions.PutOff(ctx, e)
	if err != nil {
		return nil, err
	}
	addPutOff(&out, waiting)
	return api.GetExtraction200JSONResponse(out), nil
}

// DeleteExtraction deletes an extraction.
func (s *server) DeleteExtraction(ctx context.Context, r api.DeleteExtractionRequestObject) (api.DeleteExtractionResponseObject, error) {
	_, err := s.did(ctx, extractions.Name)(s.Commands.DeleteExtraction(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusNoContent), r.ID))
	return api.DeleteExtraction204Response{}, err
}

// CancelExtraction cancels an extraction.
func (s *server) CancelExtraction(ctx context.Context, r api.CancelExtractionRequestObject) (api.CancelExtractionResponseObject, error) {
	reason := ""
	if r.Body != nil {
		reason = unset(r.Body.Reason)
	}
	done, err := s.Commands.CancelExtraction(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusOK), r.ID, reason)
	if err != nil {
		return nil, err
	}
	out, err := s.answer(ctx, done)
	return api.CancelExtraction200JSONResponse(out), err
}

// ResumeExtraction goes on with an extraction.
func (s *server) ResumeExtraction(ctx context.Context, r api.ResumeExtractionRequestObject) (api.ResumeExtractionResponseObject, error) {
	done, err := s.Commands.ResumeExtraction(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.answer(ctx, done)
	return api.ResumeExtraction202JSONResponse(out), err
}

// FoldExtraction asks for the tables again.
func (s *server) FoldExtraction(ctx context.Context, r api.FoldExtractionRequestObject) (api.FoldExtractionResponseObject, error) {
	done, err := s.Commands.RequestFold(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID, "asked for")
	if err != nil {
		return nil, err
	}
	out, err := s.answer(ctx, done)
	return api.FoldExtraction202JSONResponse(out), err
}

// ExtendExtraction asks for more sequences.
func (s *server) ExtendExtraction(ctx context.Context, r api.ExtendExtractionRequestObject) (api.ExtendExtractionResponseObject, error) {
	done, err := s.Commands.ExtendExtraction(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted), r.ID, r.Body.EvaluationSamples)
	if err != nil {
		return nil, err
	}
	out, err := s.answer(ctx, done)
	return api.ExtendExtraction202JSONResponse(out), err
}

// ofSource returns the extraction that holds a source, else its newest one.
func (s *server) ofSource(ctx context.Context, src source.Source) (api.Extraction, error) {
	if err := s.reflects(ctx, extractions.Name); err != nil {
		return api.Extraction{}, err
	}
	e, err := s.Extractions.ForSource(ctx, src)
	if err != nil {
		return api.Extraction{}, err
	}
	return s.encodeExtraction(ctx, e)
}

// cancelSource cancels the extraction that holds a source. The log's reservation says which, so it is
// never the one before.
func (s *server) cancelSource(ctx context.Context, src source.Source, key *string) (api.CancelResponse, error) {
	call := s.call(ctx, key, http.StatusOK)
	done, replayed, err := s.replayed(ctx, call)
	if err != nil {
		return api.CancelResponse{}, err
	}
	id := done.ID
	if !replayed {
		if id, err = s.Extractions.Holder(ctx, src); err != nil {
			return api.CancelResponse{}, err
		}
		if id == "" { // nothing runs: the newest one says why it cannot be cancelled
			e, err := s.Extractions.ForSource(ctx, src)
			if err != nil {
				return api.CancelResponse{}, err
			}
			id = e.ID
		}
		if done, err = s.Commands.CancelExtraction(ctx, call, id, ""); err != nil {
			return api.CancelResponse{}, err
		}
	}
	_, err = s.shows(ctx, extractions.Name, done)
	return api.CancelResponse{Message: fmt.Sprintf("extraction %s is cancelled; what was computed stays", id), ExtractionID: id, Status: string(extraction.StatusCancelled)}, err
}

func (s *server) saeSource(ctx context.Context, id string) (source.Source, error) {
	src, err := source.FromSAE(id)
	if err != nil {
		return src, sae.NotFound(id)
	}
	_, err = s.Library.SAE(ctx, id)
	return src, err
}

func (s *server) trainingSource(ctx context.Context, id string) (source.Source, error) {
	src, err := source.FromTraining(id)
	if err != nil {
		return src, training.NotFound(id)
	}
	_, err = s.Library.Training(ctx, id)
	return src, err
}

// GetSAEExtractionStatus returns the extraction that holds the SAE, else its newest one.
func (s *server) GetSAEExtractionStatus(ctx context.Context, r api.GetSAEExtractionStatusRequestObject) (api.GetSAEExtractionStatusResponseObject, error) {
	src, err := s.saeSource(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.ofSource(ctx, src)
	return api.GetSAEExtractionStatus200JSONResponse(out), err
}

// CancelSAEExtraction cancels the extraction that holds the SAE.
func (s *server) CancelSAEExtraction(ctx context.Context, r api.CancelSAEExtractionRequestObject) (api.CancelSAEExtractionResponseObject, error) {
	src, err := s.saeSource(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.cancelSource(ctx, src, r.Params.IdempotencyKey)
	return api.CancelSAEExtraction200JSONResponse(out), err
}

// GetTrainingExtractionStatus returns the extraction that holds the training, else its newest one.
func (s *server) GetTrainingExtractionStatus(ctx context.Context, r api.GetTrainingExtractionStatusRequestObject) (api.GetTrainingExtractionStatusResponseObject, error) {
	deprecated(ctx)
	src, err := s.trainingSource(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.ofSource(ctx, src)
	return api.GetTrainingExtractionStatus200JSONResponse(out), err
}

// CancelTrainingExtraction cancels the extraction that holds the training.
func (s *server) CancelTrainingExtraction(ctx context.Context, r api.CancelTrainingExtractionRequestObject) (api.CancelTrainingExtractionResponseObject, error) {
	deprecated(ctx)
	src, err := s.trainingSource(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	out, err := s.cancelSource(ctx, src, r.Params.IdempotencyKey)
	return api.CancelTrainingExtraction200JSONResponse(out), err
}
