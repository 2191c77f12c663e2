//go:build cgo

package tokenizer

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

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

// The law of a corpus, with a real tokenizer on text that is hard to cut: each piece is the row's own tokens, and
// its place in the row's text is where they came from.
func TestACorpusOfHostileTextPointsBackIntoIt(t *testing.T) {
	t.Parallel()
	data, err := FromGGUF(smollm2(t))
	require.NoError(t, err)
	tk, err := LoadBytes(data)
	require.NoError(t, err)
	defer tk.Close()
	var lines bytes.Buffer
	rows := json.NewEncoder(&lines)
	for _, text := range hostileTexts(t) {
		require.NoError(t, rows.Encode(map[string]string{"text": text}))
	}
	path := filepath.Join(t.TempDir(), "hostile.jsonl")
	require.NoError(t, os.WriteFile(path, lines.Bytes(), 0o600))
	d, err := corpus.OpenDataset(path, corpus.DatasetOptions{})
	require.NoError(t, err)
	defer d.Close()

	for _, mode := range []corpus.Mode{corpus.Documents, corpus.Packed} {
		chunk, err := corpus.Build(t.Context(), d, tk, corpus.Options{Mode: mode, ContextLength: 64, PrependBOS: true, BOSID: 1}, 0)
		require.NoError(t, err)
		require.Greater(t, chunk.Tokens, int64(10_000))
		var file bytes.Buffer
		_, err = corpus.WriteShard(&file, "corpus", chunk)
		require.NoError(t, err)
		shard, err := corpus.OpenShard(bytes.NewReader(file.Bytes()), int64(file.Len()))
		require.NoError(t, err)
		taken, compared := map[int64]int{}, 0
		for i := range shard.Sequences() {
			s, err := shard.Sequence(i)
			require.NoError(t, err)
			for p, piece := range s.Pieces {
				row, err := d.Row(piece.Row)
				require.NoError(t, err)
				e, err := tk.Encode(row.Text, false)
				require.NoError(t, err)
				end := len(s.Tokens)
				if p+1 < len(s.Pieces) {
					end = s.Pieces[p+1].Token - 1 // the separator
				} else if len(s.Inserted) > 1 && s.Inserted[len(s.Inserted)-1] == end-1 {
					end--
				}
				from := taken[piece.Row]
				to := from + end - piece.Token
				require.Equal(t, e.IDs[from:to], s.Tokens[piece.Token:end], "row %d", piece.Row)
				taken[piece.Row] = to
				if textOf(tk, e.IDs) != row.Text {
					// Bytes that the vocabulary lacks are dropped, and the library's offsets behind them are short.
					continue
				}
				if text := textOf(tk, e.IDs[from:to]); utf8.ValidString(text) { // else the cut goes through a character
					require.Equal(t, string([]rune(row.Text)[piece.CharStart:piece.CharEnd]), text)
					compared++
				}
			}
		}
		require.Greater(t, compared, 300)
	}
}

func textOf(tk *Tokenizer, ids []int32) string {
	var text strings.Builder
	for _, id := range ids {
		text.WriteString(tk.Vocabulary()[id].Text)
	}
	return text.String()
}

func FuzzEncode(f *testing.F) {
	data, err := FromGGUF(smollm2(f))
	require.NoError(f, err)
	tk, err := LoadBytes(data)
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, tk.Close()) })
	f.Add([]byte("<|im_start|> café 😀\xff\r\n 123"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := tk.Encode(string(text), true)
		require.NoError(t, err)
		length := int32(len([]rune(strings.ToValidUTF8(string(text), "\ufffd")))) + int32(len(text))
		for i, id := range e.IDs {
			require.True(t, id >= 0 && int(id) < tk.VocabularySize())
			require.True(t, e.Offsets[i][0] <= e.Offsets[i][1] && e.Offsets[i][1] <= length)
		}
	})
}

func FuzzLoad(f *testing.F) {
	for _, name := range []string{"wordpiece", "unigram", "bytefallback"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".tokenizer.json"))
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`{"version":"1.0","added_tokens":[{"id":1,"content":"<s>","single_word":false,"lstrip":true,"rstrip":false,"normalized":false,"special":true}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"post_processor":null,"decoder":null,"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tk, err := LoadBytes(data)
		if err != nil {
			return
		}
		_, _ = tk.Encode("The café, 123 😀 <s>", true)
		require.NoError(t, tk.Close())
	})
}
