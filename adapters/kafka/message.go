package kafka

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v2/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/featuremill/featuremill/domain/event"
)

// Headers of an event on the wire: CloudEvents 1.0, Kafka binding, binary content mode.
const (
	HeaderSpecVersion    = "ce_specversion"
	HeaderID             = "ce_id"
	HeaderSource         = "ce_source"
	HeaderType           = "ce_type"
	HeaderSubject        = "ce_subject" // the stream; also the record's key
	HeaderTime           = "ce_time"
	HeaderDataSchema     = "ce_dataschema"
	HeaderPosition       = "ce_logposition"
	HeaderVersion        = "ce_streamversion"
	HeaderSchemaVersion  = "ce_schemaversion"
	HeaderPrevHash       = "ce_prevhash"
	HeaderHash           = "ce_hash"
	HeaderDataSHA256     = "ce_datasha256"
	HeaderMetadata       = "ce_metadata" // the bytes that MetadataSHA256 is of
	HeaderMetadataSHA256 = "ce_metadatasha256"
	HeaderCorrelationID  = "ce_correlationid"
	HeaderCausationID    = "ce_causationid"
	HeaderTraceParent    = "traceparent"
	HeaderContentType    = "content-type"
)

const (
	specVersion = "1.0"
	eventSource = "urn:featuremill:log"
	contentType = "application/json"
	timeLayout  = "2006-01-02T15:04:05.000000Z"

	// markMalformed is put on a message whose record cannot be told faithfully as a message: the reader
	// gets it from Unmarshal and parks it. It is never on the wire.
	markMalformed = "featuremill-malformed"
)

// MalformedError says that a message is not an event as Marshal writes it.
type MalformedError struct {
	Message   string // its uuid
	Partition int32
	Offset    int64  // -1 if the message did not come from Kafka
	Field     string // the header, or "data"
	Reason    string
}

func (e *MalformedError) Error() string {
	return fmt.Sprintf("message %q (partition %d, offset %d) is no event of the log: %s: %s", e.Message, e.Partition, e.Offset, e.Field, e.Reason)
}

// Marshal writes an event as a message. The payload is the event's data as recorded; it is empty once
// the event is archived.
func Marshal(r event.Recorded) *message.Message {
	m := message.NewMessage(r.ID.String(), message.Payload(r.Data))
	meta := r.Meta()
	m.Metadata = message.Metadata{
		HeaderSpecVersion:    specVersion,
		HeaderID:             m.UUID,
		HeaderSource:         eventSource,
		HeaderType:           r.Type,
		HeaderSubject:        r.Stream,
		HeaderTime:           r.RecordedAt.UTC().Format(timeLayout),
		HeaderDataSchema:     dataSchema(r.Type, r.SchemaVersion),
		HeaderPosition:       strconv.FormatInt(r.Position, 10),
		HeaderVersion:        strconv.FormatInt(r.Version, 10),
		HeaderSchemaVersion:  strconv.Itoa(r.SchemaVersion),
		HeaderPrevHash:       hex.EncodeToString(r.PrevHash[:]),
		HeaderHash:           hex.EncodeToString(r.Hash[:]),
		HeaderDataSHA256:     hex.EncodeToString(r.DataSHA256[:]),
		HeaderMetadata:       string(r.Metadata),
		HeaderMetadataSHA256: hex.EncodeToString(r.MetadataSHA256[:]),
		HeaderContentType:    contentType,
	}
	for header, value := range map[string]string{
		HeaderCorrelationID: meta.CorrelationID,
		HeaderCausationID:   meta.CausationID,
		HeaderTraceParent:   meta.TraceParent,
	} {
		if value != "" {
			m.Metadata[header] = value
		}
	}
	return m
}

func dataSchema(eventType string, version int) string {
	return "urn:featuremill:event:" + eventType + ":" + strconv.Itoa(version)
}

// Unmarshal reads an event back, byte for byte as it was recorded, and proves it: the digests of data
// and metadata and the chain hash are computed again. Its error is a *MalformedError.
func Unmarshal(m *message.Message) (event.Recorded, error) {
	d := decoder{message: m}
	if reason := m.Metadata[markMalformed]; reason != "" {
		d.fail("headers", reason)
	}
	if v := d.text(HeaderSpecVersion); v != specVersion {
		d.fail(HeaderSpecVersion, fmt.Sprintf("is %q, want %q", v, specVersion))
	}
	r := event.Recorded{
		Position:       d.number(HeaderPosition),
		Stream:         d.text(HeaderSubject),
		Version:        d.number(HeaderVersion),
		Type:           d.text(HeaderType),
		SchemaVersion:  int(d.number(HeaderSchemaVersion)),
		RecordedAt:     d.time(HeaderTime),
		DataSHA256:     d.digest(HeaderDataSHA256),
		MetadataSHA256: d.digest(HeaderMetadataSHA256),
		PrevHash:       d.digest(HeaderPrevHash),
		Hash:           d.digest(HeaderHash),
	}
	if len(m.Payload) > 0 {
		r.Data = json.RawMessage(m.Payload)
	}
	if meta := m.Metadata[HeaderMetadata]; meta != "" {
		r.Metadata = json.RawMessage(meta)
	}
	id, err := event.ParseID(d.text(HeaderID))
	if err != nil {
		d.fail(HeaderID, err.Error())
	}
	r.ID = id
	d.prove(r)
	if d.err != nil {
		return event.Recorded{}, d.err
	}
	return r, nil
}

// decoder keeps the first fault only: the later ones mostly follow from it.
type decoder struct {
	message *message.Message
	err     *MalformedError
}

func (d *decoder) fail(field, reason string) {
	if d.err != nil {
		return
	}
	d.err = &MalformedError{Message: d.message.UUID, Offset: -1, Field: field, Reason: reason}
	ctx := d.message.Context()
	if partition, ok := wkafka.MessagePartitionFromCtx(ctx); ok {
		d.err.Partition = partition
	}
	if offset, ok := wkafka.MessagePartitionOffsetFromCtx(ctx); ok {
		d.err.Offset = offset
	}
}

func (d *decoder) text(header string) string {
	v, ok := d.message.Metadata[header]
	switch {
	case !ok || v == "":
		d.fail(header, "is missing")
	case !utf8.ValidString(v):
		d.fail(header, "is not UTF-8")
	}
	return v
}

// number reads a count from 1 in the one way that Marshal writes it.
func (d *decoder) number(header string) int64 {
	s := d.text(header)
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 1 || strconv.FormatInt(v, 10) != s {
		d.fail(header, fmt.Sprintf("is %q, want a positive number", s))
	}
	return v
}

func (d *decoder) time(header string) time.Time {
	s := d.text(header)
	v, err := time.Parse(timeLayout, s)
	if err != nil {
		d.fail(header, fmt.Sprintf("is %q, want a time such as %s", s, timeLayout))
	}
	return v
}

func (d *decoder) digest(header string) (sum [32]byte) {
	s := d.text(header)
	if len(s) != hex.EncodedLen(len(sum)) {
		d.fail(header, fmt.Sprintf("has %d characters, want %d hexadecimal digits", len(s), hex.EncodedLen(len(sum))))
		return sum
	}
	if _, err := hex.Decode(sum[:], []byte(s)); err != nil {
		d.fail(header, err.Error())
	}
	return sum
}

func (d *decoder) prove(r event.Recorded) {
	switch {
	case d.err != nil:
	case r.Data != nil && sha256.Sum256(r.Data) != r.DataSHA256:
		d.fail("data", "does not have the digest that was recorded")
	case sha256.Sum256(r.Metadata) != r.MetadataSHA256:
		d.fail(HeaderMetadata, "does not have the digest that was recorded")
	case r.ChainHash() != r.Hash:
		d.fail(HeaderHash, "is not the hash of this event")
	}
}
