package checkpoint

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// npzFile is a numpy archive: a zip of .npy arrays (numpy.lib.format, versions 1 to 3), stored or deflated.
type npzFile struct {
	file   *mapped
	zip    *zipArchive
	names  []string
	arrays map[string]Tensor
}

func openNPZ(path string) (_ *npzFile, err error) {
	file, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	f := &npzFile{file: file, arrays: map[string]Tensor{}}
	if f.zip, err = openZip(file.path, file.data); err != nil {
		_ = file.close()
		return nil, err
	}
	for _, e := range f.zip.entries {
		name, ok := strings.CutSuffix(e.name, ".npy")
		if !ok {
			_ = file.close()
			return nil, &FormatError{Path: file.path, Fact: fmt.Sprintf("the archive has %q", e.name), Want: "arrays only, each called NAME.npy"}
		}
		f.names = append(f.names, name)
	}
	return f, nil
}

func (f *npzFile) Path() string    { return f.file.path }
func (f *npzFile) Names() []string { return slices.Clone(f.names) }
func (f *npzFile) Close() error    { return f.file.close() }

// Tensor is valid until Close.
func (f *npzFile) Tensor(name string) (t Tensor, err error) {
	if t, ok := f.arrays[name]; ok {
		return t, nil
	}
	if !slices.Contains(f.names, name) {
		return t, &MissingTensorError{Path: f.file.path, Tensors: []string{name}, Why: "the file has " + abridged(f.names)}
	}
	err = f.file.use(func() error {
		data, err := f.zip.content(name + ".npy")
		if err != nil {
			return err
		}
		t, err = f.array(name, data)
		return err
	})
	if err == nil {
		f.arrays[name] = t
	}
	return t, err
}

// array reads one .npy: a magic, a version, the length of a Python literal, the literal, the values.
func (f *npzFile) array(name string, data []byte) (Tensor, error) {
	const magic = "\x93NUMPY"
	broken := func(fact, want string) (Tensor, error) {
		return Tensor{}, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("array %s: %s", name, fact), Want: want}
	}
	if len(data) < 12 || string(data[:6]) != magic {
		return broken("it does not begin as a numpy array does", "a .npy file")
	}
	length, from := uint64(binary.LittleEndian.Uint16(data[8:])), uint64(10)
	switch data[6] {
	case 1:
	case 2, 3:
		length, from = uint64(binary.LittleEndian.Uint32(data[8:])), 12
	default:
		return broken(fmt.Sprintf("version %d", data[6]), "version 1, 2 or 3")
	}
	const longest = 1 << 16
	if length > longest || length > uint64(len(data))-from {
		return broken(fmt.Sprintf("its header claims %d bytes", length), "a header inside the file")
	}
	dtype, fortran, shape, err := parseNumpyHeader(string(data[from : from+length]))
	if err != nil {
		return broken(err.Error(), "")
	}
	t := Tensor{Name: name, DType: dtype, Shape: shape, Data: data[from+length:]}
	if _, err := t.checkedElements(); err != nil {
		return Tensor{}, fmt.Errorf("%s: %w", f.file.path, err)
	}
	if fortran && len(shape) > 1 {
		return broken("its values are in Fortran's order", "C's order, as Gemma Scope has it")
	}
	return t, nil
}

// parseNumpyHeader reads {'descr': '<f4', 'fortran_order': False, 'shape': (2304, 16384), } and nothing else.
func parseNumpyHeader(header string) (dtype DType, fortran bool, shape []int, err error) {
	field := func(key, value string) (string, bool) {
		found := regexp.MustCompile(`'` + key + `'\s*:\s*` + value).FindStringSubmatch(header)
		if found == nil {
			return "", false
		}
		return found[1], true
	}
	descr, ok := field("descr", `'([^']*)'`)
	if !ok {
		return "", false, nil, fmt.Errorf("its header has no plain 'descr': %.80q", header)
	}
	kinds := map[string]DType{"f2": F16, "f4": F32, "f8": F64, "i1": I8, "i2": I16, "i4": I32, "i8": I64, "u1": U8, "u2": U16, "u4": U32, "u8": U64, "b1": Bool}
	if dtype, ok = kinds[strings.TrimLeft(descr, "<|=")]; !ok {
		return "", false, nil, fmt.Errorf("its values are %q; expected little-endian numbers: <f2, <f4, <f8, or integers", descr)
	}
	order, ok := field("fortran_order", `(True|False)`)
	if !ok {
		return "", false, nil, fmt.Errorf("its header has no 'fortran_order': %.80q", header)
	}
	dims, ok := field("shape", `\(([0-9, ]*)\)`)
	if !ok {
		return "", false, nil, fmt.Errorf("its header has no 'shape': %.80q", header)
	}
	shape = []int{}
	for d := range strings.SplitSeq(dims, ",") {
		if d = strings.TrimSpace(d); d == "" {
			continue
		}
		n, err := strconv.ParseInt(d, 10, 63)
		if err != nil || len(shape) == 8 {
			return "", false, nil, fmt.Errorf("its shape is (%.80s)", dims)
		}
		shape = append(shape, int(n))
	}
	return dtype, order == "True", shape, nil
}
