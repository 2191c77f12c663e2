package fold

import (
	"math"
	"slices"
	"sort"
)

// examples picks the examples of an alive latent; rows are all its postings.
func (w *worker) examples(l *Latent, rows []posting) {
	o := w.options
	l.Examples = make([]Example, 0, o.TopExamples+intervals*o.ExamplesPerInterval+o.NonFiring)
	w.top(l, rows)
	w.sampleIntervals(l, rows)
	w.sampleSilence(l, rows)
	total := 0
	for i := range l.Examples {
		total += l.Examples[i].End - l.Examples[i].Start
	}
	values := make([]float32, total)
	for i := range l.Examples {
		e := &l.Examples[i]
		n := e.End - e.Start
		e.Activations, values = values[:n:n], values[n:]
		if e.Kind != NonFiring {
			fillWindow(e, rows)
		}
		e.Sequence = w.ledger.sequence(e.Sequence) // until here the ledger's number
	}
}

// top adds the top examples and marks their postings as taken.
func (w *worker) top(l *Latent, rows []posting) {
	if w.options.TopExamples == 0 {
		return
	}
	d := &w.ledger.documents
	w.groups.reset(len(w.documents))
	for _, document := range w.documents {
		if best := w.best[document]; best > 0 {
			p := &rows[best-1]
			// Ascending: stronger first, then by row.
			w.groups.add(p.context, uint64(^math.Float32bits(p.activation))<<32|uint64(d.rank[document]))
		}
	}
	w.order = w.groups.strongest(w.order[:0], w.options.TopExamples)
	for rank, key := range w.order {
		i := int(w.best[d.byRank[uint32(key)]]) - 1
		rows[i].flags |= flagTaken
		e := w.example(Top, rank, &rows[i])
		e.Collapsed = w.groups.size(rows[i].context)
		e.at = i
		l.Examples = append(l.Examples, e)
	}
}

// example places the window around a posting.
func (w *worker) example(kind Kind, rank int, p *posting) Example {
	e := w.place(kind, rank, int(p.sequence), int(p.offset))
	e.Activation = p.activation
	return e
}

func (w *worker) place(kind Kind, rank, index, offset int) Example {
	piece, at, start, end := w.ledger.bounds(index, offset)
	return Example{
		Kind:      kind,
		Rank:      rank,
		Interval:  -1,
		Row:       w.ledger.documents.rows[piece.document],
		Sequence:  index,
		Offset:    offset,
		Piece:     at,
		Start:     max(start, offset-w.options.Prefix),
		End:       min(end, offset+w.options.Suffix+1),
		Collapsed: 1,
	}
}

// fillWindow copies the latent's values on the window. The postings of a sequence are neighbours.
func fillWindow(e *Example, rows []posting) {
	index := rows[e.at].sequence
	for i := e.at; i >= 0 && rows[i].sequence == index && int(rows[i].offset) >= e.Start; i-- {
		e.Activations[int(rows[i].offset)-e.Start] = rows[i].activation
	}
	for i := e.at + 1; i < len(rows) && rows[i].sequence == index && int(rows[i].offset) < e.End; i++ {
		e.Activations[int(rows[i].offset)-e.Start] = rows[i].activation
	}
}

// sample is a posting that was drawn by its hash.
type sample struct {
	hash uint64
	at   int
}

func (w *worker) sampleIntervals(l *Latent, rows []posting) {
	keep := w.options.ExamplesPerInterval
	if keep == 0 {
		return
	}
	var drawn [intervals][]sample
	top := float64(l.Max)
	seed := hash(w.options.Seed, saltInterval, uint64(l.Index))
	lastSequence, corpusSequence := int32(-1), uint64(0)
	for i := range rows {
		p := &rows[i]
		if p.flags&(flagEligible|flagTaken) != flagEligible {
			continue
		}
		if p.sequence != lastSequence {
			lastSequence = p.sequence
			corpusSequence = mix(seed ^ (uint64(w.ledger.sequence(int(p.sequence))) + golden))
		}
		s := sample{hash: mix(corpusSequence ^ (uint64(p.offset) + golden)), at: i}
		in := linearBin(float64(p.activation), top) / (linearBins / intervals)
		kept := drawn[in]
		if len(kept) == keep {
			if s.hash >= kept[keep-1].hash {
				continue
			}
			kept = kept[:keep-1]
		}
		to := len(kept)
		for to > 0 && kept[to-1].hash > s.hash {
			to--
		}
		drawn[in] = slices.Insert(kept, to, s)
	}
	rank := 0
	for in, kept := range drawn {
		for _, s := range kept {
			e := w.example(IntervalSample, rank, &rows[s.at])
			e.Interval = in
			e.at = s.at
			l.Examples = append(l.Examples, e)
			rank++
		}
	}
}

// triesForEach bounds the candidates for a non-firing window.
const triesForEach = 64

func (w *worker) sampleSilence(l *Latent, rows []posting) {
	ledger, o := w.ledger, w.options
	var taken []int
	for j := range uint64(triesForEach * o.NonFiring) {
		if len(taken) == o.NonFiring {
			return
		}
		index := int(hash(o.Seed, saltSequence, uint64(l.Index), j) % uint64(ledger.sequences()))
		if slices.Contains(taken, index) {
			continue
		}
		from := ledger.base[index]
		n := ledger.counted.count(from, ledger.base[index+1])
		if n == 0 {
			continue
		}
		nth := int(hash(o.Seed, saltPosition, uint64(l.Index), j) % uint64(n))
		offset := int(ledger.counted.nth(from, nth) - from)
		e := w.place(NonFiring, len(taken), index, offset)
		next := sort.Search(len(rows), func(i int) bool {
			p := &rows[i]
			return int(p.sequence) > index || int(p.sequence) == index && int(p.offset) >= e.Start
		})
		if next < len(rows) && int(rows[next].sequence) == index && int(rows[next].offset) < e.End {
			continue
		}
		taken = append(taken, index)
		l.Examples = append(l.Examples, e)
	}
}

// interpretability is the score of the systems that old clients know, from the first ten top examples (0 with
// fewer than two): 0.7 · consistency + 0.3 · sparsity, cut at 0 and 1. Consistency is the mean over pairs of the
// cosine of binary patterns (value ÷ the window's largest > 0.3) from the start of the window on, the
// shorter one padded with zeros. Sparsity: s is the mean share of a window's tokens with a value above 0.01;
// 1 for 0.1 ≤ s ≤ 0.3, s ÷ 0.1 below, max(0, (1 − s) ÷ 0.7) above. It does not tell a good latent from a
// random direction: never a headline.
func interpretability(examples []Example) float64 {
	const most = 10
	var patterns [most][]bool
	n := 0
	share := 0.0
	for _, e := range examples {
		if e.Kind != Top || n == most {
			break
		}
		largest := slices.Max(e.Activations)
		pattern := make([]bool, len(e.Activations))
		active := 0
		for i, a := range e.Activations {
			pattern[i] = float64(a)/float64(largest) > 0.3
			if float64(a) > 0.01 {
				active++
			}
		}
		share += float64(active) / float64(len(pattern))
		patterns[n] = pattern
		n++
	}
	if n < 2 {
		return 0
	}
	var cosines float64
	for i := range n {
		for j := range i {
			cosines += cosine(patterns[i], patterns[j])
		}
	}
	consistency := cosines / float64(n*(n-1)/2)
	sparsity := 1.0
	switch s := share / float64(n); {
	case s < 0.1:
		sparsity = s / 0.1
	case s > 0.3:
		sparsity = max(0, (1-s)/0.7)
	}
	return min(max(0.7*consistency+0.3*sparsity, 0), 1)
}

func cosine(a, b []bool) float64 {
	var na, nb, both int
	for i, v := range a {
		if v {
			na++
			if i < len(b) && b[i] {
				both++
			}
		}
	}
	for _, v := range b {
		if v {
			nb++
		}
	}
	if both == 0 {
		return 0
	}
	return float64(both) / math.Sqrt(float64(na)*float64(nb))
}
