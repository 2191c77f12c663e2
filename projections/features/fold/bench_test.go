package fold_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// BenchmarkRun folds 20 million postings (or $FOLD_POSTINGS) of 64 segments and 9,216 latents with 100 top
// examples: the features of 512,000 tokens at an L0 of 40, on all cores. It reports postings/s and the
// largest heap seen.
func BenchmarkRun(b *testing.B) {
	const latents, segments, length, perToken = 9216, 64, 128, 40
	total := 20_000_000
	if s := os.Getenv("FOLD_POSTINGS"); s != "" {
		var err error
		total, err = strconv.Atoi(s)
		require.NoError(b, err)
	}
	sequences := total / perToken / length / segments * segments
	r := rand.New(rand.NewPCG(1, 2))
	vocabulary := memoryVocabulary{Pieces: make([]string, 49152)}
	for i := range vocabulary.Pieces {
		vocabulary.Pieces[i] = fmt.Sprintf("Ġword%d", i)
	}
	texts := make(memoryCorpus, sequences)
	for s := range texts {
		tokens := make([]int32, length)
		for i := range tokens {
			u := r.Float64()
			tokens[i] = int32(49152 * u * u * u)
		}
		texts[s] = corpus.Sequence{Tokens: tokens, Pieces: []corpus.Piece{{Row: int64(s / 3)}}, Inserted: []int{0}}
	}
	in := fold.Input{Corpus: texts, Vocabulary: vocabulary, Latents: latents, Options: fold.DefaultOptions()}
	rows := int64(0)
	for segment := range segments {
		var c postings.Columns
		first := segment * sequences / segments
		count := sequences / segments
		for s := first; s < first+count; s++ {
			for o := range length {
				// Latents in strides of 230 from a start that depends on the token: distinct, dense and rare ones.
				for k := range perToken {
					u := (float64(k) + r.Float64()) / perToken
					c.Append(uint32(latents*u*u*u), uint32(s), uint16(o), 0.1+float32(r.ExpFloat64()))
				}
			}
		}
		c.Sort(latents)
		d := distinct(&c)
		var buf bytes.Buffer
		_, err := postings.Write(&buf, d, postings.Metadata{Segment: segment, FirstSequence: first, Sequences: count, Latents: latents})
		require.NoError(b, err)
		a, err := postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
		require.NoError(b, err)
		in.Artifacts = append(in.Artifacts, a)
		rows += a.Rows()
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	examples := 0
	stop, peak := watchHeap()
	cpu := cpuTime(b)
	b.ResetTimer()
	for range b.N {
		examples = 0
		_, err := fold.Run(context.Background(), in, func(l *fold.Latent) error {
			examples += len(l.Examples)
			return nil
		})
		require.NoError(b, err)
	}
	b.StopTimer()
	close(stop)
	b.ReportMetric((cpuTime(b)-cpu).Seconds()/float64(b.N), "CPU-s/op") // the machine may be loaded
	b.ReportMetric(float64(rows)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpostings/s")
	b.ReportMetric(float64(rows)/1e6, "Mpostings")
	b.ReportMetric(float64(examples), "examples")
	b.ReportMetric(float64(peak.Load()-before.HeapAlloc)/(1<<20), "MiB")
}

// distinct drops the second posting of a latent on a token.
func distinct(c *postings.Columns) *postings.Columns {
	d := &postings.Columns{}
	for i := range c.Len() {
		if i == 0 || c.Latent[i] != c.Latent[i-1] || c.Sequence[i] != c.Sequence[i-1] || c.Offset[i] != c.Offset[i-1] {
			d.Append(c.Latent[i], c.Sequence[i], c.Offset[i], c.Activation[i])
		}
	}
	return d
}

// cpuTime is what the process has used so far, on all cores.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// watchHeap looks at the heap ten times a second until stop is closed.
func watchHeap() (stop chan struct{}, peak *atomic.Uint64) {
	stop, peak = make(chan struct{}), &atomic.Uint64{}
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
			}
		}
	}()
	return stop, peak
}
