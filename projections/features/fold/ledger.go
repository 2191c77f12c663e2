package fold

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"sort"

	"github.com/featuremill/featuremill/domain/corpus"
)

// ledger is what a fold keeps of the corpus for as long as it runs: two bits a token and some twenty bytes a
// sequence. Token ids are kept too if the corpus is small (see blocks).
//
// Covered sequences and their tokens are numbered without holes: sequence 0 is the first of the first span.
type ledger struct {
	spans     []span
	base      []int64 // of each sequence, the number of its first token; one more at the end
	piece     []int32 // of each sequence, its first in pieces; one more at the end
	pieces    []piece
	counted   bitmap
	sinks     bitmap
	documents documents

	occurrences   []int64 // of each token id, on counted tokens
	countedTokens int64
	sinkTokens    int64 // counted ones
}

// span is a run of covered sequences: first … first+count-1 of the corpus are index … of the ledger.
type span struct {
	first, count, index int
}

type piece struct {
	start    int32 // offset in the sequence of the first token that belongs to it
	document int32
}

type documents struct {
	rows    []int64
	counted []int64 // counted tokens of each
	rank    []int32 // of each, its place by row
	byRank  []int32
	squares uint64          // Σ counted²
	filled  int             // documents with a counted token
	byRow   map[int64]int32 // while they are collected
}

// newLedger reads the covered sequences once.
func newLedger(in Input, o Options) (*ledger, error) {
	l := &ledger{base: []int64{0}, piece: []int32{0}, occurrences: make([]int64, in.Vocabulary.Len())}
	excluded := make(map[int32]bool, len(o.ExcludeTokens))
	for _, id := range o.ExcludeTokens {
		excluded[id] = true
	}
	end, beat := 0, in.heart()
	for i, a := range in.Artifacts {
		first, count := a.Span()
		switch {
		case a.Latents() != in.Latents:
			return nil, fmt.Errorf("%w: artifact %d has %d latents, the SAE has %d", ErrInput, i, a.Latents(), in.Latents)
		case count < 0 || first < end:
			return nil, fmt.Errorf("%w: artifact %d starts at sequence %d, before the end of the one before it (%d)", ErrInput, i, first, end)
		case first > in.Corpus.Sequences() || count > in.Corpus.Sequences()-first:
			return nil, fmt.Errorf("%w: artifact %d covers the sequences %d … %d, the corpus has %d", ErrInput, i, first, first+count-1, in.Corpus.Sequences())
		}
		if err := beat(); err != nil {
			return nil, err
		}
		end = first + count
		l.spans = append(l.spans, span{first: first, count: count, index: l.sequences()})
		for s := first; s < end; s++ {
			sequence, err := in.Corpus.Sequence(s)
			if err != nil {
				return nil, fmt.Errorf("read sequence %d of the corpus: %w", s, err)
			}
			if err := l.add(sequence, o, excluded); err != nil {
				return nil, fmt.Errorf("%w: sequence %d of the corpus: %w", ErrInput, s, err)
			}
		}
	}
	l.documents.finish()
	l.sinks.resize(l.tokens())
	for i, a := range in.Artifacts {
		var err error
		a.EachSink(func(sequence uint32, offset uint16) {
			s := l.spans[i]
			at := int(sequence) - s.first
			if at < 0 || at >= s.count || int(offset) >= l.length(s.index+at) {
				err = fmt.Errorf("%w: artifact %d has a sink at sequence %d, offset %d, where it has no token", ErrInput, i, sequence, offset)
				return
			}
			token := l.base[s.index+at] + int64(offset)
			if !l.sinks.has(token) {
				l.sinks.set(token)
				if l.counted.has(token) {
					l.sinkTokens++
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

const maxSequenceLength = 1 << 16 // an offset is a uint16

func (l *ledger) add(s corpus.Sequence, o Options, excluded map[int32]bool) error {
	n := len(s.Tokens)
	switch {
	case n == 0 || n > maxSequenceLength:
		return fmt.Errorf("%d tokens, expected 1 … %d", n, maxSequenceLength)
	case len(s.Pieces) == 0:
		return fmt.Errorf("no piece: its row is unknown")
	}
	base := l.tokens()
	l.counted.resize(base + int64(n))
	positions := o.positions(n)
	inserted := s.Inserted
	current, document := 0, l.documents.of(s.Pieces[0].Row)
	l.pieces = append(l.pieces, piece{start: 0, document: document})
	for p, id := range s.Tokens {
		if id < 0 || int(id) >= len(l.occurrences) {
			return fmt.Errorf("token id %d, the vocabulary has %d", id, len(l.occurrences))
		}
		for current+1 < len(s.Pieces) && s.Pieces[current+1].Token <= p {
			current++
			document = l.documents.of(s.Pieces[current].Row)
			l.pieces = append(l.pieces, piece{start: int32(p), document: document})
		}
		if len(inserted) > 0 && inserted[0] == p {
			inserted = inserted[1:]
			continue
		}
		if !positions(p) || excluded[id] {
			continue
		}
		l.counted.set(base + int64(p))
		l.countedTokens++
		l.occurrences[id]++
		l.documents.counted[document]++
	}
	if len(inserted) > 0 {
		return fmt.Errorf("inserted offsets %v are not ascending offsets of its %d tokens", s.Inserted, n)
	}
	if got := len(l.pieces) - int(l.piece[len(l.piece)-1]); got != len(s.Pieces) {
		return fmt.Errorf("%d pieces start inside of it, it has %d", got, len(s.Pieces))
	}
	l.base = append(l.base, base+int64(n))
	l.piece = append(l.piece, int32(len(l.pieces)))
	return nil
}

func (l *ledger) sequences() int       { return len(l.base) - 1 }
func (l *ledger) tokens() int64        { return l.base[len(l.base)-1] }
func (l *ledger) length(index int) int { return int(l.base[index+1] - l.base[index]) }
func (l *ledger) sequence(index int) int { // its number in the corpus
	i := sort.Search(len(l.spans), func(i int) bool { return l.spans[i].index+l.spans[i].count > index })
	return l.spans[i].first + index - l.spans[i].index
}

// bounds returns the piece of a token, its index in the sequence and where its document starts and ends there.
func (l *ledger) bounds(index, offset int) (p piece, at, start, end int) {
	pieces := l.pieces[l.piece[index]:l.piece[index+1]]
	at = len(pieces) - 1
	for at > 0 && int(pieces[at].start) > offset {
		at--
	}
	end = l.length(index)
	if at+1 < len(pieces) {
		end = int(pieces[at+1].start)
	}
	return pieces[at], at, int(pieces[at].start), end
}

// of returns the number of a row's document, a new one for a new row.
func (d *documents) of(row int64) int32 {
	if n := len(d.rows); n > 0 && d.rows[n-1] == row {
		return int32(n - 1)
	}
	if d.byRow == nil {
		d.byRow = map[int64]int32{}
	}
	document, ok := d.byRow[row]
	if !ok {
		document = int32(len(d.rows))
		d.byRow[row] = document
		d.rows = append(d.rows, row)
		d.counted = append(d.counted, 0)
	}
	return document
}

func (d *documents) finish() {
	d.byRow = nil
	d.byRank = make([]int32, len(d.rows))
	for i := range d.byRank {
		d.byRank[i] = int32(i)
	}
	slices.SortFunc(d.byRank, func(a, b int32) int { return cmp.Compare(d.rows[a], d.rows[b]) })
	d.rank = make([]int32, len(d.rows))
	for place, document := range d.byRank {
		d.rank[document] = int32(place)
	}
	for _, n := range d.counted {
		d.squares += uint64(n) * uint64(n)
		if n > 0 {
			d.filled++
		}
	}
}

type bitmap []uint64

func (b *bitmap) resize(n int64) {
	for int64(len(*b))*64 < n {
		*b = append(*b, 0)
	}
}

func (b bitmap) set(i int64)      { b[i>>6] |= 1 << (i & 63) }
func (b bitmap) has(i int64) bool { return b[i>>6]>>(i&63)&1 == 1 }

// count is the number of ones in from … to-1.
func (b bitmap) count(from, to int64) int {
	n := 0
	for i := from; i < to; {
		step := min(to-i, 64-i&63)
		n += bits.OnesCount64(b[i>>6] >> (i & 63) << (64 - step))
		i += step
	}
	return n
}

// nth is the place of the n-th one at or after from, which must exist.
func (b bitmap) nth(from int64, n int) int64 {
	for i := from; ; i++ {
		if b.has(i) {
			if n == 0 {
				return i
			}
			n--
		}
	}
}
