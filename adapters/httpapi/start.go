package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/projections/extractions"
)

// startRequest is the body of a start: null and left out mean the default.
type startRequest struct {
	DatasetID string
	ModelID   string
	Config    extraction.Config
}

func decodeStart(body []byte) (startRequest, error) {
	out := startRequest{Config: extraction.DefaultConfig()}
	wire := struct {
		*extraction.Config
		DatasetID  *string         `json:"dataset_id"`
		ModelID    *string         `json:"model_id"`
		PrependBOS json.RawMessage `json:"prepend_bos"` // auto, or a boolean as text or as itself
	}{Config: &out.Config}
	if len(bytes.TrimSpace(body)) > 0 {
		if err := json.Unmarshal(body, &wire); err != nil {
			return out, errUnreadable(err)
		}
	}
	out.DatasetID, out.ModelID = unset(wire.DatasetID), unset(wire.ModelID)
	if out.Config.ExcludeTokenIDs == nil {
		out.Config.ExcludeTokenIDs = []int32{}
	}
	if raw := wire.PrependBOS; len(raw) > 0 && string(raw) != "null" {
		out.Config.PrependBOS = string(bytes.Trim(raw, `"`))
	}
	return out, out.Config.Validate()
}

// start reads a start request; the dataset may stand in the query or in the body.
func start(ctx context.Context, datasetID *string) (startRequest, error) {
	in, err := decodeStart(requestOf(ctx).body)
	if err != nil {
		return in, err
	}
	if q := unset(datasetID); q != "" {
		if in.DatasetID != "" && in.DatasetID != q {
			return in, problem.InvalidFields("invalid_request", problem.Field{Name: "dataset_id", Detail: fmt.Sprintf("the query says %s and the body says %s", q, in.DatasetID)})
		}
		in.DatasetID = q
	}
	if in.DatasetID == "" {
		return in, problem.InvalidFields("invalid_request", problem.Field{Name: "dataset_id", Detail: "is required, in the query or in the body"})
	}
	return in, nil
}

// StartExtraction starts an extraction of an SAE, or says what it would take.
func (s *server) StartExtraction(ctx context.Context, r api.StartExtractionRequestObject) (api.StartExtractionResponseObject, error) {
	in, err := start(ctx, r.Params.DatasetID)
	if err != nil {
		return nil, err
	}
	if in.ModelID, err = s.linkedTo(ctx, r.ID, in.ModelID); err != nil {
		return nil, err
	}
	if or(r.Params.DryRun, false) {
		out, err := s.estimate(ctx, r.ID, in)
		return api.StartExtraction200JSONResponse(out), err
	}
	done, err := s.Commands.StartExtractionFromSAE(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted),
		command.StartExtractionFromSAE{SAEID: r.ID, DatasetID: in.DatasetID, ModelID: in.ModelID, Config: in.Config})
	if err != nil {
		return nil, err
	}
	out, err := s.answer(ctx, done)
	return api.StartExtraction202JSONResponse(out), err
}

// StartExtractionFromTraining starts an extraction of a training that has exactly one SAE.
func (s *server) StartExtractionFromTraining(ctx context.Context, r api.StartExtractionFromTrainingRequestObject) (api.StartExtractionFromTrainingResponseObject, error) {
	deprecated(ctx)
	in, err := start(ctx, r.Params.DatasetID)
	if err != nil {
		return nil, err
	}
	imported, err := s.Library.ImportedSAEs(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	done, err := s.Commands.StartExtractionFromTraining(ctx, s.call(ctx, r.Params.IdempotencyKey, http.StatusAccepted),
		command.StartExtractionFromTraining{TrainingID: r.ID, DatasetID: in.DatasetID, Config: in.Config, Imported: imported})
	if err != nil {
		return nil, err
	}
	out, err := s.answer(ctx, done)
	return api.StartExtractionFromTraining202JSONResponse(out), err
}

// deprecated says since when (RFC 9745): extractions start from SAEs since 1 January 2026.
func deprecated(ctx context.Context) { header(ctx, "Deprecation", "@1767225600") }

// bytesPerPosting is what an artifact takes on disk, measured.
const bytesPerPosting = 6.5

// estimate refuses what a start would refuse, but a busy source, and says what the run would take.
func (s *server) estimate(ctx context.Context, id string, in startRequest) (api.Estimate, error) {
	var out api.Estimate
	would, err := s.Commands.ConsiderExtraction(ctx, command.StartExtractionFromSAE{SAEID: id, DatasetID: in.DatasetID, ModelID: in.ModelID, Config: in.Config})
	if err != nil {
		return out, err
	}
	if err := s.reflects(ctx, extractions.Name); err != nil {
		return out, err
	}
	if out.Sequences, out.Tokens, err = s.length(ctx, in, would.Size.Context); err != nil {
		return out, err
	}
	out.Warnings = warnings(ctx)
	holder, err := s.Extractions.Holder(ctx, would.Source)
	if err != nil {
		return out, err
	}
	out.BusyWith = known(holder)
	return out, s.price(ctx, would, &out)
}

// length is the number of sequences and tokens: of a corpus with these options, else at most.
func (s *server) length(ctx context.Context, in startRequest, perSequence int) (sequences int, tokens int64, err error) {
	sequences = in.Config.EvaluationSamples
	tokens = int64(sequences) * int64(perSequence)
	all, err := s.Library.Corpora(ctx, in.DatasetID)
	if err != nil {
		return 0, 0, err
	}
	for _, c := range all {
		var o corpus.Options
		if json.Unmarshal(c.Options, &o) != nil || c.Status != "ready" || c.Sequences == 0 || string(o.Mode) != in.Config.Mode || o.ContextLength != perSequence {
			continue
		}
		if c.Exhausted {
			sequences = min(sequences, c.Sequences)
		}
		return sequences, int64(float64(c.Tokens) / float64(c.Sequences) * float64(sequences)), nil
	}
	return sequences, tokens, nil
}

// price goes by what earlier runs of the source took.
func (s *server) price(ctx context.Context, would command.Prospect, out *api.Estimate) error {
	page, err := s.Extractions.List(ctx, extractions.Listing{Source: would.Source, Limit: 20})
	if err != nil {
		return err
	}
	l0 := would.SAE.ExpectedL0()
	for _, e := range page.Items {
		if e.Tokens > 0 && e.ComputeSeconds > 0 && out.Seconds == nil {
			seconds := e.ComputeSeconds / float64(e.Tokens) * float64(out.Tokens)
			out.Seconds = &seconds
		}
		if e.Tokens > 0 && e.Postings > 0 {
			l0 = float64(e.Postings) / float64(e.Tokens)
			break
		}
	}
	if l0 > 0 {
		disk := int64(math.Ceil(l0 * float64(out.Tokens) * bytesPerPosting))
		out.DiskBytes = &disk
	}
	return nil
}
