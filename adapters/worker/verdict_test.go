package worker

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

// tester counts how often it measures.
type tester struct {
	Encoder
	measured int
}

func (e *tester) SelfTest(context.Context, SelfTestInput) (extraction.SelfTest, error) {
	e.measured++
	fvu, third := 0.1, 1.0/3
	return extraction.SelfTest{Hook: "blocks.1.hook_resid_post", Tokens: 4096, FVU: &fvu, L0: &third, L0All: third, MedianNorm: float64(float32(0.1)), BOS: -1,
		Taps: []extraction.Tap{{Hook: "blocks.1.hook_resid_post", FVU: &fvu, L0: &third}, {Hook: "blocks.2.hook_resid_post", Tokens: 256}}, Warnings: []string{"measurement " + strings.Repeat("I", e.measured)}}, nil
}

// profiled is an engine of another number of threads.
type profiled struct {
	Engine
	threads int
}

func (p profiled) Profile() extraction.ComputeProfile {
	return extraction.ComputeProfile{Device: "cpu", Threads: p.threads}
}

func tried() (inputs, SelfTestInput) {
	in := inputs{
		model: model.Facts{Files: fileset.Set{{Name: "model.safetensors", Bytes: 1, SHA256: strings.Repeat("ab", 32)}}},
		sae:   sae.Facts{Hook: "blocks.1.hook_resid_post", DSAE: 64, Files: fileset.Set{{Name: "sae.safetensors", Bytes: 1, SHA256: strings.Repeat("cd", 32)}}},
	}
	in.extraction.Request.Config = extraction.DefaultConfig()
	return in, SelfTestInput{Sequences: [][]int32{{1, 2, 3}, {4}}, Context: 8, BOS: 1, SkipFirst: 1, Exclude: []int32{7, 3}, Tokens: 4096}
}

func TestAVerdictIsReusedWhereAllThatItDependsOnIsEqual(t *testing.T) {
	t.Parallel()
	store, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	w := &Worker{store: store, engine: profiled{threads: 2}}
	e := &tester{}
	in, test := tried()
	first, err := w.tested(t.Context(), "ext_a", in, e, test)
	require.NoError(t, err)
	require.Empty(t, first.ReusedFrom)
	again, err := w.tested(t.Context(), "ext_b", in, e, test)
	require.NoError(t, err)
	require.Equal(t, 1, e.measured)
	require.Equal(t, "ext_a", again.ReusedFrom)
	again.ReusedFrom = ""
	require.Equal(t, first, again, "to the last bit")

	test.Exclude = []int32{3, 7, 7}
	_, err = w.tested(t.Context(), "ext_b", in, e, test)
	require.NoError(t, err)
	require.Equal(t, 1, e.measured, "a set has no order")
	retried, err := w.tested(t.Context(), "ext_a", in, e, test)
	require.NoError(t, err)
	require.Equal(t, first, retried, "its own, after a restart: measured here")
	require.Equal(t, 1, e.measured)
}

func TestAVerdictOnAnythingElseIsNotReused(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	for name, other := range map[string]func(in *inputs, test *SelfTestInput, w *Worker){
		"another model":            func(in *inputs, _ *SelfTestInput, _ *Worker) { in.model.Files[0].SHA256 = strings.Repeat("ef", 32) },
		"another SAE":              func(in *inputs, _ *SelfTestInput, _ *Worker) { in.sae.Files[0].SHA256 = strings.Repeat("ef", 32) },
		"the same, stated to read": func(in *inputs, _ *SelfTestInput, _ *Worker) { in.sae.Hook = "blocks.2.hook_resid_post" },
		"another scaling factor":   func(in *inputs, _ *SelfTestInput, _ *Worker) { in.sae.ScalingFactor = 2 },
		"folded":                   func(in *inputs, _ *SelfTestInput, _ *Worker) { in.extraction.Request.Config.Fold = "decoder-norm" },
		"another profile":          func(_ *inputs, _ *SelfTestInput, w *Worker) { w.engine = profiled{threads: 4} },
		"another text":             func(_ *inputs, test *SelfTestInput, _ *Worker) { test.Sequences = [][]int32{{1, 2, 3}, {5}} },
		"cut otherwise":            func(_ *inputs, test *SelfTestInput, _ *Worker) { test.Sequences = [][]int32{{1, 2}, {3, 4}} },
		"another context":          func(_ *inputs, test *SelfTestInput, _ *Worker) { test.Context = 4 },
		"another BOS":              func(_ *inputs, test *SelfTestInput, _ *Worker) { test.BOS = 2 },
		"BOS put in":               func(_ *inputs, test *SelfTestInput, _ *Worker) { test.PrependBOS = &yes },
		"BOS left out":             func(_ *inputs, test *SelfTestInput, _ *Worker) { test.PrependBOS = &no },
		"more left out":            func(_ *inputs, test *SelfTestInput, _ *Worker) { test.SkipFirst = 2 },
		"other ids left out":       func(_ *inputs, test *SelfTestInput, _ *Worker) { test.Exclude = []int32{7} },
		"fewer tokens":             func(_ *inputs, test *SelfTestInput, _ *Worker) { test.Tokens = 512 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := blob.OpenFiles(t.TempDir())
			require.NoError(t, err)
			w, e := &Worker{store: store, engine: profiled{threads: 2}}, &tester{}
			in, test := tried()
			_, err = w.tested(t.Context(), "ext_a", in, e, test)
			require.NoError(t, err)
			other(&in, &test, w)
			got, err := w.tested(t.Context(), "ext_b", in, e, test)
			require.NoError(t, err)
			require.Equal(t, 2, e.measured)
			require.Empty(t, got.ReusedFrom)
		})
	}
}

func TestAKeptVerdictThatCannotBeReadIsMeasuredAnewAndReplaced(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(file string) string{
		"cut":            func(file string) string { return file[:len(file)/2] },
		"empty":          func(string) string { return "" },
		"of another one": func(file string) string { return strings.Replace(file, `"context":8`, `"context":9`, 1) },
		"of an old rule": func(file string) string { return strings.Replace(file, `"rule":`, `"rule":-`, 1) },
		"of nothing":     func(file string) string { return strings.Replace(file, `"tokens":4096,"fvu"`, `"tokens":0,"fvu"`, 1) },
		"much too large": func(file string) string { return file + strings.Repeat(" ", verdictBytes) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store, err := blob.OpenFiles(t.TempDir())
			require.NoError(t, err)
			w, e := &Worker{store: store, engine: profiled{threads: 2}}, &tester{}
			in, test := tried()
			_, err = w.tested(t.Context(), "ext_a", in, e, test)
			require.NoError(t, err)
			for item, err := range store.List(t.Context(), "selftests/") {
				require.NoError(t, err)
				kept, err := store.Open(t.Context(), item.Key)
				require.NoError(t, err)
				file, err := io.ReadAll(io.NewSectionReader(kept, 0, kept.Size()))
				require.NoError(t, errors.Join(err, kept.Close()))
				spoilt := spoil(string(file))
				require.NotEqual(t, string(file), spoilt)
				require.NoError(t, store.Put(t.Context(), item.Key, strings.NewReader(spoilt)))
			}
			got, err := w.tested(t.Context(), "ext_b", in, e, test)
			require.NoError(t, err)
			require.Empty(t, got.ReusedFrom)
			require.Equal(t, 2, e.measured)
			got, err = w.tested(t.Context(), "ext_c", in, e, test)
			require.NoError(t, err)
			require.Equal(t, "ext_b", got.ReusedFrom)
		})
	}
}

// away is a store that nobody reaches.
type away struct{ blob.Store }

func (away) Open(context.Context, string) (blob.Blob, error) { return nil, blob.ErrUnavailable }
func (away) Put(context.Context, string, io.Reader) error    { return blob.ErrUnavailable }

// mute is a store that never answers.
type mute struct{ blob.Store }

func (mute) Open(ctx context.Context, _ string) (blob.Blob, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (mute) Put(ctx context.Context, _ string, _ io.Reader) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestAStoreThatIsAwayDoesNotHinderASelfTest(t *testing.T) {
	t.Parallel()
	in, test := tried()
	for name, store := range map[string]blob.Store{"away": away{}, "mute": mute{}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w, e := &Worker{store: store, engine: profiled{threads: 2}}, &tester{}
				for range 2 {
					got, err := w.tested(t.Context(), "ext_a", in, e, test)
					require.NoError(t, err)
					require.Equal(t, 4096, got.Tokens)
				}
				require.Equal(t, 2, e.measured)
			})
		})
	}
}
