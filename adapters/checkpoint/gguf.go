package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"unicode/utf8"
)

// GGUF is an open GGUF file, memory-mapped read-only: metadata by key, tensors by llama.cpp's names.
//
// The reader is our own because the public Go parsers allocate by the lengths that a header claims, or panic on them.
type GGUF struct {
	file    *mapped
	version uint32
	values  map[string]ggufValue
	keys    []string
	infos   map[string]ggufTensor
	names   []string // in the order of the file
}

type ggufTensor struct {
	name     string
	kind     ggmlType
	shape    []int // row-major: the reverse of the file's order
	from, to int   // in the file
}

const (
	ggufMagic        = "GGUF"
	ggufMaxDims      = 4 // GGML_MAX_DIMS
	ggufMaxName      = 1 << 10
	ggufDefaultAlign = 32
	ggufMaxAlign     = 1 << 20
)

// OpenGGUF maps a file and checks its header, metadata and tensor table. What breaks a rule is a FormatError.
func OpenGGUF(path string) (*GGUF, error) {
	file, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	g := &GGUF{file: file, values: map[string]ggufValue{}, infos: map[string]ggufTensor{}}
	if err := g.parse(); err != nil {
		_ = file.close()
		return nil, err
	}
	return g, nil
}

// Path is absolute.
func (g *GGUF) Path() string { return g.file.path }

// Keys are the metadata's keys in the order of the file.
func (g *GGUF) Keys() []string { return slices.Clone(g.keys) }

// TensorNames are llama.cpp's names in the order of the file.
func (g *GGUF) TensorNames() []string { return slices.Clone(g.names) }

// Close ends every view that was handed out.
func (g *GGUF) Close() error { return g.file.close() }

// Tensor gives a tensor by llama.cpp's name as a fresh F32 tensor, de-quantised, in the file's row order.
func (g *GGUF) Tensor(name string) (Tensor, error) {
	return g.slot(name, slot{}, nil)
}

// slot de-quantises the rows of a tensor that p names; a nil shape takes them all.
func (g *GGUF) slot(name string, p slot, shape []int) (Tensor, error) {
	info, ok := g.infos[name]
	if !ok {
		return Tensor{}, &MissingTensorError{Path: g.file.path, Tensors: []string{name}, Why: "the file has " + abridged(g.names)}
	}
	if !info.kind.readable() {
		return Tensor{}, g.notReadable(info)
	}
	if len(info.shape) == 1 && shape != nil && !(p.whole() && slices.Equal(shape, info.shape)) { // a bias: its numbers are the rows
		t, err := g.slot(name, slot{}, nil)
		if err != nil {
			return t, err
		}
		return p.take(t, shape)
	}
	if shape == nil {
		shape = info.shape
	}
	n := 1
	for _, d := range shape {
		n *= d
	}
	out := make([]float32, n) // at most 8 times the bytes in the file, which were checked
	err := g.file.use(func() error {
		width := info.shape[len(info.shape)-1]
		if width == 0 {
			return nil
		}
		stride := width / ggmlTypes[info.kind].elements * ggmlTypes[info.kind].bytes
		data := g.file.data[info.from:info.to]
		inParallel(n, func(from, to int) { // a row belongs to the part in which it begins
			for row := (from + width - 1) / width; row*width < to; row++ {
				at := p.first + row
				if p.order != nil {
					at = p.first + p.order(row)
				}
				dequantise(info.kind, data[at*stride:(at+1)*stride], out[row*width:(row+1)*width])
			}
		})
		return nil
	})
	if err != nil {
		return Tensor{}, err
	}
	t := Float32Tensor(name, out, shape...)
	t.Fresh = true
	return t, nil
}

func (g *GGUF) notReadable(info ggufTensor) error {
	return &UnsupportedError{Path: g.file.path, Kind: "quantisation of tensor " + info.name, Name: info.kind.String(), Supported: readableTypes()}
}

func (g *GGUF) parse() error {
	data := g.file.data
	if len(data) < 4 || !bytes.Equal(data[:4], []byte(ggufMagic)) {
		return g.broken("the file does not begin with GGUF", "a GGUF file, version 2 or 3")
	}
	c := &cursor{path: g.file.path, data: data, at: 4}
	g.version = c.u32()
	if c.err == nil && g.version != 2 && g.version != 3 {
		if v := bits.ReverseBytes32(g.version); v == 2 || v == 3 {
			return &UnsupportedError{Path: g.file.path, Kind: "byte order", Name: "big-endian", Supported: []string{"little-endian"}}
		}
		return &UnsupportedError{Path: g.file.path, Kind: "GGUF version", Name: fmt.Sprint(g.version), Supported: []string{"2", "3"}}
	}
	tensors, pairs := c.u64(), c.u64()
	for i := uint64(0); i < pairs && c.err == nil; i++ {
		g.parsePair(c)
	}
	for i := uint64(0); i < tensors && c.err == nil; i++ {
		g.parseInfo(c)
	}
	if c.err != nil {
		return c.err
	}
	return g.place(c.at)
}

func (g *GGUF) parsePair(c *cursor) {
	key := c.text()
	kind := ggufKind(c.u32())
	value := c.value(kind, 0)
	if c.err != nil {
		return
	}
	if _, twice := g.values[key]; twice {
		c.fail(fmt.Sprintf("the metadata has the key %q twice", key), "every key once")
		return
	}
	g.values[key] = value
	g.keys = append(g.keys, key)
}

func (g *GGUF) parseInfo(c *cursor) {
	name := c.text()
	dims := c.u32()
	if c.err != nil {
		return
	}
	switch {
	case name == "" || len(name) > ggufMaxName:
		c.fail(fmt.Sprintf("a tensor's name has %d bytes", len(name)), fmt.Sprintf("1 to %d", ggufMaxName))
		return
	case dims == 0 || dims > ggufMaxDims:
		c.fail(fmt.Sprintf("tensor %q has %d dimensions", name, dims), fmt.Sprintf("1 to %d", ggufMaxDims))
		return
	}
	if _, twice := g.infos[name]; twice {
		c.fail(fmt.Sprintf("the file names the tensor %q twice", name), "every name once")
		return
	}
	info := ggufTensor{name: name, shape: make([]int, dims)}
	elements := uint64(1)
	for i := range info.shape {
		d := c.u64()
		hi, lo := bits.Mul64(elements, d)
		if hi != 0 || lo > math.MaxInt64/8 || d > math.MaxInt64/8 {
			c.fail(fmt.Sprintf("tensor %q has the dimension %d, too large to address", name, d), "")
			return
		}
		elements, info.shape[len(info.shape)-1-i] = lo, int(d)
	}
	info.kind = ggmlType(c.u32())
	offset := c.u64()
	if c.err != nil {
		return
	}
	layout, known := ggmlTypes[info.kind]
	if !known {
		c.fail(fmt.Sprintf("tensor %q has the unknown type %d", name, uint32(info.kind)), "")
		return
	}
	width := info.shape[len(info.shape)-1]
	if width%layout.elements != 0 {
		c.fail(fmt.Sprintf("tensor %q, %s, has rows of %d elements", name, layout.name, width), fmt.Sprintf("a multiple of %d", layout.elements))
		return
	}
	size := elements / uint64(layout.elements) * uint64(layout.bytes)
	if offset > uint64(len(c.data)) || size > uint64(len(c.data)) {
		c.fail(fmt.Sprintf("tensor %q claims %d bytes at offset %d and the file has %d in all", name, size, offset, len(c.data)), "a whole file; this one is cut short")
		return
	}
	info.from, info.to = int(offset), int(offset+size) // relative to the data section until place
	g.infos[name] = info
	g.names = append(g.names, name)
}

// place finds the data section and checks that every tensor lies inside it, aligned, and overlaps no other.
func (g *GGUF) place(at int) error {
	align := ggufDefaultAlign
	if v, there := g.values["general.alignment"]; there {
		n, ok := v.unsigned()
		if !ok || n == 0 || n > ggufMaxAlign || n&(n-1) != 0 {
			return g.broken("general.alignment is not usable", fmt.Sprintf("a power of two up to %d", ggufMaxAlign))
		}
		align = int(n)
	}
	start := (at + align - 1) / align * align
	order := slices.Clone(g.names)
	slices.SortStableFunc(order, func(a, b string) int { return g.infos[a].from - g.infos[b].from })
	end, before := 0, ""
	for _, name := range order {
		info := g.infos[name]
		switch {
		case info.from%align != 0:
			return g.broken(fmt.Sprintf("tensor %q begins at offset %d", name, info.from), fmt.Sprintf("a multiple of the alignment, %d", align))
		case info.from < end:
			return g.broken(fmt.Sprintf("tensor %q begins at %d, inside %q, which ends at %d", name, info.from, before, end), "tensors that do not overlap")
		case info.to > len(g.file.data)-start:
			return g.broken(fmt.Sprintf("tensor %q ends at byte %d of the data and the file has %d", name, info.to, max(0, len(g.file.data)-start)), "a whole file; this one is cut short")
		}
		end, before = info.to, name
		info.from, info.to = info.from+start, info.to+start
		g.infos[name] = info
	}
	return nil
}

func (g *GGUF) broken(fact, want string) error {
	return &FormatError{Path: g.file.path, Fact: fact, Want: want}
}

// cursor reads the header; the first failure sticks and everything after it reads as zero.
type cursor struct {
	path string
	data []byte
	at   int
	err  error
}

func (c *cursor) fail(fact, want string) {
	if c.err == nil {
		c.err = &FormatError{Path: c.path, Fact: fact, Want: want}
	}
}

func (c *cursor) take(n uint64, what string) []byte {
	if c.err != nil {
		return nil
	}
	if left := len(c.data) - c.at; n > uint64(left) {
		c.fail(fmt.Sprintf("%s needs %d bytes at %d and %d are left", what, n, c.at, left), "a whole file; this one is cut short")
		return nil
	}
	out := c.data[c.at : c.at+int(n) : c.at+int(n)]
	c.at += int(n)
	return out
}

func (c *cursor) u32() uint32 {
	if b := c.take(4, "a number"); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8, "a number"); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) text() string {
	b := c.take(c.u64(), "a string")
	if !utf8.Valid(b) {
		c.fail("a key or a name is not UTF-8", "")
		return ""
	}
	return string(b)
}
