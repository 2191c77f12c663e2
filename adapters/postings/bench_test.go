package postings_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postings"
)

// benchmarkColumns is a segment as an extractor makes it: 8,192 tokens, 40 latents of 9,216 a token.
func benchmarkColumns() (*postings.Columns, postings.Metadata) {
	r := rand.New(rand.NewPCG(1, 2))
	c := &postings.Columns{}
	for token := range 8192 {
		for range 40 {
			u := r.Float64()
			c.Append(uint32(9216*u*u), uint32(token/128), uint16(token%128), 0.1+float32(r.ExpFloat64()))
		}
	}
	// The same latent may be drawn twice for a token: keep the first.
	c.Sort(9216)
	d := &postings.Columns{}
	for i := range c.Len() {
		if i == 0 || c.Latent[i] != c.Latent[i-1] || c.Sequence[i] != c.Sequence[i-1] || c.Offset[i] != c.Offset[i-1] {
			d.Append(c.Latent[i], c.Sequence[i], c.Offset[i], c.Activation[i])
		}
	}
	return d, postings.Metadata{Latents: 9216, Sequences: 64, Tokens: 8192}
}

func rate(b *testing.B, rows int) {
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpostings/s")
}

func BenchmarkSort(b *testing.B) {
	c, _ := benchmarkColumns()
	r := rand.New(rand.NewPCG(1, 2))
	r.Shuffle(c.Len(), func(i, j int) { c.Latent[i], c.Latent[j] = c.Latent[j], c.Latent[i] })
	for b.Loop() {
		d := *c
		d.Sort(9216)
	}
	rate(b, c.Len())
}

func BenchmarkWrite(b *testing.B) {
	c, m := benchmarkColumns()
	var s postings.Summary
	for b.Loop() {
		var err error
		s, err = postings.Write(io.Discard, c, m)
		require.NoError(b, err)
	}
	rate(b, c.Len())
	b.ReportMetric(float64(s.Bytes)/float64(s.Rows), "B/posting")
}

func BenchmarkScan(b *testing.B) {
	c, m := benchmarkColumns()
	var buf bytes.Buffer
	_, err := postings.Write(&buf, c, m)
	require.NoError(b, err)
	r, err := postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	require.NoError(b, err)
	for b.Loop() {
		require.NoError(b, r.Scan(context.Background(), 0, 9216, func([]uint32, []uint32, []uint16, []float32) error { return nil }))
	}
	rate(b, c.Len())
}

func BenchmarkOneLatent(b *testing.B) {
	c, m := benchmarkColumns()
	var buf bytes.Buffer
	_, err := postings.Write(&buf, c, m)
	require.NoError(b, err)
	r, err := postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	require.NoError(b, err)
	var got postings.Columns
	for b.Loop() {
		got.Reset()
		require.NoError(b, r.Read(context.Background(), 5000, 5001, &got))
	}
}
