package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestActivationsMayBeComputedInBfloat16(t *testing.T) {
	golden, out := torchGoldens+"llama-tied.golden.safetensors", filepath.Join(t.TempDir(), "acts.safetensors")
	hook := "blocks.1.hook_resid_post"
	arguments := []string{"activations", "--model", torchGoldens + "llama-tied", "--in", golden, "--hooks", hook, "--out", out}
	require.NoError(t, run(t.Context(), append(arguments, "--dtype", "bfloat16")))
	want, _ := tensorOf(t, golden, hook)
	got, _ := tensorOf(t, out, hook)
	difference := relative(t, got, want)
	require.Less(t, difference, 0.05)
	require.Greater(t, difference, 1e-4)
	require.ErrorContains(t, run(t.Context(), append(arguments, "--dtype", "int4")), "float32")
	require.ErrorContains(t, run(t.Context(), []string{"work", "--dtype", "bfloat16"}), "unknown flag --dtype", "an extraction says its own dtype, float32")
}
