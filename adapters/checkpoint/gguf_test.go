package checkpoint_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// ggufBytes builds GGUF headers by hand, the broken ones above all.
type ggufBytes []byte

func (b ggufBytes) u32(v uint32) ggufBytes { return binary.LittleEndian.AppendUint32(b, v) }
func (b ggufBytes) u64(v uint64) ggufBytes { return binary.LittleEndian.AppendUint64(b, v) }
func (b ggufBytes) text(s string) ggufBytes {
	return append(b.u64(uint64(len(s))), s...)
}

func (b ggufBytes) tensor(name string, kind uint32, offset uint64, dims ...uint64) ggufBytes {
	b = b.text(name).u32(uint32(len(dims)))
	for _, d := range dims {
		b = b.u64(d)
	}
	return b.u32(kind).u64(offset)
}

// data pads to the alignment and adds n bytes.
func (b ggufBytes) data(n int) ggufBytes {
	return append(b, make([]byte, (32-len(b)%32)%32+n)...)
}

func ggufHead(tensors, pairs uint64) ggufBytes {
	return ggufBytes("GGUF").u32(3).u64(tensors).u64(pairs)
}

func TestABrokenGGUFFileIsRefusedWithTheFact(t *testing.T) {
	t.Parallel()
	const u32, text, array = 4, 8, 9
	for name, c := range map[string]struct {
		data ggufBytes
		want string
	}{
		"an empty file":                      {nil, "does not begin with GGUF"},
		"another file":                       {ggufBytes("PK\x03\x04"), "does not begin with GGUF"},
		"version 1":                          {ggufBytes("GGUF").u32(1), `GGUF version "1" is not supported; supported: 2, 3`},
		"a big-endian file":                  {ggufBytes("GGUF\x00\x00\x00\x03"), "big-endian"},
		"a header cut short":                 {ggufHead(1, 1)[:20], "cut short"},
		"2⁶⁴−1 tensors":                      {ggufHead(math.MaxUint64, 0), "cut short"},
		"2⁶⁴−1 keys":                         {ggufHead(0, math.MaxUint64), "cut short"},
		"a key of 2⁶³ bytes":                 {ggufHead(0, 1).u64(1 << 63), "a string needs 9223372036854775808 bytes"},
		"a key that is not UTF-8":            {ggufHead(0, 1).text("\xff").u32(u32).u32(1), "not UTF-8"},
		"a key twice":                        {ggufHead(0, 2).text("a").u32(u32).u32(1).text("a").u32(u32).u32(1), `the key "a" twice`},
		"an unknown value type":              {ggufHead(0, 1).text("a").u32(77), "unknown type 77"},
		"an array of 2⁶³ strings":            {ggufHead(0, 1).text("a").u32(array).u32(text).u64(1 << 63), "claims 9223372036854775808 items"},
		"an array of more numbers than fit":  {ggufHead(0, 1).text("a").u32(array).u32(u32).u64(8).u64(0), "a metadata array needs 32 bytes"},
		"arrays in arrays in arrays":         {nested(10), "nests arrays more than 4 deep"},
		"a tensor without dimensions":        {ggufHead(1, 0).text("a").u32(0).u32(0).u64(0), "0 dimensions"},
		"a tensor of five dimensions":        {ggufHead(1, 0).tensor("a", 0, 0, 1, 1, 1, 1, 1), "5 dimensions"},
		"a tensor without a name":            {ggufHead(1, 0).tensor("", 0, 0, 1), "name has 0 bytes"},
		"a name twice":                       {ggufHead(2, 0).tensor("a", 0, 0, 1).tensor("a", 0, 32, 1).data(64), `the tensor "a" twice`},
		"a shape that overflows":             {ggufHead(1, 0).tensor("a", 0, 0, 1<<40, 1<<40), "too large to address"},
		"an unknown tensor type":             {ggufHead(1, 0).tensor("a", 4, 0, 32), "unknown type 4"},
		"rows that are not whole blocks":     {ggufHead(1, 0).tensor("a", 8, 0, 33), "expected a multiple of 32"},
		"a tensor larger than the file":      {ggufHead(1, 0).tensor("a", 0, 0, 1<<30), "this one is cut short"},
		"a tensor that ends past the end":    {ggufHead(1, 0).tensor("a", 0, 0, 8).data(31), "ends at byte 32 of the data and the file has 31"},
		"a file that ends before its data":   {ggufHead(1, 0).tensor("a", 0, 0, 1), "cut short"},
		"a misaligned tensor":                {ggufHead(1, 0).tensor("a", 0, 4, 1).data(8), "a multiple of the alignment, 32"},
		"tensors that overlap":               {ggufHead(2, 0).tensor("a", 0, 0, 16).tensor("b", 0, 32, 1).data(64), "tensors that do not overlap"},
		"an alignment that is no power of 2": {ggufHead(0, 1).text("general.alignment").u32(u32).u32(24), "general.alignment is not usable"},
		"an alignment of 0":                  {ggufHead(0, 1).text("general.alignment").u32(u32).u32(0), "general.alignment is not usable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := checkpoint.OpenGGUF(writeFile(t, filepath.Join(t.TempDir(), "x.gguf"), c.data))
			require.Error(t, err)
			var format *checkpoint.FormatError
			var unsupported *checkpoint.UnsupportedError
			if !strings.Contains(c.want, "supported") && c.want != "big-endian" {
				require.ErrorAs(t, err, &format)
			} else {
				require.ErrorAs(t, err, &unsupported)
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func nested(depth int) ggufBytes {
	b := ggufHead(0, 1).text("a").u32(9)
	for range depth {
		b = b.u32(9).u64(1)
	}
	return append(b, make([]byte, 64)...)
}

func TestAGGUFModelIsRefusedWhenItsPartsDoNotFit(t *testing.T) {
	t.Parallel()
	tied, err := os.ReadFile("testdata/llama/tied.gguf")
	require.NoError(t, err)
	untied, err := os.ReadFile("testdata/llama/untied.gguf")
	require.NoError(t, err)
	// The metadata is changed in place, byte for byte, so that everything after it stays where it is.
	replace := func(data []byte, old, new string) []byte {
		require.Equal(t, len(old), len(new))
		require.Contains(t, string(data), old)
		return []byte(strings.ReplaceAll(string(data), old, new))
	}
	number := func(key string, v uint32) string { return string(ggufBytes(key).u32(4).u32(v)) }
	set := func(key string, from, to uint32) []byte { return replace(tied, number(key, from), number(key, to)) }
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"another family":               {replace(tied, "\x05\x00\x00\x00\x00\x00\x00\x00llama", "\x05\x00\x00\x00\x00\x00\x00\x00bloom"), `general.architecture "bloom" is not supported; supported: llama, qwen2`},
		"a billion layers":             {set("llama.block_count", 2, 200_000_000), "block_count is 200000000 and the file has"},
		"a layer too many":             {set("llama.block_count", 2, 3), "missing tensors: blk.2.attn_norm.weight"},
		"no layers":                    {set("llama.block_count", 2, 0), "llama.block_count is not usable"},
		"another width":                {set("llama.embedding_length", 32, 64), "16 key, 16 value and 8 rotary dimensions"}, // d_head follows from the width
		"another number of heads":      {set("llama.attention.head_count", 4, 8), "rotary dimensions"},
		"key/value heads not dividing": {set("llama.attention.head_count_kv", 2, 3), "divides the heads"},
		"more key/value heads":         {set("llama.attention.head_count_kv", 2, 4), "tensor blk.0.attn_k.weight has the shape [16 32]; it should be [32 32], that is [kv_heads × d_head, d_model]"},
		"another hidden width":         {set("llama.feed_forward_length", 64, 65), "it should be [65 32], that is [d_ff, d_model]"},
		"a missing tensor":             {replace(untied, "blk.1.ffn_up.weight", "blk.1.ffn_uq.weight"), "missing tensors: blk.1.ffn_up.weight"},
		"an unknown scaling of rope":   {replace(tied, string(ggufBytes("llama.rope.freq_base").u32(6).u32(math.Float32bits(5e5))), string(ggufBytes("llama.rope.freq_base").u32(6).u32(math.Float32bits(1e4)))), `rope scaling "rope_freqs.weight" is not supported`},
		"a file cut short":             {tied[:len(tied)-32], "cut short"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := checkpoint.OpenModel(writeFile(t, filepath.Join(t.TempDir(), "x.gguf"), c.data))
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestGGUFMetadataIsReadByKindAndRefusedByKind(t *testing.T) {
	t.Parallel()
	g, err := checkpoint.OpenGGUF("testdata/llama/tied.gguf")
	require.NoError(t, err)
	require.Contains(t, g.Keys(), "llama.block_count")
	require.Contains(t, g.TensorNames(), "rope_freqs.weight")
	n, ok := g.Integer("llama.block_count")
	require.True(t, ok)
	require.EqualValues(t, 2, n)
	_, ok = g.Text("llama.block_count")
	require.False(t, ok)
	_, ok = g.Texts("llama.block_count")
	require.False(t, ok)
	_, ok = g.Flag("none")
	require.False(t, ok)
	x, ok := g.Number("llama.rope.freq_base")
	require.True(t, ok)
	require.EqualValues(t, 5e5, x)
	require.NoError(t, g.Close())
	_, ok = g.Integer("llama.block_count")
	require.False(t, ok, "nothing is read from a closed file")
	_, err = g.Tensor("output_norm.weight")
	require.ErrorIs(t, err, checkpoint.ErrClosed)
}

// smallestLlama is a whole model in 1.5 kB: one layer, one head of two dimensions, a vocabulary of two. Fuzzing wants small seeds.
func smallestLlama() []byte {
	const u32, f32, text, array = 4, 6, 8, 9
	b := ggufHead(11, 11).text("general.architecture").u32(text).text("llama").
		text("tokenizer.ggml.tokens").u32(array).u32(text).u64(2).text("a").text("b").
		text("tokenizer.ggml.token_type").u32(array).u32(u32).u64(2).u32(1).u32(1)
	for i, key := range []string{"block_count", "attention.head_count", "embedding_length", "feed_forward_length", "context_length"} {
		b = b.text("llama." + key).u32(u32).u32([]uint32{1, 1, 2, 2, 8}[i])
	}
	b = b.text("llama.attention.layer_norm_rms_epsilon").u32(f32).u32(math.Float32bits(1e-5))
	b = b.text("tokenizer.ggml.bos_token_id").u32(u32).u32(1).text("tokenizer.ggml.add_bos_token").u32(7)
	b = append(b, 1)
	offset := uint64(0)
	for _, name := range []string{"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"} {
		b = b.tensor("blk.0."+name+".weight", 0, offset, 2, 2)
		offset += 32
	}
	for _, name := range []string{"blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"} {
		b = b.tensor(name, 0, offset, 2)
		offset += 32
	}
	return b.tensor("token_embd.weight", 1, offset, 2, 2).data(int(offset) + 8)
}

func TestTheSmallestLlamaOpens(t *testing.T) {
	t.Parallel()
	m, err := checkpoint.OpenModel(writeFile(t, filepath.Join(t.TempDir(), "x.gguf"), smallestLlama()))
	require.NoError(t, err)
	defer shut(t, m)
	require.Equal(t, 2, m.Config().DHead)
	_, err = m.GGUF().Tokenizer()
	require.NoError(t, err)
}

func FuzzGGUF(f *testing.F) {
	f.Add(smallestLlama())
	for _, arch := range []string{"qwen2", "gemma", "gemma2", "gemma3", "phi3", "olmo2", "gpt2", "gptneox"} { // no whole models: their metadata
		length := func(n int) string { return string(ggufBytes{}.u64(uint64(n))) }
		data := strings.ReplaceAll(string(smallestLlama()), length(5)+"llama", length(len(arch))+arch)
		for _, key := range []string{"block_count", "attention.head_count", "embedding_length", "feed_forward_length", "context_length", "attention.layer_norm_rms_epsilon"} {
			data = strings.ReplaceAll(data, length(6+len(key))+"llama."+key, length(1+len(arch)+len(key))+arch+"."+key)
		}
		f.Add([]byte(data))
	}
	f.Add([]byte(ggufHead(1, 1).text("a").u32(9).u32(8).u64(1).text("b").tensor("t", 8, 0, 32).data(34)))
	for _, kind := range quantised() {
		f.Add(rowsOf(kind, 2, kind[1], make([]byte, 2*kind[2])))
	}
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := writeFile(t, filepath.Join(folder, fmt.Sprint(os.Getpid())), data)
		g, err := checkpoint.OpenGGUF(path)
		if err != nil {
			return
		}
		defer shut(t, g)
		for _, name := range g.TensorNames() {
			_, _ = g.Tensor(name)
		}
		for _, key := range g.Keys() {
			_, _ = g.Texts(key)
			_, _ = g.Number(key)
		}
		_, _ = g.Tokenizer()
		if m, err := checkpoint.OpenModel(path); err == nil {
			_ = m.CheckFinite()
			_ = m.Close()
		}
	})
}
