package torch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/featuremill/featuremill/domain/extraction"
)

// SelfTestOptions say what to test on.
type SelfTestOptions struct {
	Sequences   [][]int32 // without an inserted BOS
	Context     int       // most tokens of a sequence as it is fed; 0 = no limit
	BOS         int32     // −1 = there is none to insert
	PrependBOS  *bool     // nil: try both, and keep the lower FVU
	SkipFirst   int       // offsets below it are not counted, unless the SAE has a seqpos_slice
	Exclude     []int32   // ids that are not counted
	Tokens      int       // counted tokens to measure on; 0 = 4,096
	PublishedL0 float64   // 0 = unknown

	Beat func() error // called after every forward; its error ends the test. Nil = nobody wants to know
}

const (
	selfTestTokens = 4096
	sinkNorm       = 3   // × the median norm
	tapReach       = 2   // layers up and down
	betterBy       = 0.9 // another tap with less than this share of the claimed one's FVU is the right one
	tooDense       = 2   // × the published L0
)

// SelfTest measures whether the SAE belongs at the hook: the share of variance that its
// reconstructions leave unexplained (FVU) and L0 there and at every tap of equal width up to two
// layers away, all in the same forward. Mismatch says why the SAE does not fit, if it does not:
// that is a verdict, not an error.
func (e *Engine) SelfTest(ctx context.Context, o SelfTestOptions) (extraction.SelfTest, error) {
	if o.Tokens == 0 {
		o.Tokens = selfTestTokens
	}
	var tries []bool
	switch {
	case o.PrependBOS != nil:
		tries = []bool{*o.PrependBOS}
	case o.BOS < 0:
		tries = []bool{false}
	default:
		tries = []bool{true, false}
	}
	var best extraction.SelfTest
	for i, prepend := range tries {
		if prepend && o.BOS < 0 {
			return extraction.SelfTest{}, errors.New("self-test: a BOS token is to be prepended, but there is none")
		}
		t, err := e.selfTest(ctx, o, prepend)
		if err != nil {
			return extraction.SelfTest{}, fmt.Errorf("self-test: %w", err)
		}
		t.BOSTried = len(tries) > 1
		if i == 0 || less(t.FVU, best.FVU) {
			best = t
		}
	}
	best.Mismatch = mismatch(best)
	if l0 := best.L0; l0 != nil && !e.sae.fixedL0() && o.PublishedL0 > 0 && *l0 > tooDense*o.PublishedL0 {
		best.Warnings = append(best.Warnings, fmt.Sprintf("L0 is %.1f, more than twice the published %.1f", *l0, o.PublishedL0))
	}
	return best, nil
}

// less orders FVUs; one that is not finite comes last.
func less(a, b *float64) bool {
	return a != nil && (b == nil || *a < *b)
}

// mismatch is the verdict.
func mismatch(t extraction.SelfTest) string {
	var better *extraction.Tap
	for i, tap := range t.Taps {
		if tap.Hook != t.Hook && tap.FVU != nil && (t.FVU == nil || *tap.FVU < betterBy**t.FVU) && (better == nil || *tap.FVU < *better.FVU) {
			better = &t.Taps[i]
		}
	}
	hint := ""
	if better != nil && *better.FVU < 1 {
		hint = fmt.Sprintf("; %s fits better: FVU %.4g, L0 %.1f", better.Hook, *better.FVU, *better.L0)
	}
	switch {
	case t.FVU == nil:
		return "the reconstruction at " + t.Hook + " is not finite" + hint
	case *t.FVU >= 1:
		return fmt.Sprintf("at %s the SAE reconstructs worse than the mean would: FVU %.4g (below 1 is needed)%s", t.Hook, *t.FVU, hint)
	case better != nil:
		return fmt.Sprintf("FVU at %s is %.4g%s", t.Hook, *t.FVU, hint)
	}
	return ""
}

// taps are the places to score.
func (e *Engine) taps() []Hook { return e.model.near(e.hook, tapReach) }

// tapScore is what is summed up at one tap.
type tapScore struct {
	norms  []float32 // ‖x‖ of every fed token, in order
	limit  float64   // above it is a sink
	median float64
	sinks  int // among the tokens that were looked at

	tokens   int // measured
	error2   float64
	sum      []float64 // Σ y
	square   float64   // Σ ‖y‖²
	firings  int64
	fed      int // all, and their firings
	fedFires int64
	counts   []int64 // per latent
	wrong    bool    // not finite
}

func (e *Engine) selfTest(ctx context.Context, o SelfTestOptions, prepend bool) (extraction.SelfTest, error) {
	fed, counted := e.fed(o, prepend)
	if err := checkIDs(fed, e.model.config.Vocab); err != nil {
		return extraction.SelfTest{}, err
	}
	taps := e.taps()
	scores := map[Hook]*tapScore{}
	wanted := map[Hook]bool{}
	for _, h := range taps {
		scores[h] = &tapScore{sum: make([]float64, e.sae.config.DOut), counts: make([]int64, e.sae.config.DSAE)}
		wanted[h] = true
	}
	// Twice through the model: which tokens are sinks is known only when all norms are.
	for _, measure := range []func(*scope, *tapScore, tensor, *packed, [][]bool, int){e.measureNorms, func(s *scope, t *tapScore, x tensor, b *packed, counted [][]bool, first int) {
		e.measure(s, t, x, b, counted, o.Tokens)
	}} {
		for _, g := range groups(fed, e.model.tokensPerForward) {
			err := e.model.runtime.do(ctx, func(s *scope) error {
				b := pack(fed[g[0]:g[1]], e.model.exec.padded())
				if b.rows() == 0 {
					return nil
				}
				e.model.forward(s, b, wanted, false, func(s *scope, h Hook, x tensor) {
					measure(s, scores[h], x, b, counted[g[0]:g[1]], g[0])
				})
				return s.err
			})
			if err == nil && o.Beat != nil {
				err = o.Beat()
			}
			if err != nil {
				return extraction.SelfTest{}, err
			}
		}
		for _, t := range scores {
			t.setLimit(counted)
		}
	}
	claimed := scores[e.hook]
	if claimed.tokens == 0 {
		return extraction.SelfTest{}, errors.New("no token is counted: the text is too short, or everything is excluded")
	}
	result := extraction.SelfTest{
		Hook: e.hook.String(), Tokens: claimed.tokens, FVU: claimed.fvu(), L0: claimed.l0(),
		L0All: float64(claimed.fedFires) / float64(max(1, claimed.fed)), MedianNorm: claimed.median,
		PrependBOS: prepend, BOS: -1,
	}
	if prepend {
		result.BOS = o.BOS
	}
	result.SinkShare = float64(claimed.sinks) / float64(claimed.sinks+claimed.tokens)
	result.DeadShare = claimed.deadShare()
	if rho, ok := sparsityRho(claimed, e.sae.sparsity); ok {
		result.Rho = &rho
	}
	for _, h := range taps {
		result.Taps = append(result.Taps, extraction.Tap{Hook: h.String(), FVU: scores[h].fvu(), L0: scores[h].l0()})
	}
	return result, nil
}

// fed is what goes through the model, enough of it and no more, and which tokens count.
func (e *Engine) fed(o SelfTestOptions, prepend bool) (sequences [][]int32, counted [][]bool) {
	excluded := map[int32]bool{}
	for _, id := range o.Exclude {
		excluded[id] = true
	}
	for _, id := range e.sae.config.ExcludeSpecialTokens.IDs {
		excluded[int32(id)] = true
	}
	slice := e.sae.config.SeqposSlice
	total := 0
	// A third more than needed: sinks are left out later, and each tap has its own.
	for i := 0; i < len(o.Sequences) && total < o.Tokens+o.Tokens/3; i++ {
		ids := o.Sequences[i]
		if prepend {
			ids = append([]int32{o.BOS}, ids...)
		}
		if o.Context > 0 && len(ids) > o.Context {
			ids = ids[:o.Context]
		}
		counts := make([]bool, len(ids))
		for j, id := range ids {
			inside := j >= o.SkipFirst
			if slice != nil {
				inside = slice.Contains(j, len(ids))
			}
			counts[j] = inside && !excluded[id] && (j > 0 || !prepend)
			if counts[j] {
				total++
			}
		}
		sequences, counted = append(sequences, ids), append(counted, counts)
	}
	return sequences, counted
}

func (e *Engine) measureNorms(s *scope, t *tapScore, x tensor, b *packed, _ [][]bool, _ int) {
	norms := make([]float32, b.rows())
	e.sae.encoder.norms(s, x, norms)
	for i, p := range b.places() {
		if p.offset >= 0 {
			t.norms = append(t.norms, norms[i])
		}
	}
}

// setLimit takes the median over all counted tokens, once their norms are there.
func (t *tapScore) setLimit(counted [][]bool) {
	if t.limit > 0 || t.wrong {
		return
	}
	var seen []float32
	i := 0
	for _, sequence := range counted {
		for _, c := range sequence {
			if c {
				seen = append(seen, t.norms[i])
			}
			if !finite(t.norms[i]) {
				t.wrong = true
			}
			i++
		}
	}
	if len(seen) == 0 {
		return
	}
	slices.Sort(seen)
	t.median = float64(seen[(len(seen)+1)/2-1])
	t.limit = sinkNorm * t.median
}

// measure adds the counted tokens of a batch that are no sinks, up to the number wanted.
func (e *Engine) measure(s *scope, t *tapScore, x tensor, b *packed, counted [][]bool, tokens int) {
	width := e.sae.config.DOut
	place := b.places()
	truth := make([]float32, b.rows()*int64(width))
	s.read(x, truth)
	e.sae.encode(s, x, b, func(s *scope, first int64, x tensor, f *firings) {
		guess := make([]float32, len(f.counts)*width)
		dense := e.sae.encoder.dense(s, f)
		s.read(e.sae.forward(s, x, dense, e.sae.encoder.decode(s, dense, f), f), guess)
		if s.err != nil {
			return
		}
		for i, n := range f.counts {
			row := int(first) + i
			p := place[row]
			if p.offset < 0 {
				continue
			}
			norm := t.norms[t.fed]
			t.fed++
			t.fedFires += int64(n)
			if !counted[p.sequence][p.offset] || t.tokens == tokens {
				continue
			}
			if float64(norm) > t.limit {
				t.sinks++
				continue
			}
			latents, _ := f.token(i)
			t.add(truth[row*width:][:width], guess[i*width:][:width], latents)
		}
	})
}

func (t *tapScore) add(truth, guess []float32, latents []uint32) {
	t.tokens++
	t.firings += int64(len(latents))
	for _, l := range latents {
		t.counts[l]++
	}
	for j, y := range truth {
		d := float64(y) - float64(guess[j])
		t.error2 += d * d
		t.sum[j] += float64(y)
		t.square += float64(y) * float64(y)
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
// logarithms do not change.
func sparsityRho(t *tapScore, published []float32) (float64, bool) {
	if len(published) != len(t.counts) || len(published) < 2 {
		return 0, false
	}
	ours, theirs := make([]float64, len(published)), make([]float64, len(published))
	for i := range published {
		ours[i], theirs[i] = float64(t.counts[i]), float64(published[i])
	}
	rho := pearson(ranks(ours), ranks(theirs))
	return rho, !math.IsNaN(rho)
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
