package postings_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/featuremill/featuremill/adapters/postings"
)

// FuzzOpen looks for a panic, a hang or rows that break the promises of Scan in files from strangers.
func FuzzOpen(f *testing.F) {
	for _, rows := range []int{0, 3, 500} {
		c, m := sample(uint64(rows), 8, 4, 4, 32, rows)
		var buf bytes.Buffer
		if _, err := postings.Write(&buf, c, m); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Add([]byte("PAR1\x00\x00\x00\x00PAR1"))
	f.Fuzz(func(t *testing.T, file []byte) {
		r, err := postings.Open(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		first, sequences := r.Span()
		_ = r.Count(0, 1<<20)
		_ = r.Scan(context.Background(), 0, 1<<24, func(latent, sequence []uint32, offset []uint16, activation []float32) error {
			for i := range latent {
				if int(latent[i]) >= r.Latents() || int(sequence[i]) < first || int(sequence[i]) >= first+sequences || activation[i] == 0 {
					t.Fatalf("row %d: %d %d %d %g", i, latent[i], sequence[i], offset[i], activation[i])
				}
			}
			return nil
		})
	})
}
