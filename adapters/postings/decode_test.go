package postings

import (
	"testing"

	"github.com/parquet-go/parquet-go/encoding/delta"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestIntegersDecodeWhatAnotherWriterEncodes(t *testing.T) {
	t.Parallel()
	d, err := newDecoder()
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		width := rapid.IntRange(0, 31).Draw(t, "bits")
		values := rapid.SliceOfN(rapid.Int32Range(-1<<width, 1<<width-1), 1, 700).Draw(t, "values")
		encoded, err := new(delta.BinaryPackedEncoding).EncodeInt32(nil, values)
		require.NoError(t, err)
		got, err := d.integers(encoded, len(values))
		require.NoError(t, err)
		for i, v := range values {
			require.Equal(t, uint32(v), got[i])
		}
	})
}

// FuzzDecode gives the decoders what the checksums of a file keep from them.
func FuzzDecode(f *testing.F) {
	for _, values := range [][]int32{{1}, {1, 2, 3, 1 << 30, -5}, make([]int32, 300)} {
		encoded, err := new(delta.BinaryPackedEncoding).EncodeInt32(nil, values)
		require.NoError(f, err)
		f.Add(encoded, uint16(len(values)-1))
	}
	d, err := newDecoder()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte, rows uint16) {
		n := int(rows)%pageRows + 1
		if got, err := d.integers(data, n); err == nil {
			require.Len(t, got, n)
		}
		_, _ = d.open(data, n, encodingDelta)
		_ = new(footer).decode(data)
		var pages []page
		r := dataRun{end: 1 << 30}
		if pages, err := r.decodePages(data, nil, 0, 0, 0, int64(n)); err == nil {
			_ = decodeBounds(data, pages)
		}
		_ = decodeBounds(data, pages)
		_, _ = decodeSinks(string(data))
	})
}
