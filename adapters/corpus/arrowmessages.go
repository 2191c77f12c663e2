package corpus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// arrowMessages are the parts of an Arrow file.
type arrowMessages struct {
	fields  []arrowField
	dicts   map[int64]arrowBatch
	batches []arrowBatch
}

// arrowBatch is one record batch: its rows, and where its columns' parts lie.
type arrowBatch struct {
	rows       int64
	meta       flat
	table      int // of the RecordBatch in meta
	body       []byte
	oldUnions  bool // written before version 5, when a union had a bitmap of nulls
	compressed int  // -1: no; else the codec
}

const (
	arrowMagic     = "ARROW1"
	arrowContinues = 0xffffffff
	maxArrowMeta   = 16 << 20
	maxArrowRows   = math.MaxInt32 // of one batch

	arrowSchema      = 1 // kinds of messages
	arrowDictionary  = 2
	arrowRecordBatch = 3

	arrowVersion5 = 4
)

// findMessages walks through a file: each message is a length, a description (a flatbuffer) and a body. Nothing is
// copied, and nothing is allocated by what a number in the file says.
func findMessages(data []byte) (m arrowMessages, err error) {
	at, size := int64(0), int64(len(data))
	if len(data) > 2*len(arrowMagic)+4 && string(data[:len(arrowMagic)]) == arrowMagic {
		// The file format: the magic, padding, the streaming format, a footer, its length, the magic.
		end := size - int64(len(arrowMagic)) - 4
		footer := int64(int32(binary.LittleEndian.Uint32(data[end:])))
		if string(data[end+4:]) != arrowMagic || footer < 0 || footer > end-8 {
			return m, errors.New("its end is not that of an Arrow file (truncated?)")
		}
		at, size = 8, end-footer
	}
	m.dicts = map[int64]arrowBatch{}
	for at < size {
		if size-at < 4 {
			return m, fmt.Errorf("truncated: %d bytes after the last message", size-at)
		}
		length := binary.LittleEndian.Uint32(data[at:])
		at += 4
		if length == arrowContinues { // older writers leave this mark out
			if size-at < 4 {
				return m, errors.New("truncated: it ends in the length of a message")
			}
			length = binary.LittleEndian.Uint32(data[at:])
			at += 4
		}
		if length == 0 {
			break // the end of the stream
		}
		if length < 8 || length > maxArrowMeta {
			return m, fmt.Errorf("at byte %d a message has a description of %d bytes", at, length)
		}
		if int64(length) > size-at {
			return m, fmt.Errorf("truncated: a message at byte %d asks for %d bytes and the file has %d", at, length, size)
		}
		body := at + int64(length)
		used, err := m.add(data[at:body:body], data[body:size])
		if err != nil {
			return m, fmt.Errorf("at byte %d: %w", at, err)
		}
		at = body + used
	}
	if m.fields == nil {
		return m, errors.New("it has no schema")
	}
	return m, nil
}

// add takes a message; rest begins with its body, whose length it returns.
func (m *arrowMessages) add(meta flat, rest []byte) (length int64, err error) {
	defer brokenFlat(&err)
	message := meta.root()
	if at := meta.field(message, 3); at > 0 {
		length = meta.long(at)
	}
	if length < 0 || length > int64(len(rest)) {
		return 0, fmt.Errorf("truncated: a message has a body of %d bytes and the file %d more", length, len(rest))
	}
	kind, header := byte(0), 0
	if at := meta.field(message, 1); at > 0 {
		kind = meta[at]
	}
	if at := meta.field(message, 2); at > 0 {
		header = meta.table(at)
	}
	version := int16(0)
	if at := meta.field(message, 0); at > 0 {
		version = meta.short(at)
	}
	switch {
	case header == 0:
		return 0, errors.New("a message has no header")
	case kind == arrowSchema && m.fields != nil:
		return 0, errors.New("it has two schemas")
	case kind != arrowSchema && m.fields == nil:
		return 0, errors.New("it does not begin with a schema")
	case kind == arrowSchema:
		m.fields, err = schemaFields(meta, header)
		return length, err
	}
	b := arrowBatch{meta: meta, table: header, body: rest[:length], oldUnions: version < arrowVersion5}
	id := int64(0)
	switch kind {
	case arrowRecordBatch:
	case arrowDictionary:
		if at := meta.field(header, 0); at > 0 {
			id = meta.long(at)
		}
		if at := meta.field(header, 2); at > 0 && meta[at] != 0 {
			return 0, errors.New("it has a dictionary in parts, which is not read; write it again without delta dictionaries")
		}
		at := meta.field(header, 1)
		if at == 0 {
			return 0, errors.New("a dictionary has no values")
		}
		b.table = meta.table(at)
	default:
		return 0, fmt.Errorf("a message has the kind %d, which a dataset does not have", kind)
	}
	if at := meta.field(b.table, 0); at > 0 {
		b.rows = meta.long(at)
	}
	if b.rows < 0 || b.rows > maxArrowRows {
		return 0, fmt.Errorf("a batch has %d rows", b.rows)
	}
	b.compressed = -1
	if at := meta.field(b.table, 3); at > 0 {
		b.compressed = 0
		if at := meta.field(meta.table(at), 0); at > 0 {
			b.compressed = int(int8(meta[at]))
		}
	}
	if kind == arrowRecordBatch {
		m.batches = append(m.batches, b)
		return length, nil
	}
	if _, twice := m.dicts[id]; twice {
		return 0, errors.New("it replaces a dictionary, which is not read; write it again with one dictionary for each column")
	}
	m.dicts[id] = b
	return length, nil
}

// flat is a flatbuffer. A place outside of it panics; brokenFlat turns that into an error.
type flat []byte

func brokenFlat(err *error) {
	if recover() != nil { // an index outside of the description
		*err = errors.New("the description of a message is broken")
	}
}

func (b flat) root() int          { return int(binary.LittleEndian.Uint32(b)) }
func (b flat) short(at int) int16 { return int16(binary.LittleEndian.Uint16(b[at:])) }
func (b flat) int(at int) int     { return int(int32(binary.LittleEndian.Uint32(b[at:]))) }
func (b flat) long(at int) int64  { return int64(binary.LittleEndian.Uint64(b[at:])) }
func (b flat) table(at int) int   { return at + int(binary.LittleEndian.Uint32(b[at:])) }

// field is where a table's field stands; 0 when it is left out.
func (b flat) field(table, field int) int {
	vtable := table - b.int(table)
	if 4+2*field+2 > int(binary.LittleEndian.Uint16(b[vtable:])) {
		return 0
	}
	if offset := int(binary.LittleEndian.Uint16(b[vtable+4+2*field:])); offset != 0 {
		return table + offset
	}
	return 0
}

// vector is where a table's vector begins and how many elements of a size it has; all of them are inside.
func (b flat) vector(table, field, size int) (at, n int) {
	if at = b.field(table, field); at == 0 {
		return 0, 0
	}
	at = b.table(at)
	n = int(binary.LittleEndian.Uint32(b[at:]))
	at += 4
	_ = b[at : at+n*size]
	return at, n
}

func (b flat) text(table, field int) string {
	at, n := b.vector(table, field, 1)
	return string(b[at : at+n])
}
