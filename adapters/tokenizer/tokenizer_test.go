//go:build cgo

package tokenizer

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/domain/corpus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden is what testdata/golden.py wrote about one text.
type golden struct {
	ids, offsets, withSpecials []int32
	mask                       []int
}

func gunzip(t testing.TB, name string) []byte {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", name))
	require.NoError(t, err)
	defer file.Close()
	r, err := gzip.NewReader(file)
	require.NoError(t, err)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	return data
}

func lines(t *testing.T, name string) [][]byte {
	t.Helper()
	var out [][]byte
	s := bufio.NewScanner(bytes.NewReader(gunzip(t, name)))
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		out = append(out, bytes.Clone(s.Bytes()))
	}
	require.NoError(t, s.Err())
	return out
}

// hostileTexts are texts that tokenizers get wrong, and byte strings that are not UTF-8.
func hostileTexts(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, line := range lines(t, "texts.jsonl.gz") {
		var encoded string
		require.NoError(t, json.Unmarshal(line, &encoded))
		text, err := base64.StdEncoding.DecodeString(encoded)
		require.NoError(t, err)
		out = append(out, string(text))
	}
	require.GreaterOrEqual(t, len(out), 400)
	return out
}

func goldens(t *testing.T, name string) []golden {
	t.Helper()
	var out []golden
	for _, line := range lines(t, name+".golden.jsonl.gz") {
		var g golden
		require.NoError(t, json.Unmarshal(line, &[]any{&g.ids, &g.offsets, &g.withSpecials, &g.mask}))
		out = append(out, g)
	}
	return out
}

func smollm2(t testing.TB) checkpoint.GGUFTokenizer {
	t.Helper()
	var facts struct {
		Model      string
		Pre        string
		Tokens     []string
		TokenTypes []int32 `json:"token_types"`
		Merges     []string
		BOS, EOS   *int
		AddBOS     *bool `json:"add_bos"`
	}
	require.NoError(t, json.Unmarshal(gunzip(t, "smollm2.facts.json.gz"), &facts))
	return checkpoint.GGUFTokenizer{Model: facts.Model, Pre: facts.Pre, Tokens: facts.Tokens, Types: facts.TokenTypes, Merges: facts.Merges, BOS: facts.BOS, EOS: facts.EOS, AddBOS: facts.AddBOS}
}

// real returns a real tokenizer file, too large to be kept here, from where testdata/fetch.sh puts it (make test
// runs that first).
func real(t testing.TB, name string) []byte {
	t.Helper()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	data, err := os.ReadFile(filepath.Join(cache, "featuremill", "tokenizers", name))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("%s is not there: adapters/tokenizer/testdata/fetch.sh fetches it", name)
	}
	require.NoError(t, err)
	return data
}

func requireGolden(t *testing.T, data []byte, name string) {
	t.Helper()
	requireGoldenUnless(t, data, name, func(string) bool { return false })
}

// requireGoldenUnless leaves out texts, and returns how many.
func requireGoldenUnless(t *testing.T, data []byte, name string, left func(text string) bool) (out int) {
	t.Helper()
	tk, err := LoadBytes(data)
	require.NoError(t, err)
	defer func() { require.NoError(t, tk.Close()) }()
	texts, want := hostileTexts(t), goldens(t, name)
	require.Len(t, want, len(texts))
	batch, err := tk.EncodeBatch(t.Context(), texts)
	require.NoError(t, err)
	for i, text := range texts {
		if left(text) {
			out++
			continue
		}
		offsets := make([]int32, 0, 2*len(batch[i].Offsets))
		for _, o := range batch[i].Offsets {
			offsets = append(offsets, o[0], o[1])
		}
		require.Equal(t, want[i].ids, batch[i].IDs, "ids of %q", text)
		require.Equal(t, want[i].offsets, offsets, "offsets of %q", text)

		full, err := tk.Encode(text, true)
		require.NoError(t, err)
		require.Equal(t, want[i].withSpecials, full.IDs, "ids with specials of %q", text)
		for j, special := range full.Special {
			require.Equal(t, want[i].mask[j] != 0, special)
		}
	}
	return out
}

func TestHostileTextsEncodeAsInPython(t *testing.T) {
	t.Parallel()
	t.Run("SmolLM2, built from its GGUF", func(t *testing.T) {
		t.Parallel()
		data, err := FromGGUF(smollm2(t))
		require.NoError(t, err)
		requireGolden(t, data, "smollm2")
	})
	for _, name := range []string{"wordpiece", "unigram", "bytefallback"} {
		t.Run("a small "+name+" tokenizer", func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(filepath.Join("testdata", name+".tokenizer.json"))
			require.NoError(t, err)
			requireGolden(t, data, name)
		})
	}
	for _, name := range []string{"gpt2", "llama2", "llama3", "qwen2_5", "qwen3", "gemma2", "gemma3", "mistral", "nemo", "phi3"} {
		t.Run("the real "+name+" tokenizer", func(t *testing.T) {
			t.Parallel()
			requireGolden(t, real(t, name+".tokenizer.json"), name)
		})
	}
}

func TestVocabularyKeepsPiecesAndKnowsTheirText(t *testing.T) {
	t.Parallel()
	facts := smollm2(t)
	data, err := FromGGUF(facts)
	require.NoError(t, err)
	tk, err := LoadBytes(data)
	require.NoError(t, err)
	defer tk.Close()
	require.Equal(t, len(facts.Tokens), tk.VocabularySize())
	byPiece := map[string]corpus.Token{}
	for id, token := range tk.Vocabulary() {
		require.Equal(t, facts.Tokens[id], token.Piece)
		require.Equal(t, facts.Types[id] == ggufControl, token.Special)
		byPiece[token.Piece] = token
	}
	require.Equal(t, corpus.Token{Piece: "Ġbank", Text: " bank"}, byPiece["Ġbank"])
	require.Equal(t, corpus.Token{Piece: "ing", Text: "ing", Continues: true}, byPiece["ing"])
	require.Equal(t, corpus.Token{Piece: "Ċ", Text: "\n"}, byPiece["Ċ"])
	require.Equal(t, corpus.Token{Piece: "<|endoftext|>", Text: "<|endoftext|>", Special: true}, byPiece["<|endoftext|>"])

	text := "Naïve café: 你好 😀, and 3 tokens"
	e, err := tk.Encode(text, true)
	require.NoError(t, err)
	var joined strings.Builder
	for _, id := range e.IDs {
		joined.WriteString(tk.Vocabulary()[id].Text)
	}
	require.Equal(t, text, joined.String(), "the tokens' texts join to the text, split characters included")
}

func TestPiecesOfOtherKindsAreRead(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind  appearance
		piece string
		want  corpus.Token
	}{
		{metaspace, "▁the", corpus.Token{Piece: "▁the", Text: " the"}},
		{metaspace, "the", corpus.Token{Piece: "the", Text: "the", Continues: true}},
		{metaspace, "<0x0A>", corpus.Token{Piece: "<0x0A>", Text: "\n"}},
		{metaspace, "<0x9F>", corpus.Token{Piece: "<0x9F>", Text: "\x9f", Continues: true}},
		{wordPiece, "##ing", corpus.Token{Piece: "##ing", Text: "ing", Continues: true}},
		{wordPiece, "bank", corpus.Token{Piece: "bank", Text: " bank"}},
		{wordPiece, "##", corpus.Token{Piece: "##", Text: " ##"}},
		{byteLevel, "\u0143", corpus.Token{Piece: "\u0143", Text: "\xad", Continues: true}},
		{byteLevel, "Ģ", corpus.Token{Piece: "Ģ", Text: "\x80", Continues: true}},
		{plain, "x", corpus.Token{Piece: "x", Text: "x"}},
	} {
		require.Equal(t, c.want, c.kind.token(c.piece, false))
	}
}

func TestUnusableTokenizersAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ data, want string }{
		"an empty file":                  {"", "not JSON"},
		"a truncated file":               {`{"model": {"type": "BPE", "vo`, "not JSON"},
		"another JSON file":              {`{"bos_token": "<s>"}`, `no "model"`},
		"an array":                       {`[1]`, "not a tokenizer.json"},
		"an unknown model":               {`{"version":"1.0","added_tokens":[],"model":{"type":"Nope"}}`, "unusable tokenizer"},
		"random tokenisation":            {`{"version":"1.0","model":{"type":"BPE","dropout":0.1,"vocab":{},"merges":[]}}`, "dropout"},
		"a merge of what nobody has":     {`{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[["a","b"]]}}`, "out of vocabulary"},
		"an id that would take all RAM":  {`{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":4000000000},"merges":[]}}`, "4194304"},
		"a regular expression that ends": {`{"version":"1.0","added_tokens":[],"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated","invert":false},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}`, "unusable tokenizer"}, //nolint:misspell // a word of the format
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := LoadBytes([]byte(c.data))
			var format *FormatError
			require.ErrorAs(t, err, &format)
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := Load(filepath.Join(t.TempDir(), "none.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestAClosedTokenizerSaysSo(t *testing.T) {
	t.Parallel()
	tk, err := Load(filepath.Join("testdata", "wordpiece.tokenizer.json"))
	require.NoError(t, err)
	require.NoError(t, tk.Close())
	require.NoError(t, tk.Close())
	_, err = tk.Encode("text", true)
	require.ErrorIs(t, err, ErrClosed)
}

func TestPaddingAndTruncationOfTheFileAreCleared(t *testing.T) {
	t.Parallel()
	tk, err := Load(filepath.Join("testdata", "wordpiece.tokenizer.json")) // saved with both set to 8
	require.NoError(t, err)
	defer tk.Close()
	long, err := tk.Encode(strings.Repeat("the river ", 100), true)
	require.NoError(t, err)
	require.Greater(t, len(long.IDs), 200)
	short, err := tk.Encode("the", true)
	require.NoError(t, err)
	require.Less(t, len(short.IDs), 8)
}

func BenchmarkEncodeBatch(b *testing.B) {
	facts := smollm2(b)
	data, err := FromGGUF(facts)
	require.NoError(b, err)
	tk, err := LoadBytes(data)
	require.NoError(b, err)
	defer tk.Close()
	text := strings.Repeat("Fellow citizens of the Senate and House of Representatives: the state of the Union, in 1862, is as follows.\n", 40)
	texts := make([]string, 64)
	for i := range texts {
		texts[i] = text
	}
	tokens := 0
	b.SetBytes(int64(len(text) * len(texts)))
	for b.Loop() {
		out, err := tk.EncodeBatch(b.Context(), texts)
		require.NoError(b, err)
		for _, e := range out {
			tokens += len(e.IDs)
		}
	}
	b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
}

func TestAGGUFThatAsksForABOSGetsOne(t *testing.T) {
	t.Parallel()
	g, yes := smallGGUF(), true
	g.AddBOS, g.AddEOS, g.EOS = &yes, &yes, g.BOS
	data, err := FromGGUF(g)
	require.NoError(t, err)
	tk, err := LoadBytes(data)
	require.NoError(t, err)
	defer tk.Close()
	e, err := tk.Encode("ab<s>b", true)
	require.NoError(t, err)
	require.Equal(t, []int32{1, 3, 1, 2, 1}, e.IDs)
	require.Equal(t, []bool{true, false, false, false, true}, e.Special, "a special token of the text is text")
}
