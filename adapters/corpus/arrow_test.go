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
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func smallText(i int64) string {
	if i%97 == 5 {
		return ""
	}
	return strings.Repeat(fmt.Sprintf("row %d of the union: café 你好 😀 ", i), int(1+i%7))
}

func TestArrowByPyarrowIsReadInAnyOrder(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"stream.arrow", "file.arrow", "zstd.arrow", "lz4.arrow"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t, filepath.Join("testdata", name), DatasetOptions{})
			require.EqualValues(t, 60, d.Rows())
			require.Equal(t, []string{"text", "year", "score", "ok", "tags", "meta"}, d.Columns())
			require.Equal(t, "text", d.TextColumn())
			var readers sync.WaitGroup
			for range 4 {
				readers.Go(func() {
					err := d.Read(context.Background(), []int64{59, 3, 24, 25, 3, 5}, func(k int, r Row) error {
						if r.Text != smallText(r.Index) {
							return fmt.Errorf("row %d is %q", r.Index, r.Text)
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
				require.Equal(t, smallText(int64(i)), text)
			}
			row, err := d.Row(47)
			require.NoError(t, err)
			require.Equal(t, map[string]any{"year": int64(1847), "score": 11.75, "ok": false, "tags": []any{"t47", "x"}, "meta": map[string]any{"a": int64(47), "b": "y"}}, row.Other)
			row, err = d.Row(3)
			require.NoError(t, err)
			require.Equal(t, []any{}, row.Other["tags"])
			require.EqualValues(t, 30, open(t, filepath.Join("testdata", name), DatasetOptions{MaxRows: 30}).Rows())
		})
	}
}

func TestColumnsOfArrowAreTextOrTokenIDs(t *testing.T) {
	t.Parallel()
	path := filepath.Join("testdata", "kinds.arrow")
	for column, want := range map[string]Row{
		"view":  {Text: strings.Repeat("v25", 26)},
		"word":  {Text: "river"},
		"fixed": {Tokens: []int32{25, 26}},
		"large": {Tokens: []int32{25}},
	} {
		d := open(t, path, DatasetOptions{TextColumn: column})
		row, err := d.Row(25)
		require.NoError(t, err)
		require.Equal(t, want.Text, row.Text, column)
		require.Equal(t, want.Tokens, row.Tokens, column)
		require.NoError(t, d.Check(t.Context()))
	}
	for column, want := range map[string]string{
		"bad":   "row 1 has the token id -1 at 0, which no vocabulary has",
		"holes": "row 0 has no token id at 1",
	} {
		require.ErrorContains(t, open(t, path, DatasetOptions{TextColumn: column}).Check(t.Context()), want)
	}
	_, err := OpenDataset(path, DatasetOptions{TextColumn: "when"})
	require.ErrorContains(t, err, `column "when" is neither text nor lists of token ids; its columns are view, word`)
	_, err = OpenDataset(path, DatasetOptions{TextColumn: "text"})
	require.ErrorContains(t, err, `there is no column "text"; its columns are view, word, fixed, large, bad, holes, when, null`)
}

func TestAFolderOfSaveToDiskIsADatasetForEachSplit(t *testing.T) {
	t.Parallel()
	saved := filepath.Join("testdata", "saved")
	_, err := OpenDataset(saved, DatasetOptions{})
	require.ErrorContains(t, err, "which split? it has test, train; name one with the split option")
	_, err = OpenDataset(saved, DatasetOptions{Split: "validation"})
	require.ErrorContains(t, err, `there is no split "validation"; its splits are test, train`)
	d := open(t, saved, DatasetOptions{Split: "train"})
	require.EqualValues(t, 40, d.Rows())
	require.True(t, d.Tokenised(), "it has input_ids")
	require.EqualValues(t, 7, open(t, saved, DatasetOptions{Split: "test"}).Rows())
	d = open(t, filepath.Join(saved, "train"), DatasetOptions{TextColumn: "text"})
	for i, text := range textsOf(t, d) {
		require.Equal(t, smallText(int64(i)), text)
	}
	row, err := open(t, filepath.Join(saved, "train"), DatasetOptions{}).Row(22)
	require.NoError(t, err)
	require.Len(t, row.Tokens, 22)
	require.EqualValues(t, 22*31+21, row.Tokens[21])

	broken := t.TempDir()
	require.NoError(t, os.CopyFS(broken, os.DirFS(filepath.Join(saved, "train"))))
	require.NoError(t, os.Remove(filepath.Join(broken, "data-00001-of-00002.arrow")))
	_, err = OpenDataset(broken, DatasetOptions{})
	require.ErrorContains(t, err, "shard 00001 of 2 is missing")
	require.NoError(t, os.Rename(filepath.Join(broken, "data-00000-of-00002.arrow"), filepath.Join(broken, "data.arrow")))
	_, err = OpenDataset(broken, DatasetOptions{})
	require.ErrorContains(t, err, "it names the file data-00000-of-00002.arrow, which is not there")
	put(t, broken, "state.json", `{"_data_files": [], "_indices_data_files": [{}]}`)
	_, err = OpenDataset(broken, DatasetOptions{})
	require.ErrorContains(t, err, "flatten_indices")
}

func TestBrokenArrowFilesAreRefused(t *testing.T) {
	t.Parallel()
	stream, err := os.ReadFile(filepath.Join("testdata", "stream.arrow"))
	require.NoError(t, err)
	file, err := os.ReadFile(filepath.Join("testdata", "file.arrow"))
	require.NoError(t, err)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":                       {nil, "not a readable Arrow file (0 bytes)"},
		"another file":                  {[]byte("PAR1 and so on"), "a description of"},
		"a stream cut in a batch":       {stream[:len(stream)-200], "truncated"},
		"a stream cut in the schema":    {stream[:100], "truncated"},
		"a file cut short":              {file[:len(file)-20], "truncated?"},
		"a description of 2^31 bytes":   {append([]byte("\xff\xff\xff\xff\xff\xff\xff\x7f"), stream[8:]...), "a description of 2147483647 bytes"},
		"a description that is garbage": {append([]byte("\xff\xff\xff\xff\x08\x00\x00\x00\xff\xff\xff\x7f\x00\x00\x00\x00"), stream...), "the description of a message is broken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := OpenDataset(put(t, t.TempDir(), "x.arrow", string(c.data)), DatasetOptions{})
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "x.arrow")
		})
	}
}

func TestSplitsAreToldByTheNamesOfShardsFilesAndFolders(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	row := func(text string) string { return `{"text": "` + text + `"}` }
	put(t, dir, "data/train-00001-of-00002.jsonl", row("b"))
	put(t, dir, "data/train-00000-of-00002.jsonl", row("a"))
	put(t, dir, "data/validation-00000-of-00001-0123456789abcdef.jsonl", row("v"))
	put(t, dir, "test.jsonl", row("t"))
	put(t, dir, "dataset_infos.json", `{}`)
	for split, want := range map[string][]string{"train": {"a", "b"}, "validation": {"v"}, "test": {"t"}} {
		require.Equal(t, want, textsOf(t, open(t, dir, DatasetOptions{Split: split})))
	}
	_, err := OpenDataset(dir, DatasetOptions{})
	require.ErrorContains(t, err, "which split? it has test, train, validation")
	_, err = OpenDataset(filepath.Join(dir, "test.jsonl"), DatasetOptions{Split: "train"})
	require.ErrorContains(t, err, "this is one file")
	require.Equal(t, []string{"t"}, textsOf(t, open(t, filepath.Join(dir, "test.jsonl"), DatasetOptions{Split: "test"})))
	require.NoError(t, os.Remove(filepath.Join(dir, "data", "train-00000-of-00002.jsonl")))
	_, err = OpenDataset(dir, DatasetOptions{Split: "train"})
	require.ErrorContains(t, err, "shard 00000 of 2 is missing")

	plain := t.TempDir()
	put(t, plain, "one.jsonl", row("1"))
	_, err = OpenDataset(plain, DatasetOptions{Split: "train"})
	require.ErrorContains(t, err, "nothing in the names of its files tells splits apart")
}

func TestCompressedFilesAreReadAsWhatTheyHold(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lines.jsonl.gz", "lines.jsonl.zst"} {
		d := open(t, filepath.Join("testdata", name), DatasetOptions{})
		require.EqualValues(t, 300, d.Rows())
		for i, text := range textsOf(t, d) {
			require.Equal(t, fmt.Sprintf("line %d", i), text)
		}
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		dir := t.TempDir()
		_, err = OpenDataset(put(t, dir, name, string(data[:len(data)-9])), DatasetOptions{})
		require.ErrorContains(t, err, "is truncated", name)
		_, err = OpenDataset(put(t, dir, "not-"+name, "plain text"), DatasetOptions{})
		require.ErrorContains(t, err, "not a readable "+compressionOf(name)+" file")
		_, err = OpenDataset(put(t, dir, "empty-"+name, ""), DatasetOptions{})
		require.Error(t, err)
	}
	for _, name := range []string{"bomb.txt.gz", "bomb.txt.zst"} {
		_, err := OpenDataset(filepath.Join("testdata", name), DatasetOptions{})
		require.ErrorContains(t, err, "expand to more than", name)
	}
	data, err := os.ReadFile(filepath.Join("testdata", "lines.jsonl.gz"))
	require.NoError(t, err)
	dir := t.TempDir()
	put(t, dir, "a.txt.gz", string(data))
	put(t, dir, "b.txt", "second\n")
	got := textsOf(t, open(t, dir, DatasetOptions{}))
	require.Len(t, got, 2, "in a folder each file is a row")
	require.Contains(t, got[0], `"line 299"`)
	_, err = OpenDataset(put(t, dir, "x.parquet.gz", string(data)), DatasetOptions{})
	require.ErrorContains(t, err, "a dataset is")
}

func TestJSONFilesAreArraysOrLines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := open(t, put(t, dir, "a.json", "\ufeff \n[\n {\"text\": \"a, ]}\\\" {\", \"n\": [1, {\"x\": []}]} ,{\"text\":\"b\"},\n{\"input\": {}, \"text\": null}\n]\n"), DatasetOptions{})
	require.Equal(t, []string{"a, ]}\" {", "b", ""}, textsOf(t, d))
	require.NoError(t, d.Check(t.Context()))
	require.Equal(t, []string{"x", "y"}, textsOf(t, open(t, put(t, dir, "l.json", "{\"text\": \"x\"}\n{\"text\": \"y\"}\n"), DatasetOptions{})))
	for name, c := range map[string][2]string{
		"an array that ends early": {`[{"text": "x"}, {"text": "y"`, "the JSON array does not end"},
		"an empty array":           {" [ ] ", "no rows"},
		"an array of numbers":      {"[1, 2]", "row 0 is not a JSON object: it is a JSON number"},
		"nothing but a comma":      {"[,]", "row 0 is not a JSON object"},
		"elements run together":    {`[{"text": "x"} {"text": "y"}]`, "row 0 is not a JSON object"},
		"one pretty object":        {"{\n  \"data\": [\n    1\n  ]\n}\n", "one JSON object over several lines"},
	} {
		_, err := OpenDataset(put(t, dir, "e.json", c[0]), DatasetOptions{})
		require.ErrorContains(t, err, c[1], name)
	}
}

func FuzzArrow(f *testing.F) {
	for _, name := range []string{"stream", "zstd", "lz4", "kinds", "file"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".arrow"))
		require.NoError(f, err)
		f.Add(data)
	}
	fuzzDataset(f, "fuzz.arrow")
}

func FuzzJSON(f *testing.F) {
	f.Add([]byte(`[{"text": "a, ]"}, {"text": null}]`))
	f.Add([]byte(" {\"text\": \"x\"}\n"))
	fuzzDataset(f, "fuzz.json")
}

func FuzzCompressed(f *testing.F) {
	for _, name := range []string{"lines.jsonl.gz", "lines.jsonl.zst"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		name := "fuzz.jsonl.gz"
		if bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")) {
			name = "fuzz.jsonl.zst"
		}
		d, err := OpenDataset(put(t, t.TempDir(), name, string(data)), DatasetOptions{MaxRows: 1000})
		if err != nil {
			return
		}
		for i := range min(d.Rows(), 20) {
			row, err := d.Row(i)
			require.True(t, err != nil || utf8.ValidString(row.Text))
		}
		require.NoError(t, d.Close())
	})
}
