package postings_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postings"
)

// sample makes sorted postings of a segment: about rows of them over latents of very different density.
func sample(seed uint64, latents, first, sequences, length, rows int) (*postings.Columns, postings.Metadata) {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &postings.Columns{}
	tokens := sequences * length
	m := postings.Metadata{Extraction: "ext_sae_x", Segment: first / max(sequences, 1), FirstSequence: first, Sequences: sequences, Tokens: tokens, Latents: latents}
	for s := range sequences {
		for o := range length {
			if r.IntN(50) == 0 {
				m.Sinks = append(m.Sinks, postings.TokenRef{Sequence: uint32(first + s), Offset: uint16(o)})
			}
			n := rows / tokens
			if r.IntN(tokens) < rows%tokens {
				n++
			}
			seen := map[uint32]bool{}
			for range n {
				u := r.Float64()
				seen[uint32(float64(latents)*u*u*u)] = true
			}
			for l := range uint32(latents) {
				if seen[l] {
					c.Append(l, uint32(first+s), uint16(o), float32(math.Exp(r.NormFloat64())))
				}
			}
		}
	}
	c.Sort(latents)
	return c, m
}

func write(t *testing.T, c *postings.Columns, m postings.Metadata) ([]byte, postings.Summary) {
	t.Helper()
	var buf bytes.Buffer
	s, err := postings.Write(&buf, c, m)
	require.NoError(t, err)
	return buf.Bytes(), s
}

func open(t *testing.T, file []byte) *postings.Reader {
	t.Helper()
	r, err := postings.Open(bytes.NewReader(file), int64(len(file)))
	require.NoError(t, err)
	return r
}

func readAll(t *testing.T, r *postings.Reader) *postings.Columns {
	t.Helper()
	var c postings.Columns
	require.NoError(t, r.Read(context.Background(), 0, uint32(r.Latents()), &c))
	return &c
}

func content(c *postings.Columns, sinks []postings.TokenRef) [32]byte {
	var b []byte
	for i := range c.Len() {
		b = binary.LittleEndian.AppendUint32(b, c.Latent[i])
		b = binary.LittleEndian.AppendUint32(b, c.Sequence[i])
		b = binary.LittleEndian.AppendUint16(b, c.Offset[i])
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(c.Activation[i]))
	}
	for _, s := range sinks {
		b = binary.LittleEndian.AppendUint32(b, s.Sequence)
		b = binary.LittleEndian.AppendUint16(b, s.Offset)
	}
	return sha256.Sum256(b)
}

func TestSortKeepsTheOrderOfRowsOfOneLatent(t *testing.T) {
	t.Parallel()
	var c postings.Columns
	c.Append(7, 0, 1, 1)
	c.Append(2, 0, 1, 2)
	c.Append(7, 0, 2, 3)
	c.Append(2, 1, 0, 4)
	c.Append(0, 1, 0, 5)
	c.Sort(8)
	require.Equal(t, []uint32{0, 2, 2, 7, 7}, c.Latent)
	require.Equal(t, []float32{5, 2, 4, 1, 3}, c.Activation)
	require.Equal(t, []uint32{1, 0, 1, 0, 0}, c.Sequence)
	require.Equal(t, []uint16{0, 1, 0, 1, 2}, c.Offset)
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                             string
		latents, sequences, length, rows int
	}{
		{"no rows", 10, 4, 8, 0},
		{"one page", 64, 16, 32, 4000},
		{"many pages of one row group", 512, 64, 64, 120_000},
		{"many row groups", 300, 128, 100, 600_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, m := sample(1, tt.latents, 1000, tt.sequences, tt.length, tt.rows)
			file, summary := write(t, c, m)
			again, summaryAgain := write(t, c, m)
			require.Equal(t, file, again, "equal postings give equal bytes")
			require.Equal(t, summary, summaryAgain)
			require.Equal(t, sha256.Sum256(file), summary.File)
			require.Equal(t, int64(len(file)), summary.Bytes)
			require.Equal(t, int64(c.Len()), summary.Rows)
			require.Equal(t, content(c, m.Sinks), summary.Content)

			r := open(t, file)
			require.Equal(t, m, r.Metadata())
			require.Equal(t, int64(c.Len()), r.Rows())
			got := readAll(t, r)
			require.Equal(t, content(c, nil), content(got, nil))
		})
	}
}

func TestALatentRangeIsReadWithoutTheRest(t *testing.T) {
	t.Parallel()
	c, m := sample(2, 2000, 0, 128, 100, 600_000)
	file, _ := write(t, c, m)
	counted := &countingReader{from: bytes.NewReader(file)}
	r, err := postings.Open(counted, int64(len(file)))
	require.NoError(t, err)
	for _, span := range [][2]uint32{{0, 1}, {5, 6}, {1999, 2000}, {100, 160}, {0, 2000}, {1500, 1400}, {3, 3}, {0, math.MaxUint32}} {
		counted.bytes.Store(0)
		var got, want postings.Columns
		require.NoError(t, r.Read(context.Background(), span[0], span[1], &got))
		for i, l := range c.Latent {
			if l >= span[0] && l < span[1] {
				want.Append(l, c.Sequence[i], c.Offset[i], c.Activation[i])
			}
		}
		require.Equal(t, content(&want, nil), content(&got, nil), "latents %v", span)
		require.GreaterOrEqual(t, r.Count(span[0], span[1]), int64(want.Len()))
		require.LessOrEqual(t, r.Count(span[0], span[1]), int64(want.Len()+2*16384))
		if want.Len() < 10_000 {
			require.Less(t, counted.bytes.Load(), int64(len(file)/8), "latents %v", span)
		}
	}
}

func TestRowGroupsAreCutBetweenLatentsAndDeclareTheirOrder(t *testing.T) {
	t.Parallel()
	c, m := sample(3, 300, 0, 128, 100, 700_000)
	file, _ := write(t, c, m)
	f, err := parquet.OpenFile(bytes.NewReader(file), int64(len(file)))
	require.NoError(t, err)
	require.Greater(t, len(f.RowGroups()), 1)
	last := int64(-1)
	for _, g := range f.RowGroups() {
		require.Len(t, g.SortingColumns(), 3)
		low, high, ok := g.ColumnChunks()[0].(*parquet.FileColumnChunk).Bounds()
		require.True(t, ok, "the row group has statistics")
		require.Greater(t, int64(low.Uint32()), last)
		last = int64(high.Uint32())
	}
	rows, err := parquet.Read[struct {
		Latent     uint32  `parquet:"latent"`
		Sequence   uint32  `parquet:"sequence"`
		Offset     uint16  `parquet:"offset"`
		Activation float32 `parquet:"activation"`
	}](bytes.NewReader(file), int64(len(file)))
	require.NoError(t, err)
	require.Len(t, rows, c.Len())
	for i, r := range rows {
		if r.Latent != c.Latent[i] || r.Sequence != c.Sequence[i] || r.Offset != c.Offset[i] || r.Activation != c.Activation[i] {
			require.Fail(t, "another row", "row %d is %v", i, r)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	meta := postings.Metadata{Latents: 4, FirstSequence: 10, Sequences: 5, Tokens: 40}
	for _, tt := range []struct {
		name  string
		rows  [][4]float64
		meta  func(m *postings.Metadata)
		wants string
	}{
		{name: "a zero activation", rows: [][4]float64{{0, 10, 0, 0}}, wants: "finite and not zero"},
		{name: "a NaN", rows: [][4]float64{{0, 10, 0, math.NaN()}}, wants: "finite and not zero"},
		{name: "an infinity", rows: [][4]float64{{0, 10, 0, math.Inf(1)}}, wants: "finite and not zero"},
		{name: "a latent that the SAE has not", rows: [][4]float64{{4, 10, 0, 1}}, wants: "the SAE has 4 latents"},
		{name: "a sequence before the segment", rows: [][4]float64{{0, 9, 0, 1}}, wants: "the segment has sequences 10 … 14"},
		{name: "a sequence after the segment", rows: [][4]float64{{0, 15, 0, 1}}, wants: "the segment has sequences 10 … 14"},
		{name: "the same posting twice", rows: [][4]float64{{0, 10, 0, 1}, {0, 10, 0, 1}}, wants: "not after the row before it"},
		{name: "latents out of order", rows: [][4]float64{{1, 10, 0, 1}, {0, 10, 0, 1}}, wants: "not after the row before it"},
		{name: "a segment without latents", meta: func(m *postings.Metadata) { m.Latents = 0 }, wants: "0 latents"},
		{name: "sinks out of order", meta: func(m *postings.Metadata) {
			m.Sinks = []postings.TokenRef{{Sequence: 11}, {Sequence: 10}}
		}, wants: "sink 1"},
		{name: "a sink outside of the segment", meta: func(m *postings.Metadata) {
			m.Sinks = []postings.TokenRef{{Sequence: 20}}
		}, wants: "outside of the segment"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := meta
			if tt.meta != nil {
				tt.meta(&m)
			}
			var c postings.Columns
			for _, r := range tt.rows {
				c.Append(uint32(r[0]), uint32(r[1]), uint16(r[2]), float32(r[3]))
			}
			_, err := postings.Write(io.Discard, &c, m)
			require.ErrorContains(t, err, tt.wants)
		})
	}
}

func TestAChangedByteIsAnErrorAndNotOtherRows(t *testing.T) {
	t.Parallel()
	c, m := sample(4, 50, 0, 4, 32, 300)
	file, summary := write(t, c, m)
	for i := range file {
		for _, flip := range []byte{0x01, 0x80} {
			bad := bytes.Clone(file)
			bad[i] ^= flip
			r, err := postings.Open(bytes.NewReader(bad), int64(len(bad)))
			if err != nil {
				require.ErrorIs(t, err, postings.ErrCorrupt)
				continue
			}
			var got postings.Columns
			if err := r.Read(context.Background(), 0, uint32(min(r.Latents(), 1<<20)), &got); err != nil {
				continue
			}
			// What is left are bytes that no reader looks at and the metadata's own numbers.
			require.Equal(t, content(c, nil), content(&got, nil), "byte %d", i)
		}
	}
	require.NotZero(t, summary.Rows)
}

func TestACutOffFileIsRefused(t *testing.T) {
	t.Parallel()
	c, m := sample(5, 50, 0, 8, 32, 2000)
	file, _ := write(t, c, m)
	for n := 0; n < len(file); n += 13 {
		_, err := postings.Open(bytes.NewReader(file[:n]), int64(n))
		require.ErrorIs(t, err, postings.ErrCorrupt)
	}
}

func TestAReadStopsWhenItsContextEnds(t *testing.T) {
	t.Parallel()
	c, m := sample(6, 50, 0, 8, 32, 2000)
	file, _ := write(t, c, m)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var got postings.Columns
	require.ErrorIs(t, open(t, file).Read(ctx, 0, 50, &got), context.Canceled)
}

type countingReader struct {
	from  io.ReaderAt
	bytes atomic.Int64
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.from.ReadAt(p, off)
	r.bytes.Add(int64(n))
	return n, err
}
