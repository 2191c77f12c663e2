package torch

import (
	lib "github.com/sugarme/gotch/libtch"
)

// What only decoders need of libtorch.

func (s *scope) matmul(a, b tensor) tensor { return s.binary("matmul", lib.AtgMatmul, a, b) }
func (s *scope) tanh(x tensor) tensor      { return s.unary("tanh", lib.AtgTanh, x) }

func (s *scope) softmaxLast(x tensor) tensor {
	if s.err != nil {
		return nil
	}
	return s.op("softmax", []tensor{x}, func(o *tensor) { lib.AtgSoftmax(o, x, -1, dtypeOf(x)) })
}

// softcap is c · tanh(x / c).
func (s *scope) softcap(x tensor, c float64) tensor {
	return s.mulScalar(s.tanh(s.mulScalar(x, 1/c)), c)
}

// activate applies an MLP's function, by transformers' name of it.
func (s *scope) activate(name string, x tensor) tensor {
	switch name {
	case "silu", "swish":
		return s.silu(x)
	case "relu":
		return s.relu(x)
	}
	return s.op("gelu", []tensor{x}, func(o *tensor) { lib.AtgGelu(o, x, geluBy(name)) })
}

// activateInto applies it in place.
func (s *scope) activateInto(name string, x tensor) tensor {
	switch name {
	case "silu", "swish":
		return s.unary("silu_", lib.AtgSilu_, x)
	case "relu":
		return s.unary("relu_", lib.AtgRelu_, x)
	}
	return s.op("gelu_", []tensor{x}, func(o *tensor) { lib.AtgGelu_(o, x, geluBy(name)) })
}

// geluBy: gelu_new, gelu_pytorch_tanh and gelu_fast are one formula in three spellings.
func geluBy(name string) string {
	if name == "gelu" {
		return "none"
	}
	return "tanh"
}

func (s *scope) layerNorm(x tensor, n gain, eps float64) tensor {
	if s.err != nil {
		return nil
	}
	width := shapeOf(n.weight.t)
	return s.op("layer_norm", []tensor{x, n.weight.t, n.bias.t}, func(o *tensor) {
		lib.AtgLayerNorm(o, x, width, len(width), n.weight.t, n.bias.t, eps, 1)
	})
}

// centred subtracts each row's mean.
func (s *scope) centred(x tensor) tensor { return s.sub(x, s.meanLast(x)) }
