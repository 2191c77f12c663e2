package corpus

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func put(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func open(t *testing.T, path string, o DatasetOptions) *Dataset {
	t.Helper()
	d, err := OpenDataset(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

func textsOf(t *testing.T, d *Dataset) []string {
	t.Helper()
	var rows []int64
	for i := range d.Rows() {
		rows = append(rows, i)
	}
	out := make([]string, len(rows))
	require.NoError(t, d.Read(t.Context(), rows, func(k int, r Row) error {
		require.Equal(t, rows[k], r.Index)
		out[k] = r.Text
		return nil
	}))
	return out
}

func TestJSONLinesAreRowsWithTheirOtherColumns(t *testing.T) {
	t.Parallel()
	path := put(t, t.TempDir(), "speeches.jsonl", "\ufeff{\"text\": \"a\\u00e9\\ud83d\\ude00\\u0000\", \"year\": 1862, \"share\": 0.5, \"by\": {\"name\": \"A\", \"n\": [1, 2.5]}}\r\n\n"+
		"  {\"year\": 1863, \"text\": \"caf\xe9 \\ud800\"}\n{\"text\": null}\n{}\n{\"text\": \"no end of line\"}")
	d := open(t, path, DatasetOptions{})
	require.Equal(t, "text", d.TextColumn())
	require.False(t, d.Tokenised())
	require.Equal(t, []string{"text", "year", "share", "by"}, d.Columns())
	require.Equal(t, []string{"aé😀\x00", "caf\ufffd \ufffd", "", "", "no end of line"}, textsOf(t, d))
	require.NoError(t, d.Check(t.Context()))

	row, err := d.Row(0)
	require.NoError(t, err)
	require.Equal(t, map[string]any{"year": int64(1862), "share": 0.5, "by": map[string]any{"name": "A", "n": []any{int64(1), 2.5}}}, row.Other)
	_, err = d.Row(5)
	require.ErrorContains(t, err, "row 5 is not in the dataset, which has 5 rows")

	require.EqualValues(t, 2, open(t, path, DatasetOptions{MaxRows: 2}).Rows())
	require.EqualValues(t, 5, open(t, path, DatasetOptions{MaxRows: 50}).Rows())
}

func TestATextFileIsCutAtItsBlankLines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content string
		rows    []string
	}{
		"paragraphs":               {"\n\none\ntwo\n \t\n\n\nthree\r\n\r\nfour", []string{"one\ntwo", "three", "four"}},
		"lines without a blank":    {"one\ntwo\nthree\n", []string{"one", "two", "three"}},
		"blank lines at both ends": {"\n\none\ntwo\n\n", []string{"one", "two"}},
		"one line":                 {"one", []string{"one"}},
		"broken UTF-8":             {"a\xff\xe2\x82b\n\nc", []string{"a\ufffd\ufffdb", "c"}},
	} {
		d := open(t, put(t, dir, name+".txt", c.content), DatasetOptions{})
		require.Equal(t, c.rows, textsOf(t, d), name)
	}
}

func TestAFolderOfTextFilesHasARowAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "1863.txt", "second\n\nspeech\n")
	put(t, dir, "1862.txt", "\ufefffirst")
	put(t, dir, "later/1990.txt", "third")
	put(t, dir, ".hidden.txt", "no")
	put(t, dir, "notes.md", "no")
	d := open(t, dir, DatasetOptions{})
	require.Equal(t, []string{"first", "second\n\nspeech", "third"}, textsOf(t, d))
	row, err := d.Row(2)
	require.NoError(t, err)
	require.Equal(t, map[string]any{"file": filepath.Join("later", "1990.txt")}, row.Other)
	require.Len(t, d.Files(), 3)

	put(t, dir, "binary.txt", "a\x00b")
	d = open(t, dir, DatasetOptions{})
	require.ErrorContains(t, d.Check(t.Context()), "holds a NUL byte")
}

func TestAFolderOfShardsIsOneDatasetInTheOrderOfNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "part-1.jsonl", `{"text": "c"}`)
	put(t, dir, "part-0.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n")
	put(t, dir, "README.txt", "about")
	d := open(t, dir, DatasetOptions{})
	require.Equal(t, []string{"a", "b", "c"}, textsOf(t, d))
	var got []string
	require.NoError(t, d.Read(t.Context(), []int64{2, 0, 2}, func(k int, r Row) error {
		got = append(got, fmt.Sprint(k, r.Text))
		return nil
	}))
	require.ElementsMatch(t, []string{"0c", "1a", "2c"}, got)

	digest, err := d.Digest(t.Context())
	require.NoError(t, err)
	list := ""
	for _, name := range []string{"part-0.jsonl", "part-1.jsonl"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		list += fmt.Sprintf("%x  %s\n", sha256.Sum256(data), name)
	}
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte(list))), digest)
	single, err := open(t, filepath.Join(dir, "part-1.jsonl"), DatasetOptions{}).Digest(t.Context())
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte(`{"text": "c"}`))), single)

	put(t, dir, "part-2.jsonl", `{"txt": "c"}`)
	_, err = OpenDataset(dir, DatasetOptions{})
	var missing *MissingColumnError
	require.ErrorAs(t, err, &missing)
	require.ErrorContains(t, err, "part-2.jsonl")
	put(t, dir, "x.npy", "")
	_, err = OpenDataset(dir, DatasetOptions{})
	require.ErrorContains(t, err, "mixes kinds of files (1 .npy, 3 .jsonl)")
}

func TestParquetByPyarrowIsReadInAnyOrder(t *testing.T) {
	t.Parallel()
	want := func(i int64) string {
		if i%97 == 5 {
			return ""
		}
		return strings.Repeat(fmt.Sprintf("row %d of the union: café 你好 😀 ", i), int(1+i%7))
	}
	for _, name := range []string{"v1.parquet", "v2.parquet"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t, filepath.Join("testdata", name), DatasetOptions{})
			require.EqualValues(t, 500, d.Rows())
			require.Equal(t, []string{"text", "year", "score", "ok", "tags", "meta"}, d.Columns())
			order := newPermutation(500, 1)
			var rows []int64
			for i := range uint64(200) {
				rows = append(rows, int64(order.at(i)))
			}
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					err := d.Read(context.Background(), rows, func(k int, r Row) error {
						if r.Text != want(rows[k]) {
							return fmt.Errorf("row %d is %q", rows[k], r.Text)
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			readers.Wait()
			for i, text := range textsOf(t, d) {
				require.Equal(t, want(int64(i)), text)
			}
			row, err := d.Row(247)
			require.NoError(t, err)
			require.Equal(t, map[string]any{"year": int64(1847 + 200 - 200), "score": 61.75, "ok": false, "tags": []any{"t247", "x"}}, row.Other)
			row, err = d.Row(3)
			require.NoError(t, err)
			require.Equal(t, []any{}, row.Other["tags"])
		})
	}
}

func TestTokenisedDatasetsAreTakenAsTheyAre(t *testing.T) {
	t.Parallel()
	d := open(t, filepath.Join("testdata", "tokens.parquet"), DatasetOptions{})
	require.True(t, d.Tokenised())
	require.Equal(t, "input_ids", d.TextColumn())
	for i := range int64(500) {
		row, err := d.Row(i)
		require.NoError(t, err)
		n := int(i % 23)
		if i%97 == 5 {
			n = 0
		}
		require.Len(t, row.Tokens, n)
		for k, id := range row.Tokens {
			require.EqualValues(t, (i*31+int64(k))%50000, id)
		}
	}
	for _, name := range []string{"i8", "i4be", "u2"} {
		d := open(t, filepath.Join("testdata", name+".npy"), DatasetOptions{})
		require.True(t, d.Tokenised())
		row, err := d.Row(2)
		require.NoError(t, err)
		require.Equal(t, []int32{8000, 9000, 10000, 11000}, row.Tokens, name)
	}
	path := put(t, t.TempDir(), "t.jsonl", "{\"text\": \"words\", \"input_ids\": [5, 6]}\n{\"input_ids\": []}\n{\"input_ids\": null}\n")
	d = open(t, path, DatasetOptions{})
	require.True(t, d.Tokenised(), "input_ids come before text")
	row, err := d.Row(0)
	require.NoError(t, err)
	require.Equal(t, Row{Tokens: []int32{5, 6}, Other: map[string]any{"text": "words"}}, row)
	require.False(t, open(t, path, DatasetOptions{TextColumn: "text"}).Tokenised(), "unless the text is asked for")
}

func TestDatasetsThatCannotBeUsedSayWhy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	parquet, err := os.ReadFile(filepath.Join("testdata", "v1.parquet"))
	require.NoError(t, err)
	npy, err := os.ReadFile(filepath.Join("testdata", "i8.npy"))
	require.NoError(t, err)
	for name, c := range map[string]struct{ file, content, column, want string }{
		"an empty file":               {"e.jsonl", "", "", "the dataset has no rows"},
		"blank lines only":            {"b.jsonl", "\n \n", "", "no rows"},
		"an empty text":               {"e.txt", "\n\n", "", "no rows"},
		"no such column":              {"c.jsonl", `{"body": "x", "title": "y", "n": 1}`, "text", `there is no column "text"; its columns are body, title, n`},
		"no obvious column":           {"o.jsonl", `{"body": "x", "title": "y"}`, "", "which column is the text? its columns are body, title"},
		"a column of numbers":         {"n.jsonl", `{"text": 5}`, "text", `column "text" is neither text nor lists of token ids`},
		"a truncated last line":       {"t.jsonl", "{\"text\": \"x\"}\n{\"text\": \"y", "", "row 1 is not a JSON object: unexpected end of JSON input (the file looks truncated)"},
		"a binary file":               {"x.jsonl", "PK\x03\x04\x00\x00\n\x00", "", "binary file"},
		"UTF-16":                      {"u.txt", "\xff\xfea\x00b\x00", "", "UTF-16"},
		"one JSON array":              {"a.jsonl", `[{"text": "x"}]`, "", "one JSON array"},
		"a line that is a number":     {"l.jsonl", "{\"text\": \"x\"}\n5\n", "", "row 1 is not a JSON object: it is a JSON number"},
		"another kind of file":        {"d.csv", "text\nx", "", `not ".csv"`},
		"a truncated Parquet file":    {"t.parquet", string(parquet[:len(parquet)-100]), "", "not a readable Parquet file"},
		"an empty Parquet file":       {"e.parquet", "", "", "not a readable Parquet file (0 bytes"},
		"a truncated npy file":        {"t.npy", string(npy[:len(npy)-8]), "", "truncated: a shape of (3, 4) needs 224 bytes and the file has 216"},
		"no npy file":                 {"n.npy", "\x93NUMPX\x01\x00\x02\x00{}", "", "does not begin as one"},
		"an npy header past the file": {"h.npy", "\x93NUMPY\x01\x00\xff\xff{'descr'", "", "does not fit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := OpenDataset(put(t, dir, c.file, c.content), DatasetOptions{TextColumn: c.column})
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, c.file, "the error names the file")
		})
	}
	for name, want := range map[string]string{
		"float.npy":       "its numbers are f4, not integers",
		"fortran.npy":     "ascontiguousarray",
		"flat.npy":        "not [rows, tokens]",
		"columns.parquet": "which column is the text? its columns are a, b, n",
		"none.jsonl":      "no such file",
	} {
		_, err := OpenDataset(filepath.Join("testdata", name), DatasetOptions{})
		require.ErrorContains(t, err, want)
	}
	_, err = OpenDataset(t.TempDir(), DatasetOptions{})
	require.ErrorContains(t, err, "the folder has no")
}

func TestABadRowIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var lines []string
	for range 200 {
		lines = append(lines, `{"text": "x", "input_ids": [1]}`)
	}
	for bad, c := range map[string]struct{ column, want string }{
		`{"text": `:                   {"text", "row 150 is not a JSON object"},
		`{"text": ["x"]}`:             {"text", `row 150 has no text in "text"`},
		`{"input_ids": [1.5]}`:        {"input_ids", `row 150 has no list of token ids in "input_ids"`},
		`{"input_ids": [3, -1]}`:      {"input_ids", "row 150 has the negative token id -1 at 1"},
		`{"input_ids": [4294967296]}`: {"input_ids", "row 150 has no list of token ids"},
	} {
		with := append(append([]string{}, lines[:150]...), bad)
		path := put(t, dir, fmt.Sprintf("%x.jsonl", sha256.Sum256([]byte(bad)))[60:], strings.Join(append(with, lines[151:]...), "\n"))
		err := open(t, path, DatasetOptions{TextColumn: c.column}).Check(t.Context())
		var row *RowError
		require.ErrorAs(t, err, &row)
		require.EqualValues(t, 150, row.Row)
		require.ErrorContains(t, err, c.want)
	}
	for name, want := range map[string]string{
		"negative.npy":     "row 0 has the negative token id -1000 at 1",
		"huge.npy":         "which no vocabulary has",
		"negative.parquet": "row 0 has the token id -2 at 1",
		"nulls.parquet":    "row 0 has no token id at 1",
	} {
		require.ErrorContains(t, open(t, filepath.Join("testdata", name), DatasetOptions{}).Check(t.Context()), want)
	}
}

func TestBrokenUTF8IsMendedAsPythonMendsIt(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"\xff": "\ufffd", "a\xffb": "a\ufffdb", "\xe2\x82": "\ufffd", "\xf0\x9f\x98": "\ufffd", "\xe2\x82A": "\ufffdA",
		"\xc0\xaf": "\ufffd\ufffd", "\xed\xa0\x80": "\ufffd\ufffd\ufffd", "\xf4\x90\x80\x80": "\ufffd\ufffd\ufffd\ufffd", "\x80\x80": "\ufffd\ufffd",
		"\xe0\x80\x80": "\ufffd\ufffd\ufffd", "\xf0\x80": "\ufffd\ufffd", "caf\xe9": "caf\ufffd", "日本": "日本",
	} {
		require.Equal(t, want, validText([]byte(in)), "%q", in)
	}
}

func FuzzJSONLines(f *testing.F) {
	f.Add([]byte("{\"text\": \"a\"}\n{\"input_ids\": [1, 2]}\n"))
	f.Add([]byte("\ufeff\n{\"text\": null}\r\n[1]\x00"))
	fuzzDataset(f, "fuzz.jsonl")
}

func FuzzText(f *testing.F) {
	f.Add([]byte("a\n\nb\xff\r\n"))
	fuzzDataset(f, "fuzz.txt")
}

func FuzzNumpy(f *testing.F) {
	for _, name := range []string{"i8", "i4be", "u2", "fortran", "flat"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".npy"))
		require.NoError(f, err)
		f.Add(data)
	}
	fuzzDataset(f, "fuzz.npy")
}

func FuzzParquet(f *testing.F) {
	for _, name := range []string{"columns", "negative", "nulls"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".parquet"))
		require.NoError(f, err)
		f.Add(data)
	}
	fuzzDataset(f, "fuzz.parquet")
}

// fuzzDataset reads whatever can be opened: nothing may panic, and every text is valid UTF-8.
func fuzzDataset(f *testing.F, name string) {
	f.Fuzz(func(t *testing.T, data []byte) {
		path := put(t, t.TempDir(), name, string(data))
		for _, column := range []string{"", "text", "input_ids"} {
			d, err := OpenDataset(path, DatasetOptions{TextColumn: column, MaxRows: 1000})
			if err != nil {
				continue
			}
			for i := range min(d.Rows(), 20) {
				row, err := d.Row(i)
				if err == nil && (!utf8.ValidString(row.Text) || row.Text != "" && row.Tokens != nil) {
					t.Errorf("row %d: %+v", i, row)
				}
			}
			require.NoError(t, d.Close())
		}
	})
}
