//go:build cgo

package tokenizer

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/corpus"
)

// BenchmarkBuildCorpus reads FEATUREMILL_DATASET (a path), tokenises chunk 0, writes and reads its shard.
func BenchmarkBuildCorpus(b *testing.B) {
	path := os.Getenv("FEATUREMILL_DATASET")
	if path == "" {
		b.Skip("set FEATUREMILL_DATASET to a dataset")
	}
	data, err := FromGGUF(smollm2(b))
	require.NoError(b, err)
	tk, err := LoadBytes(data)
	require.NoError(b, err)
	defer tk.Close()
	d, err := corpus.OpenDataset(path, corpus.DatasetOptions{})
	require.NoError(b, err)
	defer d.Close()

	var chunk *corpus.Chunk
	b.Run("build", func(b *testing.B) {
		var tokens int64
		for b.Loop() {
			chunk, err = corpus.Build(b.Context(), d, tk, corpus.Options{ContextLength: 128}, 0)
			require.NoError(b, err)
			tokens += chunk.Tokens
		}
		b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
	})
	var file bytes.Buffer
	b.Run("write", func(b *testing.B) {
		var tokens int64
		for b.Loop() {
			file.Reset()
			_, err := corpus.WriteShard(&file, "corpus", chunk)
			require.NoError(b, err)
			tokens += chunk.Tokens
		}
		b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
		b.ReportMetric(float64(file.Len())/float64(chunk.Tokens), "bytes/token")
	})
	b.Run("read cold", func(b *testing.B) {
		var tokens int64
		for b.Loop() {
			s, err := corpus.OpenShard(bytes.NewReader(file.Bytes()), int64(file.Len()))
			require.NoError(b, err)
			for i := range s.Sequences() {
				got, err := s.Sequence(i)
				if err != nil {
					b.Fatal(err)
				}
				tokens += int64(len(got.Tokens))
			}
		}
		b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
	})
	b.Run("look up", func(b *testing.B) {
		s, err := corpus.OpenShard(bytes.NewReader(file.Bytes()), int64(file.Len()))
		require.NoError(b, err)
		i := 0
		for b.Loop() {
			i = (i + 7919) % s.Sequences()
			if _, err := s.Sequence(i); err != nil {
				b.Fatal(err)
			}
		}
	})
}
