package checkpoint

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"unsafe"
)

// Tensor is a named, dense, row-major array. Data is little-endian and may be a view of a memory-mapped file: it is
// read-only and valid until the owner is closed.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	Data  []byte
	Fresh bool // Data is memory of Go's, made for this tensor: no view of a file
}

// Elements is the product of the shape: 1 for a scalar.
func (t Tensor) Elements() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Float32 gives the values as float32. F32 that lies aligned in memory is a view, not a copy: treat the result as read-only.
// F16 and BF16 convert exactly, F64 rounds to nearest even. Any other dtype is an UnsupportedError.
func (t Tensor) Float32() ([]float32, error) {
	n, err := t.checkedElements()
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return []float32{}, nil
	}
	if view, err := t.Float32View(); err == nil {
		return view, nil
	}
	out := make([]float32, n)
	return out, t.ReadFloat32(out)
}

// Float32View is Data as numbers, without a copy; it is an error unless they are F32 and aligned.
func (t Tensor) Float32View() ([]float32, error) {
	if t.DType != F32 {
		return nil, &UnsupportedError{Kind: "view of tensor " + t.Name + " as", Name: string(t.DType), Supported: []string{string(F32)}}
	}
	if _, err := t.checkedElements(); err != nil {
		return nil, err
	}
	view, ok := float32View(t.Data)
	if !ok {
		return nil, &FormatError{Fact: "tensor " + t.Name + " is not aligned to 4 bytes"}
	}
	return view, nil
}

// ReadFloat32 converts all values into out, as Float32 does, on all cores.
func (t Tensor) ReadFloat32(out []float32) error {
	n, err := t.checkedElements()
	if err != nil {
		return err
	}
	if !t.DType.isFloat() {
		return &UnsupportedError{Kind: "dtype of tensor " + t.Name, Name: string(t.DType), Supported: floatNames()}
	}
	if len(out) < n {
		return &FormatError{Fact: fmt.Sprintf("tensor %s has %d values and there is room for %d", t.Name, n, len(out))}
	}
	if view, err := t.Float32View(); err == nil {
		inParallel(n, func(from, to int) { copy(out[from:to], view[from:to]) })
		return nil
	}
	inParallel(n, func(from, to int) { convertFloats(t.DType, t.Data, out, from, to) })
	return nil
}

// Int64 gives the values of an integer or boolean tensor as int64. A U64 above 2⁶³−1 is an error.
func (t Tensor) Int64() ([]int64, error) {
	n, err := t.checkedElements()
	if err != nil {
		return nil, err
	}
	le, out := binary.LittleEndian, make([]int64, n)
	for i := range out {
		switch t.DType {
		case I64:
			out[i] = int64(le.Uint64(t.Data[8*i:]))
		case U64:
			v := le.Uint64(t.Data[8*i:])
			if v > math.MaxInt64 {
				return nil, &FormatError{Fact: fmt.Sprintf("tensor %s holds %d at index %d, beyond the range of int64", t.Name, v, i)}
			}
			out[i] = int64(v)
		case I32:
			out[i] = int64(int32(le.Uint32(t.Data[4*i:])))
		case U32:
			out[i] = int64(le.Uint32(t.Data[4*i:]))
		case I16:
			out[i] = int64(int16(le.Uint16(t.Data[2*i:])))
		case U16:
			out[i] = int64(le.Uint16(t.Data[2*i:]))
		case I8:
			out[i] = int64(int8(t.Data[i]))
		case U8, Bool:
			out[i] = int64(t.Data[i])
		default:
			return nil, &UnsupportedError{Kind: "dtype of tensor " + t.Name, Name: string(t.DType),
				Supported: []string{"I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL"}}
		}
	}
	return out, nil
}

// Float32Tensor wraps values without a copy.
func Float32Tensor(name string, values []float32, shape ...int) Tensor {
	return Tensor{Name: name, DType: F32, Shape: slices.Clone(shape), Data: float32Bytes(values)}
}

// Int64Tensor wraps values in little-endian bytes.
func Int64Tensor(name string, values []int64, shape ...int) Tensor {
	data := make([]byte, 0, 8*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint64(data, uint64(v))
	}
	return Tensor{Name: name, DType: I64, Shape: slices.Clone(shape), Data: data}
}

func (t Tensor) checkedElements() (int, error) {
	size, n, err := sizeOf(t.DType, t.Shape)
	if err != nil {
		return 0, &FormatError{Fact: fmt.Sprintf("tensor %s: %v", t.Name, err)}
	}
	if size != len(t.Data) {
		return 0, &FormatError{Fact: fmt.Sprintf("tensor %s, %s %v, has %d bytes", t.Name, t.DType, t.Shape, len(t.Data)),
			Want: fmt.Sprintf("%d bytes", size)}
	}
	return n, nil
}

// littleEndianHost: files are little-endian, so only such a host may look at their bytes as numbers without conversion.
var littleEndianHost = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

func float32View(data []byte) ([]float32, bool) {
	if len(data) == 0 {
		return nil, true
	}
	p := unsafe.Pointer(unsafe.SliceData(data))
	if !littleEndianHost || uintptr(p)%4 != 0 || len(data)%4 != 0 {
		return nil, false
	}
	return unsafe.Slice((*float32)(p), len(data)/4), true
}

func float32Bytes(values []float32) []byte {
	if len(values) == 0 {
		return []byte{}
	}
	if littleEndianHost {
		return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), 4*len(values))
	}
	data := make([]byte, 0, 4*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data
}
