package torch

import (
	"math"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// inverseFrequencies is one a pair of head dimensions, in the float32 steps of transformers'
// rope_utils, so that long positions agree to the last bits.
func inverseFrequencies(c checkpoint.ModelConfig) []float32 {
	half := c.DHead / 2
	inverse := make([]float32, half)
	for i := range inverse {
		exponent := float32(2*i) / float32(c.DHead)
		inverse[i] = 1 / float32(math.Pow(c.Rope.Theta, float64(exponent)))
	}
	if c.Rope.Scaling == "llama3" {
		scaleLlama3(inverse, c.Rope)
	}
	return inverse
}

// scaleLlama3 slows the low frequencies down and blends the ones between
// (transformers _compute_llama3_parameters).
func scaleLlama3(inverse []float32, r checkpoint.Rope) {
	lowWavelength := float64(r.OriginalMaxPositions) / r.LowFreqFactor
	highWavelength := float64(r.OriginalMaxPositions) / r.HighFreqFactor
	for i, f := range inverse {
		wavelength := 2 * math.Pi / float64(f)
		switch {
		case wavelength > lowWavelength:
			inverse[i] = float32(float64(f) / r.Factor)
		case wavelength >= highWavelength:
			smooth := (float64(r.OriginalMaxPositions)/wavelength - r.LowFreqFactor) / (r.HighFreqFactor - r.LowFreqFactor)
			inverse[i] = float32((1-smooth)*float64(f)/r.Factor + smooth*float64(f))
		}
	}
}

// rotation is the cosines and sines of positions 0 … positions−1, [positions, d_head/2].
func rotation(inverse []float32, positions int) (cos, sin []float32) {
	cos = make([]float32, positions*len(inverse))
	sin = make([]float32, positions*len(inverse))
	for p := range positions {
		for i, f := range inverse {
			angle := float64(float32(p) * f)
			cos[p*len(inverse)+i] = float32(math.Cos(angle))
			sin[p*len(inverse)+i] = float32(math.Sin(angle))
		}
	}
	return cos, sin
}
