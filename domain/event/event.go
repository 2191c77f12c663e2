package event

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

// Data is one fact. Its type name and schema version are part of its identity for ever: a changed
// shape is a new schema version and an upcaster, never an edit.
type Data interface {
	EventType() string
}

// ID is a UUID. Ids are made before the first attempt to append, so that a retry after a lost
// answer finds its own events instead of writing them twice.
type ID [16]byte

// NewID returns a version 7 UUID: it sorts by the time it was made.
func NewID(now time.Time) ID {
	var id ID
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	_, _ = rand.Read(id[6:]) // crypto/rand never fails on a supported system
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// String returns the 36-character form.
func (id ID) String() string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ParseID reads the 36-character form.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, fmt.Errorf("event id %q: want 8-4-4-4-12 hexadecimal digits", s)
	}
	if _, err := hex.Decode(id[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:])); err != nil {
		return id, fmt.Errorf("event id %q: %w", s, err)
	}
	return id, nil
}

// MarshalText writes the 36-character form.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the 36-character form.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	*id = v
	return err
}

// Metadata says how a fact came to be recorded. It is hashed with the event.
type Metadata struct {
	CorrelationID string `json:"correlation_id,omitempty"` // one for everything that follows from one request
	CausationID   string `json:"causation_id,omitempty"`   // the event or request that led to this event
	Actor         string `json:"actor,omitempty"`          // who asked: user, worker, cli …
	TraceParent   string `json:"traceparent,omitempty"`    // W3C trace context
}

// Proposed is a fact that waits to be appended.
type Proposed struct {
	ID       ID
	Data     Data
	Metadata Metadata
}

// Recorded is a fact with its place in the log. Data and Metadata are the bytes as they were
// appended: they are hashed, and the same bytes go to Kafka.
type Recorded struct {
	Position       int64 // place in the whole log: gapless, from 1
	ID             ID
	Stream         string // such as "extraction-ext_sae_…"
	Version        int64  // place in the stream: gapless, from 1
	Type           string
	SchemaVersion  int
	Data           json.RawMessage // null once archived; DataSHA256 stays
	Metadata       json.RawMessage
	RecordedAt     time.Time // UTC, microseconds, never before the previous event's
	DataSHA256     [32]byte
	MetadataSHA256 [32]byte
	PrevHash       [32]byte
	Hash           [32]byte
}

// Meta decodes the metadata; unreadable metadata reads as empty.
func (r Recorded) Meta() Metadata {
	var m Metadata
	_ = json.Unmarshal(r.Metadata, &m)
	return m
}

// ChainHash returns the hash that an event must carry:
//
//	sha256(prev_hash ‖ frame(position) ‖ frame(event_id) ‖ frame(stream_id) ‖ frame(stream_version) ‖ frame(type) ‖
//	       frame(schema_version) ‖ frame(recorded_at) ‖ frame(data_sha256) ‖ frame(metadata_sha256))
//
// frame(x) = the length of x as 4 bytes ‖ x; integers are 8 bytes, recorded_at microseconds since
// 1970-01-01 UTC; everything big-endian. Only digests of data and metadata take part, so an archived
// event's hash can still be recomputed. The append function in PostgreSQL computes the same.
func (r Recorded) ChainHash() [32]byte {
	h := sha256.New()
	h.Write(r.PrevHash[:])
	frame := func(b []byte) {
		n := len(b)
		h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		h.Write(b)
	}
	number := func(v int64) {
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(uint64(v) >> (8 * (7 - i)))
		}
		frame(b)
	}
	number(r.Position)
	frame(r.ID[:])
	frame([]byte(r.Stream))
	number(r.Version)
	frame([]byte(r.Type))
	number(int64(r.SchemaVersion))
	number(r.RecordedAt.UnixMicro())
	frame(r.DataSHA256[:])
	frame(r.MetadataSHA256[:])
	return [32]byte(h.Sum(nil))
}
