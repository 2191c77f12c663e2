package torch

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// familyParity is a cell of README's table of families: the worst relative error of a token, over the
// family's cases, files and layers.
type familyParity struct {
	Family    string   `json:"family"`
	Hook      string   `json:"hook"`
	Files     []string `json:"files"`
	Cases     int      `json:"cases"`
	Error     float64  `json:"error"`
	Reference string   `json:"reference"`
}

const familyParityFile = "testdata/parity_families.json"

// column is what a hook is called in the table: of Hugging Face's modules there are too many.
func column(h Hook) string {
	name := h.Point.name()
	if h.Point.isModule() {
		name = "Hugging Face's modules"
	}
	if h.Centred {
		name += ", centred"
	}
	return name
}

// rowsOf are the rows of a padded tensor that hold tokens.
func rowsOf(values []float32, sequences [][]int32, seq, width int) []float32 {
	var out []float32
	for i, ids := range sequences {
		out = append(out, values[i*seq*width:][:len(ids)*width]...)
	}
	return out
}

// Every case of testdata/families: a tiny random model as transformers saves it, some as GGUF too, and
// what forward hooks on transformers' modules show. With FEATUREMILL_WRITE_PARITY=1 the worst errors go
// to parity_families.json, which README's table is made from.
func TestEveryFamilyAgreesWithTransformers(t *testing.T) {
	goldens, err := filepath.Glob("testdata/families/*.golden.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, goldens)
	cells := map[string]*familyParity{}
	for _, path := range goldens {
		name := strings.TrimSuffix(path, ".golden.safetensors")
		for _, file := range []string{name, name + ".gguf"} {
			if _, err := os.Stat(file); err != nil {
				continue
			}
			t.Run(filepath.Base(file), func(t *testing.T) {
				m := openModel(t, file)
				g := openGolden(t, path)
				form := "safetensors"
				if m.source.GGUF() != nil {
					form = "GGUF"
				}
				execs := []executor{m.exec}
				if _, isComposed := m.exec.(*composed); !isComposed {
					execs = append(execs, &composed{m: m})
				}
				for _, e := range execs {
					m.exec = e
					for key, difference := range familyDifferences(t, m, g) {
						require.LessOrEqual(t, difference, parity, "%s, %T", key, e)
						at := m.config.Family + " " + key
						if cells[at] == nil {
							cells[at] = &familyParity{Family: m.config.Family, Hook: key, Reference: g.f.Metadata()["reference"]}
						}
						cell := cells[at]
						if cell.Error = max(cell.Error, difference); !slices.Contains(cell.Files, form) {
							cell.Files = append(cell.Files, form)
							slices.Sort(cell.Files)
						}
						if e == execs[0] && form == "safetensors" {
							cell.Cases++
						}
					}
				}
			})
		}
	}
	var found, recorded []familyParity
	for _, c := range cells {
		found = append(found, *c)
	}
	slices.SortFunc(found, func(a, b familyParity) int { return strings.Compare(a.Family+" "+a.Hook, b.Family+" "+b.Hook) })
	if t.Failed() {
		return
	}
	if os.Getenv("FEATUREMILL_WRITE_PARITY") != "" {
		writeJSON(t, familyParityFile, found)
	}
	readJSON(t, familyParityFile, &recorded)
	names := func(cells []familyParity) (out []string) {
		for _, c := range cells {
			out = append(out, fmt.Sprintf("%s, %s: %d of %v by %s", c.Family, c.Hook, c.Cases, c.Files, c.Reference))
		}
		return out
	}
	require.Equal(t, names(found), names(recorded), "make the table anew: FEATUREMILL_WRITE_PARITY=1 go test ./adapters/torch/")
}

// familyDifferences is the worst error of each column of the table.
func familyDifferences(t *testing.T, m *Model, g golden) map[string]float64 {
	t.Helper()
	sequences := g.sequences()
	hooks := map[string]Hook{}
	logits := false
	for _, name := range g.f.Names() {
		switch name {
		case "input_ids", "attention_mask":
			continue
		case "logits":
			logits = true
			continue
		}
		bare, centred := strings.CutPrefix(name, "centred.")
		h, err := ParseHook(bare)
		require.NoError(t, err)
		require.Equal(t, regexp.MustCompile(`^(model|transformer|gpt_neox)\.`).ReplaceAllString(bare, ""), h.String())
		h.Centred = centred
		hooks[name] = h
	}
	var all []Hook
	for _, h := range hooks {
		all = append(all, h)
	}
	a, err := m.Activations(t.Context(), sequences, all, logits)
	require.NoError(t, err)
	out := map[string]float64{}
	for name, h := range hooks {
		want, shape := g.floats(name)
		require.Equal(t, shape[1], m.Width(h), name)
		difference := worst(t, rowsOf(a.Hooks[h], sequences, a.Seq, shape[1]), want, shape[1])
		t.Logf("%T %s: %.2g", m.exec, name, difference)
		out[column(h)] = max(out[column(h)], difference)
		if difference > parity {
			t.Errorf("%s: %.2g", name, difference)
		}
		// A run up to this hook alone ends there, and shows the same.
		alone, err := m.Activations(t.Context(), sequences, []Hook{h}, false)
		require.NoError(t, err)
		require.LessOrEqual(t, worst(t, rowsOf(alone.Hooks[h], sequences, a.Seq, shape[1]), want, shape[1]), parity, name)
	}
	if logits {
		want, shape := g.floats("logits")
		out["logits"] = worst(t, rowsOf(a.Logits, sequences, a.Seq, shape[1]), want, shape[1])
	}
	return out
}

func TestAHookThatAFamilyHasNotIsRefusedByName(t *testing.T) {
	neox, olmo, gemma := openModel(t, "testdata/families/gpt_neox"), openModel(t, "testdata/families/olmo2"), openModel(t, "testdata/families/gemma2")
	for name, c := range map[string]struct {
		model *Model
		hook  string
		want  string
	}{
		"the middle of a parallel layer": {neox, "blocks.1.hook_resid_mid", "hook blocks.1.hook_resid_mid: a model of the family gpt_neox has none: attention and MLP read the same residual stream"},
		"a norm that is not there":       {olmo, "blocks.1.ln2.hook_normalized", "no norm stands before attention and MLP"},
		"another family's module":        {gemma, "gpt_neox.layers.1.attention", "it has embed_tokens, layers.L, "},
		"a module's input that is none":  {gemma, "layers.1.mlp.act_fn", "it has embed_tokens"},
		"a layer too many":               {gemma, "layers.3.mlp", "hook layers.3.mlp: the model has 3 layers, 0 to 2"},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := ParseHook(c.hook)
			require.NoError(t, err)
			err = c.model.Check(h)
			require.ErrorContains(t, err, c.want)
			require.Zero(t, c.model.Width(h))
			_, err = c.model.Activations(t.Context(), [][]int32{{1}}, []Hook{h}, false)
			require.ErrorContains(t, err, c.want)
		})
	}
	for _, name := range []string{"vision_tower.encoder.layers.0.mlp", "blocks.0.hook_z", "blocks.1.attn.hook_q", "layers.x.mlp", "layers.0.", "lm_head", ""} {
		_, err := ParseHook(name)
		require.ErrorContains(t, err, "is not known", name)
	}
}

func TestEveryRowOfTheTableHasACase(t *testing.T) {
	seen := map[string]bool{}
	goldens, err := filepath.Glob("testdata/families/*.golden.safetensors")
	require.NoError(t, err)
	for _, path := range goldens {
		m, err := checkpoint.OpenModel(strings.TrimSuffix(path, ".golden.safetensors"))
		require.NoError(t, err)
		seen[m.Config().Family] = true
		require.NoError(t, m.Close())
	}
	for _, name := range checkpoint.Families() {
		require.True(t, seen[name], "no golden file of the family %s", name)
	}
}

// What a golden case is for must show in it: with the peculiarity left out it must fail.
func TestEveryPeculiarityOfAFamilyShowsInItsCase(t *testing.T) {
	for name, c := range map[string]struct {
		file   string
		forget func(c *checkpoint.ModelConfig)
	}{
		"a sliding window":              {"mistral", func(c *checkpoint.ModelConfig) { c.Window = 0 }},
		"windows of some layers":        {"qwen2-windows", func(c *checkpoint.ModelConfig) { c.LayerIsLocal, c.LocalFrom = nil, 0 }},
		"alternating windows":           {"gemma2", func(c *checkpoint.ModelConfig) { c.LayerIsLocal, c.GlobalEvery = nil, 3 }},
		"capped scores":                 {"gemma2", func(c *checkpoint.ModelConfig) { c.AttentionSoftcap = 0 }},
		"query_pre_attn_scalar":         {"gemma2", func(c *checkpoint.ModelConfig) { c.AttentionScale = 1 / 8.0 }},
		"local rotation":                {"gemma3", func(c *checkpoint.ModelConfig) { c.LocalRope = nil }},
		"scaled rotation":               {"gemma3", func(c *checkpoint.ModelConfig) { c.Rope.Scaling = "" }},
		"linear scaling":                {"llama-linear", func(c *checkpoint.ModelConfig) { c.Rope.Scaling = "" }},
		"dynamic scaling":               {"llama-dynamic", func(c *checkpoint.ModelConfig) { c.Rope.Scaling = "" }},
		"llama3 scaling":                {"llama-llama3", func(c *checkpoint.ModelConfig) { c.Rope.Scaling = "" }},
		"yarn's frequencies":            {"llama-yarn", func(c *checkpoint.ModelConfig) { c.Rope.BetaSlow = 1 }},
		"yarn's factor":                 {"llama-yarn-mscale", func(c *checkpoint.ModelConfig) { c.Rope.AttentionFactor = 1 }},
		"longrope's long factors":       {"phi3-longrope", func(c *checkpoint.ModelConfig) { c.Rope.LongFactors = c.Rope.ShortFactors }},
		"longrope's short factors":      {"phi3-longrope", func(c *checkpoint.ModelConfig) { c.Rope.ShortFactors = c.Rope.LongFactors }},
		"embedding scale":               {"gemma", func(c *checkpoint.ModelConfig) { c.EmbeddingScale = 1 }},
		"tanh in gelu":                  {"gemma", func(c *checkpoint.ModelConfig) { c.HiddenAct = "gelu" }},
		"no tanh in gelu":               {"gpt2-scaled-by-layer", func(c *checkpoint.ModelConfig) { c.HiddenAct = "gelu_new" }},
		"scores scaled by layer":        {"gpt2-scaled-by-layer", func(c *checkpoint.ModelConfig) { c.ScaleByLayer = false }},
		"positions":                     {"gpt2", func(c *checkpoint.ModelConfig) { c.LearnedPositions = false }},
		"parallel residual":             {"gpt_neox", func(c *checkpoint.ModelConfig) { c.Parallel = false }},
		"partial rotation":              {"gpt_neox", func(c *checkpoint.ModelConfig) { c.Rotary = 6 }},
		"neighbours that turn":          {"gptj", func(c *checkpoint.ModelConfig) { c.RotaryPairs = false }},
		"heads' norms":                  {"qwen3", func(c *checkpoint.ModelConfig) { c.QKNorm = "" }},
		"norms over whole projections":  {"olmo2", func(c *checkpoint.ModelConfig) { c.QKNorm = "" }},
		"an epsilon of the wrong order": {"olmo2", func(c *checkpoint.ModelConfig) { c.NormEps = 1e-3 }},
	} {
		t.Run(name, func(t *testing.T) {
			m := openModel(t, filepath.Join("testdata/families", c.file))
			g := openGolden(t, filepath.Join("testdata/families", c.file+".golden.safetensors"))
			c.forget(&m.config)
			m.exec = &composed{m: m}
			sequences, last := g.sequences(), Hook{Layer: m.config.Layers - 1, Point: ResidPost}
			a, err := m.Activations(t.Context(), sequences, []Hook{last}, false)
			require.NoError(t, err)
			want, shape := g.floats(last.String())
			require.Greater(t, worst(t, rowsOf(a.Hooks[last], sequences, a.Seq, shape[1]), want, shape[1]), 2*parity)
		})
	}
}

// Sequences of many blocks: golden ones are short.
func TestTheKernelsAgreeWithLibtorchOnLongSequences(t *testing.T) {
	for _, name := range []string{"llama", "llama-linear", "mistral", "qwen2-windows", "gemma2", "gemma3", "olmo2", "gpt_neox", "gptj"} {
		t.Run(name, func(t *testing.T) {
			m := openModel(t, filepath.Join("testdata/families", name))
			require.IsType(t, &fused{}, m.exec)
			sequences := randomSequences(5, 300, 64, 65, 3)
			for _, ids := range sequences {
				for i := range ids {
					ids[i] %= int32(m.config.Vocab)
				}
			}
			hook := Hook{Layer: m.config.Layers - 1, Point: ResidPost}
			run := func() []float32 {
				a, err := m.Activations(t.Context(), sequences, []Hook{hook}, false)
				require.NoError(t, err)
				return rowsOf(a.Hooks[hook], sequences, a.Seq, a.DModel)
			}
			ours := run()
			for _, isa := range []string{"avx512", "avx2", "baseline"} {
				if useKernels(isa) {
					require.LessOrEqual(t, worst(t, run(), ours, m.config.DModel), parity, isa)
				}
			}
			useKernels(testRuntime.Profile().ISA)
			m.exec = &composed{m: m}
			require.LessOrEqual(t, worst(t, ours, run(), m.config.DModel), parity)
		})
	}
}

func TestASequenceLongerThanTheLearnedPositionsIsRefused(t *testing.T) {
	m := openModel(t, "testdata/families/gpt2")
	_, err := m.Activations(t.Context(), [][]int32{make([]int32, 33)}, []Hook{{Point: ResidPre}}, false)
	require.ErrorContains(t, err, "a sequence has 33 tokens, and the model learned 32 positions")
}

// Half precision runs through every family's operations, and is off by about as much as transformers' own
// is: what 8 bits cost is stated, not promised.
func TestEveryFamilyRunsInHalfPrecision(t *testing.T) {
	r := inDType(t, "bfloat16")
	goldens, err := filepath.Glob("testdata/families/*.golden.safetensors")
	require.NoError(t, err)
	for _, path := range goldens {
		name := strings.TrimSuffix(path, ".golden.safetensors")
		t.Run(filepath.Base(name), func(t *testing.T) {
			m, g := openModelIn(t, r, name), openGolden(t, path)
			sequences, last := g.sequences(), Hook{Layer: m.config.Layers - 1, Point: ResidPost}
			a, err := m.Activations(t.Context(), sequences, []Hook{last}, true)
			require.NoError(t, err)
			want, shape := g.floats(last.String())
			difference := mean(rowsOf(a.Hooks[last], sequences, a.Seq, shape[1]), want, shape[1])
			t.Logf("%s: %.2g in the mean", last, difference)
			theirs, err := strconv.ParseFloat(g.f.Metadata()["bfloat16"], 64)
			require.NoError(t, err)
			t.Logf("transformers: %.2g", theirs)
			require.Less(t, difference, 1.5*theirs)
			require.Greater(t, difference, 1e-5, "it was computed in float32")
		})
	}
}

// mean is the mean ‖Δ‖₂/‖x‖₂ of rows.
func mean(got, want []float32, width int) float64 {
	sum := 0.0
	for r := 0; r < len(want); r += width {
		var difference, size float64
		for i := r; i < r+width; i++ {
			d := float64(got[i]) - float64(want[i])
			difference += d * d
			size += float64(want[i]) * float64(want[i])
		}
		sum += math.Sqrt(difference / size)
	}
	return sum / float64(len(want)/width)
}
