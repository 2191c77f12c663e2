package postings

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// Summary says what was written.
type Summary struct {
	// Content is the sha256 of the postings, whatever file they are in: for each row in (latent, sequence,
	// offset) order latent (4 bytes), sequence (4), offset (2), float bits (4), little-endian; then for each
	// sink sequence (4) and offset (2).
	Content [32]byte
	File    [32]byte // sha256 of the file's bytes
	Rows    int64
	Bytes   int64
}

const (
	// pageRows rows are 64 kB a column before encoding. Every page of a row group but its last has so
	// many, in all four columns: a page number means the same rows in each.
	pageRows = 16 << 10
	// groupRows is where the writer starts to look for the next latent's first row to cut a row group.
	groupRows = 256 << 10
	// The Parquet writer ends a page at 98 % of this: 65,536 bytes.
	pageBuffer = 66874
)

// row is the Parquet schema.
type row struct {
	Latent     uint32  `parquet:"latent,delta"`
	Sequence   uint32  `parquet:"sequence,delta"`
	Offset     uint16  `parquet:"offset,delta"`
	Activation float32 `parquet:"activation,split"`
}

// Write writes one artifact. The rows must be in strictly ascending (latent, sequence, offset) order
// (see Columns.Sort), inside the segment, finite and not zero. Equal input gives equal bytes.
func Write(w io.Writer, c *Columns, m Metadata) (Summary, error) {
	out, err := newWriter(w, m)
	if err != nil {
		return Summary{}, err
	}
	if err := out.append(c); err != nil {
		return Summary{}, err
	}
	return out.close()
}

// writer takes rows in pieces; the file does not depend on how they were cut.
type writer struct {
	meta    Metadata
	parquet *parquet.GenericWriter[row]
	digest  *digestWriter
	content hash.Hash
	scratch []byte // rows on their way into content
	page    []row  // rows not yet handed to parquet
	group   int    // rows of the row group, those in page included
	rows    int64
	last    row
}

func newWriter(w io.Writer, m Metadata) (*writer, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("write postings: %w", err)
	}
	digest := &digestWriter{to: w, hash: sha256.New()}
	options := []parquet.WriterOption{
		// Fixed, so that the bytes depend on the postings and not on how the program was built.
		parquet.CreatedBy("featuremill", "1", "postings"),
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.PageBufferSize(pageBuffer),
		parquet.DataPageStatistics(false), // the page index says the same, once
		parquet.SortingWriterConfig(parquet.SortingColumns(
			parquet.Ascending("latent"), parquet.Ascending("sequence"), parquet.Ascending("offset"))),
	}
	for _, p := range m.pairs() {
		options = append(options, parquet.KeyValueMetadata(p[0], p[1]))
	}
	return &writer{
		meta:    m,
		parquet: parquet.NewGenericWriter[row](digest, options...),
		digest:  digest,
		content: sha256.New(),
		page:    make([]row, 0, pageRows),
	}, nil
}

func (w *writer) append(c *Columns) error {
	n := c.Len()
	if len(c.Sequence) != n || len(c.Offset) != n || len(c.Activation) != n {
		return fmt.Errorf("write postings: columns of %d, %d, %d and %d rows", n, len(c.Sequence), len(c.Offset), len(c.Activation))
	}
	for i := range n {
		r := row{Latent: c.Latent[i], Sequence: c.Sequence[i], Offset: c.Offset[i], Activation: c.Activation[i]}
		if err := w.check(r); err != nil {
			return fmt.Errorf("write postings: row %d (latent %d, sequence %d, offset %d, activation %g): %w",
				w.rows, r.Latent, r.Sequence, r.Offset, r.Activation, err)
		}
		if w.group >= groupRows && r.Latent != w.last.Latent {
			if err := w.flushGroup(); err != nil {
				return err
			}
		}
		w.page = append(w.page, r)
		w.group++
		w.rows++
		w.last = r
		if len(w.page) == pageRows {
			if err := w.flushPage(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) check(r row) error {
	switch {
	case int64(r.Latent) >= int64(w.meta.Latents):
		return fmt.Errorf("the SAE has %d latents", w.meta.Latents)
	case int64(r.Sequence) < int64(w.meta.FirstSequence) || int64(r.Sequence) >= int64(w.meta.FirstSequence+w.meta.Sequences):
		return fmt.Errorf("the segment has sequences %d … %d", w.meta.FirstSequence, w.meta.FirstSequence+w.meta.Sequences-1)
	case !valid(r.Activation):
		return errors.New("an activation must be finite and not zero")
	case w.rows > 0 && !ascending(w.last.Latent, w.last.Sequence, w.last.Offset, r.Latent, r.Sequence, r.Offset):
		return fmt.Errorf("not after the row before it (latent %d, sequence %d, offset %d)", w.last.Latent, w.last.Sequence, w.last.Offset)
	}
	return nil
}

func valid(activation float32) bool {
	bits := math.Float32bits(activation)
	return bits&0x7f800000 != 0x7f800000 && bits&0x7fffffff != 0
}

func ascending(l0, s0 uint32, o0 uint16, l1, s1 uint32, o1 uint16) bool {
	if l0 != l1 {
		return l0 < l1
	}
	return uint64(s0)<<16|uint64(o0) < uint64(s1)<<16|uint64(o1)
}

func (w *writer) flushPage() error {
	if len(w.page) == 0 {
		return nil
	}
	w.scratch = w.scratch[:0]
	for _, r := range w.page {
		w.scratch = binary.LittleEndian.AppendUint32(w.scratch, r.Latent)
		w.scratch = binary.LittleEndian.AppendUint32(w.scratch, r.Sequence)
		w.scratch = binary.LittleEndian.AppendUint16(w.scratch, r.Offset)
		w.scratch = binary.LittleEndian.AppendUint32(w.scratch, math.Float32bits(r.Activation))
	}
	w.content.Write(w.scratch)
	if _, err := w.parquet.Write(w.page); err != nil {
		return fmt.Errorf("write postings: %w", err)
	}
	w.page = w.page[:0]
	return nil
}

func (w *writer) flushGroup() error {
	if err := w.flushPage(); err != nil {
		return err
	}
	if err := w.parquet.Flush(); err != nil {
		return fmt.Errorf("write postings: %w", err)
	}
	w.group = 0
	return nil
}

func (w *writer) close() (Summary, error) {
	if err := w.flushPage(); err != nil {
		return Summary{}, err
	}
	if err := w.parquet.Close(); err != nil {
		return Summary{}, fmt.Errorf("write postings: %w", err)
	}
	w.scratch = w.scratch[:0]
	for _, s := range w.meta.Sinks {
		w.scratch = binary.LittleEndian.AppendUint32(w.scratch, s.Sequence)
		w.scratch = binary.LittleEndian.AppendUint16(w.scratch, s.Offset)
	}
	w.content.Write(w.scratch)
	summary := Summary{Rows: w.rows, Bytes: w.digest.bytes}
	w.content.Sum(summary.Content[:0])
	w.digest.hash.Sum(summary.File[:0])
	return summary, nil
}

// digestWriter hashes what passes through it.
type digestWriter struct {
	to    io.Writer
	hash  hash.Hash
	bytes int64
}

func (d *digestWriter) Write(p []byte) (int, error) {
	n, err := d.to.Write(p)
	d.hash.Write(p[:n])
	d.bytes += int64(n)
	return n, err
}
