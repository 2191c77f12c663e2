package torch

import (
	"context"
	"slices"
)

// tap is where an SAE reads and what it rebuilds.
type tap struct{ in, out Hook }

// candidate is the SAE at a tap, as it is or with a change.
type candidate struct {
	tap
	name   string // of the change
	change func(*SAE)
	norms  *norms // of its input
	*tapScore
}

func (e *Engine) candidate(at tap, name string, change func(*SAE)) *candidate {
	return &candidate{tap: at, name: name, change: change, tapScore: newScore(e.sae.config.DOut, e.sae.config.DSAE)}
}

// sample is what goes through the model: enough of it and no more.
type sample struct {
	prepend bool
	fed     [][]int32
	counted [][]bool
	base    []int // tokens before each sequence
	tokens  int   // of all
	norms   map[Hook]*norms
}

// norms are ‖x‖₂ of every fed token at a hook.
type norms struct {
	each         []float32
	median, mean float64 // of counted tokens; the mean is without sinks
	limit        float64 // above it is a sink
	wrong        bool    // not finite
	late         bool    // each is filled while candidates are measured; the limit is another sample's
}

// sample chooses the text and measures the norms at every tap: which tokens are sinks is known only
// when all are.
func (e *Engine) sample(ctx context.Context, o SelfTestOptions, prepend bool) (*sample, error) {
	p := e.fed(o, prepend)
	if err := checkIDs(p.fed, e.model.config.Vocab); err != nil {
		return nil, err
	}
	wanted := map[Hook]bool{}
	for _, at := range e.taps() {
		wanted[at.in] = true
		p.norms[at.in] = &norms{each: make([]float32, p.tokens)}
	}
	err := e.eachGroup(ctx, o, p, wanted, 1, func(s *scope, h Hook, x tensor, b *packed, first int) {
		e.readNorms(s, p, h, x, b, first)
	})
	for _, n := range p.norms {
		n.setLimit(p.counted)
	}
	return p, err
}

// otherWay is the sample with BOS where it has none, or without, for the claimed tap. What a sink is
// stays what it was, which saves a forward.
func (e *Engine) otherWay(o SelfTestOptions, p *sample) *sample {
	q := e.fed(o, !p.prepend)
	q.norms[e.hook] = &norms{each: make([]float32, q.tokens), limit: p.norms[e.hook].limit, late: true}
	return q
}

func (e *Engine) readNorms(s *scope, p *sample, h Hook, x tensor, b *packed, first int) {
	rows := make([]float32, b.rows())
	e.sae.encoder.norms(s, x, rows)
	for i, at := range b.places() {
		if at.offset >= 0 {
			p.norms[h].each[p.base[first+at.sequence]+at.offset] = rows[i]
		}
	}
}

// eachGroup runs the sample through the model, some sequences at a time. encodes is how often each
// hook will be encoded: a forward must not take so long that it looks like a hang.
func (e *Engine) eachGroup(ctx context.Context, o SelfTestOptions, p *sample, wanted map[Hook]bool, encodes int, visit func(s *scope, h Hook, x tensor, b *packed, first int)) error {
	const most = 4e12 // operations of a group
	perToken := 4 * float64(encodes) * float64(e.sae.config.DIn) * float64(e.sae.config.DSAE)
	for _, g := range groups(p.fed, min(e.model.tokensPerForward, max(64, int(most/perToken)))) {
		err := e.model.runtime.do(ctx, func(s *scope) error {
			b := pack(p.fed[g[0]:g[1]], e.model.exec.padded())
			if b.rows() == 0 {
				return nil
			}
			e.model.forward(s, b, wanted, false, func(s *scope, h Hook, x tensor) {
				if x = s.rowMajor(x); s.err == nil {
					visit(s, h, x, b, g[0])
				}
			})
			return s.err
		})
		if err == nil && o.Beat != nil {
			err = o.Beat()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// measure scores candidates in one forward.
func (e *Engine) measure(ctx context.Context, o SelfTestOptions, p *sample, candidates []*candidate) error {
	wanted := map[Hook]bool{}
	for _, c := range candidates {
		c.norms = p.norms[c.in]
		c.wrong = c.norms.wrong
		wanted[c.in], wanted[c.out] = true, true
	}
	var group int
	truths, guesses := map[Hook][]float32{}, map[*candidate]*guess{}
	return e.eachGroup(ctx, o, p, wanted, len(candidates), func(s *scope, h Hook, x tensor, b *packed, first int) {
		if first != group { // what was kept of the group before
			clear(truths)
			clear(guesses)
			group = first
		}
		places := b.places()
		if n := p.norms[h]; n != nil && n.late {
			e.readNorms(s, p, h, x, b, first)
		}
		for _, c := range candidates {
			if c.out == h && truths[h] == nil {
				truths[h] = make([]float32, b.rows()*int64(e.sae.config.DOut))
				s.read(x, truths[h])
			}
		}
		for _, c := range candidates {
			if c.in == h {
				guesses[c] = e.rebuild(s, c, p, x, b, places, first, o.Tokens)
			}
		}
		for c, g := range guesses { // a transcoder's output comes later than its input, or another's earlier
			if truth := truths[c.out]; truth != nil && s.err == nil {
				c.compare(truth, g)
				delete(guesses, c)
			}
		}
	})
}

// guess is what the SAE makes of the tokens that are measured.
type guess struct {
	rows   []int // of the batch
	values []float32
}

// rebuild runs the SAE over a batch and counts what fires: on counted tokens that are no sinks, up to
// the number wanted.
func (e *Engine) rebuild(s *scope, c *candidate, p *sample, x tensor, b *packed, places []place, first, tokens int) *guess {
	a, width := e.sae, e.sae.config.DOut
	g := &guess{}
	if c.change != nil {
		defer a.change(c.change)()
	}
	a.encode(s, x, b, func(s *scope, start int64, x tensor, f *firings) {
		var here []int
		for i, n := range f.counts {
			row := int(start) + i
			at := places[row]
			if at.offset < 0 {
				continue
			}
			c.fed++
			c.fedFires += int64(n)
			if !p.counted[first+at.sequence][at.offset] || c.tokens == tokens {
				continue
			}
			if float64(c.norms.each[p.base[first+at.sequence]+at.offset]) > c.norms.limit {
				c.sinks++
				continue
			}
			latents, _ := f.token(i)
			c.fire(latents)
			here = append(here, row)
		}
		if len(here) == 0 || a.config.ActivationsOnly {
			return
		}
		rebuilt := make([]float32, len(f.counts)*width)
		dense := a.encoder.dense(s, f)
		s.read(a.forward(s, x, dense, a.encoder.decode(s, dense, f), f), rebuilt)
		for _, row := range here {
			g.rows = append(g.rows, row)
			g.values = append(g.values, rebuilt[(row-int(start))*width:][:width]...)
		}
	})
	return g
}

// change computes otherwise until the returned function is called.
func (a *SAE) change(how func(*SAE)) (back func()) {
	mode, undo, factor, shift, limit, encoder := a.mode, a.undo, a.factor, a.shift, a.limit, a.encoder
	how(a)
	if a.limit > 0 && a.threshold != nil { // the fused choice is by one or the other
		a.encoder = &composedEncoder{a: a}
	}
	return func() {
		a.mode, a.undo, a.factor, a.shift, a.limit, a.encoder = mode, undo, factor, shift, limit, encoder
	}
}

// fed is what goes through the model, and which tokens count.
func (e *Engine) fed(o SelfTestOptions, prepend bool) *sample {
	p := &sample{prepend: prepend, norms: map[Hook]*norms{}}
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
		p.fed, p.counted, p.base = append(p.fed, ids), append(p.counted, counts), append(p.base, p.tokens)
		p.tokens += len(ids)
	}
	return p
}

// setLimit takes the median over all counted tokens, once their norms are there.
func (n *norms) setLimit(counted [][]bool) {
	var seen []float32
	i := 0
	for _, sequence := range counted {
		for _, c := range sequence {
			if c {
				seen = append(seen, n.each[i])
			}
			n.wrong = n.wrong || !finite(n.each[i])
			i++
		}
	}
	if len(seen) == 0 || n.wrong {
		return
	}
	slices.Sort(seen)
	n.median = float64(seen[(len(seen)+1)/2-1])
	n.limit = sinkNorm * n.median
	sum, usual := 0.0, 0
	for _, v := range seen {
		if float64(v) <= n.limit {
			sum += float64(v)
			usual++
		}
	}
	n.mean = sum / float64(max(1, usual))
}
