package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

func inspected(t *testing.T, path string, said checkpoint.SAEFacts) inspection {
	t.Helper()
	path = filepath.Join("../../adapters/checkpoint/testdata/formats", path)
	s, err := checkpoint.OpenSAE(path, checkpoint.WithFacts(said))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	r, err := inspect(path, s)
	require.NoError(t, err)
	return r
}

func TestInspectSaysEachFactWithWhereItCameFrom(t *testing.T) {
	t.Parallel()
	facts := map[string]inspectedFact{}
	r := inspected(t, "gemma_scope/transcoder/gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_41", checkpoint.SAEFacts{})
	for _, f := range r.Facts {
		facts[f.Name] = f
	}
	require.Equal(t, "gemma_scope", r.Format)
	require.Equal(t, "blocks.5.ln2.hook_normalized", facts["hook"].Value)
	require.Contains(t, facts["hook"].From, "known.yaml, google/gemma-scope-2b-pt-transcoders (sae-lens 6.54.0")
	require.Equal(t, "google/gemma-2-2b", facts["model_name"].Value)
	require.Equal(t, "the path", facts["layer"].From)
	require.Equal(t, "the shapes of the weights", facts["d_in"].From)
	require.Len(t, r.Files, 1)
	require.Equal(t, r.SHA256, r.Files[0].SHA256)

	var text bytes.Buffer
	require.NoError(t, r.print(&text))
	require.Regexp(t, `hook +blocks\.5\.ln2\.hook_normalized +known\.yaml`, text.String())
	require.Regexp(t, `file +params\.npz, \d+ bytes +[0-9a-f]{64}`, text.String())
}

func TestInspectSaysWhatWasFoldedAndWhatAnOptionChanged(t *testing.T) {
	t.Parallel()
	factor := 0.5
	r := inspected(t, "saelens/gated-expected-average", checkpoint.SAEFacts{ScalingFactor: &factor})
	require.Equal(t, []string{"activation-scale"}, r.Folds)
	data, err := json.Marshal(r)
	require.NoError(t, err)
	require.Contains(t, string(data), `{"name":"scaling_factor","value":0.5,"from":"option"}`)
	require.Contains(t, string(data), `{"name":"normalization_at_run_time","value":"none"}`)
	require.Contains(t, inspected(t, "gemma_scope_2/transcoder-affine/gemma-scope-2-1b-pt/transcoder/layer_4_width_262k_l0_small_affine", checkpoint.SAEFacts{}).Notes[0], "affine_skip_connection")
}

func TestInspectIsOneErrorWhereAFactIsMissing(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"saelens/topk-rescaled-expected-average": "give the factor",
		"mistudio/jumprelu":                      "how the SAE's input is normalised is not known",
		"gemma_scope":                            "the folder holds several SAEs",
		"none":                                   "there is no such file or folder",
	} {
		c := inspectCmd{Path: filepath.Join("../../adapters/checkpoint/testdata/formats", path)}
		require.ErrorContains(t, c.Run(t.Context()), want)
	}
}
