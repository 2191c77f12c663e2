package torch

// #include "native.h"
import "C"

import (
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// The operations that decoder and encoder need, one line each. Shapes in comments are [rows, width]
// unless they say otherwise.

func (s *scope) empty(dtype int32, shape ...int64) tensor {
	return s.op("empty", nil, func(o *tensor) { lib.AtgEmpty(o, shape, len(shape), dtype, int32(s.device)) })
}

func (s *scope) zeros(shape ...int64) tensor {
	return s.op("zeros", nil, func(o *tensor) { lib.AtgZeros(o, shape, len(shape), float32Type, int32(s.device)) })
}

func (s *scope) unary(name string, f func(*tensor, tensor), x tensor) tensor {
	return s.op(name, []tensor{x}, func(o *tensor) { f(o, x) })
}

func (s *scope) binary(name string, f func(*tensor, tensor, tensor), a, b tensor) tensor {
	return s.op(name, []tensor{a, b}, func(o *tensor) { f(o, a, b) })
}

func (s *scope) add(a, b tensor) tensor { return s.binary("add", lib.AtgAdd, a, b) }
func (s *scope) sub(a, b tensor) tensor { return s.binary("sub", lib.AtgSub, a, b) }
func (s *scope) mul(a, b tensor) tensor { return s.binary("mul", lib.AtgMul, a, b) }
func (s *scope) div(a, b tensor) tensor { return s.binary("div", lib.AtgDiv, a, b) }
func (s *scope) mm(a, b tensor) tensor  { return s.binary("mm", lib.AtgMm, a, b) }
func (s *scope) relu(x tensor) tensor   { return s.unary("relu", lib.AtgRelu, x) }
func (s *scope) silu(x tensor) tensor   { return s.unary("silu", lib.AtgSilu, x) }
func (s *scope) neg(x tensor) tensor    { return s.unary("neg", lib.AtgNeg, x) }
func (s *scope) rsqrt(x tensor) tensor  { return s.unary("rsqrt", lib.AtgRsqrt, x) }
func (s *scope) sqrt(x tensor) tensor   { return s.unary("sqrt", lib.AtgSqrt, x) }
func (s *scope) square(x tensor) tensor { return s.unary("square", lib.AtgSquare, x) }
func (s *scope) t(x tensor) tensor      { return s.unary("t", lib.AtgT, x) }

// rowMajor is x as one piece of float32 memory.
func (s *scope) rowMajor(x tensor) tensor {
	if x = s.float32(x); s.err == nil && rowStride(x) != shapeOf(x)[1] {
		return s.contiguous(x)
	}
	return x
}

func (s *scope) contiguous(x tensor) tensor { return s.unary("contiguous", lib.AtgContiguous, x) }

func (s *scope) and(a, b tensor) tensor {
	return s.binary("logical_and", lib.AtgLogicalAnd, a, b)
}

func (s *scope) reciprocal(x tensor) tensor { return s.unary("reciprocal", lib.AtgReciprocal, x) }

// rowNorms is ‖x‖₂ of each row, [rows, 1].
func (s *scope) rowNorms(x tensor) tensor { return s.sqrt(s.sumLast(s.square(x))) }

// addInto is x += y.
func (s *scope) addInto(x, y tensor) tensor { return s.binary("add_", lib.AtgAdd_, x, y) }

func (s *scope) scalar(name string, f func(*tensor, tensor, lib.Cscalar), x tensor, v float64) tensor {
	c := lib.AtsFloat(v)
	defer lib.AtsFree(c)
	return s.op(name, []tensor{x}, func(o *tensor) { f(o, x, c) })
}

func (s *scope) addScalar(x tensor, v float64) tensor {
	return s.scalar("add", lib.AtgAddScalar, x, v)
}
func (s *scope) mulScalar(x tensor, v float64) tensor {
	return s.scalar("mul", lib.AtgMulScalar, x, v)
}
func (s *scope) greaterThan(x tensor, v float64) tensor { return s.scalar("gt", lib.AtgGt, x, v) }

func (s *scope) mmInto(out, a, b tensor) tensor {
	return s.op("mm", []tensor{a, b}, func(o *tensor) { lib.AtgMmOut(o, out, a, b) })
}

// addmmInto is out = bias + a·b.
func (s *scope) addmmInto(out, bias, a, b tensor) tensor {
	return s.op("addmm", []tensor{bias, a, b}, func(o *tensor) { lib.AtgAddmmOut(o, out, bias, a, b) })
}

// accumulate is x += a·b, inside the matrix product.
func (s *scope) accumulate(x, a, b tensor) tensor {
	return s.op("addmm_", []tensor{x, a, b}, func(o *tensor) { lib.AtgAddmm_(o, x, a, b) })
}

func (s *scope) meanLast(x tensor) tensor {
	return s.op("mean", []tensor{x}, func(o *tensor) { lib.AtgMeanDim(o, x, []int64{-1}, 1, 1, -1) })
}

func (s *scope) sumLast(x tensor) tensor {
	return s.op("sum", []tensor{x}, func(o *tensor) { lib.AtgSumDimIntlist(o, x, []int64{-1}, 1, 1, -1) })
}

// stdLast divides by n − 1, as torch.std does.
func (s *scope) stdLast(x tensor) tensor {
	return s.op("std", []tensor{x}, func(o *tensor) { lib.AtgStdDim(o, x, []int64{-1}, 1, 1, 1) })
}

func (s *scope) reshape(x tensor, shape ...int64) tensor {
	return s.op("reshape", []tensor{x}, func(o *tensor) { lib.AtgReshape(o, x, shape, len(shape)) })
}

func (s *scope) expand(x tensor, shape ...int64) tensor {
	return s.op("expand", []tensor{x}, func(o *tensor) { lib.AtgExpand(o, x, shape, len(shape), 0) })
}

func (s *scope) transpose(x tensor, a, b int64) tensor {
	return s.op("transpose", []tensor{x}, func(o *tensor) { lib.AtgTranspose(o, x, a, b) })
}

func (s *scope) narrow(x tensor, dim, start, length int64) tensor {
	return s.op("narrow", []tensor{x}, func(o *tensor) { lib.AtgNarrow(o, x, dim, start, length) })
}

func (s *scope) cat(dim int64, xs ...tensor) tensor {
	return s.op("cat", xs, func(o *tensor) { lib.AtgCat(o, xs, len(xs), dim) })
}

func (s *scope) rows(x, index tensor) tensor {
	return s.op("index_select", []tensor{x, index}, func(o *tensor) { lib.AtgIndexSelect(o, x, 0, index) })
}

func (s *scope) cumsumLast(x tensor) tensor {
	return s.op("cumsum", []tensor{x}, func(o *tensor) { lib.AtgCumsum(o, x, -1, int64Type) })
}

func (s *scope) nonzero(x tensor) tensor { return s.unary("nonzero", lib.AtgNonzero, x) }

func (s *scope) masked(x, mask tensor) tensor {
	return s.binary("masked_select", lib.AtgMaskedSelect, x, mask)
}

// largest is the k-th largest value of each row, [rows, 1].
func (s *scope) largest(x tensor, k int64) tensor {
	if s.err != nil {
		return nil
	}
	slots := make([]tensor, 2) // values, indices
	lib.AtgTopk(&slots[0], x, k, -1, 1, 1)
	if text := lastError(); text != "" {
		s.fail(&OpError{Op: "topk", Shapes: shapesOf([]tensor{x}), Detail: text})
		return nil
	}
	s.owned = append(s.owned, slots...)
	return s.narrow(slots[0], -1, k-1, 1)
}

// causalAttention: q, k, v [batch, heads, tokens, head_dim].
func (s *scope) causalAttention(q, k, v tensor) tensor {
	if s.err != nil {
		return nil
	}
	var out unsafe.Pointer
	if message := C.fm_causal_attention(unsafe.Pointer(q), unsafe.Pointer(k), unsafe.Pointer(v), &out); message != nil { //nolint:gocritic // cgo writes the comparison
		s.fail(&OpError{Op: "scaled_dot_product_attention", Shapes: shapesOf([]tensor{q, k, v}), Detail: goString(message)})
		return nil
	}
	t := tensor(out)
	s.owned = append(s.owned, t)
	return t
}
