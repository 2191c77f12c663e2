package kafka_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/domain/event"
)

func TestAnEventIsACloudEventInBinaryMode(t *testing.T) {
	t.Parallel()
	r := kafkatest.Events(1, 41, [32]byte{1})[0]
	m := kafka.Marshal(r)
	require.Equal(t, r.ID.String(), m.UUID)
	require.Equal(t, []byte(r.Data), []byte(m.Payload), "the data's bytes are left as they are")
	require.Equal(t, message.Metadata{
		"ce_specversion":    "1.0",
		"ce_id":             r.ID.String(),
		"ce_source":         "urn:featuremill:log",
		"ce_type":           "SegmentRecorded",
		"ce_subject":        "extraction-ext_sae_0",
		"ce_time":           "2026-01-02T03:04:05.000048Z",
		"ce_dataschema":     "urn:featuremill:event:SegmentRecorded:1",
		"ce_logposition":    "42",
		"ce_streamversion":  "7",
		"ce_schemaversion":  "1",
		"ce_prevhash":       "01" + strings.Repeat("00", 31),
		"ce_hash":           hexOf(r.Hash),
		"ce_datasha256":     hexOf(r.DataSHA256),
		"ce_metadata":       string(r.Metadata),
		"ce_metadatasha256": hexOf(r.MetadataSHA256),
		"ce_correlationid":  "corr-1",
		"ce_causationid":    "cause-1",
		"traceparent":       "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"content-type":      "application/json",
	}, m.Metadata)
}

func hexOf(sum [32]byte) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, x := range sum {
		b.WriteByte(digits[x>>4])
		b.WriteByte(digits[x&15])
	}
	return b.String()
}

func TestUnmarshalIsTheInverseOfMarshal(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		digest := func(label string) (sum [32]byte) {
			copy(sum[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
			return sum
		}
		text := rapid.StringN(1, 20, 80)
		data, err := json.Marshal(rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "data"))
		require.NoError(t, err)
		meta, err := json.Marshal(event.Metadata{
			CorrelationID: rapid.String().Draw(t, "correlation"), CausationID: rapid.String().Draw(t, "causation"), Actor: rapid.String().Draw(t, "actor"),
		})
		require.NoError(t, err)
		r := event.Recorded{
			Position:       rapid.Int64Min(1).Draw(t, "position"),
			Stream:         text.Draw(t, "stream"),
			Version:        rapid.Int64Min(1).Draw(t, "version"),
			Type:           text.Draw(t, "type"),
			SchemaVersion:  rapid.IntRange(1, 1000).Draw(t, "schema version"),
			Data:           data,
			Metadata:       meta,
			RecordedAt:     time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "time")).UTC(),
			DataSHA256:     sha256.Sum256(data),
			MetadataSHA256: sha256.Sum256(meta),
			PrevHash:       digest("prev"),
		}
		copy(r.ID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		r.Hash = r.ChainHash()
		if rapid.Bool().Draw(t, "archived") {
			r.Data = nil
		}
		got, err := kafka.Unmarshal(kafka.Marshal(r))
		require.NoError(t, err)
		require.Equal(t, r, got)
	})
}

func TestUnmarshalNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	sound := kafka.Marshal(kafkatest.Events(1, 0, [32]byte{})[0])
	cases := map[string]struct {
		field  string
		change func(m *message.Message)
	}{
		"a record that is no event at all":       {kafka.HeaderSpecVersion, func(m *message.Message) { m.Metadata = message.Metadata{} }},
		"no metadata map":                        {kafka.HeaderSpecVersion, func(m *message.Message) { m.Metadata = nil }},
		"another version of CloudEvents":         {kafka.HeaderSpecVersion, func(m *message.Message) { m.Metadata[kafka.HeaderSpecVersion] = "2.0" }},
		"no position":                            {kafka.HeaderPosition, func(m *message.Message) { delete(m.Metadata, kafka.HeaderPosition) }},
		"a position of zero":                     {kafka.HeaderPosition, func(m *message.Message) { m.Metadata[kafka.HeaderPosition] = "0" }},
		"a position past int64":                  {kafka.HeaderPosition, func(m *message.Message) { m.Metadata[kafka.HeaderPosition] = "9223372036854775808" }},
		"a position with a sign":                 {kafka.HeaderPosition, func(m *message.Message) { m.Metadata[kafka.HeaderPosition] = "+1" }},
		"a stream that is not UTF-8":             {kafka.HeaderSubject, func(m *message.Message) { m.Metadata[kafka.HeaderSubject] = "\xff" }},
		"a time that is none":                    {kafka.HeaderTime, func(m *message.Message) { m.Metadata[kafka.HeaderTime] = "yesterday" }},
		"a short hash":                           {kafka.HeaderHash, func(m *message.Message) { m.Metadata[kafka.HeaderHash] = "00" }},
		"a hash that is not hexadecimal":         {kafka.HeaderPrevHash, func(m *message.Message) { m.Metadata[kafka.HeaderPrevHash] = strings.Repeat("x", 64) }},
		"an id that is no UUID":                  {kafka.HeaderID, func(m *message.Message) { m.Metadata[kafka.HeaderID] = "42" }},
		"data that somebody changed":             {"data", func(m *message.Message) { m.Payload = []byte(`{}`) }},
		"metadata that somebody changed":         {kafka.HeaderMetadata, func(m *message.Message) { m.Metadata[kafka.HeaderMetadata] = `{}` }},
		"an event moved to another position":     {kafka.HeaderHash, func(m *message.Message) { m.Metadata[kafka.HeaderPosition] = "2" }},
		"an event moved to another stream":       {kafka.HeaderHash, func(m *message.Message) { m.Metadata[kafka.HeaderSubject] = "extraction-other" }},
		"an event with another predecessor":      {kafka.HeaderHash, func(m *message.Message) { m.Metadata[kafka.HeaderPrevHash] = strings.Repeat("1", 64) }},
		"a schema version that somebody changed": {kafka.HeaderHash, func(m *message.Message) { m.Metadata[kafka.HeaderSchemaVersion] = "2" }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := message.NewMessage(sound.UUID, append([]byte(nil), sound.Payload...))
			m.Metadata = maps.Clone(sound.Metadata)
			c.change(m)
			_, err := kafka.Unmarshal(m)
			var malformed *kafka.MalformedError
			require.ErrorAs(t, err, &malformed)
			require.Equal(t, c.field, malformed.Field)
			require.Equal(t, sound.UUID, malformed.Message)
			require.EqualValues(t, -1, malformed.Offset)
		})
	}
}

func FuzzUnmarshal(f *testing.F) {
	sound := kafka.Marshal(kafkatest.Events(1, 0, [32]byte{})[0])
	add := func(m message.Metadata, payload []byte) {
		f.Add(m[kafka.HeaderID], m[kafka.HeaderSubject], m[kafka.HeaderType], m[kafka.HeaderTime], m[kafka.HeaderPosition], m[kafka.HeaderSchemaVersion],
			m[kafka.HeaderPrevHash], m[kafka.HeaderHash], m[kafka.HeaderDataSHA256], m[kafka.HeaderMetadataSHA256], m[kafka.HeaderMetadata], payload)
	}
	add(sound.Metadata, sound.Payload)
	add(message.Metadata{}, nil)
	f.Fuzz(func(t *testing.T, id, subject, kind, at, position, schema, prev, hash, dataSum, metaSum, meta string, payload []byte) {
		m := message.NewMessage(id, payload)
		m.Metadata = message.Metadata{
			kafka.HeaderSpecVersion: "1.0", kafka.HeaderVersion: "1", kafka.HeaderID: id, kafka.HeaderSubject: subject, kafka.HeaderType: kind, kafka.HeaderTime: at,
			kafka.HeaderPosition: position, kafka.HeaderSchemaVersion: schema, kafka.HeaderPrevHash: prev, kafka.HeaderHash: hash,
			kafka.HeaderDataSHA256: dataSum, kafka.HeaderMetadataSHA256: metaSum, kafka.HeaderMetadata: meta,
		}
		r, err := kafka.Unmarshal(m)
		var malformed *kafka.MalformedError
		if err != nil {
			if !errors.As(err, &malformed) {
				t.Fatalf("not a MalformedError: %v", err)
			}
			return
		}
		if r.ChainHash() != r.Hash {
			t.Fatal("an event with a wrong hash got through")
		}
		again, err := kafka.Unmarshal(kafka.Marshal(r))
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}
