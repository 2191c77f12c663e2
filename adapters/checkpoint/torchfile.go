package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"path"
	"slices"
	"strings"
)

// torchFile is what torch.save wrote: since 1.6 a zip with data.pkl and one entry for each storage, before that a row of pickles
// with the storages behind them. Tensors of nested dicts are named with dots between, numbers and texts are kept as facts.
type torchFile struct {
	file    *mapped
	zip     *zipArchive
	storage func(key string) ([]byte, error)
	names   []string
	found   map[string]*pickleTensor
	values  map[string]any // what is no tensor, by its dotted name
	given   map[string]Tensor
}

// openTorch reads the pickle of a .pt, .pth or .bin file; storages are read when they are asked for.
func openTorch(name string) (_ *torchFile, err error) {
	file, err := mapFile(name)
	if err != nil {
		return nil, err
	}
	f := &torchFile{file: file, found: map[string]*pickleTensor{}, values: map[string]any{}, given: map[string]Tensor{}}
	defer func() {
		if err != nil {
			_ = file.close()
		}
	}()
	var top any
	switch {
	case bytes.HasPrefix(file.data, []byte("PK\x03\x04")):
		top, err = f.openZip()
	case bytes.HasPrefix(file.data, []byte("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.")):
		top, err = f.openLegacy()
	default:
		return nil, &FormatError{Path: file.path, Fact: "it does not begin as a torch file does", Want: "what torch.save writes: a zip archive, or the older row of pickles"}
	}
	if err != nil {
		return nil, err
	}
	count := 0
	return f, f.flatten("", top, 0, &count)
}

func (f *torchFile) openZip() (any, error) {
	var err error
	if f.zip, err = openZip(f.file.path, f.file.data); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(f.zip.entries, func(e zipEntry) bool { return path.Base(e.name) == "data.pkl" && strings.Count(e.name, "/") <= 1 })
	if at < 0 {
		return nil, &FormatError{Path: f.file.path, Fact: "the archive has no data.pkl", Want: "what torch.save writes; a TorchScript archive is code and is not read"}
	}
	folder := strings.TrimSuffix(f.zip.entries[at].name, "data.pkl")
	if slices.ContainsFunc(f.zip.entries, func(e zipEntry) bool { return e.name == folder+"byteorder" }) {
		order, err := f.zip.content(folder + "byteorder")
		if err != nil {
			return nil, err
		}
		if string(order) != "little" {
			return nil, &UnsupportedError{Path: f.file.path, Kind: "byte order", Name: fmt.Sprintf("%.20s", order), Supported: []string{"little"}}
		}
	}
	f.storage = func(key string) ([]byte, error) { return f.zip.content(folder + "data/" + key) }
	data, err := f.zip.content(f.zip.entries[at].name)
	if err != nil {
		return nil, err
	}
	top, length, err := unpickle(f.file.path, data)
	if err == nil && length != len(data) {
		err = &FormatError{Path: f.file.path, Fact: fmt.Sprintf("%d bytes follow the pickle in data.pkl", len(data)-length), Want: "nothing after it"}
	}
	return top, err
}

// openLegacy reads the form of before torch 1.6: magic, protocol, facts about the machine, the object, the list of storages, and
// then each storage as a count and its elements.
func (f *torchFile) openLegacy() (any, error) {
	data, at := f.file.data, 0
	var parts [5]any
	for i := range parts {
		value, length, err := unpickle(f.file.path, data[at:])
		if err != nil {
			return nil, err
		}
		parts[i], at = value, at+length
	}
	if facts, ok := parts[2].(*pickleDict); ok && facts.values["little_endian"] == false {
		return nil, &UnsupportedError{Path: f.file.path, Kind: "byte order", Name: "big", Supported: []string{"little"}}
	}
	f.zip = &zipArchive{path: f.file.path, data: data, budget: 4*uint64(len(data)) + spareBudget} // for its count of memory only
	keys, ok := parts[4].(*pickleList)
	if !ok {
		return nil, &FormatError{Path: f.file.path, Fact: "the list of storages is missing", Want: "what torch.save wrote before torch 1.6"}
	}
	widths := map[string]DType{}
	storageWidths(parts[3], widths, 0, new(int))
	places := map[string][]byte{}
	for _, k := range keys.items {
		key, _ := k.(string)
		dtype, known := widths[key]
		if !known || len(data)-at < 8 {
			return nil, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("storage %.40q is not there", key), Want: "a whole file"}
		}
		count := binary.LittleEndian.Uint64(data[at:])
		at += 8
		size := count * uint64(dtype.Bits()/8)
		if count > uint64(len(data)) || size > uint64(len(data)-at) {
			return nil, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("storage %.40q claims %d elements and %d bytes are left", key, count, len(data)-at), Want: "a whole file; this one is cut short"}
		}
		places[key] = data[at : at+int(size) : at+int(size)]
		at += int(size)
	}
	f.storage = func(key string) ([]byte, error) {
		place, ok := places[key]
		if !ok {
			return nil, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("storage %.40q is not there", key), Want: "a whole file"}
		}
		return place, nil
	}
	return parts[3], nil
}

// How far a pickle is walked: a value may be in it many times over.
const (
	maxPickleDepth = 8
	maxPickleNames = 100_000
)

func storageWidths(v any, into map[string]DType, depth int, count *int) {
	if *count++; depth > maxPickleDepth || *count > maxPickleNames {
		return
	}
	switch v := v.(type) {
	case *pickleTensor:
		into[v.storage.key] = v.storage.dtype
	case *pickleDict:
		for _, item := range v.values {
			storageWidths(item, into, depth+1, count)
		}
	case *pickleList:
		for _, item := range v.items {
			storageWidths(item, into, depth+1, count)
		}
	case pickleTuple:
		for _, item := range v {
			storageWidths(item, into, depth+1, count)
		}
	}
}

// flatten names every tensor and every fact: a dict's key, a list's number, with dots between.
func (f *torchFile) flatten(name string, v any, depth int, count *int) error {
	if *count++; depth > maxPickleDepth || *count > maxPickleNames {
		return &FormatError{Path: f.file.path, Fact: "its containers are nested too deep, or hold too much", Want: fmt.Sprintf("at most %d of them in one another, and %d things in all", maxPickleDepth, maxPickleNames)}
	}
	below := func(key string) string {
		if name == "" {
			return key
		}
		return name + "." + key
	}
	switch v := v.(type) {
	case *pickleTensor:
		if _, twice := f.found[name]; twice {
			return &FormatError{Path: f.file.path, Fact: fmt.Sprintf("two tensors are called %.80q", name), Want: "every name once"}
		}
		if name == "" {
			return &FormatError{Path: f.file.path, Fact: "it holds one tensor without a name", Want: "a dict of tensors"}
		}
		f.found[name] = v
		f.names = append(f.names, name)
	case *pickleDict:
		for _, key := range v.keys {
			if err := f.flatten(below(fmt.Sprint(key)), v.values[key], depth+1, count); err != nil {
				return err
			}
		}
	case *pickleList:
		for i, item := range v.items {
			if err := f.flatten(below(fmt.Sprint(i)), item, depth+1, count); err != nil {
				return err
			}
		}
	case pickleTuple:
		for i, item := range v {
			if err := f.flatten(below(fmt.Sprint(i)), item, depth+1, count); err != nil {
				return err
			}
		}
	default:
		f.values[name] = v
	}
	return nil
}

func (f *torchFile) Path() string    { return f.file.path }
func (f *torchFile) Names() []string { return slices.Clone(f.names) }
func (f *torchFile) Close() error    { return f.file.close() }

// Tensor is valid until Close: a view of the file where the tensor lies whole and in order, else a copy in order.
func (f *torchFile) Tensor(name string) (t Tensor, err error) {
	if t, ok := f.given[name]; ok {
		return t, nil
	}
	p, ok := f.found[name]
	if !ok {
		return t, &MissingTensorError{Path: f.file.path, Tensors: []string{name}, Why: "the file has " + abridged(f.names)}
	}
	err = f.file.use(func() error {
		t, err = f.read(name, p)
		return err
	})
	if err == nil {
		f.given[name] = t
	}
	return t, err
}

func (f *torchFile) read(name string, p *pickleTensor) (Tensor, error) {
	t := Tensor{Name: name, DType: p.storage.dtype, Shape: make([]int, len(p.shape))}
	for i, d := range p.shape {
		t.Shape[i] = int(d)
	}
	size, elements, err := sizeOf(t.DType, t.Shape)
	if err != nil {
		return t, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("tensor %s: %v", name, err)}
	}
	data, err := f.storage(p.storage.key)
	if err != nil {
		return t, err
	}
	width := t.DType.Bits() / 8
	held := uint64(len(data) / width)
	if p.storage.elements >= 0 && uint64(p.storage.elements) > held {
		return t, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("the memory of tensor %s should have %d elements and the file has %d of them", name, p.storage.elements, held), Want: "a whole file; this one is cut short"}
	}
	if elements == 0 {
		t.Data = []byte{}
		return t, nil
	}
	last, ok := uint64(p.offset), true
	for i, d := range p.shape {
		hi, span := bits.Mul64(uint64(d-1), uint64(p.stride[i]))
		next := last + span
		ok = ok && hi == 0 && next >= last
		last = next
	}
	if !ok || last >= held {
		return t, &FormatError{Path: f.file.path, Fact: fmt.Sprintf("tensor %s, shape %v, strides %v, offset %d, reaches beyond its memory of %d elements", name, p.shape, p.stride, p.offset, held), Want: "a tensor inside its memory"}
	}
	if inOrder(p) {
		from := int(p.offset) * width
		t.Data = data[from : from+size : from+size]
		return t, nil
	}
	if err := f.zip.spend(uint64(size)); err != nil {
		return t, err
	}
	t.Data = gathered(data, p, size, width)
	return t, nil
}

// inOrder says whether the elements lie one after the other.
func inOrder(p *pickleTensor) bool {
	step := int64(1)
	for i := len(p.shape) - 1; i >= 0; i-- {
		if p.shape[i] != 1 && p.stride[i] != step {
			return false
		}
		step *= p.shape[i]
	}
	return true
}

// gathered copies elements that lie apart, such as those of a transposed matrix.
func gathered(data []byte, p *pickleTensor, size, width int) []byte {
	out := make([]byte, 0, size)
	at := make([]int64, len(p.shape))
	for len(out) < size {
		place := p.offset
		for i, n := range at {
			place += n * p.stride[i]
		}
		from := int(place) * width
		out = append(out, data[from:from+width]...)
		for i := len(at) - 1; i >= 0; i-- {
			if at[i]++; at[i] < p.shape[i] {
				break
			}
			at[i] = 0
		}
	}
	return out
}
