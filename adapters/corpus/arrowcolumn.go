package corpus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// arrowColumn is a field's part of one batch. Its buffers are looked up, and expanded, when they are asked for.
type arrowColumn struct {
	field    arrowField
	rows     int64
	nulls    int64
	from     *arrowBatch
	buffers  []int // numbers of buffers of the batch
	expanded map[int][]byte
	children []arrowColumn
	values   *arrowColumn // of a dictionary
}

// columns lays a batch's nodes and buffers out over the fields.
func (b *arrowBatch) columns(fields []arrowField) (out []arrowColumn, err error) {
	defer brokenFlat(&err)
	layout := arrowLayout{batch: b}
	layout.nodes, layout.nodeCount = b.meta.vector(b.table, 1, 16)
	_, layout.bufferCount = b.meta.vector(b.table, 2, 16)
	layout.variadic, layout.variadicCount = b.meta.vector(b.table, 4, 8)
	for _, f := range fields {
		c, err := layout.column(f)
		if err != nil {
			return nil, err
		}
		if c.rows != b.rows {
			return nil, fmt.Errorf("column %q has %d rows in a batch of %d", f.name, c.rows, b.rows)
		}
		out = append(out, c)
	}
	return out, nil
}

type arrowLayout struct {
	batch                                *arrowBatch
	nodes, nodeCount, node               int
	bufferCount, buffer                  int
	variadic, variadicCount, variadicsAt int
}

var errArrowLayout = errors.New("a batch has fewer columns than the schema")

func (l *arrowLayout) column(f arrowField) (c arrowColumn, err error) {
	if l.node == l.nodeCount {
		return c, errArrowLayout
	}
	at := l.nodes + 16*l.node
	l.node++
	c = arrowColumn{field: f, from: l.batch, rows: l.batch.meta.long(at), nulls: l.batch.meta.long(at + 8), expanded: map[int][]byte{}}
	n, variadic := f.parts(l.batch.oldUnions)
	if variadic {
		if l.variadicsAt == l.variadicCount {
			return c, errArrowLayout
		}
		more := l.batch.meta.long(l.variadic + 8*l.variadicsAt)
		l.variadicsAt++
		if more < 0 || more > int64(l.bufferCount) {
			return c, errArrowLayout
		}
		n += int(more)
	}
	if n > l.bufferCount-l.buffer {
		return c, errArrowLayout
	}
	for range n {
		c.buffers = append(c.buffers, l.buffer)
		l.buffer++
	}
	if f.index != nil {
		return c, nil // the values, and their children, are in the dictionary
	}
	for _, child := range f.children {
		column, err := l.column(child)
		if err != nil {
			return c, err
		}
		c.children = append(c.children, column)
	}
	return c, nil
}

// buffer returns one of the column's buffers, expanded.
func (c *arrowColumn) buffer(part int) (data []byte, err error) {
	if data, ok := c.expanded[part]; ok {
		return data, nil
	}
	b := c.from
	at, _ := b.meta.vector(b.table, 2, 16)
	at += 16 * c.buffers[part]
	offset, length := b.meta.long(at), b.meta.long(at+8)
	if offset < 0 || length < 0 || offset > int64(len(b.body)) || length > int64(len(b.body))-offset {
		return nil, fmt.Errorf("a buffer of %d bytes at %d is outside of its batch, which has %d", length, offset, len(b.body))
	}
	data = b.body[offset : offset+length]
	if b.compressed >= 0 && length > 0 {
		if data, err = expandArrow(data, b.compressed); err != nil {
			return nil, err
		}
	}
	c.expanded[part] = data
	return data, nil
}

// expandArrow expands a buffer: its length, −1 if it is as it is, then an LZ4 frame or a zstd one.
func expandArrow(data []byte, codec int) ([]byte, error) {
	if len(data) < 8 {
		return nil, errors.New("a compressed buffer has no length")
	}
	length := int64(binary.LittleEndian.Uint64(data))
	if data = data[8:]; length == -1 {
		return data, nil
	}
	if length < 0 || length > expansionFloor+maxExpansion*int64(len(data)) {
		return nil, fmt.Errorf("a compressed buffer of %d bytes expands to %d", len(data), length)
	}
	var in io.Reader
	switch codec {
	case 0:
		in = lz4.NewReader(bytes.NewReader(data))
	case 1:
		z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, fmt.Errorf("a compressed buffer: %w", err)
		}
		defer z.Close()
		in = z
	default:
		return nil, fmt.Errorf("a buffer is compressed in a way (%d) that is not known", codec)
	}
	var out bytes.Buffer // it grows with what there is, not with what was said
	n, err := io.Copy(&out, io.LimitReader(in, length+1))
	if err != nil {
		return nil, fmt.Errorf("a compressed buffer: %w", err)
	}
	if n != length {
		return nil, fmt.Errorf("a compressed buffer expands to %d bytes or more, not %d", n, length)
	}
	return out.Bytes(), nil
}

// element returns element i of the numbers in a buffer.
func (c *arrowColumn) element(part int, i int64, size int64) ([]byte, error) {
	data, err := c.buffer(part)
	if err != nil {
		return nil, err
	}
	if i < 0 || i >= int64(len(data))/size {
		return nil, fmt.Errorf("element %d is outside of a buffer of %d bytes", i, len(data))
	}
	return data[i*size : (i+1)*size], nil
}

func (c *arrowColumn) null(i int64) (bool, error) {
	if i < 0 || i >= c.rows {
		return false, fmt.Errorf("element %d of %d", i, c.rows)
	}
	if c.field.kind == arrowNull && c.field.index == nil {
		return true, nil
	}
	if c.nulls == 0 || len(c.buffers) == 0 || c.field.kind == arrowUnion {
		return false, nil
	}
	data, err := c.buffer(0)
	if err != nil || len(data) == 0 {
		return false, err
	}
	bits, err := c.element(0, i/8, 1)
	return err == nil && bits[0]>>(i%8)&1 == 0, err
}

// span is where the items of element i stand: in a list's child, or in a text's bytes.
func (c *arrowColumn) span(i int64) (from, to int64, err error) {
	switch c.field.kind {
	case arrowFixedSizeList:
		return i * int64(c.field.size), (i + 1) * int64(c.field.size), nil
	case arrowLargeUtf8, arrowLargeBinary, arrowLargeList:
		a, err := c.element(1, i, 8)
		if err != nil {
			return 0, 0, err
		}
		b, err := c.element(1, i+1, 8)
		if err != nil {
			return 0, 0, err
		}
		return int64(binary.LittleEndian.Uint64(a)), int64(binary.LittleEndian.Uint64(b)), nil
	}
	a, err := c.element(1, i, 4)
	if err != nil {
		return 0, 0, err
	}
	b, err := c.element(1, i+1, 4)
	if err != nil {
		return 0, 0, err
	}
	return int64(int32(binary.LittleEndian.Uint32(a))), int64(int32(binary.LittleEndian.Uint32(b))), nil
}

// text copies the text of row i; "" where it is null.
func (c *arrowColumn) text(i int64) (string, error) {
	if null, err := c.null(i); null || err != nil {
		return "", err
	}
	if c.field.index != nil {
		at, err := c.integer(i)
		if err != nil || c.values == nil {
			return "", errors.Join(err, errIf(c.values == nil, "has no dictionary"))
		}
		return c.values.text(at)
	}
	var from, to int64
	part := 2
	if c.field.kind == arrowUtf8View {
		view, err := c.element(1, i, 16)
		if err != nil {
			return "", err
		}
		length := int64(int32(binary.LittleEndian.Uint32(view)))
		if length >= 0 && length <= 12 {
			return validText(view[4 : 4+length]), nil
		}
		part += int(int32(binary.LittleEndian.Uint32(view[8:])))
		from = int64(int32(binary.LittleEndian.Uint32(view[12:])))
		to = from + length
		if part < 2 || part >= len(c.buffers) {
			return "", fmt.Errorf("is in buffer %d of %d", part-2, len(c.buffers)-2)
		}
	} else {
		var err error
		if from, to, err = c.span(i); err != nil {
			return "", err
		}
	}
	data, err := c.buffer(part)
	if err != nil {
		return "", err
	}
	if from < 0 || to < from || to > int64(len(data)) {
		return "", fmt.Errorf("is from %d to %d of %d bytes", from, to, len(data))
	}
	if to-from > maxRowBytes {
		return "", fmt.Errorf("has a text of %d bytes; a row may have %d", to-from, maxRowBytes)
	}
	return validText(data[from:to]), nil
}

func errIf(is bool, text string) error {
	if is {
		return errors.New(text)
	}
	return nil
}

// integer is the number in row i; of a dictionary's column, the place of its value.
func (c *arrowColumn) integer(i int64) (int64, error) {
	f := c.field
	if f.index != nil {
		f = *f.index
	}
	switch f.width {
	case 8, 16, 32, 64:
	default:
		return 0, fmt.Errorf("has integers of %d bits", f.width)
	}
	raw, err := c.element(1, i, int64(f.width/8))
	if err != nil {
		return 0, err
	}
	var wide [8]byte
	copy(wide[:], raw)
	n := int64(binary.LittleEndian.Uint64(wide[:]))
	if f.signed {
		n = n << (64 - f.width) >> (64 - f.width)
	} else if n < 0 {
		return 0, fmt.Errorf("has the number %d", uint64(n))
	}
	return n, nil
}

// ids are the token ids of row i.
func (c *arrowColumn) ids(i int64) ([]int32, error) {
	if null, err := c.null(i); null || err != nil {
		return nil, err
	}
	from, to, err := c.span(i)
	if err != nil {
		return nil, err
	}
	items := &c.children[0]
	if from < 0 || to < from || to > items.rows || to-from > maxRowBytes/4 {
		return nil, fmt.Errorf("is a list from %d to %d of %d token ids", from, to, items.rows)
	}
	var ids []int32
	for at := from; at < to; at++ {
		null, err := items.null(at)
		if err != nil {
			return nil, err
		}
		if null {
			return nil, fmt.Errorf("has no token id at %d", at-from)
		}
		id, err := items.integer(at)
		if err != nil {
			return nil, err
		}
		if id < 0 || id > math.MaxInt32 {
			return nil, fmt.Errorf("has the token id %d at %d, which no vocabulary has", id, at-from)
		}
		ids = append(ids, int32(id))
	}
	return ids, nil
}

// value is a value as Row.Other has them; false leaves it out.
func (c *arrowColumn) value(i int64) (any, bool) {
	if null, err := c.null(i); null || err != nil {
		return nil, err == nil
	}
	switch c.field.kind {
	case arrowUtf8, arrowLargeUtf8, arrowUtf8View:
		text, err := c.text(i)
		return text, err == nil
	}
	if c.field.index != nil {
		return nil, false
	}
	switch c.field.kind {
	case arrowInt:
		n, err := c.integer(i)
		return n, err == nil
	case arrowBool:
		bits, err := c.element(1, i/8, 1)
		return err == nil && bits[0]>>(i%8)&1 == 1, err == nil
	case arrowFloat:
		raw, err := c.element(1, i, int64(c.field.width/8))
		switch {
		case err != nil:
			return nil, false
		case c.field.width == 32:
			return float64(math.Float32frombits(binary.LittleEndian.Uint32(raw))), true
		case c.field.width == 64:
			return math.Float64frombits(binary.LittleEndian.Uint64(raw)), true
		}
	case arrowStruct:
		out := map[string]any{}
		for f := range c.children {
			if value, ok := c.children[f].value(i); ok {
				out[c.children[f].field.name] = value
			}
		}
		return out, true
	case arrowList, arrowLargeList, arrowFixedSizeList:
		from, to, err := c.span(i)
		if err != nil || from < 0 || to < from || to > c.children[0].rows || to-from > 1<<16 {
			return nil, false
		}
		out := []any{}
		for at := from; at < to; at++ {
			value, ok := c.children[0].value(at)
			if !ok {
				return nil, false
			}
			out = append(out, value)
		}
		return out, true
	}
	return nil, false // dates, decimals, maps, unions: nobody has asked for them
}
