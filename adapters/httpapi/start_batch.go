package httpapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/projections/extractions"
)

// StartExtractions starts an extraction of each of several SAEs. They are single extractions that know
// of each other: one that cannot start does not keep the others from starting.
func (s *server) StartExtractions(ctx context.Context, r api.StartExtractionsRequestObject) (api.StartExtractionsResponseObject, error) {
	in, err := start(ctx, nil)
	if err != nil {
		return nil, err
	}
	data, _, err := command.Load[dataset.State](ctx, s.Commands, dataset.Stream(in.DatasetID))
	if err != nil {
		return nil, err
	}
	if _, err := data.Usable(in.DatasetID); err != nil {
		return nil, err
	}
	call := s.call(ctx, r.Params.IdempotencyKey, http.StatusOK)
	ids := once(r.Body.SaeIds)
	out := api.BatchExtractionResponse{BatchID: batchID(call), DatasetID: in.DatasetID, DatasetName: data.Name, TotalRequested: len(ids), Warnings: warnings(ctx)}
	out.CreatedJobs, out.SkippedSaes = []api.BatchJob{}, []api.SkippedSAE{}
	var last command.Result
	for i, id := range ids {
		done, name, err := s.startOne(ctx, part(call, id), id, in, extraction.Batch{ID: out.BatchID, Position: i + 1, Total: len(ids)})
		if status, p := explain(err); err != nil && status >= http.StatusInternalServerError {
			return nil, err // asked for again with the same key, it goes on where it was
		} else if err != nil {
			skipped := api.SkippedSAE{SaeID: id, Reason: p.Error(), Code: known(p.Code)}
			if holder, ok := p.Facts["active_extraction_id"].(string); ok {
				skipped.ActiveExtractionID = &holder
			}
			out.SkippedSaes = append(out.SkippedSaes, skipped)
			continue
		}
		out.CreatedJobs = append(out.CreatedJobs, api.BatchJob{SaeID: id, SaeName: name, JobID: done.ID, Position: i + 1, Status: string(extraction.Queued)})
		if done.Position > 0 {
			last = done
		}
	}
	if _, err := s.shows(ctx, extractions.Name, last); err != nil {
		return nil, err
	}
	out.TotalCreated, out.TotalSkipped = len(out.CreatedJobs), len(out.SkippedSaes)
	return api.StartExtractions200JSONResponse(out), nil
}

func (s *server) startOne(ctx context.Context, call command.Call, id string, in startRequest, batch extraction.Batch) (done command.Result, name string, err error) {
	one, _, err := command.Load[sae.State](ctx, s.Commands, sae.Stream(id))
	if err != nil {
		return done, "", err
	}
	modelID, err := s.linkedTo(ctx, id, in.ModelID)
	if err != nil {
		return done, "", err
	}
	done, err = s.Commands.StartExtractionFromSAE(ctx, call, command.StartExtractionFromSAE{SAEID: id, DatasetID: in.DatasetID, ModelID: modelID, Config: in.Config, Batch: &batch})
	return done, one.Name, err
}

// batchID is the same when a request is repeated: its extractions are.
func batchID(call command.Call) string {
	if call.Idempotency == nil {
		return newID("batch")
	}
	sum := sha256.Sum256([]byte(call.Idempotency.Key))
	return "batch_" + hex.EncodeToString(sum[:16])
}

func once(ids []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, id := range ids {
		if !seen[id] {
			out = append(out, id)
		}
		seen[id] = true
	}
	return out
}
