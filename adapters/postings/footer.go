package postings

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// Limits on a file's parts, checked before memory is asked for.
const (
	maxFooter    = 64 << 20
	maxPageIndex = 256 << 20
	maxGroups    = math.MaxInt16
	maxPageBytes = 1 << 20 // of one column, compressed or not
	minPageBytes = 16      // a page's header alone has more
	maxPairs     = 64
)

const columns = 4

var columnNames = [columns]string{"latent", "sequence", "offset", "activation"}

// Numbers of the Parquet format: physical types, encodings, codec, page type.
const (
	typeInt32 = 1
	typeFloat = 4

	encodingDelta = 5 // DELTA_BINARY_PACKED
	encodingSplit = 9 // BYTE_STREAM_SPLIT

	codecZstd    = 6
	pageVersion2 = 3
)

var (
	columnTypes     = [columns]int64{typeInt32, typeInt32, typeInt32, typeFloat}
	columnEncodings = [columns]int64{encodingDelta, encodingDelta, encodingDelta, encodingSplit}
)

// page is the same run of rows in all four columns.
type page struct {
	rows      int
	minLatent uint32
	maxLatent uint32
	group     int // row group
	at        [columns]extent
}

// extent is a run of bytes of the file.
type extent struct {
	offset int64
	length int64
}

func (e extent) inside(size int64) bool {
	return e.offset >= 0 && e.length >= 0 && e.length <= size && e.offset <= size-e.length
}

type group struct {
	rows    int64
	columns int
	chunk   [columns]chunk
}

type chunk struct {
	kind        int64
	codec       int64
	values      int64
	offsetIndex extent
	columnIndex extent
}

type footer struct {
	rows   int64
	schema []string
	groups []group
	pairs  map[string]string
}

// readFooter reads and checks the footer and the page index.
func readFooter(r io.ReaderAt, size int64) (footer, []page, error) {
	var f footer
	if size < 12 {
		return f, nil, fmt.Errorf("%d bytes are no Parquet file", size)
	}
	var tail [8]byte
	if err := readAt(r, tail[:], size-8); err != nil {
		return f, nil, err
	}
	if string(tail[4:]) != "PAR1" {
		return f, nil, fmt.Errorf("the file does not end in PAR1: cut off, or no Parquet file")
	}
	length := int64(binary.LittleEndian.Uint32(tail[:]))
	if length > size-12 || length > maxFooter {
		return f, nil, fmt.Errorf("a footer of %d bytes in a file of %d (limit %d)", length, size, maxFooter)
	}
	buf := make([]byte, length)
	if err := readAt(r, buf, size-8-length); err != nil {
		return f, nil, err
	}
	if err := f.decode(buf); err != nil {
		return f, nil, fmt.Errorf("footer: %w", err)
	}
	if err := f.check(size); err != nil {
		return f, nil, err
	}
	pages, err := f.readPageIndex(r, size-8-length)
	return f, pages, err
}

func (f *footer) decode(buf []byte) error {
	d := &compact{buf: buf}
	f.pairs = map[string]string{}
	d.structure(func(field int, kind byte) bool {
		switch {
		case field == 2 && kind == kindList:
			d.list(kindStruct, func(i int) {
				if i > columns {
					d.fail(fmt.Errorf("more than %d columns", columns))
					return
				}
				d.structure(func(field int, kind byte) bool {
					if field != 4 || kind != kindBinary {
						return false
					}
					f.schema = append(f.schema, string(d.binary()))
					return true
				})
			})
		case field == 3 && kind == kindI64:
			f.rows = d.integer()
		case field == 4 && kind == kindList:
			d.list(kindStruct, func(i int) {
				if i >= maxGroups {
					d.fail(fmt.Errorf("more than %d row groups", maxGroups))
					return
				}
				f.groups = append(f.groups, decodeGroup(d))
			})
		case field == 5 && kind == kindList:
			d.list(kindStruct, func(i int) {
				if i >= maxPairs {
					d.fail(fmt.Errorf("more than %d entries", maxPairs))
					return
				}
				var key, value string
				d.structure(func(field int, kind byte) bool {
					switch {
					case field == 1 && kind == kindBinary:
						key = string(d.binary())
					case field == 2 && kind == kindBinary:
						value = string(d.binary())
					default:
						return false
					}
					return true
				})
				f.pairs[key] = value
			})
		default:
			return false
		}
		return true
	})
	return d.err
}

func decodeGroup(d *compact) group {
	var g group
	d.structure(func(field int, kind byte) bool {
		switch {
		case field == 1 && kind == kindList:
			d.list(kindStruct, func(i int) {
				if i >= columns {
					d.fail(fmt.Errorf("a row group has more than %d columns", columns))
					return
				}
				g.columns = i + 1
				g.chunk[i] = decodeChunk(d)
			})
		case field == 3 && kind == kindI64:
			g.rows = d.integer()
		default:
			return false
		}
		return true
	})
	return g
}

func decodeChunk(d *compact) chunk {
	var c chunk
	d.structure(func(field int, kind byte) bool {
		switch {
		case field == 3 && kind == kindStruct:
			d.structure(func(field int, kind byte) bool {
				switch {
				case field == 1 && kind == kindI32:
					c.kind = d.integer()
				case field == 4 && kind == kindI32:
					c.codec = d.integer()
				case field == 5 && kind == kindI64:
					c.values = d.integer()
				default:
					return false
				}
				return true
			})
		case field == 4 && kind == kindI64:
			c.offsetIndex.offset = d.integer()
		case field == 5 && kind == kindI32:
			c.offsetIndex.length = d.integer()
		case field == 6 && kind == kindI64:
			c.columnIndex.offset = d.integer()
		case field == 7 && kind == kindI32:
			c.columnIndex.length = d.integer()
		default:
			return false
		}
		return true
	})
	return c
}

func (f *footer) check(size int64) error {
	if len(f.schema) != columns+1 || [columns]string(f.schema[1:]) != columnNames {
		return fmt.Errorf("columns %q are not %q", f.schema[min(1, len(f.schema)):], columnNames)
	}
	var total int64
	for i, g := range f.groups {
		if g.columns != columns || g.rows <= 0 || g.rows > f.rows-total {
			return fmt.Errorf("row group %d has %d columns and %d rows; the file has %d rows", i, g.columns, g.rows, f.rows)
		}
		total += g.rows
		for k, c := range g.chunk {
			switch {
			case c.kind != columnTypes[k] || c.codec != codecZstd || c.values != g.rows:
				return fmt.Errorf("row group %d, column %s: type %d, codec %d, %d values; expected %d, %d, %d",
					i, columnNames[k], c.kind, c.codec, c.values, columnTypes[k], codecZstd, g.rows)
			case !c.offsetIndex.inside(size) || c.offsetIndex.length == 0 || !c.columnIndex.inside(size):
				return fmt.Errorf("row group %d, column %s: no page index inside of the file", i, columnNames[k])
			}
		}
	}
	if total != f.rows {
		return fmt.Errorf("the row groups have %d rows, the footer says %d", total, f.rows)
	}
	return nil
}

// readPageIndex reads where the pages are, and the smallest and largest latent of each. The index is one
// run of bytes before the footer.
func (f *footer) readPageIndex(r io.ReaderAt, end int64) ([]page, error) {
	if len(f.groups) == 0 {
		return nil, nil
	}
	start := end
	for _, g := range f.groups {
		start = min(start, g.chunk[0].columnIndex.offset)
		for _, c := range g.chunk {
			start = min(start, c.offsetIndex.offset)
		}
	}
	if end-start > maxPageIndex {
		return nil, fmt.Errorf("a page index of %d bytes (limit %d)", end-start, maxPageIndex)
	}
	buf := make([]byte, end-start)
	if err := readAt(r, buf, start); err != nil {
		return nil, err
	}
	part := func(e extent) ([]byte, error) {
		if e.offset < start || e.offset+e.length > end {
			return nil, fmt.Errorf("a part of the page index is not before the footer")
		}
		return buf[e.offset-start : e.offset-start+e.length], nil
	}
	var pages []page
	data := dataRun{end: start}
	for i, g := range f.groups {
		first := len(pages)
		for k := range columns {
			b, err := part(g.chunk[k].offsetIndex)
			if err != nil {
				return nil, err
			}
			if pages, err = data.decodePages(b, pages, first, k, i, g.rows); err != nil {
				return nil, fmt.Errorf("page index of row group %d, column %s: %w", i, columnNames[k], err)
			}
		}
		b, err := part(g.chunk[0].columnIndex)
		if err != nil {
			return nil, err
		}
		if err := decodeBounds(b, pages[first:]); err != nil {
			return nil, fmt.Errorf("latent bounds of row group %d: %w", i, err)
		}
	}
	for i := 1; i < len(pages); i++ {
		if pages[i].minLatent < pages[i-1].maxLatent {
			return nil, fmt.Errorf("pages %d and %d are not in latent order", i-1, i)
		}
	}
	return pages, nil
}

// dataRun is where the data of pages may be: one page after the other, so that a small index cannot name more pages
// than the file has room for.
type dataRun struct {
	at, end int64
}

// decodePages reads the offset index of column k of a row group: with column 0 it adds the group's pages,
// with the others it checks that they cut the rows in the same places.
func (r *dataRun) decodePages(b []byte, pages []page, first, k, groupIndex int, rows int64) ([]page, error) {
	d := &compact{buf: b}
	count := 0
	var starts []int64
	d.structure(func(field int, kind byte) bool {
		if field != 1 || kind != kindList {
			return false
		}
		d.list(kindStruct, func(i int) {
			var at extent
			var row int64
			d.structure(func(field int, kind byte) bool {
				switch {
				case field == 1 && kind == kindI64:
					at.offset = d.integer()
				case field == 2 && kind == kindI32:
					at.length = d.integer()
				case field == 3 && kind == kindI64:
					row = d.integer()
				default:
					return false
				}
				return true
			})
			if !at.inside(r.end) || at.offset < r.at || at.length < minPageBytes || at.length > maxPageBytes {
				d.fail(fmt.Errorf("page %d is at %d + %d", i, at.offset, at.length))
				return
			}
			r.at = at.offset + at.length
			if k == 0 {
				pages = append(pages, page{group: groupIndex})
			} else if first+i >= len(pages) {
				d.fail(fmt.Errorf("more than %d pages", len(pages)-first))
				return
			}
			pages[first+i].at[k] = at
			starts = append(starts, row)
			count = i + 1
		})
		return true
	})
	if d.err != nil {
		return pages, d.err
	}
	if count == 0 || first+count != len(pages) {
		return pages, fmt.Errorf("%d pages, expected %d", count, len(pages)-first)
	}
	for i := range count {
		next := rows
		if i+1 < count {
			next = starts[i+1]
		}
		n := next - starts[i]
		if i == 0 && starts[0] != 0 || n <= 0 || n > pageRows || k > 0 && int64(pages[first+i].rows) != n {
			return pages, fmt.Errorf("page %d has the rows %d … %d", i, starts[i], next)
		}
		pages[first+i].rows = int(n)
	}
	return pages, nil
}

func decodeBounds(b []byte, pages []page) error {
	d := &compact{buf: b}
	bound := func(set func(p *page, v uint32)) int {
		n := 0
		d.list(kindBinary, func(i int) {
			v := d.binary()
			if i >= len(pages) || len(v) != 4 {
				d.fail(fmt.Errorf("bound %d of %d has %d bytes", i, len(pages), len(v)))
				return
			}
			set(&pages[i], binary.LittleEndian.Uint32(v))
			n = i + 1
		})
		return n
	}
	var mins, maxs int
	d.structure(func(field int, kind byte) bool {
		switch {
		case field == 2 && kind == kindList:
			mins = bound(func(p *page, v uint32) { p.minLatent = v })
		case field == 3 && kind == kindList:
			maxs = bound(func(p *page, v uint32) { p.maxLatent = v })
		default:
			return false
		}
		return true
	})
	if d.err != nil {
		return d.err
	}
	if mins != len(pages) || maxs != len(pages) {
		return fmt.Errorf("%d and %d bounds for %d pages", mins, maxs, len(pages))
	}
	for i, p := range pages {
		if p.minLatent > p.maxLatent {
			return fmt.Errorf("page %d: smallest %d, largest %d", i, p.minLatent, p.maxLatent)
		}
	}
	return nil
}

func readAt(r io.ReaderAt, buf []byte, offset int64) error {
	n, err := r.ReadAt(buf, offset)
	if n == len(buf) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(buf), offset, err)
}
