package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

func TestEncodeWritesWhatSAELensComputes(t *testing.T) {
	out := filepath.Join(t.TempDir(), "y.safetensors")
	for name, flags := range map[string][]string{
		"topk-none":                         nil,
		"jumprelu-expected_average_only_in": {"--scaling-factor", "0.31"},
		"standard-none-fold":                {"--fold", "decoder-norm"},
		"topk-layer_norm-rescale":           {"--threads", "1"},
	} {
		golden := torchGoldens + "sae/" + name + ".golden.safetensors"
		require.NoError(t, run(t.Context(), append([]string{"encode", "--sae", torchGoldens + "sae/" + name, "--in", golden, "--out", out}, flags...)))
		for _, tensor := range []string{"acts", "decode", "recon"} {
			want, wantShape := tensorOf(t, golden, tensor)
			got, shape := tensorOf(t, out, tensor)
			require.Equal(t, wantShape, shape)
			require.Less(t, relative(t, got, want), 5e-5, "%s of %s", tensor, name)
		}
	}
}

const formatCases = "../../adapters/checkpoint/testdata/formats/"

// Every published format, through the command as a user calls it: numbers and shapes are Python's.
func TestEncodeTakesEveryFormat(t *testing.T) {
	cases, err := filepath.Glob(formatCases + "*/*.expected.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, cases)
	out := filepath.Join(t.TempDir(), "y.safetensors")
	for _, golden := range cases {
		name, _ := filepath.Rel(formatCases, strings.TrimSuffix(golden, ".expected.safetensors"))
		t.Run(name, func(t *testing.T) {
			f, err := checkpoint.OpenSafetensors(golden)
			require.NoError(t, err)
			path, flags := f.Metadata()["path"], flagsOf(t, f.Metadata()["options"])
			require.NoError(t, f.Close())
			arguments := append([]string{"encode", "--sae", filepath.Join(formatCases, name, path), "--in", golden, "--out", out, "--threads", "2"}, flags...)
			require.NoError(t, run(t.Context(), arguments))
			for _, tensor := range []string{"acts", "decode", "recon"} {
				want, wantShape := tensorOf(t, golden, tensor)
				got, shape := tensorOf(t, out, tensor)
				require.Equal(t, wantShape, shape)
				require.Less(t, relative(t, got, want), 5e-5, tensor)
			}
		})
	}
}

// flagsOf turns the facts that a case's user has to add, by their names in checkpoint.SAEFacts, into
// flags.
func flagsOf(t *testing.T, options string) []string {
	t.Helper()
	if options == "" {
		return nil
	}
	var facts map[string]any
	require.NoError(t, json.Unmarshal([]byte(options), &facts))
	names := map[string]string{
		"scaling_factor": "--scaling-factor", "normalization": "--normalize", "architecture": "--architecture", "k": "--k", "model_name": "--model-name",
		"hook": "--hook", "hook_out": "--hook-out", "layer": "--layer", "repo": "--repo",
	}
	var flags []string
	for name, value := range facts {
		flag, ok := names[name]
		switch {
		case ok:
			flags = append(flags, fmt.Sprintf("%s=%v", flag, value))
		case name == "apply_b_dec_to_input" && value == true:
			flags = append(flags, "--apply-b-dec")
		case name == "apply_b_dec_to_input":
			flags = append(flags, "--no-apply-b-dec")
		default:
			require.Fail(t, "no flag for "+name)
		}
	}
	return flags
}

func TestEncodeTakesTheShapesThatPythonHas(t *testing.T) {
	t.Parallel()
	plain := checkpoint.SAEConfig{Architecture: "topk", DIn: 12, DSAE: 30, DOut: 12}
	heads, looksBack, transcoder := plain, plain, plain
	heads.Reshape, looksBack.Architecture = "hook_z", "temporal"
	transcoder.Transcoder, transcoder.DOut = true, 7
	for _, c := range []struct {
		config checkpoint.SAEConfig
		x      []int
		want   shapes
	}{
		{plain, []int{5, 12}, shapes{1, 5, []int{5, 30}, []int{5, 12}}},
		{plain, []int{2, 5, 12}, shapes{1, 10, []int{2, 5, 30}, []int{2, 5, 12}}},
		{transcoder, []int{5, 12}, shapes{1, 5, []int{5, 30}, []int{5, 7}}},
		{heads, []int{5, 3, 4}, shapes{1, 5, []int{5, 30}, []int{5, 3, 4}}},
		{heads, []int{2, 5, 3, 4}, shapes{1, 10, []int{2, 5, 30}, []int{2, 5, 3, 4}}},
		{heads, []int{5, 12}, shapes{1, 5, []int{5, 30}, []int{5, 12}}},
		{looksBack, []int{2, 5, 12}, shapes{2, 5, []int{2, 5, 30}, []int{2, 5, 12}}},
		{looksBack, []int{5, 12}, shapes{1, 5, []int{5, 30}, []int{5, 12}}},
	} {
		got, err := shapesOf(c.config, c.x)
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
	for _, c := range []struct {
		config checkpoint.SAEConfig
		x      []int
		fact   string
	}{
		{plain, []int{12}, "want [n, 12]"},
		{plain, []int{5, 3, 4}, "want [n, 12]"},
		{heads, []int{5, 3, 5}, "want [n, heads, d_head] with heads × d_head = 12, or [n, 12]"},
		{looksBack, []int{1, 2, 5, 12}, "want [batch, seq, 12], or [n, 12] as one sequence"},
		{plain, nil, "want [n, 12]"},
	} {
		_, err := shapesOf(c.config, c.x)
		require.ErrorContains(t, err, c.fact)
	}
}
