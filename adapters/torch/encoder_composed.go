package torch

import (
	"math"

	lib "github.com/sugarme/gotch/libtch"
)

type composedEncoder struct {
	a      *SAE
	always bool // works ahead on the CPU, too: for tests
}

func (e *composedEncoder) fire(s *scope, x tensor) *firings {
	f := e.launch(s, x)
	if f.fires != nil {
		e.readSparse(s, f, f.fires)
	}
	return f
}

// launch computes what fires, and leaves it on the device. A matching pursuit has read it by then.
func (e *composedEncoder) launch(s *scope, x tensor) *firings {
	a, f := e.a, &firings{}
	u := e.input(s, x, f)
	var z, fires tensor
	switch a.config.Architecture {
	case "matching_pursuit":
		e.pursue(s, u, f)
		return f
	case "gated":
		pre := s.mm(u, a.wEnc)
		z = s.relu(s.add(s.mul(pre, a.magnitude), a.bMag))
		fires = s.and(s.greaterThan(z, 0), s.greaterThan(s.add(pre, a.gate), 0))
	case "temporal":
		z = s.relu(e.latents(s, e.novel(s, u, f)))
		fires = e.kLargest(s, z, s.greaterThan(z, 0), a.k())
	default:
		z = s.add(s.mm(u, a.wEnc), a.bEnc)
		if a.scale != nil {
			z = s.mul(z, a.scale)
		}
		z = s.relu(z)
		fires = s.greaterThan(z, 0)
		switch {
		case a.threshold != nil:
			fires = s.binary("gt", lib.AtgGtTensor, z, a.threshold)
		case a.config.Architecture == "groupmax":
			fires = e.largestOfGroups(s, z, fires)
		default:
			fires = e.kLargest(s, z, fires, a.k())
		}
	}
	fires = e.kLargest(s, z, fires, a.limit)
	f.dense, f.fires = s.mul(z, fires), fires
	return f
}

// input is what the encoder matrix multiplies.
func (e *composedEncoder) input(s *scope, x tensor, f *firings) tensor {
	a, u := e.a, x
	switch a.mode {
	case constantNorm:
		factor := s.mulScalar(s.reciprocal(s.rowNorms(x)), math.Sqrt(float64(a.config.DIn)))
		u, f.undo = s.mul(x, factor), factor
	case layerNorm:
		mean := s.meanLast(x)
		centred := s.sub(x, mean)
		deviation := s.stdLast(centred)
		u, f.undo, f.undo2 = s.div(centred, s.addScalar(deviation, 1e-5)), deviation, mean
	case constantScalar:
		u = s.mulScalar(x, a.factor)
	}
	if a.shift != nil {
		u = s.sub(u, a.shift)
	}
	return u
}

// kLargest narrows the choice to the k largest; 0 = all. Among equals at the k-th place the lowest
// latents come first: count them in order.
func (e *composedEncoder) kLargest(s *scope, z, fires tensor, k int64) tensor {
	if k == 0 {
		return fires
	}
	last := s.largest(z, k)
	larger := s.binary("gt", lib.AtgGtTensor, z, last)
	equal := s.binary("eq", lib.AtgEqTensor, z, last)
	room := s.addScalar(s.neg(s.sumLast(larger)), float64(k))
	chosen := s.and(equal, s.binary("le", lib.AtgLeTensor, s.cumsumLast(equal), room))
	return s.and(fires, s.binary("logical_or", lib.AtgLogicalOr, larger, chosen))
}

// largestOfGroups keeps, of each of k groups of neighbouring latents, the largest; of equals the first.
func (e *composedEncoder) largestOfGroups(s *scope, z, fires tensor) tensor {
	if s.err != nil {
		return nil
	}
	n, width, k := shapeOf(z)[0], int64(e.a.config.DSAE), int64(e.a.config.K)
	grouped := s.reshape(z, n*k, width/k)
	equal := s.binary("eq", lib.AtgEqTensor, grouped, s.largest(grouped, 1))
	first := s.scalar("le", lib.AtgLe, s.cumsumLast(equal), 1)
	return s.and(fires, s.reshape(s.and(equal, first), n, width))
}

// readSparse brings coordinates and values to the host: nonzero lists them by token, then latent.
func (e *composedEncoder) readSparse(s *scope, f *firings, fires tensor) {
	at := s.nonzero(fires)
	values := s.masked(f.dense, fires)
	if s.err != nil {
		return
	}
	n := shapeOf(at)[0]
	pairs := make([]int64, 2*n)
	s.readInts(at, pairs)
	f.values = make([]float32, n)
	s.read(values, f.values)
	f.place(pairs, int(shapeOf(f.dense)[0]))
}

// place takes the coordinates, (token, latent) in ascending order.
func (f *firings) place(pairs []int64, tokens int) {
	f.counts, f.starts, f.latents = make([]int32, tokens), make([]int, tokens), make([]uint32, len(pairs)/2)
	for i := range f.latents {
		f.counts[pairs[2*i]]++
		f.latents[i] = uint32(pairs[2*i+1])
	}
	for i := 1; i < tokens; i++ {
		f.starts[i] = f.starts[i-1] + int(f.counts[i-1])
	}
}

func (e *composedEncoder) dense(s *scope, f *firings) tensor {
	if f.dense == nil {
		width := e.a.config.DSAE
		rows := make([]float32, len(f.counts)*width)
		for i := range f.counts {
			latents, values := f.token(i)
			for j, l := range latents {
				rows[i*width+int(l)] = values[j]
			}
		}
		f.dense = s.floats(rows, int64(len(f.counts)), int64(width))
	}
	return f.dense
}

func (e *composedEncoder) decode(s *scope, dense tensor, f *firings) tensor {
	a := e.a
	if a.unscale != nil {
		dense = s.mul(dense, a.unscale)
	}
	y := s.mm(dense, a.wDec)
	if a.bDec != nil {
		y = s.add(y, a.bDec)
	}
	switch a.undo {
	case constantNorm:
		y = s.div(y, f.undo)
	case layerNorm:
		y = s.add(s.mul(y, f.undo), f.undo2)
	case constantScalar:
		y = s.mulScalar(y, 1/a.factor)
	}
	return y
}

func (e *composedEncoder) norms(s *scope, x tensor, out []float32) { s.read(s.rowNorms(x), out) }
