package torch

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// parity is the largest relative error of a token's vector against the reference implementation. Two
// correct float32 implementations differ by about 6e-6, a wrong eps by 7e-3.
const parity = 5e-5

// The process has one runtime, as a worker has.
var testRuntime *Runtime

// withRuntime ends the runtime before goroutines are counted.
type withRuntime struct{ *testing.M }

func (m withRuntime) Run() int {
	var err error
	if testRuntime, err = Start(Options{Threads: 2}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.M.Run()
	_ = testRuntime.Close()
	return code
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(withRuntime{m}) }

// golden is an open file of expected tensors.
type golden struct {
	t *testing.T
	f *checkpoint.Safetensors
}

func openGolden(t *testing.T, path string) golden {
	t.Helper()
	f, err := checkpoint.OpenSafetensors(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return golden{t: t, f: f}
}

func (g golden) floats(name string) ([]float32, []int) {
	g.t.Helper()
	tensor, err := g.f.Tensor(name)
	require.NoError(g.t, err)
	values, err := tensor.Float32()
	require.NoError(g.t, err)
	return values, tensor.Shape
}

// sequences are the unmasked tokens.
func (g golden) sequences() [][]int32 {
	g.t.Helper()
	read := func(name string) ([]int64, []int) {
		tensor, err := g.f.Tensor(name)
		require.NoError(g.t, err)
		values, err := tensor.Int64()
		require.NoError(g.t, err)
		return values, tensor.Shape
	}
	ids, shape := read("input_ids")
	mask, _ := read("attention_mask")
	out := make([][]int32, shape[0])
	for i := range out {
		for j := range shape[1] {
			if mask[i*shape[1]+j] == 1 {
				out[i] = append(out[i], int32(ids[i*shape[1]+j]))
			}
		}
	}
	return out
}

// worst is the largest ‖Δ‖₂/‖x‖₂ of any row.
func worst(t *testing.T, got, want []float32, width int) float64 {
	t.Helper()
	require.Len(t, got, len(want))
	largest := 0.0
	for r := 0; r < len(want); r += width {
		var difference, size float64
		for i := r; i < r+width; i++ {
			d := float64(got[i]) - float64(want[i])
			difference += d * d
			size += float64(want[i]) * float64(want[i])
		}
		if difference == 0 {
			continue
		}
		ratio := math.Sqrt(difference / size)
		if math.IsNaN(ratio) {
			ratio = math.Inf(1)
		}
		largest = max(largest, ratio)
	}
	return largest
}

// bothExecutors runs a check on the fused kernels and on libtorch's own operations.
func bothExecutors(t *testing.T, m *Model, check func(t *testing.T)) {
	t.Helper()
	fusedOne := m.exec
	for _, e := range []executor{fusedOne, &composed{m: m}} {
		m.exec = e
		t.Run(fmt.Sprintf("%T", e), check)
	}
	m.exec = fusedOne
}

func openModel(t *testing.T, path string) *Model {
	t.Helper()
	source, err := checkpoint.OpenModel(path)
	require.NoError(t, err)
	m, err := testRuntime.LoadModel(t.Context(), source)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, m.Close())
		require.NoError(t, source.Close())
	})
	return m
}

func checkActivations(t *testing.T, m *Model, g golden, logits bool) {
	t.Helper()
	var hooks []Hook
	for _, name := range g.f.Names() {
		if h, err := ParseHook(name); err == nil {
			hooks = append(hooks, h)
		}
	}
	require.NotEmpty(t, hooks)
	a, err := m.Activations(t.Context(), g.sequences(), hooks, logits)
	require.NoError(t, err)
	for _, h := range hooks {
		want, shape := g.floats(h.String())
		require.Equal(t, shape, []int{a.Batch, a.Seq, a.Widths[h]})
		difference := worst(t, a.Hooks[h], want, a.Widths[h])
		t.Logf("%s: %.2g", h, difference)
		require.LessOrEqual(t, difference, parity, h)
	}
	if logits {
		want, _ := g.floats("logits")
		difference := worst(t, a.Logits, want, a.Vocab)
		t.Logf("logits: %.2g", difference)
		require.LessOrEqual(t, difference, parity)
	}
}

func TestTinyLlamasAgreeWithTransformers(t *testing.T) {
	for _, name := range []string{"llama-tied", "llama-untied-llama3", "llama-biases"} {
		t.Run(name, func(t *testing.T) {
			m := openModel(t, filepath.Join("testdata", name))
			bothExecutors(t, m, func(t *testing.T) {
				checkActivations(t, m, openGolden(t, filepath.Join("testdata", name+".golden.safetensors")), true)
			})
		})
	}
}

// smolLM2 is the model that `make demo` fetches; a test that needs it is skipped where it is not.
func smolLM2(t testing.TB) string {
	t.Helper()
	path := os.Getenv("FEATUREMILL_TEST_SMOLLM2")
	if path == "" {
		cache, err := os.UserCacheDir()
		require.NoError(t, err)
		found, _ := filepath.Glob(filepath.Join(cache, "featuremill", "models", "*", "SmolLM2-135M-Instruct*.gguf"))
		if len(found) == 0 {
			t.Skip("SmolLM2 is not there: run `make demo` once, or set FEATUREMILL_TEST_SMOLLM2 to its .gguf")
		}
		path = found[0]
	}
	return path
}

func TestSmolLM2AgreesWithTransformers(t *testing.T) {
	m := openModel(t, smolLM2(t))
	bothExecutors(t, m, func(t *testing.T) {
		checkActivations(t, m, openGolden(t, "testdata/smollm2.golden.safetensors"), false)
	})
}

func openSAE(t *testing.T, path string, fold string) *SAE {
	t.Helper()
	var options []checkpoint.SAEOption
	if filepath.Ext(path) == "" && filepath.Base(path)[len(filepath.Base(path))-3:] == "_in" {
		options = append(options, checkpoint.WithScalingFactor(0.31))
	}
	source, err := checkpoint.OpenSAE(path, options...)
	require.NoError(t, err)
	if fold == "decoder-norm" {
		require.NoError(t, source.FoldDecoderNorm())
	}
	a, err := testRuntime.LoadSAE(t.Context(), source)
	require.NoError(t, err)
	require.NoError(t, source.Close())
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

func TestEncodesAgreeWithSAELens(t *testing.T) {
	paths, err := filepath.Glob("testdata/sae/*.golden.safetensors")
	require.NoError(t, err)
	require.Len(t, paths, 17)
	for _, path := range paths {
		folder := path[:len(path)-len(".golden.safetensors")]
		t.Run(filepath.Base(folder), func(t *testing.T) {
			g := openGolden(t, path)
			a := openSAE(t, folder, g.f.Metadata()["fold"])
			fusedOne := a.encoder
			for _, e := range []encoder{fusedOne, &composedEncoder{a: a}} {
				a.encoder = e
				t.Run(fmt.Sprintf("%T", e), func(t *testing.T) {
					x, shape := g.floats("x")
					got, err := a.Encode(t.Context(), x, shape[0])
					require.NoError(t, err)
					for name, values := range map[string][]float32{"acts": got.Acts, "decode": got.Decode, "recon": got.Recon} {
						want, shape := g.floats(name)
						difference := worst(t, values, want, shape[1])
						t.Logf("%s: %.2g", name, difference)
						require.LessOrEqual(t, difference, parity, name)
					}
				})
			}
			a.encoder = fusedOne
		})
	}
}

func TestMKLTakesThisProgramsWordForTheCPU(t *testing.T) {
	if os.Getenv("LIBTORCH") == "" { // not somebody's own
		require.Contains(t, testRuntime.Profile().Libtorch, cmp.Or(os.Getenv("TORCH"), "2.1")+".")
	}
	m := openModel(t, "testdata/llama-tied")
	_, err := m.Activations(context.Background(), [][]int32{{1, 2, 3}}, []Hook{{Layer: 0, Point: ResidPost}}, false)
	require.NoError(t, err)
	if testRuntime.Profile().MKL != "" {
		require.True(t, mklSwitchUsed(), "MKL never asked mkl_serv_intel_cpu_true of this program")
		require.Regexp(t, `^[0-9.]+ (AVX2|AVX512)$`, testRuntime.Profile().MKL)
	}
	require.NotEmpty(t, os.Getenv("OMP_WAIT_POLICY")+os.Getenv("GOMP_SPINCOUNT"), "idle threads would spin")
	t.Logf("%+v", testRuntime.Profile())
}
