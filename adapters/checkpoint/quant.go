package checkpoint

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// ggmlType is how ggml stores a tensor, numbered as in the file.
type ggmlType uint32

const (
	ggmlF32  ggmlType = 0
	ggmlF16  ggmlType = 1
	ggmlBF16 ggmlType = 30
)

// ggmlLayout: a row is cut into blocks of so many elements, each of so many bytes. unpack turns one block into numbers; it is nil
// for what cannot be read, and for plain floats.
type ggmlLayout struct {
	name            string
	elements, bytes int
	unpack          func(block []byte, out []float32)
}

// ggmlTypes has every type whose size is known, so that a file holding one opens and is refused by name only where it is needed.
var ggmlTypes = map[ggmlType]ggmlLayout{
	ggmlF32: {"F32", 1, 4, nil}, ggmlF16: {"F16", 1, 2, nil}, ggmlBF16: {"BF16", 1, 2, nil}, 28: {"F64", 1, 8, nil},
	24: {"I8", 1, 1, nil}, 25: {"I16", 1, 2, nil}, 26: {"I32", 1, 4, nil}, 27: {"I64", 1, 8, nil},
	2: {"Q4_0", 32, 18, unpackQ4x0}, 3: {"Q4_1", 32, 20, unpackQ4x1}, 6: {"Q5_0", 32, 22, unpackQ5x0}, 7: {"Q5_1", 32, 24, unpackQ5x1},
	8: {"Q8_0", 32, 34, unpackQ8x0}, 9: {"Q8_1", 32, 40, nil},
	10: {"Q2_K", 256, 84, unpackQ2K}, 11: {"Q3_K", 256, 110, unpackQ3K}, 12: {"Q4_K", 256, 144, unpackQ4K},
	13: {"Q5_K", 256, 176, unpackQ5K}, 14: {"Q6_K", 256, 210, unpackQ6K}, 15: {"Q8_K", 256, 292, unpackQ8K},
	16: {"IQ2_XXS", 256, 66, nil}, 17: {"IQ2_XS", 256, 74, nil}, 18: {"IQ3_XXS", 256, 98, nil}, 19: {"IQ1_S", 256, 50, nil},
	20: {"IQ4_NL", 32, 18, unpackIQ4NL}, 21: {"IQ3_S", 256, 110, nil}, 22: {"IQ2_S", 256, 82, nil}, 23: {"IQ4_XS", 256, 136, unpackIQ4XS},
	29: {"IQ1_M", 256, 56, nil}, 34: {"TQ1_0", 256, 54, nil}, 35: {"TQ2_0", 256, 66, nil}, 39: {"MXFP4", 32, 17, nil},
}

func (t ggmlType) String() string {
	if l, ok := ggmlTypes[t]; ok {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

func (t ggmlType) readable() bool {
	return t == ggmlF32 || t == ggmlF16 || t == ggmlBF16 || ggmlTypes[t].unpack != nil
}

// readableTypes are in the order of their numbers.
func readableTypes() []string {
	var kinds []ggmlType
	for kind := range ggmlTypes {
		if kind.readable() {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = kind.String()
	}
	return names
}

// dequantise converts one row of whole blocks, bit for bit as Python's gguf does. The conversions to float32 after each product
// keep the compiler from fusing it with the sum: the reference rounds twice.
func dequantise(t ggmlType, row []byte, out []float32) {
	switch t {
	case ggmlF32:
		convertFloats(F32, row, out, 0, len(out))
	case ggmlF16:
		convertFloats(F16, row, out, 0, len(out))
	case ggmlBF16:
		convertFloats(BF16, row, out, 0, len(out))
	default:
		l := ggmlTypes[t]
		for ; len(out) >= l.elements; row, out = row[l.bytes:], out[l.elements:] {
			l.unpack(row[:l.bytes:l.bytes], out[:l.elements:l.elements])
		}
	}
}

func half(b []byte) float32 { return halfToFloat(binary.LittleEndian.Uint16(b)) }

// Blocks of 32. Where two halves share bytes, low nibbles are the first 16 elements and high nibbles the last.

// unpackQ8x0: d, 32 signed bytes q; d·q.
func unpackQ8x0(b []byte, out []float32) {
	d, out := half(b), out[:32]
	for i, q := range b[2:34] {
		out[i] = d * float32(int8(q))
	}
}

// unpackQ4x0: d, 16 bytes of q; d·(q−8).
func unpackQ4x0(b []byte, out []float32) {
	d, out := half(b), out[:32]
	for i, q := range b[2:18] {
		out[i] = d * float32(int(q&15)-8)
		out[i+16] = d * float32(int(q>>4)-8)
	}
}

// unpackQ4x1: d, m, 16 bytes of q; d·q + m.
func unpackQ4x1(b []byte, out []float32) {
	d, m, out := half(b), half(b[2:]), out[:32]
	for i, q := range b[4:20] {
		out[i] = float32(d*float32(q&15)) + m
		out[i+16] = float32(d*float32(q>>4)) + m
	}
}

// unpackQ5x0: d, the fifth bits of all 32, 16 bytes of q; d·(q−16).
func unpackQ5x0(b []byte, out []float32) {
	d, high, out := half(b), binary.LittleEndian.Uint32(b[2:]), out[:32]
	for i, q := range b[6:22] {
		out[i] = d * float32(int(q&15|byte(high>>i&1)<<4)-16)
		out[i+16] = d * float32(int(q>>4|byte(high>>(i+16)&1)<<4)-16)
	}
}

// unpackQ5x1: d, m, the fifth bits, 16 bytes of q; d·q + m.
func unpackQ5x1(b []byte, out []float32) {
	d, m, high, out := half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:]), out[:32]
	for i, q := range b[8:24] {
		out[i] = float32(d*float32(q&15|byte(high>>i&1)<<4)) + m
		out[i+16] = float32(d*float32(q>>4|byte(high>>(i+16)&1)<<4)) + m
	}
}

// ggmlCurve is what the 16 codes of IQ4 stand for.
var ggmlCurve = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// unpackIQ4NL: d, 16 bytes of codes; d·curve(code).
func unpackIQ4NL(b []byte, out []float32) {
	d, out := half(b), out[:32]
	for i, q := range b[2:18] {
		out[i] = d * ggmlCurve[q&15]
		out[i+16] = d * ggmlCurve[q>>4]
	}
}

// unpackQ8K: d in float32, 256 signed bytes q, sums that only llama.cpp's products need; d·q.
func unpackQ8K(b []byte, out []float32) {
	d, out := math.Float32frombits(binary.LittleEndian.Uint32(b)), out[:256]
	for i, q := range b[4:260] {
		out[i] = d * float32(int8(q))
	}
}
