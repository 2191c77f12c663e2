package worker

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/corpus"
	corpora "github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/sae"
)

// shelf stores a corpus of so many chunks, of 0 to 4 sequences each, and gives it with its tokens.
func shelf(t *testing.T, chunks int) (*Worker, corpora.State, [][]int32) {
	t.Helper()
	store, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	var state corpora.State
	var all [][]int32
	for i := range chunks {
		c := &corpus.Chunk{Index: i}
		for range i % 5 {
			ids := slices.Repeat([]int32{int32(len(all))}, 1+len(all)%7)
			c.Sequences = append(c.Sequences, corpora.Sequence{Tokens: ids, Pieces: []corpora.Piece{{Row: int64(len(all)), CharEnd: 1}}})
			c.Tokens += int64(len(ids))
			all = append(all, ids)
		}
		var file bytes.Buffer
		sum, err := corpus.WriteShard(&file, "corpus", c)
		require.NoError(t, err)
		require.NoError(t, store.Put(t.Context(), blob.FileKey(sum.FileSHA256), &file))
		state = state.Evolve(corpora.ChunkBuilt{Chunk: i, FirstSequence: state.Sequences, Sequences: len(c.Sequences), Tokens: c.Tokens, SHA256: sum.FileSHA256})
	}
	w := New(nil, nil, store, nil, idle{}, "w")
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	return w, state, all
}

func TestOfACorpusOfManyChunksFewAreOpen(t *testing.T) {
	t.Parallel()
	w, state, all := shelf(t, 3*mostShards)
	var readers sync.WaitGroup
	for g := range 4 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 60 {
				first := r.IntN(len(all))
				count := r.IntN(len(all) - first)
				i := first
				for s := range w.sequences(t.Context(), state, first, count) {
					if s.err != nil || !slices.Equal(s.sequence.Tokens, all[i]) {
						t.Errorf("sequence %d: %v, %v", i, s.sequence.Tokens, s.err)
						return
					}
					if i++; i-first == 40 {
						break // as a job that is stopped
					}
				}
				if i-first != min(count, 40) {
					t.Errorf("%d of %d sequences came", i-first, count)
				}
				n, err := w.tokens(t.Context(), state, first, count)
				want := int64(0)
				for _, ids := range all[first : first+count] {
					want += int64(len(ids))
				}
				if err != nil || n != want {
					t.Errorf("%d tokens, not %d: %v", n, want, err)
				}
			}
		})
	}
	readers.Wait()
	require.LessOrEqual(t, len(w.shards.open), mostShards)
	for _, s := range w.shards.open {
		require.Zero(t, s.readers)
	}
	for s := range w.sequences(t.Context(), state, len(all)-1, 2) {
		require.ErrorContains(t, s.err, fmt.Sprintf("which has %d", len(all)))
	}
	lost := state
	lost.Chunks = slices.Clone(state.Chunks)
	lost.Chunks[1].SHA256 = "0000"
	for s := range w.sequences(t.Context(), lost, 0, 1) {
		var f *Failure
		require.ErrorAs(t, s.err, &f)
		require.Equal(t, "files_missing", f.Code)
	}
}

func TestAPlanThatHasNoRoomFailsWithTheNumberThatHas(t *testing.T) {
	t.Parallel()
	w := New(nil, nil, nil, nil, idle{}, "w")
	lay := func(wanted int) (extraction.Planned, error) {
		in := inputs{sae: sae.Facts{ContextLength: 1024}, extraction: extraction.State{Wanted: wanted, Status: extraction.Queued,
			SelfTest: &extraction.SelfTested{SelfTest: extraction.SelfTest{L0All: 1000}}}} // 8 sequences of 1,024 tokens are 8 Mi postings
		built := corpora.State{Request: corpora.Requested{ID: "c"}}.Evolve(corpora.ChunkBuilt{Sequences: wanted, Tokens: 1024 * int64(wanted)})
		return w.layOut(t.Context(), in, built)
	}
	const most = 8 * extraction.MaxSegments
	_, err := lay(most + 1)
	var f *Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, "too_many_segments", f.Code)
	require.False(t, f.Resumable, "trying again cannot mend it")
	require.Contains(t, f.Detail, fmt.Sprint(most))
	planned, err := lay(most)
	require.NoError(t, err)
	require.Equal(t, extraction.MaxSegments, planned.Part.Segments())
	require.Equal(t, extraction.Part{Sequences: most, SequencesPerSegment: 8, Tokens: most * 1024}, planned.Part)
	require.Equal(t, 4, planned.BatchSize)
}
