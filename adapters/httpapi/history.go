package httpapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"strconv"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
)

// GetExtractionHistory returns what was recorded about an extraction.
func (s *server) GetExtractionHistory(ctx context.Context, r api.GetExtractionHistoryRequestObject) (api.GetExtractionHistoryResponseObject, error) {
	limit, offset := or(r.Params.Limit, 100), or(r.Params.Offset, 0)
	position, _, err := s.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	events, err := s.Log.ReadStream(ctx, extraction.Stream(r.ID), int64(offset)) // versions count from 1 without a gap
	if err != nil {
		return nil, err
	}
	if len(events) == 0 {
		all, err := s.Log.ReadStream(ctx, extraction.Stream(r.ID), 0)
		if err != nil {
			return nil, err
		}
		if len(all) == 0 {
			return nil, extraction.NotFound(r.ID)
		}
		offset = max(offset, len(all))
		return api.GetExtractionHistory200JSONResponse{Data: []api.HistoryEvent{}, Meta: api.OffsetMeta{Total: len(all), Limit: limit, Offset: offset}}, nil
	}
	header(ctx, positionHeader, strconv.FormatInt(position, 10))
	return api.GetExtractionHistory200JSONResponse{
		Data: each(events[:min(limit, len(events))], encodeEvent),
		Meta: api.OffsetMeta{Total: offset + len(events), Limit: limit, Offset: offset},
	}, nil
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
