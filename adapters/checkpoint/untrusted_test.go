package checkpoint

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// reads is everything that is read from a file of weights; sum keeps the work from being thrown away.
func reads(file tensorFile) (sum int, err error) {
	for _, name := range file.Names() {
		t, err := file.Tensor(name)
		if err != nil {
			return sum, err
		}
		if t.DType.isFloat() {
			values, err := t.Float32()
			if err != nil {
				return sum, err
			}
			sum += len(values)
		}
	}
	return sum, nil
}

func openedTorch(t *testing.T, name string) *torchFile {
	t.Helper()
	f, err := openTorch(filepath.Join("testdata/pickles", name))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func TestTorchFilesHoldWhatTorchReads(t *testing.T) {
	t.Parallel()
	want, err := OpenSafetensors("testdata/pickles/want.safetensors")
	require.NoError(t, err)
	defer func() { require.NoError(t, want.Close()) }()
	for _, name := range []string{"new.pt", "legacy.pt", "protocol4.pt"} {
		f := openedTorch(t, name)
		require.ElementsMatch(t, want.Names(), f.Names(), name)
		for _, tensor := range want.Names() {
			w, err := want.Tensor(tensor)
			require.NoError(t, err)
			g, err := f.Tensor(tensor)
			require.NoError(t, err, "%s: %s", name, tensor)
			require.Equal(t, w.DType, g.DType, tensor)
			require.Equal(t, w.Shape, g.Shape, tensor)
			require.True(t, bytes.Equal(w.Data, g.Data), "%s: %s", name, tensor)
		}
		require.Equal(t, map[string]any{
			"facts.k": int64(32), "facts.big": int64(1 << 40), "facts.negative": int64(-5), "facts.name": "TopK", "facts.flag": true, "facts.nothing": nil, "facts.rate": 0.25,
			"facts.list.0": int64(1), "facts.list.1": 2.5, "facts.list.2": "x", "facts.pair.0": int64(1), "facts.pair.1": int64(2), "facts.dtype": pickleGlobal("torch float32"),
			"facts.size.0": int64(6), "facts.size.1": int64(5),
		}, f.values, name)
		_, err := f.Tensor("state.none")
		var missing *MissingTensorError
		require.ErrorAs(t, err, &missing)
	}
}

func TestNumpyArchivesHoldWhatNumpyWrote(t *testing.T) {
	t.Parallel()
	want := openedTorch(t, "new.pt")
	for _, name := range []string{"stored.npz", "deflated.npz"} {
		f, err := openNPZ(filepath.Join("testdata/pickles", name))
		require.NoError(t, err)
		require.Len(t, f.Names(), 14)
		for _, array := range f.Names() {
			w, err := want.Tensor("state." + array)
			require.NoError(t, err)
			g, err := f.Tensor(array)
			require.NoError(t, err)
			require.Equal(t, w.DType, g.DType, array)
			require.Equal(t, w.Shape, g.Shape, array)
			require.True(t, bytes.Equal(w.Data, g.Data), "%s: %s", name, array)
		}
		require.NoError(t, f.Close())
	}
}

// A pickle is a program: these are the words of one.
const (
	pProto   = "\x80\x02"
	pMark    = "("
	pReduce  = "R"
	pTuple   = "t"
	pStop    = "."
	pStorage = "(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
)

// torchZip is a torch file with this pickle and one storage of four float32.
func torchZip(t testing.TB, pickle string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, data := range map[string]string{"a/data.pkl": pickle, "a/data/0": strings.Repeat("\x00\x00\x80\x3f", 4), "a/version": "3\n"} {
		e, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		require.NoError(t, err)
		_, err = e.Write([]byte(data))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// tensorPickle is {"w": a tensor of these facts}.
func tensorPickle(elements int32, offset int32, shape, stride string) string {
	n := string(binary.LittleEndian.AppendUint32([]byte{'J'}, uint32(elements)))
	at := string(binary.LittleEndian.AppendUint32([]byte{'J'}, uint32(offset)))
	return pProto + "}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + pStorage + n + "tQ" + at + shape + stride + "\x89ccollections\nOrderedDict\n)RtRs."
}

func readTorch(t testing.TB, data []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.pt")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := openTorch(path)
	if err != nil {
		return err
	}
	_, err = reads(f)
	require.NoError(t, f.Close())
	return err
}

func TestAPickleThatIsNotTensorsIsRefused(t *testing.T) {
	t.Parallel()
	require.NoError(t, readTorch(t, torchZip(t, tensorPickle(4, 0, "K\x04\x85", "K\x01\x85"))))
	require.NoError(t, readTorch(t, torchZip(t, tensorPickle(4, 1, "K\x03K\x02\x86", "K\x01K\x00\x86"))), "strides of 0 repeat")
	long := "K\x01" + strings.Repeat("0K\x01", 400_000)
	for name, c := range map[string]struct{ pickle, want string }{
		"a call of a function":           {pProto + "cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "it asks for os.system, which is Python code; expected tensors, numbers, text and plain containers only: code in a checkpoint is never run"},
		"the same by another word":       {"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.", "it asks for os.system"},
		"a function of the language":     {pProto + "cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "it asks for builtins.eval"},
		"an object of a foreign class":   {pProto + "csae.model\nSAE\n)\x81}b.", "it asks for sae.model.SAE"},
		"an instruction that makes one":  {pProto + "(cos\nsystem\no.", "it asks for os.system"},
		"an instruction that calls":      {pProto + "(ios\nsystem\n.", "the instruction 0x69 is not one that tensors take"},
		"a call of what is no name":      {pProto + "K\x01)R.", "it calls something that is no name"},
		"a class of torch's with a word": {pProto + "ctorch._utils\n_rebuild_tensor_v2\nX\x01\x00\x00\x00x\x85R.", "a tensor has too few facts"},
		"state for a number":             {pProto + "K\x01}b.", "it sets the state of a int64"},
		"an empty stack":                 {pProto + ".", "it takes from an empty stack"},
		"a mark that is not there":       {pProto + "t.", "there is no mark on the stack"},
		"a memory that was never kept":   {pProto + "h\x05.", "it recalls 5"},
		"a text that is cut short":       {pProto + "X\xff\xff\x00\x00abc", "65535 bytes are wanted and 3 are left"},
		"a text of 2^60 bytes":           {"\x80\x04\x8d\x00\x00\x00\x00\x00\x00\x00\x10.", "1152921504606846976 bytes are wanted"},
		"a number of 2^31 bytes":         {pProto + "\x8b\x00\x00\x00\x80.", "bytes are wanted"},
		"a protocol of the future":       {"\x80\x09.", "it is of protocol 9"},
		"no end":                         {pProto + "}", "a whole file; this one is cut short"},
		"a program without end":          {pProto + long + ".", "it takes more than 400000 steps"},
		"a stack without end":            {pProto + strings.Repeat("N", 300_000) + ".", "its stack holds more than 200000 things"},
		"something after the end":        {pProto + "}.}.", "2 bytes follow the pickle in data.pkl"},
		"a list of keys":                 {pProto + "}]K\x01s.", "a dict has a key of the type *checkpoint.pickleList"},
		"one tensor without a name":      {strings.Replace(strings.TrimSuffix(tensorPickle(4, 0, "K\x04\x85", "K\x01\x85"), "s.")+".", "}X\x01\x00\x00\x00w", "", 1), "it holds one tensor without a name"},
		"a list inside itself":           {pProto + "}X\x01\x00\x00\x00a]q\x00h\x00as.", "its containers are nested too deep"},
		"a tensor beyond its memory":     {tensorPickle(4, 0, "K\x05\x85", "K\x01\x85"), "reaches beyond its memory of 4 elements"},
		"an offset beyond its memory":    {tensorPickle(4, 9, "K\x02\x85", "K\x01\x85"), "reaches beyond its memory"},
		"a stride beyond its memory":     {tensorPickle(4, 0, "K\x02\x85", "J\xff\xff\xff\x7f\x85"), "reaches beyond its memory"},
		"a memory that is cut short":     {tensorPickle(99, 0, "K\x02\x85", "K\x01\x85"), "should have 99 elements and the file has 4"},
		"a negative shape":               {tensorPickle(4, 0, "J\xff\xff\xff\xff\x85", "K\x01\x85"), "none below 0"},
		"more strides than dimensions":   {tensorPickle(4, 0, "K\x04\x85", "K\x01K\x01\x86"), "is not described as torch describes it"},
		"a tensor of 2^57 elements":      {tensorPickle(4, 0, "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x02\x85", "K\x00\x85"), "would take more than four times that"},
		"a tensor beyond all addresses":  {tensorPickle(4, 0, "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40\x85", "K\x00\x85"), "more elements than a machine can address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, readTorch(t, torchZip(t, c.pickle)), c.want)
		})
	}
}

func TestAFileThatIsNoTorchFileIsRefused(t *testing.T) {
	t.Parallel()
	good := torchZip(t, tensorPickle(4, 0, "K\x04\x85", "K\x01\x85"))
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"an empty file":             {nil, "it does not begin as a torch file does"},
		"something else":            {[]byte("\x7fELF"), "it does not begin as a torch file does"},
		"an archive that is cut":    {good[:len(good)-30], "the end of a zip archive is missing"},
		"an archive without pickle": {zipOf(t, zip.Store, "a/x", []byte("x")), "the archive has no data.pkl"},
		"a changed byte":            {bytes.Replace(good, []byte("\x00\x00\x80\x3f"), []byte("\x00\x00\x80\x40"), 1), "checksum"},
		"a big-endian machine's": {func() []byte {
			var b bytes.Buffer
			w := zip.NewWriter(&b)
			for _, e := range [][2]string{{"a/data.pkl", "\x80\x02}."}, {"a/byteorder", "big"}} {
				f, err := w.CreateHeader(&zip.FileHeader{Name: e[0], Method: zip.Store})
				require.NoError(t, err)
				_, err = f.Write([]byte(e[1]))
				require.NoError(t, err)
			}
			require.NoError(t, w.Close())
			return b.Bytes()
		}(), `byte order "big" is not supported`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, readTorch(t, c.data), c.want)
		})
	}
}

func zipOf(t testing.TB, method uint16, name string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	e, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: method})
	require.NoError(t, err)
	_, err = e.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func npy(header string, data []byte) []byte {
	out := []byte("\x93NUMPY\x01\x00")
	out = binary.LittleEndian.AppendUint16(out, uint16(len(header)))
	return append(append(out, header...), data...)
}

func readNPZ(t testing.TB, data []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.npz")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	f, err := openNPZ(path)
	if err != nil {
		return err
	}
	_, err = reads(f)
	require.NoError(t, f.Close())
	return err
}

func TestANumpyArchiveThatIsNotSoundIsRefused(t *testing.T) {
	t.Parallel()
	const good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
	eight := make([]byte, 8)
	require.NoError(t, readNPZ(t, zipOf(t, zip.Store, "w.npy", npy(good, eight))))
	require.NoError(t, readNPZ(t, zipOf(t, zip.Deflate, "w.npy", npy(good, eight))))
	lying := zipOf(t, zip.Deflate, "w.npy", npy(good, eight))
	at := bytes.LastIndex(lying, []byte("PK\x01\x02"))
	require.Positive(t, at)
	bomb := zipOf(t, zip.Deflate, "w.npy", make([]byte, 200<<20))
	smaller, larger, huge := bytes.Clone(lying), bytes.Clone(lying), bytes.Clone(lying)
	binary.LittleEndian.PutUint32(smaller[at+24:], 20)
	binary.LittleEndian.PutUint32(larger[at+24:], 4000)
	binary.LittleEndian.PutUint32(huge[at+24:], math.MaxUint32-1)
	twice := bytes.Clone(lying)
	end := bytes.LastIndex(twice, []byte("PK\x05\x06"))
	binary.LittleEndian.PutUint16(twice[end+10:], 2)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"a zip bomb":                          {bomb, "this is a zip bomb"},
		"a bomb that lies about its size":     {smaller, "inflates to more than the 20 bytes that the directory claims; expected weights; this is a zip bomb"},
		"a size that is not there":            {larger, "cannot be inflated to the 4000 bytes"},
		"a size of four gigabytes":            {huge, "this is a zip bomb"},
		"an entry that is not there":          {twice, "the archive's directory is broken"},
		"an object array":                     {zipOf(t, zip.Store, "w.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", eight)), `its values are "|O"; expected little-endian numbers`},
		"a big-endian array":                  {zipOf(t, zip.Store, "w.npy", npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2,), }", eight)), `its values are ">f4"`},
		"Fortran's order":                     {zipOf(t, zip.Store, "w.npy", npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 1), }", eight)), "Fortran's order"},
		"fewer values than the shape":         {zipOf(t, zip.Store, "w.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", eight)), "has 8 bytes; expected 12 bytes"},
		"a shape beyond addresses":            {zipOf(t, zip.Store, "w.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,), }", eight)), "its shape is (4611686018427387904,)"},
		"a shape beyond memory":               {zipOf(t, zip.Store, "w.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }", eight)), "more elements than a machine can address"},
		"a header without end":                {zipOf(t, zip.Store, "w.npy", []byte("\x93NUMPY\x01\x00\xff\xff{    ")), "its header claims 65535 bytes"},
		"a version of the future":             {zipOf(t, zip.Store, "w.npy", []byte("\x93NUMPY\x09\x00\x01\x00    ")), "version 9"},
		"something that is no array":          {zipOf(t, zip.Store, "w.npy", []byte("hello, hello, hello")), "it does not begin as a numpy array does"},
		"something that is called otherwise":  {zipOf(t, zip.Store, "w.txt", eight), `the archive has "w.txt"; expected arrays only`},
		"a shape that is a call":              {zipOf(t, zip.Store, "w.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (exit(),), }", eight)), "its header has no 'shape'"},
		"a compression that nobody else uses": {zipMethod(t, 99), "zip compression of w.npy \"99\" is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, readNPZ(t, c.data), c.want)
		})
	}
}

func zipMethod(t *testing.T, method uint16) []byte {
	t.Helper()
	data := zipOf(t, zip.Store, "w.npy", make([]byte, 8))
	at := bytes.LastIndex(data, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint16(data[at+10:], method)
	return data
}

// within fails when work gives itself more memory than four times the input and 64 MiB.
func within(t *testing.T, input int, work func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	work()
	runtime.ReadMemStats(&after)
	if given := after.TotalAlloc - before.TotalAlloc; given > 4*uint64(input)+(64<<20) {
		t.Fatalf("%d bytes of input took %d bytes of memory", input, given)
	}
}

func fuzzSeeds(f *testing.F, pattern string) {
	f.Helper()
	paths, err := filepath.Glob(pattern)
	require.NoError(f, err)
	require.NotEmpty(f, paths)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		if len(data) < 1<<16 {
			f.Add(data)
		}
	}
}

func fuzzFile(f *testing.F, name string, open func(path string) (tensorFile, error)) {
	f.Helper()
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(folder, fmt.Sprint(os.Getpid())+name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		within(t, len(data), func() {
			file, err := open(path)
			if err == nil {
				_, err = reads(file)
				require.NoError(t, file.Close())
			}
			if err != nil {
				require.NotEmpty(t, err.Error())
			}
		})
	})
}

func FuzzTorchFile(f *testing.F) {
	fuzzSeeds(f, "testdata/pickles/*.pt")
	f.Add(torchZip(f, tensorPickle(4, 1, "K\x03K\x02\x86", "K\x01K\x00\x86")))
	fuzzFile(f, ".pt", func(path string) (tensorFile, error) { return openTorch(path) })
}

// FuzzPickle spares the fuzzer the archive around the pickle and its checksums.
func FuzzPickle(f *testing.F) {
	for _, name := range []string{"new.pt", "protocol4.pt"} {
		file, err := mapFile(filepath.Join("testdata/pickles", name))
		require.NoError(f, err)
		archive, err := openZip(file.path, file.data)
		require.NoError(f, err)
		for _, e := range archive.entries {
			if strings.HasSuffix(e.name, "data.pkl") {
				data, err := archive.content(e.name)
				require.NoError(f, err)
				f.Add(bytes.Clone(data))
			}
		}
		require.NoError(f, file.close())
	}
	f.Add([]byte(tensorPickle(4, 1, "K\x03K\x02\x86", "K\x01K\x00\x86")))
	storage := make([]byte, 256)
	f.Fuzz(func(t *testing.T, data []byte) {
		within(t, len(data), func() {
			top, _, err := unpickle("x", data)
			if err != nil {
				require.NotEmpty(t, err.Error())
				return
			}
			file := &torchFile{file: &mapped{path: "x"}, zip: &zipArchive{budget: 4*uint64(len(data)) + (32 << 20)}, found: map[string]*pickleTensor{}, values: map[string]any{}, given: map[string]Tensor{}}
			file.storage = func(string) ([]byte, error) { return storage, nil }
			if file.flatten("", top, 0, new(int)) == nil {
				_, _ = reads(file)
			}
		})
	})
}

func FuzzNPZ(f *testing.F) {
	fuzzSeeds(f, "testdata/pickles/*.npz")
	f.Add(zipOf(f, zip.Deflate, "w.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", make([]byte, 8))))
	fuzzFile(f, ".npz", func(path string) (tensorFile, error) { return openNPZ(path) })
}

func FuzzYAML(f *testing.F) {
	f.Add([]byte("llm:\n  dimin: 16\nsae: {exp_factor: 3.0, tied: true, list: [1, null, x]}\n"))
	f.Add([]byte("a: &a [1]\nb: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		within(t, len(data), func() {
			if _, err := parseYAML("x", data); err != nil {
				require.NotEmpty(t, err.Error())
			}
		})
	})
}
