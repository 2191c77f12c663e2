package torch

import (
	"math"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// bySequence says whether a sequence's length changes its rotation.
func bySequence(r checkpoint.Rope) bool { return r.Scaling == "dynamic" || r.Scaling == "longrope" }

// frequencies are one a pair of the dims dimensions that turn, for a sequence of so many tokens, in the float32 steps of
// transformers' rope_utils, so that long positions agree to the last bits; scale multiplies cosines and sines. What depends on
// length depends on the sequence's own: in transformers it is the padded batch's.
func frequencies(r checkpoint.Rope, dims, tokens int) (inverse []float32, scale float32) {
	theta := r.Theta
	if r.Scaling == "dynamic" && tokens > r.OriginalMaxPositions {
		grown := r.Factor*float64(tokens)/float64(r.OriginalMaxPositions) - (r.Factor - 1)
		theta *= math.Pow(grown, float64(dims)/float64(dims-2))
	}
	inverse, scale = make([]float32, dims/2), 1
	for i := range inverse {
		exponent := float32(2*i) / float32(dims)
		inverse[i] = 1 / float32(math.Pow(theta, float64(exponent)))
	}
	switch r.Scaling {
	case "linear":
		for i := range inverse {
			inverse[i] /= float32(r.Factor)
		}
	case "llama3":
		scaleLlama3(inverse, r)
	case "yarn":
		scaleYarn(inverse, r)
		scale = float32(r.AttentionFactor)
	case "longrope":
		factors := r.ShortFactors
		if tokens > r.OriginalMaxPositions {
			factors = r.LongFactors
		}
		for i := range inverse {
			exponent := float32(2*i) / float32(dims)
			inverse[i] = 1 / (float32(factors[i]) * float32(math.Pow(theta, float64(exponent))))
		}
		scale = float32(r.AttentionFactor)
	}
	return inverse, scale
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

// scaleYarn leaves fast frequencies as they are, divides slow ones, and blends in a ramp between the dimensions that turn
// BetaFast and BetaSlow times in the original context (transformers _compute_yarn_parameters).
func scaleYarn(inverse []float32, r checkpoint.Rope) {
	dims := float64(2 * len(inverse))
	dimension := func(turns float64) float64 {
		return dims * math.Log(float64(r.OriginalMaxPositions)/(turns*2*math.Pi)) / (2 * math.Log(r.Theta))
	}
	low, high := dimension(r.BetaFast), dimension(r.BetaSlow)
	if r.Truncate {
		low, high = math.Floor(low), math.Ceil(high)
	}
	if low, high = max(low, 0), min(high, dims-1); low == high {
		high += 0.001
	}
	for i, f := range inverse {
		ramp := min(max((float32(i)-float32(low))/float32(high-low), 0), 1)
		inverse[i] = f/float32(r.Factor)*ramp + f*(1-ramp)
	}
}

// rotation is the cosines and sines of positions 0 … positions−1, [positions, pairs].
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
