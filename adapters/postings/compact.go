package postings

import (
	"errors"
	"fmt"
)

// compact walks a value in Thrift's compact protocol, which Parquet's footer, page index and page headers
// are written in. It allocates nothing itself and refuses lists longer than the bytes that are left, so
// a length in a hostile file cannot ask for memory. The first error sticks and ends every walk.
//
// https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
type compact struct {
	buf   []byte
	at    int
	depth int
	err   error
}

const (
	kindTrue   = 1
	kindFalse  = 2
	kindByte   = 3
	kindI16    = 4
	kindI32    = 5
	kindI64    = 6
	kindDouble = 7
	kindBinary = 8
	kindList   = 9
	kindSet    = 10
	kindMap    = 11
	kindStruct = 12
	kindUUID   = 13

	maxDepth = 16
)

var errCutOff = errors.New("cut off")

func (d *compact) fail(err error) {
	if d.err == nil {
		d.err = fmt.Errorf("thrift, byte %d: %w", d.at, err)
	}
}

func (d *compact) byte() byte {
	if d.err != nil {
		return 0
	}
	if d.at >= len(d.buf) {
		d.fail(errCutOff)
		return 0
	}
	b := d.buf[d.at]
	d.at++
	return b
}

func (d *compact) bytes(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n < 0 || n > len(d.buf)-d.at {
		d.fail(errCutOff)
		return nil
	}
	b := d.buf[d.at : d.at+n]
	d.at += n
	return b
}

func (d *compact) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b := d.byte()
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	d.fail(errors.New("a varint has more than ten bytes"))
	return 0
}

// integer reads an i16, i32 or i64.
func (d *compact) integer() int64 {
	v := d.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// binary reads a string; the result shares the buffer.
func (d *compact) binary() []byte {
	n := d.uvarint()
	if n > uint64(len(d.buf)) {
		d.fail(errCutOff)
		return nil
	}
	return d.bytes(int(n))
}

// structure visits the fields of a struct. visit reads the value with the method that fits kind and
// returns true, or leaves it alone and returns false to have it skipped.
func (d *compact) structure(visit func(field int, kind byte) bool) {
	if d.depth++; d.depth > maxDepth {
		d.fail(errors.New("nested too deeply"))
	}
	defer func() { d.depth-- }()
	field := 0
	for d.err == nil {
		b := d.byte()
		if b == 0 {
			return
		}
		if step := int(b >> 4); step > 0 {
			field += step
		} else {
			field = int(int16(d.integer()))
		}
		kind := b & 0xf
		before := d.at
		if d.err == nil && !visit(field, kind) {
			if d.at != before && d.err == nil {
				d.fail(errors.New("a field was read half"))
			}
			d.skip(kind)
		}
	}
}

// list visits the elements of a list of one kind.
func (d *compact) list(kind byte, visit func(i int)) {
	n, got := d.listHeader()
	if d.err == nil && n > 0 && got != kind {
		d.fail(fmt.Errorf("a list of kind %d, expected %d", got, kind))
	}
	for i := 0; i < n && d.err == nil; i++ {
		visit(i)
	}
}

func (d *compact) listHeader() (n int, kind byte) {
	b := d.byte()
	size := uint64(b >> 4)
	if size == 15 {
		size = d.uvarint()
	}
	if size > uint64(len(d.buf)-d.at) { // an element has at least one byte
		d.fail(errCutOff)
		return 0, 0
	}
	return int(size), b & 0xf
}

func (d *compact) skip(kind byte) {
	if d.err != nil {
		return
	}
	if d.depth++; d.depth > maxDepth {
		d.fail(errors.New("nested too deeply"))
		return
	}
	defer func() { d.depth-- }()
	switch kind {
	case kindTrue, kindFalse:
	case kindByte:
		d.byte()
	case kindI16, kindI32, kindI64:
		d.uvarint()
	case kindDouble:
		d.bytes(8)
	case kindUUID:
		d.bytes(16)
	case kindBinary:
		d.binary()
	case kindList, kindSet:
		n, element := d.listHeader()
		for i := 0; i < n && d.err == nil; i++ {
			d.skipElement(element)
		}
	case kindMap:
		n := d.uvarint()
		if n == 0 {
			return
		}
		if n > uint64(len(d.buf)-d.at) {
			d.fail(errCutOff)
			return
		}
		kinds := d.byte()
		for i := uint64(0); i < n && d.err == nil; i++ {
			d.skipElement(kinds >> 4)
			d.skipElement(kinds & 0xf)
		}
	case kindStruct:
		d.structure(func(int, byte) bool { return false })
	default:
		d.fail(fmt.Errorf("unknown kind %d", kind))
	}
}

// skipElement skips a value in a list, where a boolean takes a byte of its own.
func (d *compact) skipElement(kind byte) {
	if kind == kindTrue || kind == kindFalse {
		d.byte()
		return
	}
	d.skip(kind)
}
