package corpus

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/corpus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// toyTokenizer cuts text into runs of letters (with the space before), and every other character into its bytes,
// so that several tokens can share one character, as in byte-level BPE.
type toyTokenizer struct{}

const toyVocabulary = 1 << 20

func (toyTokenizer) Digest() string      { return strings.Repeat("ab", 32) }
func (toyTokenizer) VocabularySize() int { return toyVocabulary }

func (t toyTokenizer) EncodeBatch(_ context.Context, texts []string) ([]corpus.Encoding, error) {
	out := make([]corpus.Encoding, len(texts))
	for i, text := range texts {
		out[i] = t.encode(text)
	}
	return out, nil
}

func (toyTokenizer) encode(text string) corpus.Encoding {
	e := corpus.Encoding{Offsets: [][2]int32{}}
	runes := []rune(text)
	for i := 0; i < len(runes); {
		to := i + 1
		for to < len(runes) && unicode.IsLetter(runes[to]) && runes[to] < 0x80 && (unicode.IsLetter(runes[i]) || runes[i] == ' ') && to-i < 6 {
			to++
		}
		piece := string(runes[i:to])
		if to == i+1 && len(piece) > 1 {
			for _, b := range []byte(piece) {
				e.IDs = append(e.IDs, int32(b))
				e.Offsets = append(e.Offsets, [2]int32{int32(i), int32(to)})
			}
		} else {
			id := int32(0)
			for _, r := range piece {
				id = id*31 + r
			}
			e.IDs = append(e.IDs, 256+(id&0x7ffff))
			e.Offsets = append(e.Offsets, [2]int32{int32(i), int32(to)})
		}
		i = to
	}
	return e
}

// memory is a dataset in memory.
type memory []Row

func (m memory) rows() int64                            { return int64(len(m)) }
func (m memory) columns() []column                      { return []column{{name: "text"}} }
func (m memory) reader(string, bool) (rowReader, error) { return m, nil }
func (m memory) read(i int64, _ bool) (Row, error)      { return m[i], nil }
func (m memory) close() error                           { return nil }

func datasetOf(texts ...string) *Dataset {
	rows := make(memory, len(texts))
	for i, text := range texts {
		rows[i] = Row{Text: text}
	}
	return &Dataset{path: "memory", files: []dataFile{rows}, starts: []int64{0}, rows: int64(len(rows)), column: "text"}
}

func datasetOfTokens(rows ...[]int32) *Dataset {
	d := datasetOf(make([]string, len(rows))...)
	for i, ids := range rows {
		d.files[0].(memory)[i] = Row{Tokens: ids}
	}
	d.tokens = true
	return d
}

func genTexts(t *rapid.T) []string {
	alphabet := rapid.SampledFrom([]rune("aaabcde     éß你😀.\n"))
	n := rapid.IntRange(1, 40).Draw(t, "rows")
	texts := make([]string, n)
	for i := range texts {
		texts[i] = rapid.StringOfN(alphabet, 0, 200, -1).Draw(t, "text")
	}
	return texts
}

func genOptions(t *rapid.T) Options {
	o := Options{
		Mode:          rapid.SampledFrom([]Mode{Documents, Packed}).Draw(t, "mode"),
		ContextLength: rapid.IntRange(2, 70).Draw(t, "context"),
		PrependBOS:    rapid.Bool().Draw(t, "bos"),
		BOSID:         3,
		MinRest:       rapid.SampledFrom([]int{0, 1, 5}).Draw(t, "rest"),
		Seed:          rapid.Uint64().Draw(t, "seed"),
	}
	if rapid.Bool().Draw(t, "separated") {
		separator := int32(7)
		o.SeparatorID = &separator
	}
	return o
}

func TestEverySequenceIsTokensOfItsRowsAndWhatWasInserted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		texts, o := genTexts(t), genOptions(t)
		chunk, err := Build(t.Context(), datasetOf(texts...), toyTokenizer{}, o, 0)
		require.NoError(t, err)
		o, err = o.resolved()
		require.NoError(t, err)

		taken := make([]int, len(texts)) // tokens of each row that came so far
		var tokens int64
		for i, s := range chunk.Sequences {
			require.Empty(t, invalid(s))
			require.LessOrEqual(t, len(s.Tokens), o.ContextLength)
			if len(s.Tokens) < o.ContextLength {
				require.GreaterOrEqual(t, len(s.Tokens)-len(s.Inserted), o.MinRest)
				require.True(t, o.Mode == Documents || i == len(chunk.Sequences)-1, "only a chunk's last packed sequence is short")
			}
			tokens += int64(len(s.Tokens))
			inserted := map[int]bool{}
			for _, at := range s.Inserted {
				inserted[at] = true
				if at == 0 {
					require.True(t, o.PrependBOS)
					require.Equal(t, o.BOSID, s.Tokens[at])
				} else {
					require.Equal(t, *o.SeparatorID, s.Tokens[at])
					require.False(t, inserted[at-1], "a separator right after the BOS or another separator")
				}
			}
			require.Equal(t, o.PrependBOS, inserted[0])
			require.True(t, o.Mode == Packed || len(s.Pieces) == 1, "documents never share a sequence")
			for p, piece := range s.Pieces {
				end := len(s.Tokens)
				if p+1 < len(s.Pieces) {
					end = s.Pieces[p+1].Token
				}
				for end > piece.Token && inserted[end-1] {
					end--
				}
				// The piece's place in the row's text re-tokenises to its tokens.
				e := toyTokenizer{}.encode(texts[piece.Row])
				from := taken[piece.Row]
				to := from + end - piece.Token
				require.Equal(t, e.IDs[from:to], s.Tokens[piece.Token:end])
				require.EqualValues(t, e.Offsets[to-1][1], piece.CharEnd)
				require.GreaterOrEqual(t, piece.CharStart, int64(e.Offsets[from][0]))
				taken[piece.Row] = to
			}
		}
		require.Equal(t, tokens, chunk.Tokens)
	})
}

func TestEveryCharacterIsInOnePieceExceptDroppedRests(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		texts, o := genTexts(t), genOptions(t)
		o.Mode = Documents
		chunk, err := Build(t.Context(), datasetOf(texts...), toyTokenizer{}, o, 0)
		require.NoError(t, err)
		o, _ = o.resolved()
		room := o.ContextLength
		if o.PrependBOS {
			room--
		}
		at := make([]int64, len(texts))
		for _, s := range chunk.Sequences {
			p := s.Pieces[0]
			require.Equal(t, at[p.Row], p.CharStart, "pieces follow one another without gap or overlap")
			at[p.Row] = p.CharEnd
		}
		dropped := int64(0)
		for row, text := range texts {
			e := toyTokenizer{}.encode(text)
			rest := len(e.IDs) % room
			if rest >= o.MinRest {
				rest = 0
			}
			dropped += int64(rest)
			if kept := len(e.IDs) - rest; kept == 0 {
				require.Zero(t, at[row])
			} else {
				require.EqualValues(t, e.Offsets[kept-1][1], at[row])
			}
		}
		require.Equal(t, dropped, chunk.Dropped.Tokens)
	})
}

func TestALongerRunKeepsTheSequencesOfAShorterOne(t *testing.T) {
	t.Parallel()
	texts := make([]string, 2*ChunkRows+300)
	for i := range texts {
		texts[i] = strings.Repeat(fmt.Sprintf("speech %d of the union ", i), 1+i%5)
	}
	d := datasetOf(texts...)
	require.Equal(t, 3, Chunks(d))
	for _, mode := range []Mode{Documents, Packed} {
		o := Options{Mode: mode, ContextLength: 32, PrependBOS: true, BOSID: 1, Seed: 9}
		seen := map[int64]int{}
		for index := range 3 {
			first, err := Build(t.Context(), d, toyTokenizer{}, o, index)
			require.NoError(t, err)
			again, err := Build(t.Context(), d, toyTokenizer{}, o, index)
			require.NoError(t, err)
			require.Equal(t, first, again, "a chunk depends on nothing but its number")
			for _, s := range first.Sequences {
				for _, p := range s.Pieces {
					chunk, ok := seen[p.Row]
					require.True(t, !ok || chunk == index, "row %d is in chunks %d and %d", p.Row, chunk, index)
					seen[p.Row] = index
				}
			}
		}
		require.Greater(t, len(seen), ChunkRows)
	}
	_, err := Build(t.Context(), d, toyTokenizer{}, Options{ContextLength: 32}, 3)
	require.ErrorContains(t, err, "chunk 3 is not in the corpus, which has 3 chunks")
}

func TestTheFirstSequencesAreThoseOfChunkZero(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d, o := datasetOf(genTexts(t)...), genOptions(t)
		chunk, err := Build(t.Context(), d, toyTokenizer{}, o, 0)
		require.NoError(t, err)
		wanted := rapid.Int64Range(0, 2*chunk.Tokens).Draw(t, "tokens")
		first, err := First(t.Context(), d, toyTokenizer{}, o, wanted)
		require.NoError(t, err)
		if len(first) > 0 {
			require.Equal(t, chunk.Sequences[:len(first)], first)
		}
		var tokens int64
		for _, s := range first {
			tokens += int64(len(s.Tokens))
		}
		require.GreaterOrEqual(t, tokens, min(wanted, chunk.Tokens))
	})
}

func TestThePermutationIsASeededOrderOfAllRows(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64Range(1, 3000).Draw(t, "n")
		p := newPermutation(n, rapid.Uint64().Draw(t, "seed"))
		seen := make([]bool, n)
		for i := range n {
			x := p.at(i)
			require.Less(t, x, n)
			require.False(t, seen[x])
			seen[x] = true
		}
	})
	// Its values are part of the identity of every corpus that was ever built.
	var got []uint64
	for i := range uint64(8) {
		got = append(got, newPermutation(1000, 42).at(i))
	}
	require.Equal(t, []uint64{177, 859, 528, 440, 483, 33, 185, 554}, got)
}

func TestRowsOfTokensKeepTheirBOSOnce(t *testing.T) {
	t.Parallel()
	row := []int32{1, 10, 11, 12, 13}
	chunk, err := Build(t.Context(), datasetOfTokens(row, row[1:]), nil, Options{ContextLength: 5, PrependBOS: true, BOSID: 1}, 0)
	require.NoError(t, err)
	require.Len(t, chunk.Sequences, 2)
	for _, s := range chunk.Sequences {
		require.Equal(t, row, s.Tokens)
		require.Equal(t, []int{0}, s.Inserted)
		require.Equal(t, 1, s.Pieces[0].Token)
		require.EqualValues(t, -1, s.Pieces[0].CharStart, "no text, no place in it")
	}
	_, err = Build(t.Context(), datasetOfTokens([]int32{5, toyVocabulary}), toyTokenizer{}, Options{ContextLength: 5}, 0)
	require.ErrorContains(t, err, "row 0 has the token id 1048576 at 1; the tokenizer's vocabulary has 1048576")
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	t.Parallel()
	negative := int32(-1)
	for want, o := range map[string]Options{
		`mode "pack" is not known`: {Mode: "pack", ContextLength: 8},
		"no room for text":         {ContextLength: 1, PrependBOS: true},
		"is more than 65536":       {ContextLength: 65537},
		"min rest is -1":           {ContextLength: 8, MinRest: -1},
		"BOS id is -1":             {ContextLength: 8, PrependBOS: true, BOSID: -1},
		"separator id is -1":       {ContextLength: 8, Mode: Packed, SeparatorID: &negative},
		"outside the tokenizer's":  {ContextLength: 8, PrependBOS: true, BOSID: toyVocabulary},
	} {
		_, err := Build(t.Context(), datasetOf("text"), toyTokenizer{}, o, 0)
		require.ErrorContains(t, err, want)
	}
	_, err := Build(t.Context(), datasetOf("text"), nil, Options{ContextLength: 8}, 0)
	require.ErrorContains(t, err, "needs a tokenizer")
}

func TestTheIdentityIsThatOfWhatTheOptionsMean(t *testing.T) {
	t.Parallel()
	dataset, tokenizer := strings.Repeat("01", 32), strings.Repeat("02", 32)
	base := Options{ContextLength: 128}
	id := func(o Options) string {
		out, err := identity(dataset, tokenizer, "text", 0, o)
		require.NoError(t, err)
		return out
	}
	bos := int32(5)
	require.Equal(t, id(base), id(Options{ContextLength: 128, Mode: Documents, MinRest: 16, BOSID: 9}), "defaults written out, and what has no effect")
	require.Equal(t, id(Options{ContextLength: 128, Mode: Packed, PrependBOS: true, BOSID: 5}), id(Options{ContextLength: 128, Mode: Packed, PrependBOS: true, BOSID: 5, SeparatorID: &bos}))
	different := map[string]bool{id(base): true}
	for _, o := range []Options{{ContextLength: 64}, {ContextLength: 128, Mode: Packed}, {ContextLength: 128, PrependBOS: true}, {ContextLength: 128, Seed: 1}, {ContextLength: 128, MinRest: 1}} {
		require.False(t, different[id(o)])
		different[id(o)] = true
	}
	_, err := identity("xyz", tokenizer, "text", 0, base)
	require.ErrorContains(t, err, "no sha256")
}

func buildShard(t require.TestingT, sequences ...corpus.Sequence) (*Chunk, []byte, ShardSummary) {
	c := &Chunk{Index: 0, Sequences: sequences}
	for _, s := range sequences {
		c.Tokens += int64(len(s.Tokens))
	}
	var file bytes.Buffer
	summary, err := WriteShard(&file, "corpus", c)
	require.NoError(t, err)
	return c, file.Bytes(), summary
}

func TestAShardGivesBackItsSequences(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		chunk, err := Build(t.Context(), datasetOf(genTexts(t)...), toyTokenizer{}, genOptions(t), 0)
		require.NoError(t, err)
		_, file, summary := buildShard(t, chunk.Sequences...)
		_, again, _ := buildShard(t, chunk.Sequences...)
		require.True(t, bytes.Equal(file, again), "the same bytes each time")
		require.EqualValues(t, len(file), summary.Bytes)

		s, err := OpenShard(bytes.NewReader(file), int64(len(file)))
		require.NoError(t, err)
		require.Equal(t, ShardMetadata{Corpus: "corpus", Sequences: len(chunk.Sequences), Tokens: chunk.Tokens, ContentSHA256: summary.ContentSHA256}, s.Metadata())
		for i, want := range chunk.Sequences {
			got, err := s.Sequence(i)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		_, err = s.Sequence(len(chunk.Sequences))
		require.Error(t, err)
	})
}

func TestManyReadersOfACorpusShareASmallCache(t *testing.T) {
	t.Parallel()
	var shards []*Shard
	var want []corpus.Sequence
	for chunk := range 3 {
		c := &Chunk{Index: chunk}
		for i := range 2000 {
			s := corpus.Sequence{Tokens: make([]int32, 128), Pieces: []corpus.Piece{{Row: int64(i)}}, Inserted: []int{0}}
			for k := range s.Tokens {
				s.Tokens[k] = int32((chunk*7919 + i*31 + k) % 50000)
			}
			c.Sequences, c.Tokens = append(c.Sequences, s), c.Tokens+128
		}
		path := filepath.Join(t.TempDir(), "shard.parquet")
		file, err := os.Create(path)
		require.NoError(t, err)
		_, err = WriteShard(file, "corpus", c)
		require.NoError(t, err)
		require.NoError(t, file.Close())
		s, err := OpenShardFile(path)
		require.NoError(t, err)
		shards = append([]*Shard{s}, shards...)
		want = append(want, c.Sequences...)
	}
	c, err := NewCorpus(shards...)
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	require.Equal(t, 6000, c.Sequences())
	require.EqualValues(t, 6000*128, c.Tokens())
	cache := c.shards[0].cache
	cache.budget = 400 << 10 // two of the row groups

	var readers sync.WaitGroup
	for g := range 4 {
		readers.Go(func() {
			for k := range 300 {
				i := (k*2477 + g*997) % 6000
				got, err := c.Sequence(i)
				if err != nil || got.Tokens[127] != want[i].Tokens[127] {
					t.Errorf("sequence %d: %v, %v", i, got, err)
					return
				}
			}
		})
	}
	readers.Wait()
	require.LessOrEqual(t, cache.used, cache.budget)
	require.Len(t, cache.entries, cache.recent.Len())

	_, err = NewCorpus(shards[0])
	require.ErrorContains(t, err, "chunk 0 of the corpus is not there")
}

// The digest of the content is in events and must never change; the bytes of a file may, with its encoder.
func TestAShardsDigestIsPinned(t *testing.T) {
	t.Parallel()
	chunk, err := Build(t.Context(), datasetOf("the union is strong and the river is long, again and again and again", "seventeen letters of words that go on and on and on and on"), toyTokenizer{}, Options{Mode: Packed, ContextLength: 12, PrependBOS: true, BOSID: 1, MinRest: 1}, 0)
	require.NoError(t, err)
	_, _, summary := buildShard(t, chunk.Sequences...)
	require.Equal(t, "9851252d369d78d6ec68b106879dade69ef633b661b49a65a7e006046caae133", summary.ContentSHA256)
}

func TestBrokenShardsAreRefused(t *testing.T) {
	t.Parallel()
	_, file, _ := buildShard(t, corpus.Sequence{Tokens: []int32{1, 2, 3}, Pieces: []corpus.Piece{{}}})
	for name, data := range map[string][]byte{
		"empty": {}, "truncated": file[:len(file)-9], "another format": []byte("PAR0 this is not it PAR1"),
	} {
		_, err := OpenShard(bytes.NewReader(data), int64(len(data)))
		var broken *FileError
		require.ErrorAs(t, err, &broken, name)
	}
	for want, s := range map[string]corpus.Sequence{
		"has 0 tokens":               {Pieces: []corpus.Piece{{}}},
		"has no piece":               {Tokens: []int32{1}},
		"has an inserted token at 1": {Tokens: []int32{1}, Pieces: []corpus.Piece{{}}, Inserted: []int{1}},
		"has the token id -4":        {Tokens: []int32{-4}, Pieces: []corpus.Piece{{}}},
		"has the piece":              {Tokens: []int32{1}, Pieces: []corpus.Piece{{Token: 1}}},
	} {
		_, file, _ := buildShard(t, s)
		shard, err := OpenShard(bytes.NewReader(file), int64(len(file)))
		require.NoError(t, err)
		_, err = shard.Sequence(0)
		require.ErrorContains(t, err, want)
	}
}

func TestAVocabularyComesBackByteForByte(t *testing.T) {
	t.Parallel()
	tokens := []corpus.Token{{Piece: "<s>", Text: "<s>", Special: true}, {Piece: "Ġbank", Text: " bank"}, {Piece: "##ing", Text: "ing", Continues: true}, {Piece: "ðŁĺ", Text: "\xf0\x9f\x98"}, {}}
	var file, again bytes.Buffer
	sum, err := WriteVocabulary(&file, "abc", tokens)
	require.NoError(t, err)
	sumAgain, err := WriteVocabulary(&again, "abc", tokens)
	require.NoError(t, err)
	require.Equal(t, sum, sumAgain)
	got, digest, err := ReadVocabulary(bytes.NewReader(file.Bytes()), int64(file.Len()))
	require.NoError(t, err)
	require.Equal(t, tokens, got)
	require.Equal(t, "abc", digest)
	_, _, err = ReadVocabulary(bytes.NewReader(nil), 0)
	require.Error(t, err)
}

func FuzzShard(f *testing.F) {
	chunk, err := Build(f.Context(), datasetOf("the union is strong and the river is long", "seventeen letters of words"), toyTokenizer{}, Options{ContextLength: 4, PrependBOS: true, BOSID: 1, MinRest: 1}, 0)
	require.NoError(f, err)
	_, file, _ := buildShard(f, chunk.Sequences...)
	f.Add(file)
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := OpenShard(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		for i := range min(s.Sequences(), 100) {
			if got, err := s.Sequence(i); err == nil {
				require.Empty(t, invalid(got))
			}
		}
	})
}

func FuzzVocabulary(f *testing.F) {
	var file bytes.Buffer
	_, err := WriteVocabulary(&file, "abc", []corpus.Token{{Piece: "<s>", Text: "<s>", Special: true}, {Piece: "Ġbank", Text: " bank"}})
	require.NoError(f, err)
	f.Add(file.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, _ = ReadVocabulary(bytes.NewReader(data), int64(len(data)))
	})
}
