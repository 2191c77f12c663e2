package checkpoint_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// copied gives a copy of a golden case and the path in it that is to be opened.
func copied(t testing.TB, name, path string) string {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.CopyFS(root, os.DirFS(filepath.Join("testdata/formats", name))))
	return filepath.Join(root, filepath.FromSlash(path))
}

func TestAFactThatNoFileHoldsIsAskedForAndNeverGuessed(t *testing.T) {
	t.Parallel()
	no := false
	for name, c := range map[string]struct {
		from, path, rename string // rename: what the folder or file is called after
		facts              checkpoint.SAEFacts
		want, option       string
	}{
		"Gemma Scope away from its repository": {"gemma_scope/res/gemma-scope-2b-pt-res", "layer_12", "x", checkpoint.SAEFacts{}, "the place that the SAE reads (its hook) is not known", "--hook"},
		"Gemma Scope without a layer":          {"gemma_scope/res/gemma-scope-2b-pt-res", "layer_12", "x", checkpoint.SAEFacts{Repo: "google/gemma-scope-2b-pt-res"}, "the layer that the SAE reads is not known", "--layer"},
		"Gemma Scope 2 without a folder":       {"gemma_scope_2/attn_out/gemma-scope-2-1b-pt", "attn_out_all", "x", checkpoint.SAEFacts{}, "there is no config.json with hf_hook_point_in", "--hook"},
		"Qwen Scope's k":                       {"qwen_scope/topk/models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "snapshots", "x", checkpoint.SAEFacts{}, "k, the number of latents that a token keeps is not known", "--k"},
		"a threshold that was never set":       {"dictionary_learning/BatchTopKSAE-threshold-never-set/resid_post_layer_3", "trainer_0", "x", checkpoint.SAEFacts{}, "it is −1: training ended before it was set", "--k"},
		"OpenAI's place":                       {"openai/topk/v5_32k/resid_post_mlp", "8.pt", "x.pt", checkpoint.SAEFacts{}, "the place that the SAE reads (its hook) is not known", "--hook"},
		"a normalisation":                      {"mistudio/jumprelu", "checkpoint.safetensors", "x.safetensors", checkpoint.SAEFacts{}, "how the SAE's input is normalised is not known", "--normalize"},
		"what kind it is":                      {"mistudio/standard", "checkpoint.safetensors", "x.safetensors", checkpoint.SAEFacts{Normalization: "none", Hook: "h"}, "how latents are chosen is not known", "--architecture"},
		"the k of what kind it is":             {"mistudio/standard", "checkpoint.safetensors", "x.safetensors", checkpoint.SAEFacts{Normalization: "none", Hook: "h", Architecture: "topk"}, "k, the number of latents", "--k"},
		"whether b_dec is subtracted":          {"saelens/bare-jumprelu", "sae_weights.safetensors", "x.safetensors", checkpoint.SAEFacts{Normalization: "none"}, "whether b_dec is subtracted from the input is not known", "--apply-b-dec"},
		"a transcoder's layer":                 {"mwhanna_transcoder/transcoder/qwen3-4b-transcoders", "layer_3.safetensors", "x.safetensors", checkpoint.SAEFacts{}, "the file's name is not layer_N.safetensors", "--layer"},
		"sparsify's module":                    {"sparsify/topk", "layers.3", "x", checkpoint.SAEFacts{}, `"x" names none`, "--hook"},
		"a temporal SAE's layer":               {"temporal/tied/gemma-2-2B", "layer_12", "x", checkpoint.SAEFacts{}, "the path does not name it", "--layer"},
		"a kind that depends on the batch":     {"llamascopium/topk", "config.json", "", checkpoint.SAEFacts{ApplyBDecToInput: &no}, "act_fn is batchtopk", "--architecture"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := copied(t, c.from, c.path)
			if c.rename == "" { // the configuration is to be changed
				editJSON(t, path, object{"act_fn": "batchtopk"})
				path = filepath.Dir(path)
			} else {
				to := filepath.Join(filepath.Dir(path), c.rename)
				require.NoError(t, os.Rename(path, to))
				path = deepest(t, to)
			}
			_, err := checkpoint.OpenSAE(path, checkpoint.WithFacts(c.facts))
			var question *checkpoint.QuestionError
			require.ErrorAs(t, err, &question)
			require.ErrorContains(t, err, strings.ReplaceAll(c.want, "keeps,", "keeps"))
			require.Contains(t, question.Option, c.option)
		})
	}
}

// deepest follows a path to the only file or folder with an SAE below it.
func deepest(t *testing.T, path string) string {
	t.Helper()
	for {
		info, err := os.Stat(path)
		require.NoError(t, err)
		if !info.IsDir() {
			return path
		}
		entries, err := os.ReadDir(path)
		require.NoError(t, err)
		if len(entries) != 1 || !entries[0].IsDir() {
			return path
		}
		path = filepath.Join(path, entries[0].Name())
	}
}

func TestFactsThatAnswerAQuestionAreUsedAndNoted(t *testing.T) {
	t.Parallel()
	path := copied(t, "gemma_scope/res/gemma-scope-2b-pt-res", "layer_12")
	to := filepath.Join(filepath.Dir(path), "x")
	require.NoError(t, os.Rename(path, to))
	layer := 12
	s, err := checkpoint.OpenSAE(deepest(t, to), checkpoint.WithFacts(checkpoint.SAEFacts{Repo: "google/gemma-scope-2b-pt-res", Layer: &layer}))
	require.NoError(t, err)
	defer shut(t, s)
	require.Equal(t, "blocks.12.hook_resid_post", s.Config.Hook)
	require.Equal(t, "option", s.Config.Origins["repo"])
	require.Equal(t, "google/gemma-2-2b", s.Config.ModelName)

	folder := copied(t, "saelens/topk", "")
	s, err = checkpoint.OpenSAE(folder, checkpoint.WithFacts(checkpoint.SAEFacts{K: 3, Normalization: "layer_norm", ModelName: "other/model"}))
	require.NoError(t, err)
	defer shut(t, s)
	require.Equal(t, 3, s.Config.K)
	require.Equal(t, "layer_norm", s.Config.Normalization)
	require.Equal(t, []string{"model_name: the option says other/model, the files say tiny/model (cfg.json)", "k: the option says 3, the files say 6 (cfg.json)", "normalization: the option says layer_norm, the files say none (cfg.json)"}, s.Config.Notes)

	for name, c := range map[string]struct {
		facts checkpoint.SAEFacts
		want  string
	}{
		"k for an SAE without one":  {checkpoint.SAEFacts{K: 3}, "k was given and the SAE's architecture is standard"},
		"another layer than it has": {checkpoint.SAEFacts{Layer: &layer}, "the option says layer 12 and the SAE's hook is blocks.1.hook_resid_post"},
		"a normalisation of nobody": {checkpoint.SAEFacts{Normalization: "x"}, `normalisation "x" is not supported`},
	} {
		_, err := checkpoint.OpenSAE("testdata/formats/saelens/standard", checkpoint.WithFacts(c.facts))
		require.ErrorContains(t, err, c.want, name)
	}
	_, err = checkpoint.OpenSAE(folder, checkpoint.WithFacts(checkpoint.SAEFacts{K: 49}))
	require.ErrorContains(t, err, "k is 49; expected a whole number from 1 to d_sae, 48")
}

func TestKnownFactsOfARepositoryAreUsed(t *testing.T) {
	t.Parallel()
	root := copied(t, "saelens/standard-expected-average", "")
	folder := filepath.Join(t.TempDir(), "gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.3.hook_mlp_out_24576:v0")
	require.NoError(t, os.CopyFS(folder, os.DirFS(root)))
	s, err := checkpoint.OpenSAE(folder)
	require.NoError(t, err)
	defer shut(t, s)
	require.InDelta(t, 1.8958522157897557, s.Config.ScalingFactor, 1e-15)
	require.Contains(t, s.Config.Origins["scaling_factor"], "known.yaml, tommmcgrath/gpt2-small-mlp-out-saes")
	require.True(t, s.Config.CenterWritingWeights)

	s, err = checkpoint.OpenSAE("testdata/formats/saelens/standard", checkpoint.WithFacts(checkpoint.SAEFacts{Repo: "JoshEngels/Mistral-7B-Residual-Stream-SAEs"}))
	require.NoError(t, err)
	defer shut(t, s)
	require.Equal(t, "constant_norm_rescale", s.Config.Normalization)
	require.Contains(t, s.Config.Notes[0], "known.yaml says constant_norm_rescale, the files say none")

	require.Equal(t, "openai-community/gpt2", checkpoint.HubModelName("gpt2-small"))
	require.Equal(t, "someone/else", checkpoint.HubModelName("someone/else"))
}

func TestAFolderOfSeveralSAEsListsThem(t *testing.T) {
	t.Parallel()
	for path, want := range map[string][]string{
		"testdata/formats/mwhanna_transcoder/transcoder/qwen3-4b-transcoders": {"layer_0.safetensors", "layer_3.safetensors"},
		"testdata/formats/sparsify/topk":                                      {"layers.3"},
		"testdata/formats/gemma_scope/res":                                    {"gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"},
	} {
		_, err := checkpoint.OpenSAE(path)
		var ambiguous *checkpoint.AmbiguousError
		require.ErrorAs(t, err, &ambiguous, path)
		require.Equal(t, want, ambiguous.Choices)
	}
	layer := 3
	s, err := checkpoint.OpenSAE("testdata/formats/mwhanna_transcoder/transcoder/qwen3-4b-transcoders", checkpoint.WithFacts(checkpoint.SAEFacts{Layer: &layer}))
	require.NoError(t, err)
	defer shut(t, s)
	require.Equal(t, "blocks.3.mlp.hook_in", s.Config.Hook)

	both := copied(t, "saelens/standard", "")
	require.NoError(t, os.CopyFS(both, os.DirFS("testdata/formats/gemma_scope/res/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")))
	_, err = checkpoint.OpenSAE(both)
	require.ErrorContains(t, err, "the folder holds SAEs in several formats: saelens (cfg.json and sae_weights.safetensors), gemma_scope (params.npz); give the path of the weights' file")
	s, err = checkpoint.OpenSAE(filepath.Join(both, "sae_weights.safetensors"))
	require.NoError(t, err)
	defer shut(t, s)
	require.Equal(t, "saelens", s.Config.Format)
}

func TestWhatLiesBesideAnSAEIsNoSecondOne(t *testing.T) {
	t.Parallel()
	for path, format := range map[string]string{"dictionary_learning/BatchTopKSAE": "dictionary_learning", "gemma_scope_2/resid_post": "gemma_scope_2", "saelens/topk": "saelens"} {
		folder := copied(t, path, "")
		at := folder
		require.NoError(t, filepath.WalkDir(folder, func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && slices.Contains([]string{".pt", ".safetensors"}, filepath.Ext(p)) {
				at = filepath.Dir(p)
			}
			return err
		}))
		require.NoError(t, checkpoint.WriteSafetensors(filepath.Join(at, "x.safetensors"), []checkpoint.Tensor{
			{Name: "x", DType: "F32", Shape: []int{1}, Data: make([]byte, 4)}, {Name: "acts", DType: "F32", Shape: []int{1}, Data: make([]byte, 4)},
		}, nil))
		s, err := checkpoint.OpenSAE(at)
		require.NoError(t, err, path)
		require.Equal(t, format, s.Config.Format)
		shut(t, s)
	}
}

func TestAConfigurationThatAsksForMoreIsRefusedByName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from, file string
		change     object
		want       string
	}{
		"sparsify, signed":                              {"sparsify/topk", "layers.3/cfg.json", object{"signed": true}, `top-k by magnitude "signed" is not supported`},
		"sparsify, k of 0":                              {"sparsify/topk", "layers.3/cfg.json", object{"k": 0}, "k is 0"},
		"sparsify, k above num_latents":                 {"sparsify/topk", "layers.3/cfg.json", object{"k": 49}, "from 1 to num_latents, 48"},
		"sparsify, groups that do not divide":           {"sparsify/groupmax", "layers.0.self_attn/cfg.json", object{"k": 7}, "a number of groups that divides num_latents, 48"},
		"sparsify, another d_in":                        {"sparsify/topk", "layers.3/cfg.json", object{"d_in": 8}, "tensor encoder.weight has the shape [48 16]; it should be [24 8]"},
		"sparsify, a skip not there":                    {"sparsify/transcode", "layers.2.mlp/cfg.json", object{"skip_connection": true}, "missing tensors: W_skip"},
		"llamascopium, a cross-coder":                   {"llamascopium/relu", "config.json", object{"sae_type": "crosscoder"}, `sae_type "crosscoder" is not supported`},
		"llamascopium, gates":                           {"llamascopium/relu", "config.json", object{"use_glu_encoder": true}, "use_glu_encoder"},
		"llamascopium, a batch's norm":                  {"llamascopium/relu", "config.json", object{"norm_activation": "batch-wise"}, `norm_activation "batch-wise" is not supported`},
		"llamascopium, a norm not there":                {"llamascopium/relu", "config.json", object{"norm_activation": "dataset-wise"}, "missing tensors: dataset_average_activation_norm.blocks.4.hook_resid_post"},
		"Llama Scope, a norm of 0":                      {"llama_scope/jumprelu", "Llama3_1-8B-Base-L15R-8x/hyperparams.json", object{"dataset_average_activation_norm": object{"in": 0}}, "dataset_average_activation_norm.in is 0"},
		"dictionary_learning, another class":            {"dictionary_learning/AutoEncoder", "resid_post_layer_3/trainer_0/config.json", object{"trainer": object{"dict_class": "CrossCoder", "activation_dim": 16, "dict_size": 48, "layer": 3}}, `dict_class "CrossCoder" is not supported`},
		"dictionary_learning, tensors of another class": {"dictionary_learning/AutoEncoder", "resid_post_layer_3/trainer_0/config.json", object{"trainer": object{"dict_class": "GatedAutoEncoder", "activation_dim": 16, "dict_size": 48, "layer": 3}}, "missing tensors: decoder_bias, r_mag, gate_bias, mag_bias"},
		"temporal, heads that do not divide":            {"saelens/temporal", "cfg.json", object{"n_heads": 5}, "a factor whose product with n_heads divides d_sae, 48"},
		"temporal, layers that are not there":           {"saelens/temporal", "cfg.json", object{"n_attn_layers": 2}, "missing tensors: attn_layers.1"},
		"temporal, a claim of many layers":              {"saelens/temporal", "cfg.json", object{"n_attn_layers": 1000000}, "n_attn_layers is 1000000 and the weights have"},
		"Gemma Scope 2, another kind":                   {"gemma_scope_2/resid_post", "gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_small/config.json", object{"architecture": "topk"}, `SAE architecture "topk" is not supported`},
		"Gemma Scope 2, a skip not there":               {"gemma_scope_2/resid_post", "gemma-scope-2-1b-pt/resid_post/layer_12_width_16k_l0_small/config.json", object{"affine_connection": true}, "missing tensors: affine_skip_connection"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := copied(t, c.from, c.file)
			editJSON(t, config, c.change)
			_, err := checkpoint.OpenSAE(filepath.Dir(config))
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWeightsThatAreNotFiniteAreRefusedInEveryContainer(t *testing.T) {
	t.Parallel()
	nan := []byte{0, 0, 0xc0, 0x7f}
	folder := copied(t, "mistudio/jumprelu", "")
	editTensors(t, filepath.Join(folder, "checkpoint.safetensors"), func(m map[string]checkpoint.Tensor) {
		w := m["model.W_dec"]
		m["model.W_dec"] = checkpoint.Tensor{Name: w.Name, DType: w.DType, Shape: w.Shape, Data: append(append([]byte{}, nan...), w.Data[4:]...)}
	})
	_, err := checkpoint.OpenSAE(folder, checkpoint.WithFacts(checkpoint.SAEFacts{Normalization: "none", Hook: "h"}))
	var bad *checkpoint.NonFiniteError
	require.ErrorAs(t, err, &bad)
	require.True(t, math.IsNaN(float64(bad.Value)))
	// A log threshold of 100 is finite and its exponential is not.
	folder = copied(t, "mistudio/jumprelu", "")
	editTensors(t, filepath.Join(folder, "checkpoint.safetensors"), func(m map[string]checkpoint.Tensor) {
		values := make([]float32, 48)
		values[7] = 100
		m["model.activation.log_threshold"] = checkpoint.Float32Tensor("model.activation.log_threshold", values, 48)
	})
	_, err = checkpoint.OpenSAE(folder, checkpoint.WithFacts(checkpoint.SAEFacts{Normalization: "none", Hook: "h"}))
	require.ErrorAs(t, err, &bad)
}

// Whatever a configuration says, opening ends with an SAE whose parts fit one another, or with an error.
func FuzzSAEFormatConfigs(f *testing.F) {
	cases := []struct{ from, config, open string }{
		{"sparsify/transcode-skip", "layers.2.mlp/cfg.json", "layers.2.mlp"},
		{"dictionary_learning/MatryoshkaBatchTopKSAE", "resid_post_layer_3/trainer_0/config.json", "resid_post_layer_3/trainer_0"},
		{"llama_scope/jumprelu", "Llama3_1-8B-Base-L15R-8x/hyperparams.json", "Llama3_1-8B-Base-L15R-8x"},
		{"llamascopium/dataset-wise-transcoder", "config.json", ""},
		{"llama_scope_r1_distill/jumprelu-norm-in-config", "L15R/config.json", "L15R"},
		{"gemma_scope_2/transcoder-affine", "gemma-scope-2-1b-pt/transcoder/layer_4_width_262k_l0_small_affine/config.json", "gemma-scope-2-1b-pt/transcoder/layer_4_width_262k_l0_small_affine"},
		{"temporal/tied", "gemma-2-2B/layer_12/temporal/conf.yaml", "gemma-2-2B/layer_12/temporal"},
		{"mwhanna_transcoder/transcoder", "qwen3-4b-transcoders/wanb-config.yaml", "qwen3-4b-transcoders/layer_3.safetensors"},
		{"mntss_clt/clt-layer", "clt-gemma-2-2b-2.5M/config.yaml", "clt-gemma-2-2b-2.5M"},
		{"connor_rob_hook_z/standard", "gpt2-small_L5_Hcat_z_lr1_cfg.json", ""},
		{"saelens/temporal-untied", "cfg.json", ""},
	}
	roots := make([]string, len(cases))
	for i, c := range cases {
		roots[i] = f.TempDir()
		require.NoError(f, os.CopyFS(roots[i], os.DirFS(filepath.Join("testdata/formats", c.from))))
		data, err := os.ReadFile(filepath.Join(roots[i], c.config))
		require.NoError(f, err)
		f.Add(byte(i), data)
	}
	f.Fuzz(func(t *testing.T, which byte, config []byte) {
		i := int(which) % len(cases)
		require.NoError(t, os.WriteFile(filepath.Join(roots[i], cases[i].config), config, 0o600))
		s, err := checkpoint.OpenSAE(filepath.Join(roots[i], filepath.FromSlash(cases[i].open)))
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		defer shut(t, s)
		c := s.Config
		_, err = json.Marshal(c)
		require.NoError(t, err)
		for name, sizes := range map[string][3]int{"W_enc": {len(s.WEnc), c.DIn * c.DSAE, 0}, "W_dec": {len(s.WDec), c.DSAE * c.DOut, -1}, "b_dec": {len(s.BDec), c.DOut, -1}, "threshold": {len(s.Threshold), c.DSAE, 0}, "W_skip": {len(s.WSkip), c.DIn * c.DOut, 0}} {
			require.Contains(t, []int{sizes[1], sizes[2]}, sizes[0], fmt.Sprintf("%s of %+v", name, c))
		}
		var fold *checkpoint.FoldError
		if err := s.FoldDecoderNorm(); err != nil && !errors.As(err, &fold) {
			t.Fatal(err)
		}
	})
}
