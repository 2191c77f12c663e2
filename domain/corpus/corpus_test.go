package corpus_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/corpus"
)

// Whatever state goes on from whatever other: each has the chunks that it was given.
func TestEveryStateOfACorpusKeepsItsChunks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		states, plain := []corpus.State{{}}, [][]corpus.ChunkBuilt{nil}
		for i := range rapid.IntRange(1, 80).Draw(t, "steps") {
			from := max(0, len(states)-1-rapid.IntRange(0, 3).Draw(t, "back"))
			c := corpus.ChunkBuilt{Chunk: len(plain[from]), Sequences: 1, Tokens: int64(i)}
			states = append(states, states[from].Evolve(c))
			plain = append(plain, append(plain[from][:len(plain[from]):len(plain[from])], c))
		}
		for i, s := range states {
			require.Equal(t, len(plain[i]), len(s.Chunks))
			for j, c := range s.Chunks {
				require.Equal(t, plain[i][j], c)
			}
		}
	})
}

func TestManyGoOnFromOneState(t *testing.T) {
	t.Parallel()
	var shared corpus.State
	for i := range 9 {
		shared = shared.Evolve(corpus.ChunkBuilt{Chunk: i})
	}
	var wg sync.WaitGroup
	ends := make([]corpus.State, 8)
	for w := range ends {
		wg.Go(func() {
			s := shared
			for range 100 {
				s = s.Evolve(corpus.ChunkBuilt{Chunk: len(s.Chunks), Tokens: int64(w)})
			}
			ends[w] = s
		})
	}
	wg.Wait()
	for w, s := range ends {
		require.Len(t, s.Chunks, 109)
		require.EqualValues(t, 100*w, s.Tokens)
		for _, c := range s.Chunks[9:] {
			require.EqualValues(t, w, c.Tokens)
		}
	}
}

// Twice the chunks are twice the memory.
func TestACorpusIsFoldedInMemoryInProportionToItsChunks(t *testing.T) {
	taken := func(chunks int) float64 {
		return testing.AllocsPerRun(1, func() {
			var s corpus.State
			for i := range chunks {
				s = s.Evolve(corpus.ChunkBuilt{Chunk: i})
			}
		}) - float64(chunks) // the event in its interface
	}
	require.Less(t, taken(4096), 100.0, "a copy is made each time that the number has doubled, not for each chunk")
}
