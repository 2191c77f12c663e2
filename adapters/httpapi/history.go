package httpapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
)

// GetExtractionHistory returns what was recorded about an extraction.
func (s *server) GetExtractionHistory(ctx context.Context, r api.GetExtractionHistoryRequestObject) (api.GetExtractionHistoryResponseObject, error) {
	position, _, err := s.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	total, err := s.until(ctx, r.ID, or(r.Params.AsOf, ""))
	if err != nil {
		return nil, err
	}
	limit, offset := or(r.Params.Limit, 100), or(r.Params.Offset, 0)
	var events []event.Recorded
	if left := total - int64(offset); left > 0 {
		events, err = s.Log.ReadPage(ctx, extraction.Stream(r.ID), int64(offset), int(min(int64(limit), left)))
	}
	header(ctx, positionHeader, strconv.FormatInt(position, 10))
	return api.GetExtractionHistory200JSONResponse{
		Data: each(events, encodeEvent),
		Meta: api.OffsetMeta{Total: int(total), Limit: limit, Offset: offset},
	}, err
}

// until returns how many facts there are about an extraction up to a position or a time; "" = all.
func (s *server) until(ctx context.Context, id, at string) (int64, error) {
	var moment eventlog.Moment
	if position, err := strconv.ParseInt(at, 10, 64); err == nil {
		moment.Position = position
	} else if at != "" {
		if moment.Time, err = time.Parse(time.RFC3339Nano, at); err != nil {
			return 0, problem.InvalidFields("invalid_request", problem.Field{Name: "as_of", Detail: fmt.Sprintf("%q is neither a position nor a time such as 2026-01-02T03:04:05Z", at)})
		}
	}
	all, err := s.Log.VersionAt(ctx, extraction.Stream(id), eventlog.Moment{})
	if err != nil || at == "" && all > 0 {
		return all, err
	}
	if moment != (eventlog.Moment{}) && moment.Position >= 0 {
		if version, err := s.Log.VersionAt(ctx, extraction.Stream(id), moment); err != nil || version > 0 {
			return version, err
		}
	}
	if all > 0 {
		return 0, problem.New(problem.NotFound, "extraction_not_found", "there was no extraction %s yet at %s", id, at)
	}
	return 0, extraction.NotFound(id)
}

// asOf is an extraction as its history says that it was.
func (s *server) asOf(ctx context.Context, id, at string) (api.Extraction, error) {
	total, err := s.until(ctx, id, at)
	if err != nil {
		return api.Extraction{}, err
	}
	var state extraction.State
	var first, last event.Recorded
	for last.Version < total {
		events, err := s.Log.ReadPage(ctx, extraction.Stream(id), last.Version, int(min(total-last.Version, foldedAtATime)))
		if err != nil {
			return api.Extraction{}, err
		}
		if len(events) == 0 {
			return api.Extraction{}, fmt.Errorf("the history of extraction %s ends after %d of %d facts", id, last.Version, total)
		}
		for _, e := range events {
			d, err := s.registry.Decode(e)
			if err != nil {
				return api.Extraction{}, err
			}
			state, last = state.Evolve(d), e
			if e.Version == 1 {
				first = e
			}
		}
	}
	row, err := rowOf(state, first.RecordedAt)
	if err != nil {
		return api.Extraction{}, err
	}
	row.UpdatedAt = last.RecordedAt
	header(ctx, positionHeader, strconv.FormatInt(last.Position, 10))
	return encodeRow(row)
}

// foldedAtATime is how many facts are in memory at a time.
const foldedAtATime = 1000

func encodeEvent(e event.Recorded) api.HistoryEvent {
	out := api.HistoryEvent{
		Position: e.Position, ID: e.ID.String(), Stream: e.Stream, Version: e.Version, Type: e.Type, SchemaVersion: e.SchemaVersion, RecordedAt: e.RecordedAt.UTC(),
		Metadata: e.Metadata, DataSha256: hex.EncodeToString(e.DataSHA256[:]), PrevHash: hex.EncodeToString(e.PrevHash[:]), Hash: hex.EncodeToString(e.Hash[:]),
	}
	if len(e.Data) > 0 {
		out.Data = &e.Data
	}
	if len(e.Metadata) == 0 {
		out.Metadata = json.RawMessage("{}")
	}
	return out
}
