package main

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

const torchGoldens = "../../adapters/torch/testdata/"

// relative is ‖a−b‖₂/‖b‖₂.
func relative(t *testing.T, a, b []float32) float64 {
	t.Helper()
	require.Len(t, a, len(b))
	var difference, size float64
	for i := range a {
		difference += (float64(a[i]) - float64(b[i])) * (float64(a[i]) - float64(b[i]))
		size += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(difference / size)
}

func tensorOf(t *testing.T, path, name string) ([]float32, []int) {
	t.Helper()
	f, err := checkpoint.OpenSafetensors(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	found, err := f.Tensor(name)
	require.NoError(t, err)
	values, err := found.Float32()
	require.NoError(t, err)
	return append([]float32(nil), values...), found.Shape
}

func TestActivationsWritesWhatTransformersSees(t *testing.T) {
	golden, out := torchGoldens+"llama-tied.golden.safetensors", filepath.Join(t.TempDir(), "acts.safetensors")
	require.NoError(t, run(t.Context(), []string{"activations", "--model", torchGoldens + "llama-tied", "--in", golden,
		"--hooks", "blocks.1.hook_mlp_out,blocks.2.hook_resid_post", "--logits", "--threads", "2", "--out", out}))
	for _, name := range []string{"blocks.1.hook_mlp_out", "blocks.2.hook_resid_post", "logits"} {
		want, wantShape := tensorOf(t, golden, name)
		got, shape := tensorOf(t, out, name)
		require.Equal(t, wantShape, shape)
		require.Less(t, relative(t, got, want), 5e-5)
	}
	require.NoFileExists(t, out+".partial")
}

func TestActivationsTakesPaddingOnEitherSide(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.safetensors"), filepath.Join(dir, "out.safetensors")
	require.NoError(t, checkpoint.WriteSafetensors(in, []checkpoint.Tensor{
		checkpoint.Int64Tensor("input_ids", []int64{9, 9, 5, 6, 7, 5, 6, 7, 9, 9, 0, 0, 0, 0, 0}, 3, 5),
		checkpoint.Int64Tensor("attention_mask", []int64{0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0}, 3, 5),
	}, nil))
	hook := "blocks.2.hook_resid_post"
	require.NoError(t, run(t.Context(), []string{"activations", "--model", torchGoldens + "llama-tied", "--in", in, "--hooks", hook, "--out", out}))
	got, shape := tensorOf(t, out, hook)
	require.Equal(t, []int{3, 5, 32}, shape)
	left, right, none := got[:160], got[160:320], got[320:]
	require.Less(t, relative(t, left[64:], right[:96]), 1e-6)
	require.Equal(t, make([]float32, 64), left[:64])
	require.Equal(t, make([]float32, 160), none)
}

func TestBadInputIsOneClearLine(t *testing.T) {
	dir := t.TempDir()
	holed := filepath.Join(dir, "holed.safetensors")
	require.NoError(t, checkpoint.WriteSafetensors(holed, []checkpoint.Tensor{
		checkpoint.Int64Tensor("input_ids", []int64{5, 6, 7}, 1, 3),
		checkpoint.Int64Tensor("attention_mask", []int64{1, 0, 1}, 1, 3),
	}, nil))
	flat := filepath.Join(dir, "flat.safetensors")
	require.NoError(t, checkpoint.WriteSafetensors(flat, []checkpoint.Tensor{checkpoint.Float32Tensor("x", []float32{1, 2, 3}, 3)}, nil))
	golden := torchGoldens + "llama-tied.golden.safetensors"
	out := filepath.Join(dir, "out.safetensors")
	activations := func(in, hooks string) []string {
		return []string{"activations", "--model", torchGoldens + "llama-tied", "--in", in, "--hooks", hooks, "--out", out}
	}
	for fact, arguments := range map[string][]string{
		"blocks.L.hook_resid_post":                  activations(golden, "blocks.1.hook_z"),
		"3 layers, 0 to 2":                          activations(golden, "blocks.7.hook_mlp_out"),
		"attention_mask has a hole before column 2": activations(holed, "blocks.1.hook_mlp_out"),
		"input_ids":                                 activations(flat, "blocks.1.hook_mlp_out"),
		"want [n, 24]":                              {"encode", "--sae", torchGoldens + "sae/topk-none", "--in", flat, "--out", out},
		"scaling factor":                            {"encode", "--sae", torchGoldens + "sae/topk-expected_average_only_in", "--in", torchGoldens + "sae/topk-none.golden.safetensors", "--out", out},
		"cannot be folded":                          {"encode", "--sae", torchGoldens + "sae/topk-none", "--fold", "decoder-norm", "--in", torchGoldens + "sae/topk-none.golden.safetensors", "--out", out},
		"--hooks":                                   {"activations", "--model", "x", "--in", "y", "--out", "z"},
		"device \"tpu\": not known":                 append(activations(golden, "blocks.1.hook_mlp_out"), "--device", "tpu"),
	} {
		err := run(t.Context(), arguments)
		require.ErrorContains(t, err, fact)
		require.NotContains(t, err.Error(), "\n")
		require.NoFileExists(t, out)
	}
	require.NoFileExists(t, out+".partial")
}
