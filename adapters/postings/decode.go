package postings

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/klauspost/compress/zstd"
)

// decoder holds what decoding pages needs again and again.
type decoder struct {
	zstd  *zstd.Decoder
	plain []byte
	ints  [pageRows]uint32
}

func newDecoder() (*decoder, error) {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPageBytes), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &decoder{zstd: z, plain: make([]byte, 0, 4*pageRows+4096)}, nil
}

// open checks a page's header and returns its encoded values, valid until the next call.
func (d *decoder) open(buf []byte, rows int, encoding int64) ([]byte, error) {
	c := &compact{buf: buf}
	var kind, plain, packed, values, nulls, headerRows, got, levels, crc int64
	kind, compressed, checked := -1, true, false
	c.structure(func(field int, fieldKind byte) bool {
		switch {
		case fieldKind == kindI32 && field == 1:
			kind = c.integer()
		case fieldKind == kindI32 && field == 2:
			plain = c.integer()
		case fieldKind == kindI32 && field == 3:
			packed = c.integer()
		case fieldKind == kindI32 && field == 4:
			crc, checked = c.integer(), true
		case fieldKind == kindStruct && field == 8:
			c.structure(func(field int, fieldKind byte) bool {
				switch {
				case field == 7 && (fieldKind == kindTrue || fieldKind == kindFalse):
					compressed = fieldKind == kindTrue
					return true
				case fieldKind != kindI32:
					return false
				}
				v := int64(0)
				switch field {
				case 1, 2, 3, 4, 5, 6:
					v = c.integer()
				}
				switch field {
				case 1:
					values = v
				case 2:
					nulls = v
				case 3:
					headerRows = v
				case 4:
					got = v
				case 5, 6:
					levels |= v
				default:
					return false
				}
				return true
			})
		default:
			return false
		}
		return true
	})
	body := buf[min(c.at, len(buf)):]
	switch {
	case c.err != nil:
		return nil, fmt.Errorf("page header: %w", c.err)
	case kind != pageVersion2 || !compressed || got != encoding:
		return nil, fmt.Errorf("page of type %d with encoding %d, expected %d with %d, compressed", kind, got, pageVersion2, encoding)
	case values != int64(rows) || headerRows != int64(rows) || nulls != 0 || levels != 0:
		return nil, fmt.Errorf("page of %d values, %d rows, %d nulls, expected %d", values, headerRows, nulls, rows)
	case packed != int64(len(body)) || plain < 0 || plain > maxPageBytes:
		return nil, fmt.Errorf("page of %d bytes (%d before compression), the index says %d", packed, plain, len(body))
	case checked && crc32.ChecksumIEEE(body) != uint32(crc):
		return nil, errors.New("page with a wrong checksum")
	}
	out, err := d.zstd.DecodeAll(body, d.plain[:0])
	if err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	d.plain = out[:0]
	if int64(len(out)) != plain {
		return nil, fmt.Errorf("page has %d bytes, its header says %d", len(out), plain)
	}
	return out, nil
}

// integers decodes DELTA_BINARY_PACKED, modulo 2³²: the result is valid until the next call.
//
// https://parquet.apache.org/docs/file-format/data-pages/encodings/#DELTAENC
func (d *decoder) integers(src []byte, rows int) ([]uint32, error) {
	c := &compact{buf: src} // the same varints
	block, minis, total := c.uvarint(), c.uvarint(), c.uvarint()
	value := uint32(c.integer())
	switch {
	case c.err != nil:
		return nil, c.err
	case total != uint64(rows):
		return nil, fmt.Errorf("%d values, expected %d", total, rows)
	case block == 0 || block > pageRows || block%128 != 0 || minis == 0 || minis > block || block%minis != 0 || block/minis%32 != 0:
		return nil, fmt.Errorf("blocks of %d values in %d parts", block, minis)
	}
	size := int(block / minis)
	out := d.ints[:rows]
	out[0] = value
	out = out[1:]
	for len(out) > 0 {
		least := uint32(c.integer())
		widths := c.bytes(int(minis))
		if c.err != nil {
			return nil, c.err
		}
		for _, width := range widths {
			if len(out) == 0 {
				break
			}
			if width > 32 {
				return nil, fmt.Errorf("values of %d bits", width)
			}
			n := min(size, len(out))
			body := c.bytes(size * int(width) / 8)
			if c.err != nil {
				return nil, c.err
			}
			value = unpack(out[:n], body, uint(width), least, value)
			out = out[n:]
		}
	}
	return d.ints[:rows], nil
}

// unpack adds up bit-packed differences: each is width bits, least first, plus least.
func unpack(out []uint32, src []byte, width uint, least, value uint32) uint32 {
	if width == 0 {
		for i := range out {
			value += least
			out[i] = value
		}
		return value
	}
	mask := uint64(1)<<width - 1
	at := uint(0)
	i := 0
	for ; i < len(out) && int(at>>3)+8 <= len(src); i++ {
		word := binary.LittleEndian.Uint64(src[at>>3:])
		value += uint32(word>>(at&7)&mask) + least
		out[i] = value
		at += width
	}
	for ; i < len(out); i++ {
		var word uint64
		for k, b := range src[at>>3 : min(int(at>>3)+8, len(src))] {
			word |= uint64(b) << (8 * k)
		}
		value += uint32(word>>(at&7)&mask) + least
		out[i] = value
		at += width
	}
	return value
}

// floats decodes BYTE_STREAM_SPLIT into out: the first bytes of all values, then the second ones, ….
func floats(out []float32, src []byte) error {
	n := len(out)
	if len(src) != 4*n {
		return fmt.Errorf("%d bytes for %d floats", len(src), n)
	}
	a, b, c, d := src[:n], src[n:2*n], src[2*n:3*n], src[3*n:4*n]
	for i := range out {
		out[i] = math.Float32frombits(uint32(a[i]) | uint32(b[i])<<8 | uint32(c[i])<<16 | uint32(d[i])<<24)
	}
	return nil
}
