package torch

import (
	"math"
	"math/rand/v2"
	"slices"
)

// tapScore is what is summed up over the measured tokens of a candidate.
type tapScore struct {
	tokens   int // measured
	sinks    int // left out among the tokens that were looked at
	error2   float64
	sum      []float64 // Σ y
	square   float64   // Σ ‖y‖²
	firings  int64
	fed      int // all, and their firings
	fedFires int64
	counts   []int64      // per latent
	wrong    bool         // not finite
	centre   []float64    // about Σ y ÷ tokens: what each token's spread is measured from
	each     []tokenScore // of measured tokens, in the order in which they were
}

// tokenScore is a token's part in Σ‖y−ŷ‖² and in Σ‖y−ȳ‖².
type tokenScore struct {
	token         int
	error, spread float64
}

func newScore(out, latents int) *tapScore {
	return &tapScore{sum: make([]float64, out), counts: make([]int64, latents)}
}

func (t *tapScore) fire(latents []uint32) {
	t.tokens++
	t.firings += int64(len(latents))
	for _, l := range latents {
		t.counts[l]++
	}
}

// compare adds the errors of a batch; truth has all of its rows.
func (t *tapScore) compare(truth []float32, g *guess) {
	width := len(t.sum)
	for i, row := range g.rows {
		one := tokenScore{token: g.tokens[i]}
		for j, y := range truth[row*width:][:width] {
			d, off := float64(y)-float64(g.values[i*width+j]), float64(y)-t.centre[j]
			t.error2 += d * d
			t.sum[j] += float64(y)
			t.square += float64(y) * float64(y)
			one.error += d * d
			one.spread += off * off
		}
		t.each = append(t.each, one)
	}
}

// fvu is Σ‖y−ŷ‖² / Σ‖y−ȳ‖², nil where it is not finite.
func (t *tapScore) fvu() *float64 {
	spread := t.square
	for _, v := range t.sum {
		spread -= v * v / float64(t.tokens)
	}
	ratio := t.error2 / spread
	if t.wrong || t.tokens == 0 || math.IsNaN(ratio) || math.IsInf(ratio, 0) {
		return nil
	}
	return &ratio
}

func (t *tapScore) l0() *float64 {
	if t.wrong || t.tokens == 0 {
		return nil
	}
	l0 := float64(t.firings) / float64(t.tokens)
	return &l0
}

func (t *tapScore) sinkShare() float64 {
	return float64(t.sinks) / float64(max(1, t.sinks+t.tokens))
}

func (t *tapScore) deadShare() float64 {
	dead := 0
	for _, n := range t.counts {
		if n == 0 {
			dead++
		}
	}
	return float64(dead) / float64(len(t.counts))
}

// sparsityRho is Spearman's ρ of log densities against the published ones: Pearson's of ranks, which
// logarithms do not change. Nil where there is nothing to compare.
func sparsityRho(t *tapScore, published []float32) *float64 {
	if len(published) != len(t.counts) || len(published) < 2 || t.tokens == 0 {
		return nil
	}
	ours, theirs := make([]float64, len(published)), make([]float64, len(published))
	for i := range published {
		ours[i], theirs[i] = float64(t.counts[i]), float64(published[i])
	}
	rho := pearson(ranks(ours), ranks(theirs))
	if math.IsNaN(rho) {
		return nil
	}
	return &rho
}

// attainableRho is Spearman's ρ of published densities (log10) against the counts that they give by
// chance in so many tokens: rare latents have not fired yet.
func attainableRho(published []float32, tokens int) *float64 {
	chance := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // no secret; the same report every time
	t := newScore(0, len(published))
	t.tokens = tokens
	for i, v := range published {
		t.counts[i] = poisson(chance, float64(tokens)*math.Pow(10, float64(v)))
	}
	return sparsityRho(t, published)
}

func poisson(chance *rand.Rand, mean float64) int64 {
	if mean > 50 {
		return int64(math.Round(mean + math.Sqrt(mean)*chance.NormFloat64()))
	}
	n, product, least := int64(0), chance.Float64(), math.Exp(-mean)
	for product > least {
		n++
		product *= chance.Float64()
	}
	return n
}

// ranks gives equal values the mean of their places.
func ranks(values []float64) []float64 {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		switch {
		case values[a] < values[b]:
			return -1
		case values[a] > values[b]:
			return 1
		}
		return 0
	})
	out := make([]float64, len(values))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && values[order[j]] == values[order[i]] {
			j++
		}
		for _, k := range order[i:j] {
			out[k] = float64(i+j-1) / 2
		}
		i = j
	}
	return out
}

func pearson(a, b []float64) float64 {
	n := float64(len(a))
	var ma, mb float64
	for i := range a {
		ma += a[i] / n
		mb += b[i] / n
	}
	var ab, aa, bb float64
	for i := range a {
		ab += (a[i] - ma) * (b[i] - mb)
		aa += (a[i] - ma) * (a[i] - ma)
		bb += (b[i] - mb) * (b[i] - mb)
	}
	return ab / math.Sqrt(aa*bb)
}
