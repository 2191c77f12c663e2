package torch

import (
	"context"
	"math/rand/v2"
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
	few    bool   // a few tokens decided that it is not the better one
	*tapScore
}

func (e *Engine) candidate(at tap, name string, change func(*SAE)) *candidate {
	return &candidate{tap: at, name: name, change: change, tapScore: newScore(e.sae.config.DOut, e.sae.config.DSAE)}
}

// sample is what goes through the model: enough of it and no more. Its tokens are numbered in the order in which they are fed.
type sample struct {
	prepend bool
	fed     [][]int32
	counted [][]bool
	base    []int // tokens before each sequence
	tokens  int   // of all
	norms   map[Hook]*norms

	order []int              // counted tokens, at random: the first n are a fair sample of n
	slot  []int              // by token: its place in order where its activations are kept, −1 where they are not
	rows  map[Hook][]float32 // [len(order), width]: what is kept of every tap
	kept  map[group]map[Hook][]float32
}

// group is a run of sequences that are fed together: [first, behind the last).
type group = [2]int

// norms are ‖x‖₂ of every fed token at a hook.
type norms struct {
	each         []float32
	use          []use   // of every fed token
	median, mean float64 // of counted tokens; the mean is without sinks
	limit        float64 // above it is a sink
	wrong        bool    // not finite
}

// use is what a token is to a measurement.
type use int

const (
	padding use = iota
	fedOnly     // not counted, or behind as many as are wanted
	sink        // left out
	measured
)

const (
	keptBytes = 128 << 20 // of activations of all tokens at the claimed tap; where they are more, the model runs again
	rowBytes  = 96 << 20  // of activations of some tokens at every tap
)

// sample runs the chosen text through the model once, and keeps of it what measuring needs: the norms at every tap, since
// which tokens are sinks is known only when all are; the activations of tokens drawn at random, for a first look at each tap;
// and those of all tokens at the first tap, the claimed one.
func (e *Engine) sample(ctx context.Context, o SelfTestOptions, p *sample, taps []tap) error {
	if err := checkIDs(p.fed, e.model.config.Vocab); err != nil {
		return err
	}
	wanted, perToken := map[Hook]bool{}, 0
	for _, at := range taps {
		p.norms[at.in] = &norms{each: make([]float32, p.tokens)}
		for _, h := range []Hook{at.in, at.out} {
			if !wanted[h] {
				wanted[h] = true
				perToken += 4 * e.model.Width(h)
			}
		}
	}
	p.draw(max(firstLook, rowBytes/perToken))
	for h := range wanted {
		p.rows[h] = make([]float32, len(p.order)*e.model.Width(h))
	}
	claimed := map[Hook]bool{e.hook: true, e.out: true}
	keeps := 4*p.tokens*(e.sae.config.DIn+e.sae.config.DOut) <= keptBytes
	err := e.eachGroup(ctx, o, p, wanted, 1, func(s *scope, h Hook, x tensor, b *packed, g group) {
		if p.norms[h] != nil {
			e.readNorms(s, p, h, x, b, g)
		}
		p.keepRows(s, h, x, b, g)
		if keeps && claimed[h] {
			all := make([]float32, b.rows()*shapeOf(x)[1])
			s.read(x, all)
			if p.kept[g] == nil {
				p.kept[g] = map[Hook][]float32{}
			}
			p.kept[g][h] = all
		}
	})
	for _, n := range p.norms {
		n.setLimit(p.counted)
		n.choose(p.counted, o.Tokens)
	}
	return err
}

// draw puts counted tokens into an order that depends on their number alone, and keeps room for at most n of them.
func (p *sample) draw(n int) {
	for i, sequence := range p.counted {
		for j, c := range sequence {
			if c {
				p.order = append(p.order, p.base[i]+j)
			}
		}
	}
	shuffled(p.order)
	p.order = p.order[:min(n, len(p.order))]
	p.slot = make([]int, p.tokens)
	for i := range p.slot {
		p.slot[i] = -1
	}
	for i, token := range p.order {
		p.slot[token] = i
	}
}

// shuffled is the same every time.
func shuffled(v []int) {
	chance := rand.New(rand.NewPCG(1, 1)) //nolint:gosec // no secret
	chance.Shuffle(len(v), func(i, j int) { v[i], v[j] = v[j], v[i] })
}

func (p *sample) keepRows(s *scope, h Hook, x tensor, b *packed, g group) {
	var from []int64
	var to []int
	for row, at := range b.places() {
		if at.offset < 0 {
			continue
		}
		if slot := p.slot[p.base[g[0]+at.sequence]+at.offset]; slot >= 0 {
			from, to = append(from, int64(row)), append(to, slot)
		}
	}
	if len(from) == 0 || s.err != nil {
		return
	}
	width := int(shapeOf(x)[1])
	some := make([]float32, len(from)*width)
	s.read(s.rows(x, s.ints(from, int64(len(from)))), some)
	for i, slot := range to {
		copy(p.rows[h][slot*width:][:width], some[i*width:])
	}
}

func (e *Engine) readNorms(s *scope, p *sample, h Hook, x tensor, b *packed, g group) {
	rows := make([]float32, b.rows())
	e.sae.encoder.norms(s, x, rows)
	for i, at := range b.places() {
		if at.offset >= 0 {
			p.norms[h].each[p.base[g[0]+at.sequence]+at.offset] = rows[i]
		}
	}
}

// eachGroup shows what the model makes of the sample, some sequences at a time: from what was kept where that is enough.
// encodes is how often each hook will be encoded: a forward must not take so long that it looks like a hang.
func (e *Engine) eachGroup(ctx context.Context, o SelfTestOptions, p *sample, wanted map[Hook]bool, encodes int, visit func(s *scope, h Hook, x tensor, b *packed, g group)) error {
	const most = 4e12 // operations of a group
	perToken := 4 * float64(encodes) * float64(e.sae.config.DIn) * float64(e.sae.config.DSAE)
	for _, g := range groups(p.fed, min(e.model.tokensPerForward, max(64, int(most/perToken)))) {
		err := e.model.runtime.do(ctx, func(s *scope) error {
			b := pack(p.fed[g[0]:g[1]], e.model.exec.padded())
			if b.rows() == 0 {
				return nil
			}
			if kept := p.kept[g]; holds(kept, wanted) {
				for h := range wanted {
					s.inner(func(s *scope) tensor {
						if x := s.floats(kept[h], b.rows(), int64(e.model.Width(h))); s.err == nil {
							visit(s, h, x, b, g)
						}
						return nil
					})
				}
				return s.err
			}
			e.model.forward(s, b, wanted, false, func(s *scope, h Hook, x tensor) {
				if x = s.rowMajor(x); s.err == nil {
					visit(s, h, x, b, g)
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

func holds(kept map[Hook][]float32, wanted map[Hook]bool) bool {
	for h := range wanted {
		if kept[h] == nil {
			return false
		}
	}
	return true
}

// measure scores candidates on all tokens of the sample, in one forward at most.
func (e *Engine) measure(ctx context.Context, o SelfTestOptions, p *sample, candidates []*candidate) error {
	wanted := map[Hook]bool{}
	for _, c := range candidates {
		e.place(c, p)
		wanted[c.in], wanted[c.out] = true, true
	}
	var current group
	truths, guesses := map[Hook][]float32{}, map[*candidate]*guess{}
	return e.eachGroup(ctx, o, p, wanted, len(candidates), func(s *scope, h Hook, x tensor, b *packed, g group) {
		if g != current { // what was kept of the group before
			clear(truths)
			clear(guesses)
			current = g
		}
		places := b.places()
		for _, c := range candidates {
			if c.out == h && truths[h] == nil {
				truths[h] = make([]float32, b.rows()*int64(e.sae.config.DOut))
				s.read(x, truths[h])
			}
		}
		for _, c := range candidates {
			if c.in == h {
				guesses[c] = e.rebuild(s, c, x, b, func(row int) (token int, as use) {
					at := places[row]
					if at.offset < 0 {
						return 0, padding
					}
					token = p.base[g[0]+at.sequence] + at.offset
					return token, c.norms.use[token]
				})
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

// place lets a candidate be measured on a sample.
func (e *Engine) place(c *candidate, p *sample) {
	c.norms = p.norms[c.in]
	c.wrong = c.norms.wrong
	if c.centre == nil {
		c.centre = p.mean(c.out, c.norms)
	}
}

// mean is that of the kept activations at a hook, of tokens that are measured.
func (p *sample) mean(h Hook, n *norms) []float64 {
	width := len(p.rows[h]) / max(1, len(p.order))
	sum, tokens := make([]float64, width), 0.0
	for i, token := range p.order {
		if n.use[token] == measured {
			tokens++
			for j, v := range p.rows[h][i*width:][:width] {
				sum[j] += float64(v)
			}
		}
	}
	for j := range sum {
		sum[j] /= max(1, tokens)
	}
	return sum
}

// guess is what the SAE makes of the tokens that are measured.
type guess struct {
	rows   []int // of the batch
	tokens []int // of the sample
	values []float32
}

// rebuild runs the SAE over a batch and counts what fires on measured tokens. used says which token a row is, and what for.
func (e *Engine) rebuild(s *scope, c *candidate, x tensor, b *packed, used func(row int) (token int, as use)) *guess {
	a, width := e.sae, e.sae.config.DOut
	g := &guess{}
	if c.change != nil {
		defer a.change(c.change)()
	}
	a.encode(s, x, b, func(s *scope, start int64, x tensor, f *firings) {
		var here []int
		for i, n := range f.counts {
			row := int(start) + i
			token, as := used(row)
			if as == padding {
				continue
			}
			c.fed++
			c.fedFires += int64(n)
			switch as {
			case sink:
				c.sinks++
			case measured:
				latents, _ := f.token(i)
				c.fire(latents)
				here = append(here, row)
				g.tokens = append(g.tokens, token)
			}
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

func newSample(prepend bool) *sample {
	return &sample{prepend: prepend, norms: map[Hook]*norms{}, rows: map[Hook][]float32{}, kept: map[group]map[Hook][]float32{}}
}

func (p *sample) add(ids []int32, counted []bool) {
	p.fed, p.counted, p.base = append(p.fed, ids), append(p.counted, counted), append(p.base, p.tokens)
	p.tokens += len(ids)
}

// part is the sample of some of the sequences.
func (p *sample) part(sequences []int) *sample {
	q := newSample(p.prepend)
	for _, i := range sequences {
		q.add(p.fed[i], p.counted[i])
	}
	return q
}

// fed is what goes through the model, and which tokens count.
func (e *Engine) fed(o SelfTestOptions, prepend bool) *sample {
	p := newSample(prepend)
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
		p.add(ids, counts)
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

// choose says what each token is for: the first counted ones that are no sinks are measured, as many as are wanted.
func (n *norms) choose(counted [][]bool, tokens int) {
	n.use = make([]use, 0, len(n.each))
	taken := 0
	for _, sequence := range counted {
		for _, c := range sequence {
			as := fedOnly
			switch {
			case !c || taken == tokens:
			case float64(n.each[len(n.use)]) > n.limit:
				as = sink
			default:
				as = measured
				taken++
			}
			n.use = append(n.use, as)
		}
	}
}
