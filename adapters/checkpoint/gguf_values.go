package checkpoint

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// ggufKind is the type of a metadata value, numbered as in the file.
type ggufKind uint32

const (
	kindU8 ggufKind = iota
	kindI8
	kindU16
	kindI16
	kindU32
	kindI32
	kindF32
	kindBool
	kindString
	kindArray
	kindU64
	kindI64
	kindF64
)

// ggufMaxDepth limits arrays of arrays: nothing real nests more than once.
const ggufMaxDepth = 4

// ggufValue keeps the bytes of a value in the map; they are decoded when somebody asks. Nothing is allocated by a claimed length.
type ggufValue struct {
	kind  ggufKind
	item  ggufKind // of an array
	count int      // of an array
	data  []byte   // without the type, and without an array's or a string's own header
}

func (k ggufKind) width() int {
	switch k {
	case kindU8, kindI8, kindBool:
		return 1
	case kindU16, kindI16:
		return 2
	case kindU32, kindI32, kindF32:
		return 4
	case kindU64, kindI64, kindF64:
		return 8
	default:
		return 0
	}
}

func (c *cursor) value(kind ggufKind, depth int) ggufValue {
	v := ggufValue{kind: kind}
	switch {
	case kind.width() > 0:
		v.data = c.take(uint64(kind.width()), "a metadata value")
	case kind == kindString:
		v.data = c.take(c.u64(), "a metadata string")
	case kind == kindArray && depth < ggufMaxDepth:
		c.array(&v, depth)
	case kind == kindArray:
		c.fail(fmt.Sprintf("metadata nests arrays more than %d deep", ggufMaxDepth), "")
	default:
		c.fail(fmt.Sprintf("metadata has a value of the unknown type %d", uint32(kind)), "")
	}
	return v
}

func (c *cursor) array(v *ggufValue, depth int) {
	v.item = ggufKind(c.u32())
	count := c.u64()
	if left := uint64(len(c.data) - c.at); c.err == nil && count > left { // an item has at least one byte
		c.fail(fmt.Sprintf("a metadata array claims %d items and %d bytes are left", count, left), "a whole file; this one is cut short")
	}
	if c.err != nil {
		return
	}
	v.count = int(count)
	if width := v.item.width(); width > 0 {
		hi, size := bits.Mul64(count, uint64(width))
		if hi != 0 {
			size = math.MaxUint64
		}
		v.data = c.take(size, "a metadata array")
		return
	}
	from := c.at
	for i := 0; i < v.count && c.err == nil; i++ {
		c.value(v.item, depth+1)
	}
	if c.err == nil {
		v.data = c.data[from:c.at]
	}
}

func (v ggufValue) unsigned() (uint64, bool) {
	n, ok := v.integer()
	return uint64(n), ok && n >= 0
}

// integer reads any whole number; a U64 beyond int64 is not ok.
func (v ggufValue) integer() (int64, bool) {
	le := binary.LittleEndian
	switch v.kind {
	case kindU8:
		return int64(v.data[0]), true
	case kindI8:
		return int64(int8(v.data[0])), true
	case kindU16:
		return int64(le.Uint16(v.data)), true
	case kindI16:
		return int64(int16(le.Uint16(v.data))), true
	case kindU32:
		return int64(le.Uint32(v.data)), true
	case kindI32:
		return int64(int32(le.Uint32(v.data))), true
	case kindU64:
		n := le.Uint64(v.data)
		return int64(n), n <= math.MaxInt64
	case kindI64:
		return int64(le.Uint64(v.data)), true
	default:
		return 0, false
	}
}

func (v ggufValue) number() (float64, bool) {
	switch v.kind {
	case kindF32:
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(v.data))), true
	case kindF64:
		return math.Float64frombits(binary.LittleEndian.Uint64(v.data)), true
	default:
		n, ok := v.integer()
		return float64(n), ok
	}
}

// items gives an array's numbers as values of their own.
func (v ggufValue) items() ([]ggufValue, bool) {
	width := v.item.width()
	if v.kind != kindArray || width == 0 {
		return nil, false
	}
	out := make([]ggufValue, v.count)
	for i := range out {
		out[i] = ggufValue{kind: v.item, data: v.data[i*width : (i+1)*width]}
	}
	return out, true
}

func (v ggufValue) strings() ([]string, bool) {
	if v.kind != kindArray || v.item != kindString {
		return nil, false
	}
	out := make([]string, 0, v.count)
	c := &cursor{data: v.data}
	for range v.count {
		out = append(out, string(c.take(c.u64(), "a string")))
	}
	return out, c.err == nil
}

// Text is a string value; false if the key is absent or holds something else.
func (g *GGUF) Text(key string) (string, bool) {
	var out string
	v, ok := g.lookup(key)
	if !ok || v.kind != kindString {
		return "", false
	}
	err := g.file.use(func() error { out = string(v.data); return nil })
	return out, err == nil
}

// Integer is a whole number of any width; false if the key is absent or holds something else.
func (g *GGUF) Integer(key string) (n int64, ok bool) {
	v, there := g.lookup(key)
	if !there {
		return 0, false
	}
	err := g.file.use(func() error { n, ok = v.integer(); return nil })
	return n, ok && err == nil
}

// Number is a number of any kind; false if the key is absent or holds something else.
func (g *GGUF) Number(key string) (x float64, ok bool) {
	v, there := g.lookup(key)
	if !there {
		return 0, false
	}
	err := g.file.use(func() error { x, ok = v.number(); return nil })
	return x, ok && err == nil
}

// Flag is a boolean; false, false if the key is absent or holds something else.
func (g *GGUF) Flag(key string) (b, ok bool) {
	v, there := g.lookup(key)
	if !there || v.kind != kindBool {
		return false, false
	}
	err := g.file.use(func() error { b = v.data[0] != 0; return nil })
	return b, err == nil
}

// Texts is an array of strings; false if the key is absent or holds something else.
func (g *GGUF) Texts(key string) (out []string, ok bool) {
	v, there := g.lookup(key)
	if !there {
		return nil, false
	}
	err := g.file.use(func() error { out, ok = v.strings(); return nil })
	return out, ok && err == nil
}

// Has says whether the metadata has the key.
func (g *GGUF) Has(key string) bool { _, ok := g.lookup(key); return ok }

func (g *GGUF) lookup(key string) (ggufValue, bool) {
	v, ok := g.values[key]
	return v, ok
}

// each runs f over the numbers of an array; false if the key is absent or holds something else.
func (g *GGUF) each(key string, f func(i int, v ggufValue) bool) bool {
	v, ok := g.lookup(key)
	if !ok {
		return false
	}
	good := false
	err := g.file.use(func() error {
		items, numbers := v.items()
		good = numbers
		for i, item := range items {
			good = good && f(i, item)
		}
		return nil
	})
	return good && err == nil
}
