package checkpoint_test

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// rawSafetensors builds a file from a header and so many bytes of data.
func rawSafetensors(header string, data int) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), make([]byte, data)...)
}

func writeFile(t testing.TB, path string, data []byte) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, data, 0o644))
	return path
}

func TestABrokenSafetensorsFileIsRefusedWithTheFact(t *testing.T) {
	t.Parallel()
	const a = `"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"an empty file":                         {nil, "the file has 0 bytes"},
		"a file shorter than its length":        {[]byte{1, 2, 3}, "the file has 3 bytes"},
		"a header length beyond the file":       {rawSafetensors("{"+a+"}", 8)[:20], "cut short"},
		"a header length beyond the limit":      {[]byte(strings.Repeat("\xff", 64)), "the header claims 18446744073709551615 bytes"},
		"a file that is not safetensors":        {[]byte("GIF89a this is a picture, not a tensor"), "is this a safetensors file?"},
		"a header that is not JSON":             {rawSafetensors("{nonsense}", 0), "the header is not JSON"},
		"a header cut in mid-object":            {rawSafetensors(`{"a":{"dtype":"F32"`, 0), "the header is not JSON"},
		"a header that is a list":               {rawSafetensors(`[]`, 0), "does not begin with {"},
		"something after the header":            {rawSafetensors(`{}{}`, 0), "something follows the header"},
		"a name twice":                          {rawSafetensors("{"+a+","+a+"}", 8), `names the tensor "a" twice`},
		"metadata twice":                        {rawSafetensors(`{"__metadata__":{},"__metadata__":{}}`, 0), "twice"},
		"metadata that is not strings":          {rawSafetensors(`{"__metadata__":{"a":1}}`, 0), "not a map of strings"},
		"an unknown dtype":                      {rawSafetensors(`{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}`, 8), `unknown dtype "F31"`},
		"a shape that does not fit its bytes":   {rawSafetensors(`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}`, 8), "expected 12 bytes, as F32 [3] has"},
		"a shape that overflows":                {rawSafetensors(`{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}`, 0), "more elements than a machine can address"},
		"a dimension beyond int64":              {rawSafetensors(`{"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0]}}`, 0), "the dimension 18446744073709551615"},
		"a negative dimension":                  {rawSafetensors(`{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}`, 0), "whole numbers"},
		"offsets the wrong way round":           {rawSafetensors(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}`, 8), "data_offsets [8, 0]"},
		"three offsets":                         {rawSafetensors(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,16]}}`, 8), "two data_offsets"},
		"no shape":                              {rawSafetensors(`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, 8), "lacks a dtype, a shape"},
		"data cut short":                        {rawSafetensors("{"+a+"}", 7), "this one is cut short"},
		"data after the last tensor":            {rawSafetensors("{"+a+"}", 9), "1 bytes follow the last tensor"},
		"a hole before the first tensor":        {rawSafetensors(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}`, 16), "no hole between them"},
		"two tensors on the same bytes":         {rawSafetensors("{"+a+`,"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}`, 8), "tensors that do not overlap"},
		"two tensors that overlap by one byte":  {rawSafetensors("{"+a+`,"b":{"dtype":"U8","shape":[8],"data_offsets":[7,15]}}`, 15), "tensors that do not overlap"},
		"half a byte":                           {rawSafetensors(`{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}`, 1), "do not fill whole bytes"},
		"a nesting bomb":                        {rawSafetensors(`{"a":`+strings.Repeat("[", 200_000), 0), "the header is not JSON"},
		"an entry that is null":                 {rawSafetensors(`{"a":null}`, 0), "lacks a dtype"},
		"a length of zero and nothing after it": {make([]byte, 8), "does not begin with {"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, filepath.Join(t.TempDir(), "x.safetensors"), c.data)
			_, err := checkpoint.OpenSafetensors(path)
			var format *checkpoint.FormatError
			require.ErrorAs(t, err, &format)
			require.Equal(t, path, format.Path)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestAMissingFileAndAFolderAreRefused(t *testing.T) {
	t.Parallel()
	_, err := checkpoint.OpenSafetensors(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = checkpoint.OpenSafetensors(t.TempDir())
	require.ErrorContains(t, err, "not a regular file")
}

func TestATensorLivesUntilCloseAndNoLonger(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.safetensors")
	require.NoError(t, checkpoint.WriteSafetensors(path, []checkpoint.Tensor{checkpoint.Float32Tensor("a", []float32{1, 2}, 2)}, nil))
	s, err := checkpoint.OpenSafetensors(path)
	require.NoError(t, err)
	_, err = s.Tensor("b")
	var missing *checkpoint.MissingTensorError
	require.ErrorAs(t, err, &missing)
	require.ErrorContains(t, err, "missing tensors: b (the file has a)")
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	_, err = s.Tensor("a")
	require.ErrorIs(t, err, checkpoint.ErrClosed)
}

func TestFloat32IsAViewWhereItCanBeAndACopyWhereTheFileIsNotAligned(t *testing.T) {
	t.Parallel()
	header := `{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`
	for pad := range 4 {
		data := rawSafetensors(header+strings.Repeat(" ", pad), 8)
		data[len(data)-2], data[len(data)-1] = 0x80, 0x3f
		s, err := checkpoint.OpenSafetensors(writeFile(t, filepath.Join(t.TempDir(), "x"), data))
		require.NoError(t, err)
		tensor, err := s.Tensor("a")
		require.NoError(t, err)
		values, err := tensor.Float32()
		require.NoError(t, err)
		require.Equal(t, []float32{0, 1}, values)
		require.NoError(t, s.Close())
	}
}

func TestATensorWhoseBytesDoNotFitItsShapeIsAnError(t *testing.T) {
	t.Parallel()
	_, err := checkpoint.Tensor{Name: "a", DType: "F32", Shape: []int{3}, Data: make([]byte, 8)}.Float32()
	require.ErrorContains(t, err, "tensor a, F32 [3], has 8 bytes; expected 12 bytes")
	_, err = checkpoint.Tensor{Name: "a", DType: "F32", Shape: []int{1}, Data: make([]byte, 4)}.Int64()
	require.ErrorContains(t, err, `dtype of tensor a "F32" is not supported`)
	_, err = checkpoint.Tensor{Name: "a", DType: "U64", Shape: []int{1}, Data: []byte{0, 0, 0, 0, 0, 0, 0, 0x80}}.Int64()
	require.ErrorContains(t, err, "beyond the range of int64")
}

func TestWritingRefusesWhatCouldNotBeReadBack(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	one := checkpoint.Float32Tensor("a", []float32{1}, 1)
	for name, tensors := range map[string][]checkpoint.Tensor{
		"a name twice":  {one, one},
		"metadata":      {checkpoint.Float32Tensor("__metadata__", []float32{1}, 1)},
		"a wrong shape": {checkpoint.Float32Tensor("a", []float32{1}, 2)},
	} {
		err := checkpoint.WriteSafetensors(filepath.Join(folder, "x"), tensors, nil)
		var format *checkpoint.FormatError
		require.ErrorAs(t, err, &format, name)
	}
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left, "nothing half-written stays behind")
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringN(0, 12, -1), 0, 6, rapid.ID[string]).Draw(t, "names")
		var tensors []checkpoint.Tensor
		for _, name := range names {
			if name == "__metadata__" {
				continue
			}
			shape := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 3).Draw(t, "shape")
			n := 1
			for _, d := range shape {
				n *= d
			}
			dtype := rapid.SampledFrom([]checkpoint.DType{"F64", "F32", "BF16", "U8", "F8_E5M2"}).Draw(t, "dtype")
			data := rapid.SliceOfN(rapid.Byte(), n*dtype.Bits()/8, n*dtype.Bits()/8).Draw(t, "data")
			tensors = append(tensors, checkpoint.Tensor{Name: name, DType: dtype, Shape: shape, Data: data})
		}
		metadata := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "metadata")
		path := filepath.Join(folder, "x.safetensors")
		if err := checkpoint.WriteSafetensors(path, tensors, metadata); err != nil {
			t.Fatal(err)
		}
		s, err := checkpoint.OpenSafetensors(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		if got := s.Metadata(); len(got) != len(metadata) || fmt.Sprint(got) != fmt.Sprint(metadata) {
			t.Fatalf("metadata %v, read back %v", metadata, got)
		}
		if len(s.Names()) != len(tensors) {
			t.Fatalf("%d tensors, read back %d", len(tensors), len(s.Names()))
		}
		for _, want := range tensors {
			got, err := s.Tensor(want.Name)
			if err != nil {
				t.Fatal(err)
			}
			if got.DType != want.DType || fmt.Sprint(got.Shape) != fmt.Sprint(want.Shape) || string(got.Data) != string(want.Data) {
				t.Fatalf("wrote %v, read %v", want, got)
			}
		}
	})
}

func FuzzSafetensors(f *testing.F) {
	golden, err := os.ReadFile("testdata/sae/standard/sae_weights.safetensors")
	require.NoError(f, err)
	f.Add(golden)
	f.Add(rawSafetensors(`{"__metadata__":{"a":"b"},"a":{"dtype":"F16","shape":[2,0],"data_offsets":[0,0]}}`, 0))
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := checkpoint.OpenSafetensors(writeFile(t, filepath.Join(folder, fmt.Sprint(os.Getpid())), data))
		if err != nil {
			return
		}
		defer shut(t, s)
		for _, name := range s.Names() {
			tensor, err := s.Tensor(name)
			require.NoError(t, err)
			_, _ = tensor.Float32()
			_, _ = tensor.Int64()
		}
	})
}
