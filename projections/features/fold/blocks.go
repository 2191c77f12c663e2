package fold

import (
	"cmp"
	"fmt"
	"sync"
)

// tokenFlags are the bits of a token that a posting on it inherits.
type tokenFlags uint8

const (
	flagCounted  tokenFlags = 1 << iota
	flagEligible            // may be a prime token: counted, no sink, no filter leaves it out
	flagSink                // counted, and a sink
	flagTaken               // of a posting: it is a top example
)

// block is what postings need to know of the tokens of one part (an artifact or a run of them). Its arrays are
// indexed by a token's number in the ledger less first.
type block struct {
	first   int64
	tokens  []int32
	flags   []tokenFlags
	context []uint64 // hash of the token and its 8 predecessors in the document
}

const contextTokens = 8

// residentTokens is up to how many tokens blocks are kept (13 bytes each); a larger corpus is read again and again.
const residentTokens = 16 << 20

// blocks gives the block of a part.
type blocks struct {
	ledger  *ledger
	corpus  Corpus
	traits  []traits
	filters Filters

	mu   sync.Mutex // the corpus is not read concurrently
	kept map[int]*block
	keep bool
}

func newBlocks(l *ledger, in Input, o Options) *blocks {
	return &blocks{
		ledger:  l,
		corpus:  in.Corpus,
		traits:  vocabularyTraits(in.Vocabulary),
		filters: o.Filters,
		keep:    l.tokens() <= cmp.Or(o.residentTokens, residentTokens),
		kept:    map[int]*block{},
	}
}

// of returns the block of the spans from … to-1.
func (b *blocks) of(from, to int) (*block, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if kept, ok := b.kept[from]; ok {
		return kept, nil
	}
	l := b.ledger
	first, last := l.spans[from].index, l.spans[to-1].index+l.spans[to-1].count
	start, n := l.base[first], l.base[last]-l.base[first]
	k := &block{first: start, tokens: make([]int32, 0, n), flags: make([]tokenFlags, n), context: make([]uint64, n)}
	for _, s := range l.spans[from:to] {
		for i := range s.count {
			sequence, err := b.corpus.Sequence(s.first + i)
			if err != nil {
				return nil, fmt.Errorf("read sequence %d of the corpus: %w", s.first+i, err)
			}
			if len(sequence.Tokens) != l.length(s.index+i) {
				return nil, fmt.Errorf("%w: sequence %d of the corpus had %d tokens and now has %d", ErrInput, s.first+i, l.length(s.index+i), len(sequence.Tokens))
			}
			b.describe(k, s.index+i, sequence.Tokens)
		}
	}
	if b.keep {
		b.kept[from] = k
	}
	return k, nil
}

// describe adds a sequence to a block.
func (b *blocks) describe(k *block, index int, tokens []int32) {
	l := b.ledger
	at := len(k.tokens)
	k.tokens = append(k.tokens, tokens...)
	pieces := l.pieces[l.piece[index]:l.piece[index+1]]
	junk := b.filters.traits()
	start, next := 0, 1
	for p, id := range tokens {
		for next < len(pieces) && int(pieces[next].start) <= p {
			start = int(pieces[next].start)
			next++
		}
		h := mix(golden + saltContext)
		for _, v := range tokens[max(start, p-contextTokens) : p+1] {
			h = mix(h ^ (uint64(v) + golden))
		}
		k.context[at+p] = h
		token := l.base[index] + int64(p)
		if !l.counted.has(token) {
			continue
		}
		k.flags[at+p] = flagCounted
		if l.sinks.has(token) {
			k.flags[at+p] |= flagSink
			continue
		}
		if b.traits[id]&junk != 0 || b.filters.Fragments && p > start && b.traits[id]&continuesWord != 0 && b.traits[tokens[p-1]]&endsInWord != 0 {
			continue
		}
		k.flags[at+p] |= flagEligible
	}
}
