package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"sync"
)

// DType is the element type of a tensor, spelled as in safetensors.
type DType string

// The element types of safetensors. Those without arithmetic here (F8, F6, F4, C64) are known so that a file holding them
// opens and the tensor that needs them is refused by name.
const (
	F64    DType = "F64"
	F32    DType = "F32"
	F16    DType = "F16"
	BF16   DType = "BF16"
	F8E4M3 DType = "F8_E4M3"
	F8E5M2 DType = "F8_E5M2"
	F8E8M0 DType = "F8_E8M0"
	F6E2M3 DType = "F6_E2M3"
	F6E3M2 DType = "F6_E3M2"
	F4     DType = "F4"
	C64    DType = "C64"
	I64    DType = "I64"
	U64    DType = "U64"
	I32    DType = "I32"
	U32    DType = "U32"
	I16    DType = "I16"
	U16    DType = "U16"
	I8     DType = "I8"
	U8     DType = "U8"
	Bool   DType = "BOOL"
)

// Bits is the width of one element, 0 for a dtype that is not known.
func (d DType) Bits() int {
	switch d {
	case F64, I64, U64, C64:
		return 64
	case F32, I32, U32:
		return 32
	case F16, BF16, I16, U16:
		return 16
	case F8E4M3, F8E5M2, F8E8M0, I8, U8, Bool:
		return 8
	case F6E2M3, F6E3M2:
		return 6
	case F4:
		return 4
	default:
		return 0
	}
}

func floatNames() []string { return []string{"F32", "F16", "BF16", "F64"} }

func (d DType) isFloat() bool { return d == F32 || d == F16 || d == BF16 || d == F64 }

var errTooLarge = errors.New("its shape has more elements than a machine can address")

// sizeOf is the number of bytes and elements of a shape, with every multiplication checked.
func sizeOf(d DType, shape []int) (size, elements int, err error) {
	width := d.Bits()
	if width == 0 {
		return 0, 0, fmt.Errorf("unknown dtype %q", d)
	}
	n, empty := uint64(1), false
	for _, dim := range shape {
		if dim < 0 {
			return 0, 0, fmt.Errorf("negative dimension in %v", shape)
		}
		if dim == 0 {
			empty = true
			continue
		}
		hi, lo := bits.Mul64(n, uint64(dim))
		if hi != 0 {
			return 0, 0, errTooLarge
		}
		n = lo
	}
	if empty {
		return 0, 0, nil
	}
	hi, total := bits.Mul64(n, uint64(width))
	if hi != 0 || total > math.MaxInt64 {
		return 0, 0, errTooLarge
	}
	if total%8 != 0 {
		return 0, 0, fmt.Errorf("%v elements of %s do not fill whole bytes", shape, d)
	}
	return int(total / 8), int(n), nil
}

// convertFloats converts the elements from ≤ i < to.
func convertFloats(d DType, data []byte, out []float32, from, to int) {
	le := binary.LittleEndian
	switch d {
	case F32:
		for i := from; i < to; i++ {
			out[i] = math.Float32frombits(le.Uint32(data[4*i:]))
		}
	case F64:
		for i := from; i < to; i++ {
			out[i] = float32(math.Float64frombits(le.Uint64(data[8*i:])))
		}
	case BF16:
		for i := from; i < to; i++ {
			out[i] = math.Float32frombits(uint32(le.Uint16(data[2*i:])) << 16)
		}
	case F16:
		for i := from; i < to; i++ {
			out[i] = halfToFloat(le.Uint16(data[2*i:]))
		}
	}
}

// halfToFloat converts IEEE 754 binary16 exactly, subnormals, infinities and NaN payloads included.
func halfToFloat(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch {
	case exponent == 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	case exponent != 0:
		return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
	case fraction == 0:
		return math.Float32frombits(sign)
	default: // subnormal: fraction · 2⁻²⁴, which float32 holds as a normal number
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(v) | sign)
	}
}

// inParallel splits [0, n) over the cores; small work stays on the caller's goroutine.
func inParallel(n int, work func(from, to int)) {
	const grain = 1 << 15
	workers := min(runtime.GOMAXPROCS(0), (n+grain-1)/grain)
	if workers <= 1 {
		work(0, n)
		return
	}
	var wg sync.WaitGroup
	step := (n + workers - 1) / workers
	for from := 0; from < n; from += step {
		wg.Go(func() { work(from, min(from+step, n)) })
	}
	wg.Wait()
}
