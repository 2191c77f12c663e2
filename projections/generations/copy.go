package generations

import (
	"encoding/binary"
	"io"
	"math"
	"strings"
)

// rows writes the binary form of COPY … FROM STDIN: a field is its length and its bytes, big-endian
// (PostgreSQL, "COPY", Binary Format). A latent's rows go straight from the fold into the stream: nothing
// is boxed into interfaces for a driver to take apart again.
type rows struct {
	w   *io.PipeWriter
	buf []byte
	err error
}

const copyFlush = 256 << 10

func newRows(w *io.PipeWriter) *rows {
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), make([]byte, 8)...)
	return &rows{w: w, buf: append(make([]byte, 0, copyFlush+(64<<10)), header...)}
}

func (r *rows) start(fields int) {
	if len(r.buf) >= copyFlush {
		r.flush()
	}
	r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(fields))
}

func (r *rows) flush() {
	if r.err == nil {
		_, r.err = r.w.Write(r.buf)
	}
	r.buf = r.buf[:0]
}

// close ends the stream; after a failure elsewhere it ends it with that error.
func (r *rows) close(err error) error {
	if err != nil {
		return r.w.CloseWithError(err)
	}
	r.buf = binary.BigEndian.AppendUint16(r.buf, 0xffff)
	r.flush()
	if r.err != nil {
		return r.err
	}
	return r.w.Close()
}

func (r *rows) null()        { r.buf = binary.BigEndian.AppendUint32(r.buf, math.MaxUint32) }
func (r *rows) size(n int)   { r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(n)) }
func (r *rows) int2(v int)   { r.size(2); r.buf = binary.BigEndian.AppendUint16(r.buf, uint16(v)) }
func (r *rows) int4(v int)   { r.size(4); r.buf = binary.BigEndian.AppendUint32(r.buf, uint32(v)) }
func (r *rows) int8(v int64) { r.size(8); r.buf = binary.BigEndian.AppendUint64(r.buf, uint64(v)) }

func (r *rows) float4(v float32) {
	r.size(4)
	r.buf = binary.BigEndian.AppendUint32(r.buf, math.Float32bits(v))
}

func (r *rows) float8(v float64) {
	r.size(8)
	r.buf = binary.BigEndian.AppendUint64(r.buf, math.Float64bits(v))
}

// text writes a string; "" is null.
func (r *rows) text(s string) {
	if s == "" {
		r.null()
		return
	}
	r.size(len(s))
	r.buf = append(r.buf, s...)
}

// Type oids of array elements.
const (
	oidInt8   = 20
	oidInt4   = 23
	oidFloat4 = 700
	oidFloat8 = 701
)

// array writes the header of a one-dimensional array and returns what must be called after its elements.
func (r *rows) array(oid uint32, n int, nulls bool) (done func()) {
	at := len(r.buf)
	r.size(0)
	if n == 0 {
		r.buf = binary.BigEndian.AppendUint32(r.buf, 0)
		r.buf = binary.BigEndian.AppendUint32(r.buf, 0)
		r.buf = binary.BigEndian.AppendUint32(r.buf, oid)
	} else {
		flag := uint32(0)
		if nulls {
			flag = 1
		}
		for _, v := range []uint32{1, flag, oid, uint32(n), 1} {
			r.buf = binary.BigEndian.AppendUint32(r.buf, v)
		}
	}
	return func() { binary.BigEndian.PutUint32(r.buf[at:], uint32(len(r.buf)-at-4)) }
}

// activations writes real[] with null for 0: a silent token costs one bit in the table.
func (r *rows) activations(values []float32) {
	silent := false
	for _, v := range values {
		silent = silent || v == 0
	}
	done := r.array(oidFloat4, len(values), silent)
	for _, v := range values {
		if v == 0 {
			r.null()
		} else {
			r.float4(v)
		}
	}
	done()
}

// sqlText is a token's piece as a text column can hold it: NUL, which PostgreSQL refuses, is shown as ␀,
// and bytes that are no UTF-8 as U+FFFD.
func sqlText(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "␀"), "\uFFFD")
}
