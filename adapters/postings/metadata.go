package postings

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
)

// FormatVersion is the version of the layout that Write writes and Open reads.
const FormatVersion = 1

// Metadata is kept in the Parquet footer. For a run file Segment is the smallest one merged, and
// FirstSequence and Sequences span all of them, holes included.
type Metadata struct {
	Extraction    string // id of the extraction; may be empty
	Segment       int
	FirstSequence int        // first sequence of the corpus that the segment covers
	Sequences     int        // how many sequences it covers
	Tokens        int        // tokens fed to the model, counted or not
	Latents       int        // width of the SAE
	Sinks         []TokenRef // tokens whose norm is above the sink limit, ascending by sequence, then offset
}

// Limits of the format. They are far above what an extraction writes and keep a hostile file small in memory.
const (
	maxLatents   = 1 << 24
	maxSequences = 1 << 31
	maxTokens    = 1 << 40
)

const (
	keyVersion       = "featuremill.postings.version"
	keyExtraction    = "featuremill.extraction"
	keySegment       = "featuremill.segment"
	keyFirstSequence = "featuremill.first_sequence"
	keySequences     = "featuremill.sequences"
	keyTokens        = "featuremill.tokens"
	keyLatents       = "featuremill.latents"
	keySinks         = "featuremill.sinks"
)

func (m Metadata) validate() error {
	switch {
	case m.Segment < 0 || m.Segment >= maxSequences:
		return fmt.Errorf("segment %d is not in 0 … %d", m.Segment, maxSequences-1)
	case m.FirstSequence < 0 || m.Sequences < 0 || m.FirstSequence > maxSequences || m.Sequences > maxSequences-m.FirstSequence:
		return fmt.Errorf("sequences %d + %d are not in 0 … %d", m.FirstSequence, m.Sequences, maxSequences)
	case m.Tokens < 0 || m.Tokens > maxTokens:
		return fmt.Errorf("%d tokens are not in 0 … %d", m.Tokens, maxTokens)
	case m.Latents < 1 || m.Latents > maxLatents:
		return fmt.Errorf("%d latents are not in 1 … %d", m.Latents, maxLatents)
	}
	for i, s := range m.Sinks {
		if i > 0 && !m.Sinks[i-1].before(s) {
			return fmt.Errorf("sink %d (sequence %d, offset %d) is not after the one before it", i, s.Sequence, s.Offset)
		}
		if int(s.Sequence) < m.FirstSequence || int(s.Sequence) >= m.FirstSequence+m.Sequences {
			return fmt.Errorf("sink %d is in sequence %d, outside of the segment's %d + %d", i, s.Sequence, m.FirstSequence, m.Sequences)
		}
	}
	return nil
}

func (t TokenRef) before(u TokenRef) bool {
	return t.Sequence < u.Sequence || t.Sequence == u.Sequence && t.Offset < u.Offset
}

// pairs lists the footer's entries in a fixed order.
func (m Metadata) pairs() [][2]string {
	return [][2]string{
		{keyVersion, strconv.Itoa(FormatVersion)},
		{keyExtraction, m.Extraction},
		{keySegment, strconv.Itoa(m.Segment)},
		{keyFirstSequence, strconv.Itoa(m.FirstSequence)},
		{keySequences, strconv.Itoa(m.Sequences)},
		{keyTokens, strconv.Itoa(m.Tokens)},
		{keyLatents, strconv.Itoa(m.Latents)},
		{keySinks, encodeSinks(m.Sinks)},
	}
}

func parseMetadata(pairs map[string]string) (Metadata, error) {
	var m Metadata
	version, err := strconv.Atoi(pairs[keyVersion])
	if err != nil {
		return m, fmt.Errorf("footer has no %q: not a postings file", keyVersion)
	}
	if version != FormatVersion {
		return m, fmt.Errorf("postings format %d is not the known %d", version, FormatVersion)
	}
	m.Extraction = pairs[keyExtraction]
	for _, f := range []struct {
		key string
		to  *int
	}{
		{keySegment, &m.Segment}, {keyFirstSequence, &m.FirstSequence}, {keySequences, &m.Sequences},
		{keyTokens, &m.Tokens}, {keyLatents, &m.Latents},
	} {
		if *f.to, err = strconv.Atoi(pairs[f.key]); err != nil {
			return m, fmt.Errorf("footer entry %q is %q, not a number", f.key, pairs[f.key])
		}
	}
	if m.Sinks, err = decodeSinks(pairs[keySinks]); err != nil {
		return m, fmt.Errorf("footer entry %q: %w", keySinks, err)
	}
	return m, m.validate()
}

// encodeSinks writes, for each sink, the distance of its sequence from the sink before and its offset as
// varints, in base64: three or four bytes a sink.
func encodeSinks(sinks []TokenRef) string {
	buf := make([]byte, 0, 4*len(sinks))
	previous := uint32(0)
	for _, s := range sinks {
		buf = binary.AppendUvarint(buf, uint64(s.Sequence-previous))
		buf = binary.AppendUvarint(buf, uint64(s.Offset))
		previous = s.Sequence
	}
	return base64.RawStdEncoding.EncodeToString(buf)
}

func decodeSinks(s string) ([]TokenRef, error) {
	buf, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("not base64: %w", err)
	}
	var sinks []TokenRef
	sequence := uint64(0)
	for len(buf) > 0 {
		step, n := binary.Uvarint(buf)
		if n <= 0 || step >= maxSequences {
			return nil, fmt.Errorf("sink %d is cut off or out of range", len(sinks))
		}
		offset, k := binary.Uvarint(buf[n:])
		if k <= 0 || offset > 1<<16-1 {
			return nil, fmt.Errorf("sink %d is cut off or out of range", len(sinks))
		}
		buf = buf[n+k:]
		if sequence += step; sequence >= maxSequences {
			return nil, fmt.Errorf("sink %d is in sequence %d, beyond %d", len(sinks), sequence, maxSequences)
		}
		sinks = append(sinks, TokenRef{Sequence: uint32(sequence), Offset: uint16(offset)})
	}
	return sinks, nil
}
