package fold

import (
	"math"
	"slices"
)

// latent folds the postings of one latent.
func (w *worker) latent(index int, rows []posting) *Latent {
	l := &Latent{Index: index}
	sum := w.count(l, rows)
	l.Interval = w.interval(l)
	if covered := w.ledger.sequences(); covered > 0 {
		l.ActivationFrequency = float64(l.FiringSequences) / float64(covered)
	}
	if n := l.Firings; n > 0 {
		l.Density = float64(n) / float64(w.ledger.countedTokens)
		l.Mean = sum / float64(n)
		l.SinkShare = float64(l.SinkFirings) / float64(n)
		w.spread(l)
		w.quantiles(l)
		w.tokenTable(l)
		w.examples(l, rows)
		l.InterpretabilityScore = interpretability(l.Examples)
	}
	w.clear()
	return l
}

// sumBlock values are added up before they are added to the rest: the error of a float64 sum then grows with
// n ÷ sumBlock. The order is that of the corpus, whatever the segments.
const sumBlock = 1024

// count goes over the postings once and fills the worker's tables. It returns the sum of the firings.
func (w *worker) count(l *Latent, rows []posting) float64 {
	ledger := w.ledger
	var sum, blockSum float64
	sequence, document := int32(-1), int32(0)
	pieces := 1
	w.values = w.values[:0]
	for i := range rows {
		p := &rows[i]
		if p.flags&flagCounted == 0 {
			continue
		}
		bits := math.Float32bits(p.activation)
		w.values = append(w.values, bits)
		w.bins[bits>>21]++
		blockSum += float64(p.activation)
		if len(w.values)%sumBlock == 0 {
			sum += blockSum
			blockSum = 0
		}
		l.Max = max(l.Max, p.activation)
		if p.flags&flagSink != 0 {
			l.SinkFirings++
		}
		if p.sequence != sequence {
			sequence = p.sequence
			l.FiringSequences++
			first := ledger.piece[sequence]
			pieces = int(ledger.piece[sequence+1] - first)
			document = ledger.pieces[first].document
		}
		if pieces > 1 {
			at, _, _, _ := ledger.bounds(int(sequence), int(p.offset))
			document = at.document
		}
		if w.firings[document] == 0 {
			w.documents = append(w.documents, document)
		}
		w.firings[document]++
		if p.flags&flagEligible != 0 {
			if best := w.best[document]; best == 0 || p.activation > rows[best-1].activation {
				w.best[document] = int32(i + 1)
			}
		}
		if w.tokenCount[p.token] == 0 {
			w.tokens = append(w.tokens, p.token)
		}
		w.tokenCount[p.token]++
		w.tokenSum[p.token] += float64(p.activation)
	}
	l.Firings = int64(len(w.values))
	l.FiringDocuments = int64(len(w.documents))
	l.DistinctTokens = len(w.tokens)
	return sum + blockSum
}

// clear empties the tables for the next latent.
func (w *worker) clear() {
	for _, d := range w.documents {
		w.firings[d], w.best[d] = 0, 0
	}
	for _, t := range w.tokens {
		w.tokenCount[t], w.tokenSum[t] = 0, 0
	}
	w.documents, w.tokens = w.documents[:0], w.tokens[:0]
	clear(w.bins)
}

// spread computes the standard deviation and the linear histogram.
func (w *worker) spread(l *Latent) {
	var sum, blockSum float64
	top := float64(l.Max)
	for i, bits := range w.values {
		x := float64(math.Float32frombits(bits))
		d := x - l.Mean
		blockSum += d * d
		if i%sumBlock == sumBlock-1 {
			sum += blockSum
			blockSum = 0
		}
		l.LinearHistogram[linearBin(x, top)]++
	}
	l.Std = math.Sqrt((sum + blockSum) / float64(l.Firings))
	for i := range intervals {
		n := int64(0)
		for _, c := range l.LinearHistogram[i*linearBins/intervals : (i+1)*linearBins/intervals] {
			n += c
		}
		l.IntervalShares[i] = float64(n) / float64(l.Firings)
	}
}

func linearBin(x, top float64) int {
	return min(max(int(math.Ceil(x*linearBins/top))-1, 0), linearBins-1)
}

// zNormal is the 97.5 % point of the normal distribution.
const zNormal = 1.959963984540054

// minDocuments is from how many firing documents on the density gets an interval.
const minDocuments = 5

func (w *worker) interval(l *Latent) *Interval {
	n := float64(w.ledger.countedTokens)
	switch {
	case n == 0:
		return nil
	case l.Firings == 0:
		return &Interval{High: min(1, 3/n)}
	case l.FiringDocuments < minDocuments:
		return nil
	}
	d := &w.ledger.documents
	p := float64(l.Firings) / n
	silent := d.squares // Σ counted² of the documents without a firing: there y − p·n is −p·n
	var sum float64
	for _, document := range w.documents {
		tokens := d.counted[document]
		e := float64(w.firings[document]) - p*float64(tokens)
		sum += e * e
		silent -= uint64(tokens) * uint64(tokens)
	}
	sum += p * p * float64(silent)
	count := float64(d.filled)
	e := zNormal * math.Sqrt(count/(count-1)*sum) / n
	return &Interval{Low: max(0, p-e), High: min(1, p+e)}
}

func (w *worker) quantiles(l *Latent) {
	for bin, n := range w.bins {
		if n > 0 {
			l.LogHistogram = append(l.LogHistogram, LogBin{Bin: uint32(bin), Count: n})
		}
	}
	var ranks [len(QuantilePercents)]int
	for i, p := range QuantilePercents {
		ranks[i] = int((int64(p)*l.Firings+99)/100) - 1
	}
	if cap(w.scratch) < 2*len(w.values) {
		w.scratch = make([]uint32, 2*len(w.values))
	}
	var found [len(QuantilePercents)]uint32
	selectRanks(w.values, w.scratch, ranks[:], found[:], 31)
	for i, bits := range found {
		l.Quantiles[i] = math.Float32frombits(bits)
	}
}

// selectRanks writes into found the values that sorted values have at the ascending ranks: a radix select by
// the eight bits below top, and within their bin by the next ones. Float bits of positive numbers sort like the numbers. It
// reorders values and ranks.
func selectRanks(values, scratch []uint32, ranks []int, found []uint32, top int) {
	if len(values) <= 128 || top <= 0 {
		slices.Sort(values)
		for i, r := range ranks {
			found[i] = values[r]
		}
		return
	}
	shift := max(top-8, 0)
	var counts [256]int32
	for _, v := range values {
		counts[v>>shift&255]++
	}
	before := 0
	for bin := 0; len(ranks) > 0; bin++ {
		n := int(counts[bin])
		in := 0
		for in < len(ranks) && ranks[in] < before+n {
			ranks[in] -= before
			in++
		}
		if in > 0 {
			if n == len(values) {
				selectRanks(values, scratch, ranks[:in], found[:in], shift)
				return
			}
			picked := scratch[:0]
			for _, v := range values {
				if v>>shift&255 == uint32(bin) {
					picked = append(picked, v)
				}
			}
			selectRanks(picked, picked[n:], ranks[:in], found[:in], shift)
			ranks, found = ranks[in:], found[in:]
		}
		before += n
	}
}

// tokenTable lists the tokens of the firings.
func (w *worker) tokenTable(l *Latent) {
	keep := min(w.options.TopTokens, len(w.tokens))
	if keep == 0 {
		return
	}
	w.order = w.order[:0]
	for _, id := range w.tokens { // ascending: the larger count first, then by id
		w.order = append(w.order, uint64(math.MaxUint32-w.tokenCount[id])<<32|uint64(id))
	}
	l.Tokens = make([]Token, keep)
	for i, key := range smallest(w.order, keep) {
		id := int32(uint32(key))
		n := w.tokenCount[id]
		l.Tokens[i] = Token{
			ID:    id,
			Count: n,
			Share: float64(n) / float64(l.Firings),
			Rate:  float64(n) / float64(w.ledger.occurrences[id]),
			Mean:  w.tokenSum[id] / float64(n),
		}
	}
}
