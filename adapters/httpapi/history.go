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
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
)

// GetExtractionHistory returns what was recorded about an extraction.
func (s *server) GetExtractionHistory(ctx context.Context, r api.GetExtractionHistoryRequestObject) (api.GetExtractionHistoryResponseObject, error) {
	position, _, err := s.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	events, err := s.until(ctx, r.ID, or(r.Params.AsOf, ""))
	if err != nil {
		return nil, err
	}
	limit, offset := or(r.Params.Limit, 100), or(r.Params.Offset, 0)
	from := min(offset, len(events))
	header(ctx, positionHeader, strconv.FormatInt(position, 10))
	return api.GetExtractionHistory200JSONResponse{
		Data: each(events[from:min(from+limit, len(events))], encodeEvent),
		Meta: api.OffsetMeta{Total: len(events), Limit: limit, Offset: offset},
	}, nil
}

// until returns the facts about an extraction up to a position or a time; "" = all.
func (s *server) until(ctx context.Context, id, at string) ([]event.Recorded, error) {
	last := func(event.Recorded) bool { return true }
	if position, err := strconv.ParseInt(at, 10, 64); err == nil {
		last = func(e event.Recorded) bool { return e.Position <= position }
	} else if at != "" {
		moment, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return nil, problem.InvalidFields("invalid_request", problem.Field{Name: "as_of", Detail: fmt.Sprintf("%q is neither a position nor a time such as 2026-01-02T03:04:05Z", at)})
		}
		last = func(e event.Recorded) bool { return !e.RecordedAt.After(moment) }
	}
	events, err := s.Log.ReadStream(ctx, extraction.Stream(id), 0)
	if err != nil {
		return nil, err
	}
	n := len(events)
	for n > 0 && !last(events[n-1]) {
		n--
	}
	switch {
	case n == 0 && len(events) > 0:
		return nil, problem.New(problem.NotFound, "extraction_not_found", "there was no extraction %s yet at %s", id, at)
	case n == 0:
		return nil, extraction.NotFound(id)
	}
	return events[:n], nil
}

// asOf is an extraction as its history says that it was.
func (s *server) asOf(ctx context.Context, id, at string) (api.Extraction, error) {
	events, err := s.until(ctx, id, at)
	if err != nil {
		return api.Extraction{}, err
	}
	var state extraction.State
	for _, e := range events {
		d, err := s.registry.Decode(e)
		if err != nil {
			return api.Extraction{}, err
		}
		state = state.Evolve(d)
	}
	row, err := rowOf(state, events[0].RecordedAt)
	if err != nil {
		return api.Extraction{}, err
	}
	row.UpdatedAt = events[len(events)-1].RecordedAt
	header(ctx, positionHeader, strconv.FormatInt(events[len(events)-1].Position, 10))
	return encodeRow(row)
}

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
