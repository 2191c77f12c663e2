package postings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"sync"
)

// ErrCorrupt is wrapped by every error about a file that is damaged or was not written by Write.
var ErrCorrupt = errors.New("damaged postings file")

// Reader reads an artifact or a run file. It is safe for concurrent use.
type Reader struct {
	file  io.ReaderAt
	meta  Metadata
	rows  int64
	pages []page
}

// scans keeps the working memory of finished scans, a megabyte each, for those of any Reader: a fold has dozens of
// Readers open and scans a few at a time.
var scans sync.Pool

// Open reads the footer and the page index. The rows are checked as they are read.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	f, pages, err := readFooter(r, size)
	if err != nil {
		return nil, fmt.Errorf("open postings: %w: %w", ErrCorrupt, err)
	}
	meta, err := parseMetadata(f.pairs)
	if err != nil {
		return nil, fmt.Errorf("open postings: %w: %w", ErrCorrupt, err)
	}
	if n := len(pages); n > 0 && int64(pages[n-1].maxLatent) >= int64(meta.Latents) {
		return nil, fmt.Errorf("open postings: %w: latent %d of %d", ErrCorrupt, pages[n-1].maxLatent, meta.Latents)
	}
	return &Reader{file: r, meta: meta, rows: f.rows, pages: pages}, nil
}

// Metadata is what the footer says about the segment. The sinks are not a copy.
func (r *Reader) Metadata() Metadata { return r.meta }

// Rows is the number of postings in the file.
func (r *Reader) Rows() int64 { return r.rows }

// Latents is the width of the SAE.
func (r *Reader) Latents() int { return r.meta.Latents }

// Span is the run of sequences that the file covers.
func (r *Reader) Span() (first, sequences int) { return r.meta.FirstSequence, r.meta.Sequences }

// EachSink calls visit for every sink, ascending by sequence, then offset.
func (r *Reader) EachSink(visit func(sequence uint32, offset uint16)) {
	for _, s := range r.meta.Sinks {
		visit(s.Sequence, s.Offset)
	}
}

// Count says, from the footer alone, how many rows have to be read for the latents from … to-1: at least
// the rows that there are, at most two pages (32,768 rows) more.
func (r *Reader) Count(from, to uint32) int64 {
	var n int64
	for _, p := range r.overlap(from, to) {
		n += int64(p.rows)
	}
	return n
}

// overlap returns the pages that may hold the latents from … to-1.
func (r *Reader) overlap(from, to uint32) []page {
	if from >= to {
		return nil
	}
	first := sort.Search(len(r.pages), func(i int) bool { return r.pages[i].maxLatent >= from })
	last := sort.Search(len(r.pages), func(i int) bool { return r.pages[i].minLatent >= to })
	if first >= last {
		return nil
	}
	return r.pages[first:last]
}

// Read appends the rows of the latents from … to-1 to dst, in (latent, sequence, offset) order.
func (r *Reader) Read(ctx context.Context, from, to uint32, dst *Columns) error {
	return r.Scan(ctx, from, to, func(latent, sequence []uint32, offset []uint16, activation []float32) error {
		dst.appendAll(latent, sequence, offset, activation)
		return nil
	})
}

// Scan calls visit with runs of at most 16,384 rows of the latents from … to-1, in (latent, sequence, offset)
// order. The slices are valid until visit returns. An error of visit ends the scan and is returned as it is.
func (r *Reader) Scan(ctx context.Context, from, to uint32, visit func(latent, sequence []uint32, offset []uint16, activation []float32) error) error {
	pages := r.overlap(from, to)
	if len(pages) == 0 {
		return nil
	}
	s, err := newScan()
	if err != nil {
		return err
	}
	defer scans.Put(s)
	s.started = false
	for len(pages) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("read postings: %w", err)
		}
		n := 1 // pages of one row group are neighbours in the file: read some of them at once
		for n < len(pages) && n < pagesAtOnce && pages[n].group == pages[0].group {
			n++
		}
		if err := s.load(r.file, pages[:n]); err != nil {
			return fmt.Errorf("read postings of segment %d: %w", r.meta.Segment, err)
		}
		for i, p := range pages[:n] {
			if err := s.decode(i, p, r.meta); err != nil {
				return fmt.Errorf("read postings of segment %d: %w: latents %d … %d: %w", r.meta.Segment, ErrCorrupt, p.minLatent, p.maxLatent, err)
			}
			rows := s.rows
			a := sort.Search(len(rows.Latent), func(i int) bool { return rows.Latent[i] >= from })
			b := a + sort.Search(len(rows.Latent)-a, func(i int) bool { return rows.Latent[a+i] >= to })
			if a == b {
				continue
			}
			if err := visit(rows.Latent[a:b], rows.Sequence[a:b], rows.Offset[a:b], rows.Activation[a:b]); err != nil {
				return err
			}
		}
		pages = pages[n:]
	}
	return nil
}

const pagesAtOnce = 8

// scan is the working memory of one Scan.
type scan struct {
	decoder *decoder
	bytes   [columns][]byte
	parts   [columns][]extent // of each page, in bytes
	rows    Columns

	started  bool
	latent   uint32
	sequence uint32
	offset   uint16
}

func newScan() (*scan, error) {
	if s, ok := scans.Get().(*scan); ok {
		return s, nil
	}
	d, err := newDecoder()
	if err != nil {
		return nil, fmt.Errorf("read postings: %w", err)
	}
	return &scan{decoder: d}, nil
}

// load reads the bytes of neighbouring pages, column by column. Pages of one column that do not touch, as
// only another writer leaves them, are read one by one.
func (s *scan) load(file io.ReaderAt, pages []page) error {
	for k := range columns {
		s.parts[k] = s.parts[k][:0]
		var total int64
		touching := true
		for i, p := range pages {
			at := p.at[k]
			touching = touching && (i == 0 || at.offset == pages[i-1].at[k].offset+pages[i-1].at[k].length)
			s.parts[k] = append(s.parts[k], extent{offset: total, length: at.length})
			total += at.length
		}
		if int64(cap(s.bytes[k])) < total {
			s.bytes[k] = make([]byte, total)
		}
		s.bytes[k] = s.bytes[k][:total]
		if touching {
			if err := readAt(file, s.bytes[k], pages[0].at[k].offset); err != nil {
				return err
			}
			continue
		}
		for i, p := range pages {
			part := s.parts[k][i]
			if err := readAt(file, s.bytes[k][part.offset:part.offset+part.length], p.at[k].offset); err != nil {
				return err
			}
		}
	}
	return nil
}

// decode decodes the i-th loaded page into s.rows and checks every row.
func (s *scan) decode(i int, p page, m Metadata) error {
	s.rows.Reset()
	s.rows.grow(p.rows)
	s.rows.truncate(p.rows)
	for k := range columns {
		part := s.parts[k][i]
		body, err := s.decoder.open(s.bytes[k][part.offset:part.offset+part.length], p.rows, columnEncodings[k])
		if err != nil {
			return fmt.Errorf("column %s: %w", columnNames[k], err)
		}
		if err := s.column(k, body, p.rows); err != nil {
			return fmt.Errorf("column %s: %w", columnNames[k], err)
		}
	}
	return s.check(p, m)
}

func (s *scan) column(k int, body []byte, rows int) error {
	if k == 3 {
		return floats(s.rows.Activation, body)
	}
	values, err := s.decoder.integers(body, rows)
	if err != nil {
		return err
	}
	switch k {
	case 0:
		copy(s.rows.Latent, values)
	case 1:
		copy(s.rows.Sequence, values)
	case 2:
		for i, v := range values {
			if v > math.MaxUint16 {
				return fmt.Errorf("offset %d", v)
			}
			s.rows.Offset[i] = uint16(v)
		}
	}
	return nil
}

func (s *scan) check(p page, m Metadata) error {
	first, end := uint64(m.FirstSequence), uint64(m.FirstSequence+m.Sequences)
	latent, sequence, offset := s.rows.Latent, s.rows.Sequence, s.rows.Offset
	l0, s0, o0, started := s.latent, s.sequence, s.offset, s.started
	for i, l1 := range latent {
		s1, o1 := sequence[i], offset[i]
		if started && !ascending(l0, s0, o0, l1, s1, o1) {
			return fmt.Errorf("row (%d, %d, %d) comes after (%d, %d, %d)", l1, s1, o1, l0, s0, o0)
		}
		if uint64(s1) < first || uint64(s1) >= end {
			return fmt.Errorf("sequence %d is not in %d … %d", s1, first, int64(end)-1)
		}
		if !valid(s.rows.Activation[i]) {
			return fmt.Errorf("activation %g of (%d, %d, %d)", s.rows.Activation[i], l1, s1, o1)
		}
		l0, s0, o0, started = l1, s1, o1, true
	}
	if latent[0] < p.minLatent || l0 > p.maxLatent {
		return fmt.Errorf("latents %d … %d are not what the page index says", latent[0], l0)
	}
	s.latent, s.sequence, s.offset, s.started = l0, s0, o0, true
	return nil
}
