package checkpoint_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

const (
	firstShard  = "model-00001-of-00002.safetensors"
	secondShard = "model-00002-of-00002.safetensors"
)

func TestShardsThatDoNotFitTheirIndexAreRefused(t *testing.T) {
	t.Parallel()
	const norm = "model.layers.1.input_layernorm.weight"
	cut := func(shard string, keep int64) func(*testing.T, string) {
		return func(t *testing.T, folder string) { require.NoError(t, os.Truncate(filepath.Join(folder, shard), keep)) }
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, folder string)
		want   string
	}{
		"a shard without its end":    {cut(secondShard, 17_000), secondShard + `: tensor "`},
		"a shard cut in its header":  {cut(firstShard, 100), firstShard + ": the header claims"},
		"a shard cut to its length":  {cut(firstShard, 8), "cut short"},
		"an empty shard":             {cut(firstShard, 0), "expected at least the 8 bytes of a header length"},
		"a shard longer than it was": {cut(secondShard, 18_000), "bytes follow the last tensor"},
		"a tensor in two shards": {func(t *testing.T, folder string) {
			s, err := checkpoint.OpenSafetensors(filepath.Join(folder, secondShard))
			require.NoError(t, err)
			defer shut(t, s)
			twice, err := s.Tensor(norm)
			require.NoError(t, err)
			editTensors(t, filepath.Join(folder, firstShard), func(m map[string]checkpoint.Tensor) { m[norm] = twice })
		}, `tensor "` + norm + `" is in ` + secondShard + " and in " + firstShard + "; expected every tensor in one shard"},
		"a name twice in the index": {func(t *testing.T, folder string) {
			path := filepath.Join(folder, "model.safetensors.index.json")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			writeFile(t, path, []byte(strings.Replace(string(data), `"weight_map": {`, `"weight_map": {"`+norm+`": "`+firstShard+`",`, 1)))
		}, `weight_map names "` + norm + `" twice`},
		"a map of numbers": {func(t *testing.T, folder string) {
			writeFile(t, filepath.Join(folder, "model.safetensors.index.json"), []byte(`{"weight_map": {"a": 1}}`))
		}, `weight_map of "a"`},
		"a shard that is a folder": {func(t *testing.T, folder string) {
			require.NoError(t, os.Remove(filepath.Join(folder, firstShard)))
			require.NoError(t, os.Mkdir(filepath.Join(folder, firstShard), 0o755))
		}, firstShard + ": it is not a regular file"},
		"a shard that points nowhere": {func(t *testing.T, folder string) {
			require.NoError(t, os.Remove(filepath.Join(folder, firstShard)))
			require.NoError(t, os.Symlink("nowhere", filepath.Join(folder, firstShard)))
		}, "names the shard " + firstShard},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, "testdata/llama/untied")
			c.change(t, folder)
			_, err := checkpoint.OpenModel(folder)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, folder, "the error names the file")
		})
	}
}

// A hub's cache keeps files by digest and a folder of links to them. Which links may be followed is for those who know the roots.
func TestShardsMayBeLinks(t *testing.T) {
	t.Parallel()
	folder, blobs := copyFolder(t, "testdata/llama/untied"), t.TempDir()
	for _, shard := range []string{firstShard, secondShard} {
		require.NoError(t, os.Rename(filepath.Join(folder, shard), filepath.Join(blobs, shard)))
		require.NoError(t, os.Symlink(filepath.Join(blobs, shard), filepath.Join(folder, shard)))
	}
	m, err := checkpoint.OpenModel(folder)
	require.NoError(t, err)
	defer shut(t, m)
	require.NoError(t, m.CheckFinite())
}

func FuzzShardIndex(f *testing.F) {
	for _, seed := range []string{`{"weight_map": {"lm_head.weight": "` + firstShard + `"}}`, `{"weight_map": {"a": "b", "a": "c"}}`, `{"weight_map": {"a": "/etc/passwd"}}`, `{"weight_map": []}`, `{"weight_map": null}`, `[`} {
		f.Add([]byte(seed))
	}
	folder := copyFolder(f, "testdata/llama/untied")
	f.Fuzz(func(t *testing.T, data []byte) {
		writeFile(t, filepath.Join(folder, "model.safetensors.index.json"), data)
		if m, err := checkpoint.OpenModel(folder); err == nil {
			shut(t, m)
		}
	})
}
