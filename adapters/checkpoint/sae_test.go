package checkpoint_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

func TestAnSAEIsRefusedWhenItsConfigurationIsNotReadable(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from   string
		change object
		want   string
	}{
		"an architecture of another kind":   {"standard", object{"architecture": "crosscoder"}, `SAE architecture "crosscoder" is not supported; supported: standard, topk, jumprelu, gated`},
		"gates that are not there":          {"standard", object{"architecture": "gated"}, "missing tensors: b_gate, b_mag, r_mag (an SAE of the architecture gated has them"},
		"a skip that is not there":          {"standard", object{"architecture": "skip_transcoder"}, "missing tensors: W_skip (an SAE of the architecture skip_transcoder"},
		"a transcoder that subtracts b_dec": {"topk", object{"architecture": "transcoder", "apply_b_dec_to_input": true}, "apply_b_dec_to_input is true for a transcoder; expected false"},
		"a pursuit with an encoder":         {"standard", object{"architecture": "matching_pursuit"}, "an SAE of the architecture matching_pursuit has no tensor W_enc, b_enc"},
		"a temporal SAE without heads":      {"standard", object{"architecture": "temporal"}, "n_heads is missing"},
		"a transcoder's scale":              {"standard-expected-average", object{"architecture": "transcoder", "apply_b_dec_to_input": false}, "needs the scaling factor"},
		"no architecture":                   {"standard", object{"architecture": nil}, "architecture is missing; expected one of standard, topk, jumprelu"},
		"an old activation":                 {"old-standard", object{"activation_fn_str": "tanh-relu"}, `activation_fn_str "tanh-relu" is not supported; supported: relu, topk`},
		"top-k without k":                   {"topk", object{"k": nil}, "k is missing; expected a whole number from 1 to d_sae, 10"},
		"k of zero":                         {"topk", object{"k": 0}, "k is 0"},
		"k above d_sae":                     {"topk", object{"k": 11}, "k is 11; expected a whole number from 1 to d_sae, 10"},
		"k that is no number":               {"topk", object{"k": "4"}, `k is "4"`},
		"old top-k without k":               {"old-topk", object{"activation_fn_kwargs": object{}}, "k is missing"},
		"no d_in":                           {"standard", object{"d_in": nil}, "d_in is missing"},
		"another d_in":                      {"standard", object{"d_in": 7}, "tensor W_enc has the shape [6 10]; it should be [7 10], that is [d_in, d_sae]"},
		"d_in and d_sae exchanged":          {"standard", object{"d_in": 10, "d_sae": 6}, "(it looks transposed)"},
		"a d_sae beyond memory":             {"standard", object{"d_sae": 1e18}, "d_sae is"},
		"an unknown normalisation":          {"standard", object{"normalize_activations": "whatever"}, `normalize_activations "whatever" is not supported; supported: none, expected_average_only_in, constant_norm_rescale, layer_norm`},
		"whitening that is not folded":      {"standard", object{"normalize_activations": "covariance_whitening"}, `normalize_activations "covariance_whitening" is not supported`},
		"a flag for a normalisation in v6":  {"standard", object{"normalize_activations": true}, "normalize_activations is true; expected a string"},
		"jumprelu without thresholds":       {"standard", object{"architecture": "jumprelu"}, "missing tensors: threshold (an SAE of the architecture jumprelu has them; the file has"},
		"thresholds that nobody reads":      {"jumprelu", object{"architecture": "standard"}, "an SAE of the architecture standard has no tensor threshold"},
		"one head of a hook":                {"standard", object{"metadata": object{"hook_name": "blocks.3.attn.hook_z", "hook_head_index": 2, "sae_lens_version": "6.1.0"}}, `hook_head_index "2" is not supported`},
		"an unknown reshape":                {"standard", object{"reshape_activations": "hook_q"}, `reshape_activations "hook_q" is not supported`},
		"a slice that goes backwards":       {"standard", object{"metadata": object{"seqpos_slice": []int{9, 1, -1}, "sae_lens_version": "6.1.0"}}, "metadata.seqpos_slice is [9,1,-1]; expected [stop]"},
		"metadata that is a list":           {"standard", object{"metadata": []int{1}}, "metadata is [1]; expected an object"},
		"a version that is none":            {"standard", object{"sae_lens_version": "latest"}, `sae_lens_version is "latest"`},
		"finetuning that is not announced":  {"old-finetuned", object{"finetuning_scaling_factor": false}, "the tensor scaling_factor is not all ones and finetuning_scaling_factor is false"},
		"a scale that nobody knows":         {"standard-expected-average", object{}, "needs the scaling factor"},
		"a scale that nobody knows, as old": {"old-normalised", object{}, "needs the scaling factor"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, filepath.Join("testdata/sae", c.from))
			editJSON(t, filepath.Join(folder, "cfg.json"), c.change)
			_, err := checkpoint.OpenSAE(folder)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, folder, "the message says which file")
		})
	}
}

func TestAnSAEIsRefusedWhenItsWeightsAreBad(t *testing.T) {
	t.Parallel()
	with := func(name string, at int, v float64) func(map[string]checkpoint.Tensor) {
		return func(m map[string]checkpoint.Tensor) {
			tensor := m[name]
			values, _ := tensor.Float32()
			values = append([]float32{}, values...)
			values[at] = float32(v)
			m[name] = checkpoint.Float32Tensor(name, values, tensor.Shape...)
		}
	}
	for name, c := range map[string]struct {
		change func(map[string]checkpoint.Tensor)
		want   string
	}{
		"NaN in the encoder":            {with("W_enc", 5, math.NaN()), "tensor W_enc holds 1 values that are not finite, the first (NaN) at index 5"},
		"infinity in the decoder":       {with("W_dec", 0, math.Inf(1)), "tensor W_dec holds 1 values that are not finite, the first (+Inf) at index 0"},
		"minus infinity in a threshold": {with("threshold", 9, math.Inf(-1)), "the first (-Inf) at index 9"},
		"a double beyond float32": {func(m map[string]checkpoint.Tensor) {
			m["b_dec"] = checkpoint.Tensor{Name: "b_dec", DType: "F64", Shape: []int{6}, Data: append(make([]byte, 40), 0, 0, 0, 0, 0, 0, 0xe0, 0x7f)}
		}, "tensor b_dec holds 1 values"},
		"a missing bias": {func(m map[string]checkpoint.Tensor) { delete(m, "b_enc") }, "missing tensors: b_enc"},
		"a bias of the wrong length": {func(m map[string]checkpoint.Tensor) {
			m["b_enc"] = checkpoint.Float32Tensor("b_enc", make([]float32, 9), 9)
		}, "tensor b_enc has the shape [9]; it should be [10], that is [d_sae]"},
		"weights of whole numbers": {func(m map[string]checkpoint.Tensor) {
			m["b_enc"] = checkpoint.Int64Tensor("b_enc", make([]int64, 10), 10)
		}, `dtype of tensor b_enc "I64" is not supported`},
		"a skip that nobody reads": {func(m map[string]checkpoint.Tensor) {
			m["W_skip"] = checkpoint.Float32Tensor("W_skip", make([]float32, 36), 6, 6)
		}, "an SAE of the architecture jumprelu has no tensor W_skip"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, "testdata/sae/jumprelu")
			editTensors(t, filepath.Join(folder, "sae_weights.safetensors"), c.change)
			_, err := checkpoint.OpenSAE(folder)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWhatIsNoSAELensFolderIsRefused(t *testing.T) {
	t.Parallel()
	_, err := checkpoint.OpenSAE(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = checkpoint.OpenSAE(t.TempDir())
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "there is no SAE of a known format; expected a folder with cfg.json and sae_weights.safetensors (saelens)")
	_, err = checkpoint.OpenSAE("testdata/sae/standard/cfg.json")
	require.ErrorContains(t, err, "it is a file that holds no SAE of a known format; expected a folder with cfg.json and sae_weights.safetensors")
	_, err = checkpoint.OpenSAE("testdata/sae")
	var ambiguous *checkpoint.AmbiguousError
	require.ErrorAs(t, err, &ambiguous)
	require.Contains(t, ambiguous.Choices, "old-topk")
	folder := copyFolder(t, "testdata/sae/standard")
	require.NoError(t, os.Remove(filepath.Join(folder, "sae_weights.safetensors")))
	_, err = checkpoint.OpenSAE(folder)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "sae_weights.safetensors: the file is missing")
}

func TestTheActivationScaleComesFromTheCallerOrTheFileAndNeverFromAGuess(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from    string
		scaler  string // content of activation_scaler.json, "" for none
		options []checkpoint.SAEOption
		factor  float64
		want    string
	}{
		"asked for":                         {"standard-expected-average", "", nil, 0, "needs the scaling factor"},
		"null in the file":                  {"standard-expected-average", `{"scaling_factor": null}`, nil, 0, "needs the scaling factor"},
		"absent from the file":              {"standard-expected-average", `{}`, nil, 0, "needs the scaling factor"},
		"a word in the file":                {"standard-expected-average", `{"scaling_factor": "0.5"}`, nil, 0, `scaling_factor is "0.5"; expected a number`},
		"zero in the file":                  {"standard-expected-average", `{"scaling_factor": 0}`, nil, 0, "the scaling factor is 0; expected a number above 0"},
		"a broken file":                     {"standard-expected-average", `{`, nil, 0, "it is not a JSON object"},
		"from the file":                     {"standard-expected-average", `{"scaling_factor": 0.5}`, nil, 0.5, ""},
		"from the caller":                   {"standard-expected-average", "", []checkpoint.SAEOption{checkpoint.WithScalingFactor(0.25)}, 0.25, ""},
		"the caller's outranks the file's":  {"standard-expected-average", `{"scaling_factor": 0.5}`, []checkpoint.SAEOption{checkpoint.WithScalingFactor(0.25)}, 0.25, ""},
		"a negative one from the caller":    {"standard-expected-average", "", []checkpoint.SAEOption{checkpoint.WithScalingFactor(-1)}, 0, "the scaling factor is -1"},
		"a file beside an SAE that is none": {"standard", `{"scaling_factor": 0.5}`, nil, 0, ""},
		"a caller's for an SAE that is none": {"standard", "", []checkpoint.SAEOption{checkpoint.WithScalingFactor(0.25)}, 0,
			`a scaling factor was given, but the SAE's normalize_activations is "none"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, filepath.Join("testdata/sae", c.from))
			_ = os.Remove(filepath.Join(folder, "activation_scaler.json"))
			if c.scaler != "" {
				writeFile(t, filepath.Join(folder, "activation_scaler.json"), []byte(c.scaler))
			}
			s, err := checkpoint.OpenSAE(folder, c.options...)
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				return
			}
			require.NoError(t, err)
			defer shut(t, s)
			require.Equal(t, c.factor, s.Config.ScalingFactor)
			require.Equal(t, "none", s.Config.Normalization)
			used := len(s.Config.Files) == 3
			require.Equal(t, c.factor == 0.5, used, "the file is named where it was used")
		})
	}
}

func TestFoldsAreRefusedWhereTheyWouldChangeTheResult(t *testing.T) {
	t.Parallel()
	s, err := checkpoint.OpenSAE("testdata/sae/topk")
	require.NoError(t, err)
	defer shut(t, s)
	var fold *checkpoint.FoldError
	require.ErrorAs(t, s.FoldDecoderNorm(), &fold)
	var unwanted *checkpoint.ScaleNotWantedError
	require.ErrorAs(t, s.FoldScalingFactor(2), &unwanted)

	s, err = checkpoint.OpenSAE("testdata/sae/jumprelu-expected-average")
	require.NoError(t, err)
	defer shut(t, s)
	require.ErrorContains(t, s.FoldScalingFactor(2), "folded into this SAE already")
	require.NoError(t, s.FoldDecoderNorm())
	once := append([]float32{}, s.WEnc...)
	require.NoError(t, s.FoldDecoderNorm())
	require.Equal(t, once, s.WEnc)
	require.Equal(t, []string{"activation-scale", "decoder-norm"}, s.Config.Folds)
}

func TestTheOldFormAndTheNewAreToldApartByVersion(t *testing.T) {
	t.Parallel()
	for version, old := range map[string]bool{
		"": true, "3.20.1": true, "5.9.9": true, "6.0.0-alpha.1": true, "6.0.0b2": true, "6.0.0.dev1": true,
		"6.0.0-rc.0": false, "6.0.0rc1": false, "6.0.0": false, "6.54.0": false, "6.1.0b1": false, "10.0": false,
	} {
		folder := copyFolder(t, "testdata/sae/standard")
		editJSON(t, filepath.Join(folder, "cfg.json"), object{"sae_lens_version": version, "metadata": nil, "apply_b_dec_to_input": nil})
		s, err := checkpoint.OpenSAE(folder)
		require.NoError(t, err, version)
		require.Equal(t, old, s.Config.PrependBOS != nil, "version %q: only the old form has a default for prepend_bos", version)
		require.NoError(t, s.Close())
	}
}

func TestHookNamesAreSplitIntoPointAndLayer(t *testing.T) {
	t.Parallel()
	for hook, want := range map[string]struct {
		point string
		layer int
	}{
		"blocks.8.hook_resid_post":     {"resid_post", 8},
		"blocks.0.hook_resid_pre":      {"resid_pre", 0},
		"blocks.11.hook_mlp_out":       {"mlp_out", 11},
		"blocks.3.hook_attn_out":       {"attn_out", 3},
		"blocks.3.attn.hook_z":         {"attn.hook_z", 3},
		"blocks.3.ln2.hook_normalized": {"ln2.hook_normalized", 3},
		"hook_embed":                   {"", -1},
		"blocks.x.hook_resid_post":     {"", -1},
		"blocks.-1.hook_resid_post":    {"", -1},
		"blocks.+1.hook_resid_post":    {"", -1},
		"blocks.99999999.hook_z":       {"", -1},
		"blocks.3.":                    {"", -1},
		"blocks.3":                     {"", -1},
		"":                             {"", -1},
	} {
		point, layer := checkpoint.ParseHookName(hook)
		require.Equal(t, want.point, point, hook)
		require.Equal(t, want.layer, layer, hook)
	}
}

func TestAPositionSliceIsPythons(t *testing.T) {
	t.Parallel()
	at := func(n int) *int { return &n }
	taken := func(s *checkpoint.PositionSlice, length int) []int {
		out := []int{}
		for i := -1; i <= length; i++ {
			if s.Contains(i, length) {
				out = append(out, i)
			}
		}
		return out
	}
	require.Equal(t, []int{0, 1, 2, 3, 4}, taken(nil, 5))
	require.Equal(t, []int{1, 2, 3, 4}, taken(&checkpoint.PositionSlice{Start: at(1)}, 5))
	require.Equal(t, []int{0, 1, 2, 3}, taken(&checkpoint.PositionSlice{Stop: at(-1)}, 5))
	require.Equal(t, []int{3, 4}, taken(&checkpoint.PositionSlice{Start: at(-2)}, 5))
	require.Equal(t, []int{0, 1, 2, 3, 4}, taken(&checkpoint.PositionSlice{Start: at(-9), Stop: at(99)}, 5))
	require.Equal(t, []int{1, 3}, taken(&checkpoint.PositionSlice{Start: at(1), Step: at(2)}, 5))
	require.Empty(t, taken(&checkpoint.PositionSlice{Start: at(3), Stop: at(3)}, 5))
}

func TestTheDigestOfFilesIsWhatAShellSays(t *testing.T) {
	t.Parallel()
	shell, err := exec.LookPath("sha256sum")
	if err != nil {
		t.Skip("there is no sha256sum to compare with")
	}
	folder, err := filepath.Abs("testdata/sae/standard")
	require.NoError(t, err)
	one, err := checkpoint.HashFiles([]string{filepath.Join(folder, "cfg.json")})
	require.NoError(t, err)
	two, err := checkpoint.HashFiles([]string{filepath.Join(folder, "sae_weights.safetensors"), filepath.Join(folder, "cfg.json")})
	require.NoError(t, err)
	run := func(script string) string {
		c := exec.Command("sh", "-c", script)
		c.Dir, c.Env = folder, append(os.Environ(), "sum="+shell)
		out, err := c.Output()
		require.NoError(t, err)
		return strings.Fields(string(out))[0]
	}
	require.Equal(t, run("$sum cfg.json"), one)
	require.Equal(t, run("$sum cfg.json sae_weights.safetensors | $sum"), two)
	_, err = checkpoint.HashFiles([]string{filepath.Join(folder, "none")})
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func FuzzSAEConfig(f *testing.F) {
	folders, err := filepath.Glob("testdata/sae/*/cfg.json")
	require.NoError(f, err)
	for _, path := range folders {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(data, []byte(`{"scaling_factor": 0.5}`))
	}
	folder := f.TempDir()
	weights, err := os.ReadFile("testdata/sae/jumprelu/sae_weights.safetensors")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, config, scaler []byte) {
		own := filepath.Join(folder, fmt.Sprint(os.Getpid()))
		if _, err := os.Stat(own); err != nil {
			writeFile(t, filepath.Join(own, "sae_weights.safetensors"), weights)
		}
		writeFile(t, filepath.Join(own, "cfg.json"), config)
		writeFile(t, filepath.Join(own, "activation_scaler.json"), scaler)
		s, err := checkpoint.OpenSAE(own)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		defer shut(t, s)
		_, err = json.Marshal(s.Config)
		require.NoError(t, err)
		require.NoError(t, s.FoldDecoderNorm())
	})
}
