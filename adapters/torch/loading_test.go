package torch

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// writeLlama writes a random Llama of float32 in two shards with an index, and says which files hold the weights.
func writeLlama(t testing.TB, folder string, layers, width, ff, vocab, heads, kvHeads int) (shards []string) {
	t.Helper()
	kv := width / heads * kvHeads
	noise := make([]float32, 1<<20+width)
	for i := range noise {
		noise[i] = float32(i*2654435761%65521)/65521/16 - 1.0/32
	}
	at := 0
	random := func(name string, shape ...int) checkpoint.Tensor {
		n := 1
		for _, d := range shape {
			n *= d
		}
		values := make([]float32, 0, n)
		for len(values) < n {
			at = (at + 7919) % width
			values = append(values, noise[at:min(len(noise), at+n-len(values))]...)
		}
		if len(shape) == 1 { // a norm
			for i := range values {
				values[i]++
			}
		}
		return checkpoint.Float32Tensor(name, values, shape...)
	}
	parts := [2][]checkpoint.Tensor{{random("model.embed_tokens.weight", vocab, width)}, {random("lm_head.weight", vocab, width), random("model.norm.weight", width)}}
	for l := range layers {
		part, in := &parts[l*2/layers], fmt.Sprintf("model.layers.%d.", l)
		*part = append(*part, random(in+"input_layernorm.weight", width), random(in+"post_attention_layernorm.weight", width),
			random(in+"self_attn.q_proj.weight", width, width), random(in+"self_attn.k_proj.weight", kv, width),
			random(in+"self_attn.v_proj.weight", kv, width), random(in+"self_attn.o_proj.weight", width, width),
			random(in+"mlp.gate_proj.weight", ff, width), random(in+"mlp.up_proj.weight", ff, width), random(in+"mlp.down_proj.weight", width, ff))
	}
	index := map[string]string{}
	for i, tensors := range parts {
		name := fmt.Sprintf("model-%05d-of-00002.safetensors", i+1)
		for _, one := range tensors {
			index[one.Name] = name
		}
		shards = append(shards, filepath.Join(folder, name))
		require.NoError(t, checkpoint.WriteSafetensors(shards[i], tensors, map[string]string{"format": "pt"}))
	}
	for name, document := range map[string]any{
		"model.safetensors.index.json": map[string]any{"weight_map": index},
		"config.json": map[string]any{
			"model_type": "llama", "architectures": []string{"LlamaForCausalLM"}, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
			"num_key_value_heads": kvHeads, "intermediate_size": ff, "vocab_size": vocab, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048,
		},
	} {
		data, err := json.Marshal(document)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), data, 0o644))
	}
	return shards
}

// loadAll opens a model and binds every weight: a forward pass of any depth may follow.
func loadAll(t testing.TB, folder string) (*Model, *checkpoint.Model) {
	t.Helper()
	source, err := checkpoint.OpenModel(folder)
	require.NoError(t, err)
	m, err := testRuntime.LoadModel(t.Context(), source)
	require.NoError(t, err)
	require.NoError(t, testRuntime.do(t.Context(), func(s *scope) error {
		for l := range m.config.Layers {
			m.layerWeights(s, l)
		}
		m.outputHead(s)
		return s.err
	}))
	return m, source
}

func TestAMappedModelTakesNoMemoryOfItsOwn(t *testing.T) {
	folder := t.TempDir()
	writeLlama(t, folder, 2, 512, 1024, 4096, 8, 4)
	before := memory(t, "RssAnon")
	m, source := loadAll(t, folder)
	for i := range m.weights {
		require.Nil(t, m.weights[i].owned.data, "a weight was copied")
	}
	require.Less(t, memory(t, "RssAnon")-before, int64(2<<20), "36 MB of weights")
	_, err := m.Activations(t.Context(), [][]int32{{1, 2, 3}}, []Hook{{Layer: 1, Point: ResidPost}}, true)
	require.NoError(t, err)
	require.NoError(t, m.Close())
	require.NoError(t, source.Close())
}

// BenchmarkLoading holds the time until every weight of a warm 500 MB model is bound against that of cp to /dev/null.
func BenchmarkLoading(b *testing.B) {
	folder := b.TempDir()
	shards := writeLlama(b, folder, 8, 1024, 2816, 18432, 16, 4)
	size := int64(0)
	for _, shard := range shards {
		info, err := os.Stat(shard)
		require.NoError(b, err)
		size += info.Size()
	}
	cp := func() {
		for _, shard := range shards {
			require.NoError(b, exec.CommandContext(b.Context(), "cp", shard, "/dev/null").Run())
		}
	}
	middle := []Hook{{Layer: 4, Point: ResidPost}}
	ids := [][]int32{slices.Repeat([]int32{3, 5, 7, 11}, 4)}
	cp() // warm
	var copies, loads, firsts, repeats, anonymous []float64
	for b.Loop() {
		for range 5 {
			copies = append(copies, timed(cp))
			before := memory(b, "RssAnon")
			var m *Model
			var source *checkpoint.Model
			loads = append(loads, timed(func() { m, source = loadAll(b, folder) }))
			anonymous = append(anonymous, float64(memory(b, "RssAnon")-before)/(1<<20))
			forward := func() {
				_, err := m.Activations(b.Context(), ids, middle, false)
				require.NoError(b, err)
			}
			firsts, repeats = append(firsts, timed(forward)), append(repeats, timed(forward))
			require.NoError(b, m.Close())
			require.NoError(b, source.Close())
		}
	}
	b.ReportMetric(float64(size)/1e6, "MB")
	b.ReportMetric(median(copies), "cp-ms")
	b.ReportMetric(median(loads), "load-ms")
	b.ReportMetric(median(firsts), "first-forward-ms") // to the middle layer; touches pages for the first time
	b.ReportMetric(median(repeats), "again-ms")
	b.ReportMetric((median(loads)+median(firsts))/median(copies), "ready/cp")
	b.ReportMetric(slices.Max(anonymous), "anonymous-MiB")
}

// timed is in milliseconds.
func timed(f func()) float64 {
	start := time.Now()
	f()
	return float64(time.Since(start).Microseconds()) / 1e3
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// memory is a line of /proc/self/status, in bytes.
func memory(t testing.TB, line string) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("memory is measured with /proc")
	}
	found := regexp.MustCompile(line + `:\s+(\d+) kB`).FindSubmatch(data)
	require.NotNil(t, found)
	n, err := strconv.ParseInt(string(found[1]), 10, 64)
	require.NoError(t, err)
	return n << 10
}
