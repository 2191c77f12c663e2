package checkpoint_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// quantised are the block types: number, elements and bytes of a block.
func quantised() map[string][3]uint64 {
	return map[string][3]uint64{
		"Q4_0": {2, 32, 18}, "Q4_1": {3, 32, 20}, "Q5_0": {6, 32, 22}, "Q5_1": {7, 32, 24}, "Q8_0": {8, 32, 34},
		"Q2_K": {10, 256, 84}, "Q3_K": {11, 256, 110}, "Q4_K": {12, 256, 144}, "Q5_K": {13, 256, 176}, "Q6_K": {14, 256, 210}, "Q8_K": {15, 256, 292},
		"IQ4_NL": {20, 32, 18}, "IQ4_XS": {23, 256, 136},
	}
}

// rowsOf is a GGUF file with one tensor t, [rows, columns], over the given blocks.
func rowsOf(kind [3]uint64, rows, columns uint64, blocks []byte) []byte {
	b := ggufHead(1, 0).tensor("t", uint32(kind[0]), 0, columns, rows)
	return append(b.data(0), blocks...)
}

// FuzzBlocks holds for any bytes: every whole row is read, a row does not depend on its neighbours, and what is cut short is refused.
func FuzzBlocks(f *testing.F) {
	kinds := quantised()
	for name, kind := range kinds {
		zero, full := make([]byte, 2*kind[2]), make([]byte, 2*kind[2])
		for i := range full {
			full[i] = 0xff
		}
		f.Add(name, zero)                            // every scale is 0
		f.Add(name, full)                            // every scale is NaN
		f.Add(name, full[:2*kind[2]-1])              // a byte short
		f.Add(name, append(zero[:kind[2]], full...)) // rows that differ
	}
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, name string, blocks []byte) {
		kind, ok := kinds[name]
		if !ok || len(blocks) > 1<<16 {
			return
		}
		rows := uint64(len(blocks)) / kind[2]
		path := filepath.Join(folder, fmt.Sprint(os.Getpid()))
		_, err := checkpoint.OpenGGUF(writeFile(t, path+"x", rowsOf(kind, rows+1, kind[1], blocks)))
		require.Error(t, err, "a row more than there are bytes for")
		if rows == 0 {
			return
		}
		g, err := checkpoint.OpenGGUF(writeFile(t, path+"y", rowsOf(kind, rows, kind[1], blocks)))
		require.NoError(t, err)
		defer shut(t, g)
		all, err := g.Tensor("t")
		require.NoError(t, err)
		last, err := checkpoint.OpenGGUF(writeFile(t, path+"z", rowsOf(kind, 1, kind[1], blocks[(rows-1)*kind[2]:rows*kind[2]])))
		require.NoError(t, err)
		defer shut(t, last)
		one, err := last.Tensor("t")
		require.NoError(t, err)
		require.Equal(t, one.Data, all.Data[4*(rows-1)*kind[1]:])
	})
}

func BenchmarkDequantise(b *testing.B) {
	for name, kind := range quantised() {
		b.Run(name, func(b *testing.B) {
			const rows = 2048
			columns := uint64(2048)
			blocks := make([]byte, rows*columns/kind[1]*kind[2])
			random := rand.NewChaCha8([32]byte{1})
			_, _ = random.Read(blocks)
			g, err := checkpoint.OpenGGUF(writeFile(b, filepath.Join(b.TempDir(), "x.gguf"), rowsOf(kind, rows, columns, blocks)))
			require.NoError(b, err)
			defer shut(b, g)
			b.SetBytes(4 * rows * int64(columns))
			for b.Loop() {
				_, err = g.Tensor("t")
				require.NoError(b, err)
			}
		})
	}
}
