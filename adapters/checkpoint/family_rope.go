package checkpoint

import (
	"math"
	"slices"
)

func ropeScalings() []string {
	return []string{"none", "default", "linear", "dynamic", "yarn", "longrope", "llama3"}
}

// ropeFromJSON reads rope_theta and rope_scaling, or the newer rope_parameters that holds both.
func ropeFromJSON(d document, theta float64, maxPositions int) Rope {
	in := d.object(d.first("rope_scaling", "rope_parameters"))
	if in.has("full_attention") { // newer still: one for each kind of layer
		in = in.object("full_attention")
	}
	r := Rope{Theta: in.number("rope_theta", d.number("rope_theta", theta))}
	kind := in.text("rope_type", in.text("type", "default"))
	if !(r.Theta > 0) || math.IsInf(r.Theta, 0) {
		d.fail("rope_theta", "a number above 0")
	}
	if d.text("model_type", "") == "phi3" && (kind == "su" || kind == "yarn") {
		kind = "longrope" // its names in Phi-3's first files
	}
	if *d.err != nil || kind == "default" {
		return r
	}
	positive := func(key string) float64 {
		x := in.number(key, 0)
		if !(x > 0) || math.IsInf(x, 0) {
			in.fail(key, "a number above 0, as rope scaling "+kind+" needs")
		}
		return x
	}
	r.Scaling = kind
	switch kind {
	case "linear":
		r.Factor = positive("factor")
	case "dynamic":
		r.Factor, r.OriginalMaxPositions = positive("factor"), maxPositions
	case "llama3":
		r.Factor, r.LowFreqFactor, r.HighFreqFactor = positive("factor"), positive("low_freq_factor"), positive("high_freq_factor")
		if r.HighFreqFactor <= r.LowFreqFactor {
			in.fail("high_freq_factor", "more than low_freq_factor")
		}
		if r.OriginalMaxPositions = in.size("original_max_position_embeddings", 1, 0); r.OriginalMaxPositions == 0 {
			in.fail("original_max_position_embeddings", "the context length before scaling, as rope scaling llama3 needs")
		}
	case "yarn":
		r.Factor, r.OriginalMaxPositions = positive("factor"), in.size("original_max_position_embeddings", 1, maxPositions)
		r.BetaFast, r.BetaSlow, r.Truncate = in.number("beta_fast", 32), in.number("beta_slow", 1), in.flag("truncate", true)
		r.AttentionFactor = in.number("attention_factor", yarnScale(r.Factor, in.number("mscale", 0), in.number("mscale_all_dim", 0)))
		if !(r.BetaFast > 0) || !(r.BetaSlow > 0) {
			in.fail("beta_fast", "like beta_slow a number above 0")
		}
	case "longrope":
		r.longrope(d, in, maxPositions)
	default:
		d.unsupported("rope scaling", kind, ropeScalings()...)
	}
	return r
}

// yarnScale is what yarn multiplies cosines and sines by.
func yarnScale(factor, mscale, allDim float64) float64 {
	of := func(m float64) float64 {
		if factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(factor) + 1
	}
	if mscale != 0 && allDim != 0 {
		return of(mscale) / of(allDim)
	}
	return of(1)
}

// longrope divides each frequency by a factor of its own, one list for short sequences and one for long ones.
func (r *Rope) longrope(d, in document, maxPositions int) {
	in.decode("short_factor", "a list of numbers", &r.ShortFactors)
	in.decode("long_factor", "a list of numbers", &r.LongFactors)
	for key, list := range map[string][]float64{"short_factor": r.ShortFactors, "long_factor": r.LongFactors} {
		if len(list) == 0 || slices.ContainsFunc(list, func(x float64) bool { return !(x > 0) || math.IsInf(x, 0) }) {
			in.fail(key, "one number above 0 for each pair of dimensions that turns")
		}
	}
	r.OriginalMaxPositions = d.size("original_max_position_embeddings", 1, in.size("original_max_position_embeddings", 1, 0))
	factor := in.number("factor", 0)
	switch {
	case r.OriginalMaxPositions > 0:
		factor = float64(maxPositions) / float64(r.OriginalMaxPositions)
	case d.text("model_type", "") == "phi3": // the class's own default
		r.OriginalMaxPositions = 4096
		factor = float64(maxPositions) / 4096
	default:
		r.OriginalMaxPositions = maxPositions
	}
	scale := 1.0
	if factor > 1 {
		scale = math.Sqrt(1 + math.Log(factor)/math.Log(float64(r.OriginalMaxPositions)))
	}
	if r.AttentionFactor = in.number("attention_factor", scale); !(r.AttentionFactor > 0) {
		in.fail("attention_factor", "a number above 0")
	}
}

// divisor is what llama3 scaling divides the frequency of dimension pair i by: 1 for short waves, factor for long ones, smooth between.
func (r Rope) divisor(i, dHead int) float64 {
	wave := 2 * math.Pi * math.Pow(r.Theta, float64(2*i)/float64(dHead))
	original := float64(r.OriginalMaxPositions)
	switch {
	case wave < original/r.HighFreqFactor:
		return 1
	case wave > original/r.LowFreqFactor:
		return r.Factor
	}
	smooth := (original/wave - r.LowFreqFactor) / (r.HighFreqFactor - r.LowFreqFactor)
	return 1 / ((1-smooth)/r.Factor + smooth)
}
