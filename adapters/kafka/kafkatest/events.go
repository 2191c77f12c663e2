package kafkatest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/featuremill/featuremill/domain/event"
)

// Events returns n events as a log would have recorded them: positions from after+1, digests right,
// chained to prev.
func Events(n int, after int64, prev [32]byte) []event.Recorded {
	events := make([]event.Recorded, n)
	for i := range events {
		position := after + int64(i) + 1
		sum := sha256.Sum256(fmt.Appendf(nil, "event %d", position))
		r := event.Recorded{
			Position:      position,
			ID:            event.ID(sum[:16]),
			Stream:        fmt.Sprintf("extraction-ext_sae_%d", position%7),
			Version:       position/7 + 1,
			Type:          "SegmentRecorded",
			SchemaVersion: 1,
			Data:          fmt.Appendf(nil, `{"index": %d, "tokens": 32768, "note": "ünïcode  and  spaces stay"}`, position),
			Metadata:      json.RawMessage(`{"correlation_id":"corr-1","causation_id":"cause-1","actor":"worker","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}`),
			RecordedAt:    time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC).Add(time.Duration(position) * time.Microsecond),
			PrevHash:      prev,
		}
		r.DataSHA256, r.MetadataSHA256 = sha256.Sum256(r.Data), sha256.Sum256(r.Metadata)
		r.Hash = r.ChainHash()
		prev = r.Hash
		events[i] = r
	}
	return events
}
