package checkpoint_test

import (
	"io"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// The files under testdata come from testdata/golden.py.

func openGolden(t *testing.T, parts ...string) *checkpoint.Safetensors {
	t.Helper()
	s, err := checkpoint.OpenSafetensors(filepath.Join(append([]string{"testdata"}, parts...)...))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func shut(t testing.TB, c io.Closer) {
	t.Helper()
	require.NoError(t, c.Close())
}

func floats(t *testing.T, s *checkpoint.Safetensors, name string) []float32 {
	t.Helper()
	tensor, err := s.Tensor(name)
	require.NoError(t, err)
	values, err := tensor.Float32()
	require.NoError(t, err)
	return values
}

// requireBits compares floats bit for bit; the index tells more than two long slices.
func requireBits(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		if math.Float32bits(want[i]) != math.Float32bits(got[i]) {
			require.Failf(t, "values differ", "%s[%d]: want %v (%#x), got %v (%#x)", what, i, want[i], math.Float32bits(want[i]), got[i], math.Float32bits(got[i]))
		}
	}
}

func TestFloatsConvertAsTorchDoes(t *testing.T) {
	t.Parallel()
	s := openGolden(t, "dtypes.safetensors")
	require.Equal(t, map[string]string{"format": "pt", "note": "golden"}, s.Metadata())
	for _, name := range []string{"f16", "bf16", "f64"} {
		got := floats(t, s, name)
		tensor, err := s.Tensor(name + ".want")
		require.NoError(t, err)
		want, err := tensor.Int64()
		require.NoError(t, err)
		require.Len(t, got, len(want))
		for i := range want {
			w := math.Float32frombits(uint32(int32(want[i])))
			if math.IsNaN(float64(w)) {
				require.True(t, math.IsNaN(float64(got[i])), "%s[%d] should be NaN", name, i) // torch sets the quiet bit of a signalling NaN; we keep the payload
				continue
			}
			require.Equal(t, math.Float32bits(w), math.Float32bits(got[i]), "%s[%d]", name, i)
		}
	}
	require.Equal(t, []float32{7.5}, floats(t, s, "scalar"))
	require.Empty(t, floats(t, s, "empty"))
	for name, want := range map[string][]int64{"i64": {1, -2, 3, 1 << 40}, "i32": {-1, 2}, "u8": {0, 255}, "bool": {1, 0}} {
		tensor, err := s.Tensor(name)
		require.NoError(t, err)
		got, err := tensor.Int64()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	f8, err := s.Tensor("f8")
	require.NoError(t, err, "a file with F8 opens; only the use of the tensor as float32 is refused")
	_, err = f8.Float32()
	var unsupported *checkpoint.UnsupportedError
	require.ErrorAs(t, err, &unsupported)
	require.ErrorContains(t, err, "F8_E4M3")
}

func TestQuantisedTensorsAreBitForBitWhatGgufReads(t *testing.T) {
	t.Parallel()
	want := openGolden(t, "quant", "want.safetensors")
	g, err := checkpoint.OpenGGUF(filepath.Join("testdata", "quant", "types.gguf"))
	require.NoError(t, err)
	defer shut(t, g)
	for _, name := range want.Names() {
		got, err := g.Tensor(name)
		require.NoError(t, err)
		w, err := want.Tensor(name)
		require.NoError(t, err)
		require.Equal(t, w.Shape, got.Shape)
		values, err := got.Float32()
		require.NoError(t, err)
		requireBits(t, floats(t, want, name), values, name)
	}
	_, err = g.Tensor("unread")
	require.ErrorContains(t, err, `"IQ2_XXS" is not supported; supported: F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL, IQ4_XS, BF16`)
}

func TestAModelIsTheSameFromItsFolderAndFromGGUF(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"untied", "tied", "bias"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder, err := checkpoint.OpenModel(filepath.Join("testdata", "llama", name))
			require.NoError(t, err)
			defer shut(t, folder)
			file, err := checkpoint.OpenModel(filepath.Join("testdata", "llama", name+".gguf"))
			require.NoError(t, err)
			defer shut(t, file)
			require.Nil(t, folder.GGUF())
			require.NotNil(t, file.GGUF())

			want, got := folder.Config(), file.Config()
			require.Equal(t, "tiny", got.Name)
			require.InEpsilon(t, want.NormEps, got.NormEps, 1e-6, "GGUF keeps it as float32")
			got.Name, got.NormEps = want.Name, want.NormEps
			require.Equal(t, want, got)
			require.Equal(t, name != "untied", want.TiedEmbeddings)
			if name == "tied" {
				require.Equal(t, checkpoint.Rope{Theta: 5e5, Scaling: "llama3", Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192}, got.Rope)
			}
			require.Equal(t, folder.Names(), file.Names())
			for _, tensor := range folder.Names() {
				a, err := folder.Tensor(tensor)
				require.NoError(t, err)
				b, err := file.Tensor(tensor)
				require.NoError(t, err)
				require.Equal(t, tensor, a.Name)
				require.Equal(t, tensor, b.Name)
				require.Equal(t, a.Shape, b.Shape)
				x, err := a.Float32()
				require.NoError(t, err)
				y, err := b.Float32()
				require.NoError(t, err)
				requireBits(t, x, y, tensor)
			}
			require.NoError(t, folder.CheckFinite())
			require.NoError(t, file.CheckFinite())
			_, err = folder.Tensor("model.layers.9.input_layernorm.weight")
			var missing *checkpoint.MissingTensorError
			require.ErrorAs(t, err, &missing)
		})
	}
}

func TestAShardedModelNamesAllItsFiles(t *testing.T) {
	t.Parallel()
	m, err := checkpoint.OpenModel("testdata/llama/untied")
	require.NoError(t, err)
	defer shut(t, m)
	var names []string
	for _, f := range m.Files() {
		require.True(t, filepath.IsAbs(f))
		names = append(names, filepath.Base(f))
	}
	require.Equal(t, []string{"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}, names)
}

func TestAGGUFGivesItsTokenizer(t *testing.T) {
	t.Parallel()
	m, err := checkpoint.OpenModel("testdata/llama/tied.gguf")
	require.NoError(t, err)
	defer shut(t, m)
	tok, err := m.GGUF().Tokenizer()
	require.NoError(t, err)
	require.Equal(t, "gpt2", tok.Model)
	require.Equal(t, "smollm", tok.Pre)
	require.Len(t, tok.Tokens, 24)
	require.Equal(t, []int32{3, 3, 1}, tok.Types[:3])
	require.Equal(t, []string{"t 1", "t 2"}, tok.Merges)
	require.Equal(t, 0, *tok.BOS)
	require.Equal(t, 1, *tok.EOS)
	require.True(t, *tok.AddBOS)
	require.Nil(t, tok.AddEOS)
	require.Nil(t, tok.Unknown)
}

// saeParts pairs SAELens's names with our slices.
func saeParts(s *checkpoint.SAE) map[string][]float32 {
	parts := map[string][]float32{"W_enc": s.WEnc, "b_enc": s.BEnc, "W_dec": s.WDec, "b_dec": s.BDec}
	if s.Threshold != nil {
		parts["threshold"] = s.Threshold
	}
	return parts
}

func TestSAEsHaveTheWeightsThatSAELensLoadsAndFolds(t *testing.T) {
	t.Parallel()
	folders, err := filepath.Glob("testdata/sae/*")
	require.NoError(t, err)
	require.NotEmpty(t, folders)
	for _, folder := range folders {
		name := filepath.Base(folder)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := openGolden(t, "sae", name, "want.safetensors")
			expected := strings.Contains(name, "expected-average") || name == "old-normalised"
			open := func() *checkpoint.SAE {
				var options []checkpoint.SAEOption
				if expected {
					options = append(options, checkpoint.WithScalingFactor(0.37))
				}
				s, err := checkpoint.OpenSAE(folder, options...)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, s.Close()) })
				return s
			}
			for _, tensor := range want.Names() {
				state, part, _ := strings.Cut(tensor, ".")
				w := floats(t, want, tensor)
				s := open()
				switch {
				case state == "open" && expected:
					continue // ours is folded already
				case state == "open" || state == "scaled":
					requireBits(t, w, saeParts(s)[part], tensor)
				case state == "normed" && expected:
					continue // folds one after the other are compared below
				case state == "normed":
					require.NoError(t, s.FoldDecoderNorm())
					requireClose(t, w, saeParts(s)[part], tensor)
				}
			}
		})
	}
}

// requireClose allows the last bits: SAELens sums the squares of a row in float32, we in float64.
func requireClose(t *testing.T, want, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		require.InDelta(t, want[i], got[i], 3e-7*max(1e-30, math.Abs(float64(want[i]))), "%s[%d]", what, i)
	}
}

func TestSAEConfigsSayWhatSAELensMeant(t *testing.T) {
	t.Parallel()
	no, yes, one := false, true, 1
	v6 := checkpoint.SAEConfig{
		Format: "saelens", FormatVersion: "6.54.0", Architecture: "standard", DIn: 6, DSAE: 10, DOut: 6, ApplyBDecToInput: true,
		Normalization: "none", FileNormalization: "none", Hook: "blocks.3.hook_resid_post", HookPoint: "resid_post", Layer: 3,
		ModelName: "tiny", PrependBOS: &no, ContextSize: 128, SeqposSlice: &checkpoint.PositionSlice{Start: &one},
		ExcludeSpecialTokens: checkpoint.ExcludedTokens{IDs: []int{0, 1}}, Reshape: "none", DType: "F32",
	}
	old := checkpoint.SAEConfig{
		Format: "saelens", Architecture: "standard", DIn: 6, DSAE: 10, DOut: 6, ApplyBDecToInput: true, Normalization: "none", FileNormalization: "none",
		Hook: "blocks.7.hook_resid_pre", HookPoint: "resid_pre", Layer: 7, ModelName: "gpt2-small", PrependBOS: &yes, ContextSize: 256, Reshape: "none", DType: "F32",
	}
	for _, c := range []struct {
		folder string
		base   checkpoint.SAEConfig
		change func(*checkpoint.SAEConfig)
	}{
		{"standard", v6, func(c *checkpoint.SAEConfig) { c.ApplyBDecToInput = false }},
		{"standard-bf16-layer-norm", v6, func(c *checkpoint.SAEConfig) {
			c.DType, c.Normalization, c.FileNormalization = "BF16", "layer_norm", "layer_norm"
		}},
		{"standard-f16-constant-norm", v6, func(c *checkpoint.SAEConfig) {
			c.DType, c.Normalization, c.FileNormalization = "F16", "constant_norm_rescale", "constant_norm_rescale"
		}},
		{"topk", v6, func(c *checkpoint.SAEConfig) { c.Architecture, c.K = "topk", 4 }},
		{"topk-rescaled", v6, func(c *checkpoint.SAEConfig) { c.Architecture, c.K, c.RescaleActsByDecoderNorm = "topk", 4, true }},
		{"jumprelu", v6, func(c *checkpoint.SAEConfig) { c.Architecture = "jumprelu" }},
		{"jumprelu-expected-average", v6, func(c *checkpoint.SAEConfig) {
			c.Architecture, c.FileNormalization, c.ScalingFactor, c.Folds = "jumprelu", "expected_average_only_in", 0.37, []string{"activation-scale"}
		}},
		{"abstopk", v6, func(c *checkpoint.SAEConfig) { c.Architecture, c.K, c.Signed = "abstopk", 4, true }},
		{"old-standard", old, func(*checkpoint.SAEConfig) {}},
		{"old-topk", old, func(c *checkpoint.SAEConfig) {
			c.Architecture, c.K, c.Normalization, c.FileNormalization, c.PrependBOS, c.ApplyBDecToInput = "topk", 5, "layer_norm", "layer_norm", &no, false
		}},
		{"old-finetuned", old, func(c *checkpoint.SAEConfig) { c.Folds = []string{"finetuning-scale"} }},
	} {
		t.Run(c.folder, func(t *testing.T) {
			t.Parallel()
			s, err := checkpoint.OpenSAE(filepath.Join("testdata", "sae", c.folder))
			require.NoError(t, err)
			defer shut(t, s)
			c.change(&c.base)
			sum, err := checkpoint.HashFiles(s.Config.Files)
			require.NoError(t, err)
			c.base.Files, c.base.SHA256 = s.Config.Files, sum
			c.base.FileArchitecture, c.base.Origins = c.base.Architecture, s.Config.Origins
			c.base.Notes = []string{"1 of 10 rows of W_dec are zero: those latents add nothing to the output"}
			require.Equal(t, c.base, s.Config)
		})
	}
}

func TestSAEsTrainedWithBatchTopKOpenAsJumpReLU(t *testing.T) {
	t.Parallel()
	s, err := checkpoint.OpenSAE("testdata/sae/batchtopk")
	require.NoError(t, err)
	defer shut(t, s)
	require.Equal(t, "jumprelu", s.Config.Architecture)
	for _, v := range s.Threshold {
		require.Equal(t, float32(0.25), v)
	}
}

func TestSparsityIsReadWhereItIsThere(t *testing.T) {
	t.Parallel()
	s, err := checkpoint.OpenSAE("testdata/sae/standard")
	require.NoError(t, err)
	defer shut(t, s)
	values, ok := s.Sparsity()
	require.True(t, ok)
	require.Len(t, values, 10)
	require.Equal(t, float32(-10), values[0])

	other, err := checkpoint.OpenSAE("testdata/sae/topk")
	require.NoError(t, err)
	defer shut(t, other)
	_, ok = other.Sparsity()
	require.False(t, ok)
}
