package torch

import (
	"slices"

	lib "github.com/sugarme/gotch/libtch"
)

// pursue is matching pursuit: again and again the latent whose direction explains most of what is
// left of a token, until the token's rules end it (SAELens 6.54, _encode_matching_pursuit). The
// device holds what is left, the host what was chosen; tokens that are done leave the batch. It costs
// a product with the whole encoder for every iteration, up to d_in of them.
func (e *composedEncoder) pursue(s *scope, left tensor, f *firings) {
	if s.err != nil {
		return
	}
	a, rules := e.a, e.a.pursuit
	tokens := int(shapeOf(left)[0])
	chosen := make([]map[uint32]float32, tokens)
	active := make([]int64, tokens)
	for i := range active {
		active[i], chosen[i] = int64(i), map[uint32]float32{}
	}
	iterations := rules.MaxIterations
	if iterations == 0 {
		iterations = a.config.DIn
	}
	for range iterations {
		if len(active) == 0 || !s.alive() {
			break
		}
		n := len(active)
		latents, values, norms := make([]int64, n), make([]float32, n), make([]float32, n)
		left = s.inner(func(s *scope) tensor {
			best := s.argmaxLast(s.mm(left, a.wEnc))
			direction := s.rows(a.wDec, best)
			value := s.relu(s.sumLast(s.mul(left, direction)))
			rest := s.sub(left, s.mul(value, direction))
			s.readInts(best, latents)
			s.read(value, values)
			s.read(s.rowNorms(rest), norms)
			return rest
		})
		if s.err != nil {
			return
		}
		stay := make([]int64, 0, n) // places in the batch
		for i, token := range active {
			before := len(chosen[token])
			if values[i] != 0 {
				chosen[token][uint32(latents[i])] += values[i]
			}
			same := rules.StopOnDuplicateSupport && len(chosen[token]) == before
			small := rules.ResidualThreshold > 0 && float64(norms[i]) < rules.ResidualThreshold
			if !same && !small {
				stay = append(stay, int64(i))
			}
		}
		if len(stay) < n {
			left = s.rows(left, s.ints(stay, int64(len(stay))))
			for i, place := range stay {
				active[i] = active[place]
			}
			active = active[:len(stay)]
		}
	}
	f.counts, f.starts = make([]int32, tokens), make([]int, tokens)
	for i, firings := range chosen {
		f.starts[i] = len(f.latents)
		for latent := range firings {
			f.latents = append(f.latents, latent)
		}
		slices.Sort(f.latents[f.starts[i]:])
		for _, latent := range f.latents[f.starts[i]:] {
			f.values = append(f.values, firings[latent])
		}
		f.counts[i] = int32(len(firings))
	}
}

// argmaxLast is the place of each row's largest value, of equals the first: [rows].
func (s *scope) argmaxLast(x tensor) tensor {
	return s.op("argmax", []tensor{x}, func(o *tensor) { lib.AtgArgmax(o, x, -1, 0, 0) })
}
