package torch

import (
	"context"
	"math"
	"slices"

	"github.com/featuremill/featuremill/domain/extraction"
)

// way is the claimed tap, measured with a BOS token in front of every sequence or without.
type way struct {
	text  *sample // all of it
	limit float64 // of sinks; 0 = not known yet
	*candidate
	errors, spreads []float64 // by sequence
}

func (e *Engine) way(o SelfTestOptions, prepend bool) *way {
	w := &way{text: e.fed(o, prepend), candidate: e.candidate(tap{e.hook, e.out}, "", nil)}
	w.errors, w.spreads = make([]float64, len(w.text.fed)), make([]float64, len(w.text.fed))
	return w
}

// measured is the way of a claimed tap that has been measured on all of its text.
func (e *Engine) measuredWay(text *sample, claimed *candidate) *way {
	w := &way{text: text, limit: claimed.norms.limit, candidate: claimed, errors: make([]float64, len(text.fed)), spreads: make([]float64, len(text.fed))}
	w.sum(claimed.each, text, nil)
	return w
}

// sum adds scores to their sequences. chosen are the sequences of the text that the sample has, nil for all.
func (w *way) sum(scores []tokenScore, p *sample, chosen []int) {
	for _, t := range scores {
		i, _ := slices.BinarySearch(p.base, t.token+1)
		i--
		if chosen != nil {
			i = chosen[i]
		}
		w.errors[i] += t.error
		w.spreads[i] += t.spread
	}
}

// measureWay measures some sequences more of a way.
func (e *Engine) measureWay(ctx context.Context, o SelfTestOptions, w *way, chosen []int) error {
	seen := len(w.each)
	part := w.text.part(chosen)
	o.Tokens = math.MaxInt
	if err := e.sample(ctx, o, part, []tap{w.tap}); err != nil {
		return err
	}
	n := part.norms[e.hook]
	if w.limit == 0 {
		w.limit = n.limit
	}
	n.limit = w.limit
	n.choose(part.counted, o.Tokens)
	if err := e.measure(ctx, o, part, []*candidate{w.candidate}); err != nil {
		return err
	}
	w.sum(w.each[seen:], part, chosen)
	return nil
}

// fewSequences compares two ways on sequences drawn at random, on which the claimed one is measured too unless it has been. The
// answer is below, or not below, `by` times the claimed FVU, if so few decide.
func (e *Engine) fewSequences(ctx context.Context, o SelfTestOptions, claimed, rival *way, by float64) (below, decided bool, err error) {
	order := make([]int, min(claimed.text.sequencesWith(o.Tokens), len(rival.text.fed)))
	for i := range order {
		order[i] = i
	}
	shuffled(order)
	both := []*way{rival}
	if claimed.tokens == 0 {
		both = []*way{claimed, rival}
	}
	for from, n := 0, firstSequences; n < len(order); from, n = n, 2*n {
		chosen := slices.Sorted(slices.Values(order[from:n]))
		for _, w := range both {
			if err := e.measureWay(ctx, o, w, chosen); err != nil {
				return false, false, err
			}
			rival.limit = claimed.limit // what a sink is stays what it was
		}
		units := make([]unitScore, n)
		for i, sequence := range order[:n] {
			units[i] = unitScore{rival.errors[sequence], rival.spreads[sequence], claimed.errors[sequence], claimed.spreads[sequence]}
		}
		if low, high := logRatio(units, len(order)); low > math.Log(by) || high < math.Log(by) {
			return high < math.Log(by), true, nil
		}
	}
	return false, false, nil
}

// sequencesWith is how many sequences have so many counted tokens.
func (p *sample) sequencesWith(tokens int) int {
	for i, sequence := range p.counted {
		for _, c := range sequence {
			if c {
				tokens--
			}
		}
		if tokens <= 0 {
			return i + 1
		}
	}
	return len(p.counted)
}

// wouldBe names the other way.
func wouldBe(prepend bool) string {
	if prepend {
		return "a BOS token were prepended"
	}
	return "no BOS token were prepended"
}

// lowerWay finds which of two ways has the lower FVU where nobody said which it is, and measures that one on all of the text.
func (e *Engine) lowerWay(ctx context.Context, o SelfTestOptions, prepend []bool) (*sample, *candidate, extraction.Alternative, error) {
	fail := func(err error) (*sample, *candidate, extraction.Alternative, error) {
		return nil, nil, extraction.Alternative{}, err
	}
	first, second := e.way(o, prepend[0]), e.way(o, prepend[1])
	below, decided, err := e.fewSequences(ctx, o, first, second, 1)
	if err != nil {
		return fail(err)
	}
	if decided {
		winner, loser := first, second
		if below {
			winner, loser = second, first
		}
		loser.few = true
		claimed, err := e.claimed(ctx, o, winner.text)
		return winner.text, claimed, loser.alternative(wouldBe(loser.text.prepend)), err
	}
	claimed, err := e.claimed(ctx, o, first.text)
	if err != nil {
		return fail(err)
	}
	rival, err := e.claimedBut(ctx, o, second.text, claimed.norms.limit)
	if err != nil {
		return fail(err)
	}
	if !less(rival.fvu(), claimed.fvu()) {
		return first.text, claimed, rival.alternative(wouldBe(prepend[1])), nil
	}
	// It is the claimed one now, with sinks of its own.
	n := second.text.norms[e.hook]
	n.setLimit(second.text.counted)
	n.choose(second.text.counted, o.Tokens)
	won := e.candidate(claimed.tap, "", nil)
	return second.text, won, claimed.alternative(wouldBe(prepend[0])), e.measure(ctx, o, second.text, []*candidate{won})
}

// otherWay is what the claimed tap would be with BOS where it is measured without, or the other way round.
func (e *Engine) otherWay(ctx context.Context, o SelfTestOptions, text *sample, claimed *candidate) (extraction.Alternative, error) {
	rival := e.way(o, !text.prepend)
	rival.limit = claimed.norms.limit
	if claimed.fvu() != nil {
		below, decided, err := e.fewSequences(ctx, o, e.measuredWay(text, claimed), rival, betterBy)
		if err != nil {
			return extraction.Alternative{}, err
		}
		if rival.few = decided && !below; rival.few {
			return rival.alternative(wouldBe(!text.prepend)), nil
		}
	}
	whole, err := e.claimedBut(ctx, o, rival.text, claimed.norms.limit)
	if err != nil {
		return extraction.Alternative{}, err
	}
	return whole.alternative(wouldBe(!text.prepend)), nil
}

// claimedBut is claimed with another's limit of sinks.
func (e *Engine) claimedBut(ctx context.Context, o SelfTestOptions, text *sample, limit float64) (*candidate, error) {
	c := e.candidate(tap{e.hook, e.out}, "", nil)
	taps := e.taps()
	if o.PrependBOS != nil { // it stays the other way
		taps = []tap{c.tap}
	}
	if err := e.sample(ctx, o, text, taps); err != nil {
		return nil, err
	}
	n := text.norms[e.hook]
	n.limit = limit
	n.choose(text.counted, o.Tokens)
	return c, e.measure(ctx, o, text, []*candidate{c})
}
