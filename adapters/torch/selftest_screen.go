package torch

import (
	"context"
	"math"
	"slices"
)

// Most of what the claimed tap is compared with is far from better, which a few tokens show. A screening looks at some of the
// tokens that the whole measurement takes, drawn at random, so that it tells what that would say; what may be better goes on
// with twice as many, and in the end is measured on all of them. Whatever is called better was measured on all. A tap that is
// worse than another one, of which the verdict would name the better, is no contender either.
//
// The rule. FVU is a ratio of two sums over tokens, and so is the quotient R of two FVUs: by the delta method the variance of
// log R, as m units of M estimate it, is (1 − m/M) · m/(m−1) · Σ ψᵤ², where ψᵤ = eᵤ/E − sᵤ/S − e'ᵤ/E' + s'ᵤ/S' is a unit's
// part: e its errors ‖y−ŷ‖², s its spread ‖y−ȳ‖², E and S their sums in the sample, primed for the claimed tap (Cochran,
// Sampling Techniques, 2.6 and 6.4: the paired, linearised ratio estimator of a sample without replacement). A unit is a token,
// where tokens are drawn, or a sequence, where whole sequences are: tokens of one are alike. A candidate is dropped when log R
// is above log(betterBy), or beside the best tap above 0, by more than t standard errors. t is Student's of m−1 degrees of freedom
// for the tail beyond 4 standard deviations, 3.2·10⁻⁵: with 40 candidates and four looks at each the chance to drop one that is
// better is below 0.6 %, were all of them exactly on the border, and less than that by orders of magnitude away from it. Without
// any distribution, by Cantelli's inequality, a look errs in less than 6 of 100 cases. Draws do not depend on time or machine,
// so neither does the report.
const (
	firstLook          = 256 // tokens
	firstSequences     = 16
	standardDeviations = 4.0
)

// unitScore is a unit's errors and spreads at two candidates.
type unitScore struct{ error, spread, claimedError, claimedSpread float64 }

// logRatio is the range in which the log of FVU ÷ the claimed FVU lies for all units, of which these were drawn; NaN where
// nothing can be said.
func logRatio(units []unitScore, all int) (low, high float64) {
	var sum unitScore
	m := 0.0
	for _, u := range units {
		sum.error += u.error
		sum.spread += u.spread
		sum.claimedError += u.claimedError
		sum.claimedSpread += u.claimedSpread
		if u != (unitScore{}) {
			m++
		}
	}
	square := 0.0
	for _, u := range units {
		part := u.error/sum.error - u.spread/sum.spread - u.claimedError/sum.claimedError + u.claimedSpread/sum.claimedSpread
		square += part * part
	}
	middle := math.Log(sum.error/sum.spread) - math.Log(sum.claimedError/sum.claimedSpread)
	if m < firstSequences || float64(all) < m {
		return math.NaN(), math.NaN()
	}
	reach := student(m-1) * math.Sqrt((1-m/float64(all))*m/(m-1)*square)
	return middle - reach, middle + reach
}

// student is the quantile of Student's t that leaves as little above it as standardDeviations do of a normal distribution
// (Abramowitz and Stegun, 26.7.5): 5.47 for 15 degrees of freedom, 4.07 for 255.
func student(freedom float64) float64 {
	const (
		z  = standardDeviations
		z3 = z * z * z
		z5 = z3 * z * z
		z7 = z5 * z * z
	)
	return z + (z3+z)/(4*freedom) + (5*z5+16*z3+3*z)/(96*freedom*freedom) +
		(3*z7+19*z5+17*z3-15*z)/(384*freedom*freedom*freedom)
}

// screen measures rivals of the claimed tap, which has been measured: on a few tokens each that cannot be better.
func (e *Engine) screen(ctx context.Context, o SelfTestOptions, p *sample, claimed *candidate, rivals []*candidate) error {
	open := slices.Clone(rivals)
	comparable := e.sae.temporal == nil && (claimed.fvu() != nil || e.sae.config.ActivationsOnly) // tokens of some SAEs need those before
	for from, n := 0, firstLook; comparable && len(open) > 0 && n < claimed.tokens; n *= 2 {
		to, found := p.drawn(claimed.norms, n)
		if !found {
			break
		}
		for _, c := range open {
			if err := e.look(ctx, o, p, c, from, to); err != nil {
				return err
			}
		}
		open = slices.DeleteFunc(open, func(c *candidate) bool {
			c.few = !e.mayBeBetter(c, p.paired(claimed, c, to), claimed.tokens, betterBy)
			return c.few
		})
		best := lowest(open)
		open = slices.DeleteFunc(open, func(c *candidate) bool {
			c.few = c.change == nil && c != best && !e.mayBeBetter(c, p.paired(best, c, to), claimed.tokens, 1)
			return c.few
		})
		from = to
	}
	if len(open) == 0 {
		return nil
	}
	for _, c := range open {
		*c = *e.candidate(c.tap, c.name, c.change)
	}
	return e.measure(ctx, o, p, open)
}

// lowest is the tap with the lowest FVU so far.
func lowest(candidates []*candidate) (best *candidate) {
	for _, c := range candidates {
		if c.change == nil && (best == nil || less(c.fvu(), best.fvu())) {
			best = c
		}
	}
	return best
}

func (e *Engine) mayBeBetter(c *candidate, units []unitScore, all int, by float64) bool {
	if e.sae.config.ActivationsOnly || c.wrong || math.IsNaN(c.error2) || math.IsInf(c.error2, 0) {
		return false // there is nothing to compare
	}
	low, _ := logRatio(units, all)
	return !(low > math.Log(by))
}

// drawn is how many of the tokens in their random order hold n that are measured.
func (p *sample) drawn(n *norms, tokens int) (int, bool) {
	for i, token := range p.order {
		if n.use[token] == measured {
			tokens--
		}
		if tokens == 0 {
			return i + 1, true
		}
	}
	return 0, false
}

// look measures a candidate on the kept tokens from … to − 1 of the random order.
func (e *Engine) look(ctx context.Context, o SelfTestOptions, p *sample, c *candidate, from, to int) error {
	e.place(c, p)
	in, out := e.sae.config.DIn, e.sae.config.DOut
	var x, truth []float32
	var tokens []int
	for i := from; i < to; i++ {
		switch c.norms.use[p.order[i]] {
		case sink:
			c.sinks++
		case measured:
			tokens = append(tokens, p.order[i])
			x = append(x, p.rows[c.in][i*in:][:in]...)
			truth = append(truth, p.rows[c.out][i*out:][:out]...)
		}
	}
	if len(tokens) == 0 {
		return nil
	}
	err := e.model.runtime.do(ctx, func(s *scope) error {
		b := &packed{starts: []int64{0}, lengths: []int64{int64(len(tokens))}}
		g := e.rebuild(s, c, s.floats(x, int64(len(tokens)), int64(in)), b, func(row int) (int, use) { return tokens[row], measured })
		if s.err == nil {
			c.compare(truth, g)
		}
		return s.err
	})
	if err == nil && o.Beat != nil {
		err = o.Beat()
	}
	return err
}

// paired are a candidate and the claimed one token by token, among the first n of the random order.
func (p *sample) paired(claimed, c *candidate, n int) []unitScore {
	units := make([]unitScore, n)
	for _, t := range c.each {
		u := &units[p.slot[t.token]]
		u.error, u.spread = t.error, t.spread
	}
	for _, t := range claimed.each {
		if slot := p.slot[t.token]; slot >= 0 && slot < n {
			units[slot].claimedError, units[slot].claimedSpread = t.error, t.spread
		}
	}
	return units
}
