package corpus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow/ipc"
	arrowmemory "github.com/apache/arrow-go/v18/arrow/memory"
)

// arrowMessages are the parts of an Arrow file.
type arrowMessages struct {
	schema  arrowMessage
	dicts   []arrowMessage
	batches []arrowBatch
}

// arrowMessage is where a message's description and its body begin, and where it ends.
type arrowMessage struct{ meta, body, end int64 }

type arrowBatch struct {
	arrowMessage
	rows  int64
	dicts int // so many dictionary messages came before it
}

const (
	arrowMagic       = "ARROW1"
	arrowContinues   = 0xffffffff
	maxArrowMeta     = 16 << 20
	maxArrowRows     = math.MaxInt32 // of one batch
	arrowFieldHeader = 1             // fields of the Message table: the kind of header is 1, the header 2, the body's length 3
	arrowSchema      = 1
	arrowDictionary  = 2
	arrowRecordBatch = 3
)

// findMessages walks through a file: each message is a length, a description (a flatbuffer) and a body.
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
	for at < size {
		if size-at < 4 {
			return m, fmt.Errorf("truncated: %d bytes after the last message", size-at)
		}
		length := int64(int32(binary.LittleEndian.Uint32(data[at:])))
		at += 4
		if uint32(length) == arrowContinues {
			if size-at < 4 {
				return m, errors.New("truncated: it ends in the length of a message")
			}
			length = int64(int32(binary.LittleEndian.Uint32(data[at:])))
			at += 4
		}
		if length == 0 {
			break // the end of the stream
		}
		if length < 8 || length > maxArrowMeta {
			return m, fmt.Errorf("at byte %d a message has a description of %d bytes", at, length)
		}
		if length > size-at {
			return m, fmt.Errorf("truncated: a message at byte %d asks for %d bytes and the file has %d", at, length, size)
		}
		d, err := describe(data[at : at+length])
		if err != nil {
			return m, fmt.Errorf("at byte %d: %w", at, err)
		}
		message := arrowMessage{meta: at, body: at + length}
		if d.body < 0 || d.body > size-message.body {
			return m, fmt.Errorf("truncated: a message at byte %d has a body of %d bytes and the file %d", at, d.body, size)
		}
		message.end = message.body + d.body
		at = message.end
		switch d.kind {
		case arrowSchema:
			if m.schema.end != 0 {
				return m, errors.New("it has two schemas")
			}
			m.schema = message
		case arrowDictionary:
			m.dicts = append(m.dicts, message)
		case arrowRecordBatch:
			if d.rows < 0 || d.rows > maxArrowRows {
				return m, fmt.Errorf("a batch has %d rows", d.rows)
			}
			m.batches = append(m.batches, arrowBatch{message, d.rows, len(m.dicts)})
		default:
			return m, fmt.Errorf("a message has the kind %d, which a dataset does not have", d.kind)
		}
		if m.schema.end == 0 {
			return m, errors.New("it does not begin with a schema")
		}
	}
	if m.schema.end == 0 {
		return m, errors.New("it has no schema")
	}
	return m, nil
}

type arrowDescription struct {
	kind       byte
	body, rows int64
}

// describe reads what is needed of a Message flatbuffer.
func describe(meta []byte) (d arrowDescription, err error) {
	defer func() {
		if recover() != nil { // an index outside of the description
			err = errors.New("the description of a message is broken")
		}
	}()
	message := int(binary.LittleEndian.Uint32(meta))
	if at := flatField(meta, message, arrowFieldHeader); at > 0 {
		d.kind = meta[at]
	}
	if at := flatField(meta, message, arrowFieldHeader+2); at > 0 {
		d.body = int64(binary.LittleEndian.Uint64(meta[at:]))
	}
	if d.kind != arrowRecordBatch {
		return d, nil
	}
	header := flatField(meta, message, arrowFieldHeader+1)
	if header == 0 {
		return d, errors.New("a batch has no header")
	}
	batch := header + int(binary.LittleEndian.Uint32(meta[header:]))
	if at := flatField(meta, batch, 0); at > 0 {
		d.rows = int64(binary.LittleEndian.Uint64(meta[at:]))
	}
	return d, nil
}

// flatField is where a table's field stands; 0 when it is left out.
func flatField(b []byte, table, field int) int {
	vtable := table - int(int32(binary.LittleEndian.Uint32(b[table:])))
	if 4+2*field+2 > int(binary.LittleEndian.Uint16(b[vtable:])) {
		return 0
	}
	if offset := int(binary.LittleEndian.Uint16(b[vtable+4+2*field:])); offset != 0 {
		return table + offset
	}
	return 0
}

// read has the library read the schema, and the given batch unless it is −1.
func (m arrowMessages) read(data []byte, batch int) (in *ipc.Reader, err error) {
	defer recoveredArrow(&err)
	next := []arrowMessage{m.schema}
	limit := int64(expansionFloor)
	if batch >= 0 {
		b := m.batches[batch]
		next = append(append(next, m.dicts[:b.dicts]...), b.arrowMessage)
		for _, part := range next {
			limit += maxExpansion * (part.end - part.body)
		}
	}
	mem := &boundedMemory{Allocator: arrowmemory.NewGoAllocator(), left: limit}
	return ipc.NewReaderFromMessageReader(&arrowSource{data: data, next: next}, ipc.WithAllocator(mem))
}
