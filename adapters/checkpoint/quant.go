package checkpoint

import (
	"encoding/binary"
	"fmt"
)

// ggmlType is how ggml stores a tensor, numbered as in the file.
type ggmlType uint32

const (
	ggmlF32  ggmlType = 0
	ggmlF16  ggmlType = 1
	ggmlQ4x0 ggmlType = 2
	ggmlQ4x1 ggmlType = 3
	ggmlQ8x0 ggmlType = 8
	ggmlBF16 ggmlType = 30
)

// ggmlLayout: a row is cut into blocks of so many elements, each of so many bytes.
type ggmlLayout struct {
	name            string
	elements, bytes int
}

// ggmlTypes has every type whose size is known, so that a file holding one opens; dequantise has those that can be read.
var ggmlTypes = map[ggmlType]ggmlLayout{
	ggmlF32: {"F32", 1, 4}, ggmlF16: {"F16", 1, 2}, ggmlBF16: {"BF16", 1, 2}, 28: {"F64", 1, 8},
	24: {"I8", 1, 1}, 25: {"I16", 1, 2}, 26: {"I32", 1, 4}, 27: {"I64", 1, 8},
	ggmlQ4x0: {"Q4_0", 32, 18}, ggmlQ4x1: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24},
	ggmlQ8x0: {"Q8_0", 32, 34}, 9: {"Q8_1", 32, 40},
	10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 12: {"Q4_K", 256, 144}, 13: {"Q5_K", 256, 176}, 14: {"Q6_K", 256, 210}, 15: {"Q8_K", 256, 292},
	16: {"IQ2_XXS", 256, 66}, 17: {"IQ2_XS", 256, 74}, 18: {"IQ3_XXS", 256, 98}, 19: {"IQ1_S", 256, 50}, 20: {"IQ4_NL", 32, 18},
	21: {"IQ3_S", 256, 110}, 22: {"IQ2_S", 256, 82}, 23: {"IQ4_XS", 256, 136}, 29: {"IQ1_M", 256, 56},
	34: {"TQ1_0", 256, 54}, 35: {"TQ2_0", 256, 66}, 39: {"MXFP4", 32, 17},
}

func (t ggmlType) String() string {
	if l, ok := ggmlTypes[t]; ok {
		return l.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

func (t ggmlType) readable() bool {
	switch t {
	case ggmlF32, ggmlF16, ggmlBF16, ggmlQ8x0, ggmlQ4x0, ggmlQ4x1:
		return true
	default:
		return false
	}
}

func readableTypes() []string { return []string{"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"} }

// dequantise converts one row. The conversions to float32 after each product keep the compiler from fusing it with the sum:
// the reference rounds twice, and results are compared bit for bit.
func dequantise(t ggmlType, row []byte, out []float32) {
	half := func(b []byte) float32 { return halfToFloat(binary.LittleEndian.Uint16(b)) }
	switch t {
	case ggmlF32:
		convertFloats(F32, row, out, 0, len(out))
	case ggmlF16:
		convertFloats(F16, row, out, 0, len(out))
	case ggmlBF16:
		convertFloats(BF16, row, out, 0, len(out))
	case ggmlQ8x0: // d·q, q a signed byte
		for ; len(out) > 0; row, out = row[34:], out[32:] {
			d := half(row)
			for i, q := range row[2:34] {
				out[i] = d * float32(int8(q))
			}
		}
	case ggmlQ4x0: // d·(q−8); low nibbles are the first 16 elements, high nibbles the last
		for ; len(out) > 0; row, out = row[18:], out[32:] {
			d := half(row)
			for i, q := range row[2:18] {
				out[i] = d * float32(int(q&15)-8)
				out[i+16] = d * float32(int(q>>4)-8)
			}
		}
	case ggmlQ4x1: // d·q + m
		for ; len(out) > 0; row, out = row[20:], out[32:] {
			d, m := half(row), half(row[2:])
			for i, q := range row[4:20] {
				out[i] = float32(d*float32(q&15)) + m
				out[i+16] = float32(d*float32(q>>4)) + m
			}
		}
	}
}
