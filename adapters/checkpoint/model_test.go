package checkpoint_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// copyFolder gives a test a folder of its own to break.
func copyFolder(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// editJSON changes the fields of a JSON file; a nil value takes the field out.
func editJSON(t testing.TB, path string, change map[string]any) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(data, &fields))
	for k, v := range change {
		if v == nil {
			delete(fields, k)
		} else {
			fields[k] = v
		}
	}
	data, err = json.Marshal(fields)
	require.NoError(t, err)
	writeFile(t, path, data)
}

// editTensors rewrites a safetensors file after a change to its tensors.
func editTensors(t testing.TB, path string, change func(tensors map[string]checkpoint.Tensor)) {
	t.Helper()
	s, err := checkpoint.OpenSafetensors(path)
	require.NoError(t, err)
	defer shut(t, s)
	tensors := map[string]checkpoint.Tensor{}
	for _, name := range s.Names() {
		tensor, err := s.Tensor(name)
		require.NoError(t, err)
		tensors[name] = tensor
	}
	change(tensors)
	var list []checkpoint.Tensor
	for _, tensor := range tensors {
		list = append(list, tensor)
	}
	require.NoError(t, checkpoint.WriteSafetensors(path, list, nil))
}

type object = map[string]any

func TestAModelFolderIsRefusedWhenItsConfigurationIsNotReadable(t *testing.T) {
	t.Parallel()
	scaling := func(change object) object {
		s := object{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
		for k, v := range change {
			if v == nil {
				delete(s, k)
			} else {
				s[k] = v
			}
		}
		return object{"rope_scaling": s}
	}
	for name, c := range map[string]struct {
		change object
		want   string
	}{
		"an unknown family":                 {object{"model_type": "mamba"}, `model_type "mamba" is not supported; supported: llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, phi3, olmo2, gpt2, gpt_neox, gptj, phi`},
		"no family":                         {object{"model_type": nil}, `model_type "" is not supported; supported: llama, mistral`},
		"a family that is no string":        {object{"model_type": 3}, "model_type is 3; expected a string"},
		"no width":                          {object{"hidden_size": nil}, "tensor model.embed_tokens.weight has the shape [24 32]; it should be [24 4096], that is [vocab, d_model]"},
		"a width of zero":                   {object{"hidden_size": 0}, "hidden_size is 0"},
		"a negative number of layers":       {object{"num_hidden_layers": -1}, "num_hidden_layers is -1"},
		"a broken number of layers":         {object{"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"},
		"a billion layers":                  {object{"num_hidden_layers": 100_000_000}, "num_hidden_layers is 100000000 and the weights have 20 tensors"},
		"a layer too many":                  {object{"num_hidden_layers": 3}, "missing tensors: model.layers.2.input_layernorm.weight"},
		"a size beyond reason":              {object{"vocab_size": 1e15}, "vocab_size is"},
		"heads that do not divide":          {object{"num_attention_heads": 3, "head_dim": nil}, "a multiple of num_attention_heads (3)"},
		"key/value heads that do not fit":   {object{"num_key_value_heads": 3}, "a number of key/value heads that divides the heads"},
		"another number of heads":           {object{"num_attention_heads": 8}, "tensor model.layers.0.self_attn.q_proj.weight has the shape [32 32]; it should be [64 32], that is [heads × d_head, d_model]"},
		"an odd head":                       {object{"head_dim": 7}, "the heads have 7 dimensions"},
		"another activation":                {object{"hidden_act": "mish"}, `activation function "mish" is not supported; supported: silu`},
		"an epsilon of zero":                {object{"rms_norm_eps": 0}, "epsilon"},
		"biases that are not there":         {object{"attention_bias": true}, "missing tensors: model.layers.0.self_attn.q_proj.bias"},
		"an untied head that is not there":  {object{"tie_word_embeddings": false}, "missing tensors: lm_head.weight (tie_word_embeddings is false, so the head needs weights of its own)"},
		"packed weights":                    {object{"quantization_config": object{"quant_method": "gptq"}}, `quantization_config.quant_method "gptq" is not supported`},
		"half a rotation":                   {object{"partial_rotary_factor": 0.5}, `partial_rotary_factor "0.5"`},
		"a rotation without a base":         {object{"rope_theta": 0}, "rope_theta is 0; expected a number above 0"},
		"an unknown scaling":                {object{"rope_scaling": object{"rope_type": "spiral", "factor": 4}}, `rope scaling "spiral" is not supported; supported: none, default, linear, dynamic, yarn, longrope, llama3`},
		"linear without a factor":           {object{"rope_scaling": object{"type": "linear"}}, "rope_scaling.factor is missing; expected a number above 0, as rope scaling linear needs"},
		"dynamic without a factor":          {object{"rope_scaling": nil, "rope_parameters": object{"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_parameters.factor is missing"},
		"longrope without its factors":      {object{"rope_scaling": object{"rope_type": "longrope"}}, "one number above 0 for each pair of dimensions"},
		"a layer too few":                   {object{"num_hidden_layers": 1}, "the configuration says 1 layers and the weights have model.layers.1."},
		"experts":                           {object{"num_local_experts": 8}, `mixture of experts "8 experts" is not supported`},
		"llama3 without a factor":           {scaling(object{"factor": nil}), "rope_scaling.factor is missing; expected a number above 0"},
		"llama3 with crossed frequencies":   {scaling(object{"high_freq_factor": 1}), "rope_scaling.high_freq_factor is 1; expected more than low_freq_factor"},
		"llama3 without an original length": {scaling(object{"original_max_position_embeddings": nil}), "rope_scaling.original_max_position_embeddings is missing"},
		"an end that is no number":          {object{"eos_token_id": "end"}, `eos_token_id is "end"; expected a token id`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, "testdata/llama/tied")
			editJSON(t, filepath.Join(folder, "config.json"), c.change)
			_, err := checkpoint.OpenModel(folder)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, folder, "the message says which file")
		})
	}
}

func TestConfigurationsOfAllSpellingsAreRead(t *testing.T) {
	t.Parallel()
	plain := checkpoint.Rope{Theta: 5e5}
	llama3 := checkpoint.Rope{Theta: 5e5, Scaling: "llama3", Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 64}
	scaling := object{"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}
	with := func(extra object) object {
		out := object{}
		for _, m := range []object{scaling, extra} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		change object
		check  func(t *testing.T, got checkpoint.ModelConfig)
	}{
		"no scaling":           {object{"rope_scaling": nil}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, plain, got.Rope) }},
		"the default, by name": {object{"rope_scaling": object{"rope_type": "default"}}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, plain, got.Rope) }},
		"linear, in the old spelling": {object{"rope_scaling": object{"type": "linear", "factor": 4}}, func(t *testing.T, got checkpoint.ModelConfig) {
			require.Equal(t, checkpoint.Rope{Theta: 5e5, Scaling: "linear", Factor: 4}, got.Rope)
		}},
		"yarn, with its defaults": {object{"rope_scaling": object{"rope_type": "yarn", "factor": 4}, "max_position_embeddings": 64}, func(t *testing.T, got checkpoint.ModelConfig) {
			require.Equal(t, checkpoint.Rope{Theta: 5e5, Scaling: "yarn", Factor: 4, OriginalMaxPositions: 64, BetaFast: 32, BetaSlow: 1, Truncate: true, AttentionFactor: 0.1*math.Log(4) + 1}, got.Rope)
		}},
		"llama3 as rope_type":               {object{"rope_scaling": with(object{"rope_type": "llama3"})}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, llama3, got.Rope) }},
		"llama3 as type":                    {object{"rope_scaling": with(object{"type": "llama3"})}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, llama3, got.Rope) }},
		"llama3 as rope_parameter":          {object{"rope_scaling": nil, "rope_theta": nil, "rope_parameters": with(object{"rope_type": "llama3", "rope_theta": 5e5})}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, llama3, got.Rope) }},
		"no rope_theta":                     {object{"rope_scaling": nil, "rope_theta": nil}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, 1e4, got.Rope.Theta) }},
		"several ends":                      {object{"eos_token_id": []int{7, 8}}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, 7, *got.EOS) }},
		"a beginning beyond the vocabulary": {object{"bos_token_id": 24}, func(t *testing.T, got checkpoint.ModelConfig) { require.Nil(t, got.BOS) }},
		"no ends":                           {object{"eos_token_id": nil, "bos_token_id": -1}, func(t *testing.T, got checkpoint.ModelConfig) { require.Nil(t, got.EOS); require.Nil(t, got.BOS) }},
		"no head_dim":                       {object{"head_dim": nil}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, 8, got.DHead) }},
		"no epsilon":                        {object{"rms_norm_eps": nil}, func(t *testing.T, got checkpoint.ModelConfig) { require.Equal(t, 1e-6, got.NormEps) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, "testdata/llama/tied")
			editJSON(t, filepath.Join(folder, "config.json"), c.change)
			m, err := checkpoint.OpenModel(folder)
			require.NoError(t, err)
			defer shut(t, m)
			c.check(t, m.Config())
		})
	}
}

func TestAModelFolderIsRefusedWhenItsWeightsDoNotFit(t *testing.T) {
	t.Parallel()
	const norm = "model.layers.1.input_layernorm.weight"
	single := func(change func(map[string]checkpoint.Tensor)) func(*testing.T, string) {
		return func(t *testing.T, folder string) {
			editTensors(t, filepath.Join(folder, "model.safetensors"), change)
		}
	}
	index := func(change func(weights object)) func(*testing.T, string) {
		return func(t *testing.T, folder string) {
			path := filepath.Join(folder, "model.safetensors.index.json")
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			var fields struct {
				Map object `json:"weight_map"`
			}
			require.NoError(t, json.Unmarshal(data, &fields))
			change(fields.Map)
			editJSON(t, path, object{"weight_map": fields.Map})
		}
	}
	for name, c := range map[string]struct {
		from   string
		change func(t *testing.T, folder string)
		want   string
	}{
		"a tensor that is missing": {"tied", single(func(m map[string]checkpoint.Tensor) { delete(m, norm) }), "missing tensors: " + norm},
		"a tensor of another shape": {"tied", single(func(m map[string]checkpoint.Tensor) {
			m[norm] = checkpoint.Float32Tensor(norm, make([]float32, 33), 33)
		}), "tensor " + norm + " has the shape [33]; it should be [32], that is [d_model]"},
		"a tensor that is transposed": {"tied", single(func(m map[string]checkpoint.Tensor) {
			w := m["model.layers.0.mlp.up_proj.weight"]
			w.Shape = []int{32, 64}
			m[w.Name] = w
		}), "(it looks transposed)"},
		"a tensor of whole numbers": {"tied", single(func(m map[string]checkpoint.Tensor) { m[norm] = checkpoint.Int64Tensor(norm, make([]int64, 32), 32) }), `dtype of tensor ` + norm + ` "I64" is not supported`},
		"weights cut short": {"tied", func(t *testing.T, f string) {
			require.NoError(t, os.Truncate(filepath.Join(f, "model.safetensors"), 20_000))
		}, "cut short"},
		"no weights": {"tied", func(t *testing.T, f string) { require.NoError(t, os.Remove(filepath.Join(f, "model.safetensors"))) }, "there are no weights; expected model.safetensors"},
		"pickled weights only": {"tied", func(t *testing.T, f string) {
			require.NoError(t, os.Rename(filepath.Join(f, "model.safetensors"), filepath.Join(f, "pytorch_model.bin")))
		}, `weight file "pytorch_model.bin" is not supported`},
		"no configuration":              {"tied", func(t *testing.T, f string) { require.NoError(t, os.Remove(filepath.Join(f, "config.json"))) }, "config.json: the file is missing"},
		"a configuration that is empty": {"tied", func(t *testing.T, f string) { writeFile(t, filepath.Join(f, "config.json"), nil) }, "it is not a JSON object"},
		"a configuration of 5 MB":       {"tied", func(t *testing.T, f string) { writeFile(t, filepath.Join(f, "config.json"), make([]byte, 5<<20)) }, "larger than any such file"},
		"a shard that is missing": {"untied", func(t *testing.T, f string) {
			require.NoError(t, os.Remove(filepath.Join(f, "model-00002-of-00002.safetensors")))
		}, "names the shard model-00002-of-00002.safetensors"},
		"a shard above the folder":     {"untied", index(func(w object) { w["lm_head.weight"] = "../model-00001-of-00002.safetensors" }), `is said to be in "../model-00001-of-00002.safetensors"; expected the name of a .safetensors file in the same folder`},
		"a shard by absolute path":     {"untied", index(func(w object) { w["lm_head.weight"] = "/etc/passwd" }), `is said to be in "/etc/passwd"`},
		"a shard that is another file": {"untied", index(func(w object) { w["lm_head.weight"] = "config.json" }), `is said to be in "config.json"`},
		"a tensor in the wrong shard":  {"untied", index(func(w object) { w["model.embed_tokens.weight"] = "model-00002-of-00002.safetensors" }), "missing tensors: model.embed_tokens.weight (model.safetensors.index.json says that it is in this file)"},
		"a tensor the index forgets":   {"untied", index(func(w object) { delete(w, norm) }), "missing tensors: " + norm},
		"an index without a map": {"untied", func(t *testing.T, f string) {
			writeFile(t, filepath.Join(f, "model.safetensors.index.json"), []byte("{}"))
		}, "it has no weight_map"},
		"an index that is a list": {"untied", func(t *testing.T, f string) {
			writeFile(t, filepath.Join(f, "model.safetensors.index.json"), []byte("[]"))
		}, "it is not an index"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder := copyFolder(t, filepath.Join("testdata/llama", c.from))
			c.change(t, folder)
			_, err := checkpoint.OpenModel(folder)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestWhatIsNoModelIsRefused(t *testing.T) {
	t.Parallel()
	_, err := checkpoint.OpenModel(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = checkpoint.OpenModel(writeFile(t, filepath.Join(t.TempDir(), "model.onnx"), []byte("onnx")))
	require.ErrorContains(t, err, `model file "model.onnx" is not supported; supported: a Hugging Face folder`)
}

func TestAModelSavedWithoutItsHeadPrefixIsRead(t *testing.T) {
	t.Parallel()
	folder := copyFolder(t, "testdata/llama/tied")
	editTensors(t, filepath.Join(folder, "model.safetensors"), func(m map[string]checkpoint.Tensor) {
		for name, tensor := range m {
			tensor.Name = name[len("model."):]
			m[name] = tensor
		}
	})
	m, err := checkpoint.OpenModel(folder)
	require.NoError(t, err)
	defer shut(t, m)
	tensor, err := m.Tensor("model.layers.1.mlp.down_proj.weight")
	require.NoError(t, err)
	require.Equal(t, []int{32, 64}, tensor.Shape)
}

func TestNaNInAModelIsFound(t *testing.T) {
	t.Parallel()
	folder := copyFolder(t, "testdata/llama/tied")
	const name = "model.layers.0.mlp.gate_proj.weight"
	editTensors(t, filepath.Join(folder, "model.safetensors"), func(m map[string]checkpoint.Tensor) {
		values := make([]float32, 64*32)
		values[77], values[78] = float32(math.NaN()), float32(math.Inf(1))
		m[name] = checkpoint.Float32Tensor(name, values, 64, 32)
	})
	m, err := checkpoint.OpenModel(folder)
	require.NoError(t, err)
	defer shut(t, m)
	err = m.CheckFinite()
	var bad *checkpoint.NonFiniteError
	require.ErrorAs(t, err, &bad)
	require.Equal(t, 77, bad.Index)
	require.Equal(t, 2, bad.Count)
	require.Equal(t, name, bad.Tensor)
}

func FuzzModelConfig(f *testing.F) {
	for _, name := range []string{"tied", "untied", "bias"} {
		data, err := os.ReadFile(filepath.Join("testdata/llama", name, "config.json"))
		require.NoError(f, err)
		f.Add(data)
	}
	for _, name := range checkpoint.Families() { // the keys of all families, in one object each
		f.Add(fmt.Appendf(nil, `{"model_type": %q, "hidden_size": 8, "n_embd": 8, "num_hidden_layers": 1, "n_layer": 1, "num_attention_heads": 2, "n_head": 2, "vocab_size": 24, "sliding_window": 4,
			"layer_types": ["sliding_attention"], "rope_scaling": {"type": "longrope", "short_factor": [1, 2], "long_factor": [3, 4]}, "rotary_pct": 0.5, "text_config": null}`, name))
	}
	folder := f.TempDir()
	weights, err := os.ReadFile("testdata/llama/tied/model.safetensors")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		own := filepath.Join(folder, fmt.Sprint(os.Getpid()))
		if _, err := os.Stat(own); err != nil {
			writeFile(t, filepath.Join(own, "model.safetensors"), weights)
		}
		writeFile(t, filepath.Join(own, "config.json"), data)
		m, err := checkpoint.OpenModel(own)
		if err != nil {
			require.NotEmpty(t, err.Error())
			return
		}
		defer shut(t, m)
		for _, name := range m.Names() {
			_, err := m.Tensor(name)
			require.NoError(t, err)
		}
	})
}
