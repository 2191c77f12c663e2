package fold_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// update writes testdata/golden anew: the input by the generator, the expected result by testdata/fold_reference.py.
var update = flag.Bool("update", false, "write testdata/golden anew (needs Python with pyarrow)")

const golden = "testdata/golden"

// corpusFile and referenceCase are what the script reads.
type corpusFile struct {
	Latents    int               `json:"latents"`
	Vocabulary memoryVocabulary  `json:"vocabulary"`
	Sequences  []corpus.Sequence `json:"sequences"`
}

type referenceCase struct {
	Name      string       `json:"name"`
	Artifacts []string     `json:"artifacts"`
	Options   fold.Options `json:"options"`
}

type referenceResult struct {
	Name    string        `json:"name"`
	Latents []fold.Latent `json:"latents"`
	Summary fold.Summary  `json:"summary"`
}

func cases(segments int) []referenceCase {
	all := make([]string, segments)
	for i := range all {
		all[i] = fmt.Sprintf("artifact-%d.parquet", i)
	}
	defaults := fold.DefaultOptions()
	everything := fold.DefaultOptions()
	everything.Filters = fold.Filters{}
	everything.SkipFirst, everything.TopExamples, everything.Seed, everything.TopTokens = 0, 7, 42, 3
	everything.Prefix, everything.Suffix, everything.ExamplesPerInterval, everything.NonFiring = 3, 2, 2, 9
	slice := fold.DefaultOptions()
	start, stop := 2, -3
	slice.Seqpos = &fold.Seqpos{Start: &start, Stop: &stop, Step: 2}
	slice.ExcludeTokens = []int32{2, 3, 26}
	slice.Filters.StopWords = true
	slice.TopExamples = 12
	preview := fold.DefaultOptions()
	preview.Preview = true
	return []referenceCase{
		{"defaults", all, defaults},
		{"no filters, small windows", all, everything},
		{"a slice of positions and excluded tokens, segments missing", append(all[1:2:2], all[3:]...), slice},
		{"preview of a run in progress", all[:2], preview},
	}
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(b, '\n'), 0o600))
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, v))
}

// writeWorld writes what the script reads.
func writeWorld(t *testing.T, folder string, w world, cuts []int) {
	t.Helper()
	writeJSON(t, filepath.Join(folder, "corpus.json"), corpusFile{Latents: w.latents, Vocabulary: w.vocabulary, Sequences: w.corpus})
	writeJSON(t, filepath.Join(folder, "cases.json"), cases(len(cuts)+1))
	for i, a := range w.artifacts(cuts, nil) {
		var buf bytes.Buffer
		_, err := postings.Write(&buf, &a.rows, a.meta)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, fmt.Sprintf("artifact-%d.parquet", i)), buf.Bytes(), 0o600))
	}
}

// python returns a Python with pyarrow: $FEATUREMILL_PYTHON, else python3.
func python(t *testing.T) string {
	t.Helper()
	name := os.Getenv("FEATUREMILL_PYTHON")
	if name == "" {
		name = "python3"
	}
	if err := exec.Command(name, "-c", "import pyarrow.parquet").Run(); err != nil {
		t.Skipf("%s has no pyarrow (%v): set FEATUREMILL_PYTHON to a Python that has it", name, err)
	}
	return name
}

func runReference(t *testing.T, folder string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(python(t), "testdata/fold_reference.py", folder)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	return out
}

func TestTheFoldIsWhatTheReferenceScriptSays(t *testing.T) {
	t.Parallel()
	expected := filepath.Join(golden, "expected.json.gz")
	if *update {
		python(t) // before anything is removed
		require.NoError(t, os.RemoveAll(golden))
		require.NoError(t, os.MkdirAll(golden, 0o755))
		writeWorld(t, golden, synthetic(7, 240, 48), []int{60, 90, 200, 300})
		var buf bytes.Buffer
		z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
		require.NoError(t, err)
		_, err = z.Write(runReference(t, golden))
		require.NoError(t, err)
		require.NoError(t, z.Close())
		require.NoError(t, os.WriteFile(expected, buf.Bytes(), 0o600))
	}
	f, err := os.Open(expected)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	compare(t, golden, b)
}

func TestTheReferenceScriptAgreesOnOtherWorlds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name               string
		seed               uint64
		documents, latents int
		cuts               []int
	}{
		{"one document", 1, 1, 5, []int{1, 1, 1, 1}},
		{"few documents", 2, 6, 12, []int{2, 3, 4, 5}},
		{"many documents", 3, 160, 25, []int{10, 60, 61, 130}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			w := synthetic(tt.seed, tt.documents, tt.latents)
			for i := range tt.cuts {
				tt.cuts[i] = min(tt.cuts[i], len(w.corpus))
			}
			writeWorld(t, folder, w, tt.cuts)
			compare(t, folder, runReference(t, folder))
		})
	}
}

// compare folds every case of a folder and compares it with the script's output: counts, ids and ranks
// exactly, float64 to 1e-12.
func compare(t *testing.T, folder string, expected []byte) {
	t.Helper()
	var world corpusFile
	var todo []referenceCase
	var want []referenceResult
	readJSON(t, filepath.Join(folder, "corpus.json"), &world)
	readJSON(t, filepath.Join(folder, "cases.json"), &todo)
	require.NoError(t, json.Unmarshal(expected, &want))
	require.Len(t, want, len(todo))
	for i, c := range todo {
		in := fold.Input{Corpus: memoryCorpus(world.Sequences), Vocabulary: world.Vocabulary, Latents: world.Latents, Options: c.Options}
		for _, name := range c.Artifacts {
			b, err := os.ReadFile(filepath.Join(folder, name))
			require.NoError(t, err)
			a, err := postings.Open(bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			in.Artifacts = append(in.Artifacts, a)
		}
		latents, summary := run(t, in)
		require.Len(t, latents, len(want[i].Latents))
		for k, l := range latents {
			same(t, fmt.Sprintf("%s: latent %d", c.Name, k), reflect.ValueOf(want[i].Latents[k]), reflect.ValueOf(*l))
		}
		same(t, c.Name+": summary", reflect.ValueOf(want[i].Summary), reflect.ValueOf(summary))
	}
}

func run(t require.TestingT, in fold.Input) ([]*fold.Latent, fold.Summary) {
	var latents []*fold.Latent
	summary, err := fold.Run(context.Background(), in, func(l *fold.Latent) error {
		latents = append(latents, l)
		return nil
	})
	require.NoError(t, err)
	return latents, summary
}

// same compares values deeply, float64 to 1e-12 of their size.
func same(t *testing.T, where string, want, got reflect.Value) {
	t.Helper()
	switch want.Kind() {
	case reflect.Float64:
		a, b := want.Float(), got.Float()
		require.LessOrEqual(t, math.Abs(a-b), 1e-12*max(math.Abs(a), math.Abs(b)), "%s: %v, not %v", where, b, a)
	case reflect.Struct:
		for i := range want.NumField() {
			if want.Type().Field(i).IsExported() {
				same(t, where+"."+want.Type().Field(i).Name, want.Field(i), got.Field(i))
			}
		}
	case reflect.Slice, reflect.Array:
		require.Equal(t, want.Len(), got.Len(), "%s: length", where)
		for i := range want.Len() {
			same(t, fmt.Sprintf("%s[%d]", where, i), want.Index(i), got.Index(i))
		}
	case reflect.Pointer:
		require.Equal(t, want.IsNil(), got.IsNil(), "%s", where)
		if !want.IsNil() {
			same(t, where, want.Elem(), got.Elem())
		}
	default:
		require.Equal(t, want.Interface(), got.Interface(), where)
	}
}
