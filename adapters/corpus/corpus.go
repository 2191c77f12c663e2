package corpus

import (
	"fmt"
	"slices"
	"sort"

	"github.com/featuremill/featuremill/domain/corpus"
)

// Corpus joins the shards of a corpus, chunk after chunk, into one run of sequences. It is safe for concurrent
// use. What it keeps decoded is bounded, whatever the corpus's size.
type Corpus struct {
	shards []*Shard
	starts []int
	n      int
	tokens int64
}

// NewCorpus takes the shards of chunks 0 … n−1 of one corpus, in any order. Close closes them.
func NewCorpus(shards ...*Shard) (*Corpus, error) {
	c := &Corpus{shards: slices.Clone(shards)}
	sort.Slice(c.shards, func(a, b int) bool { return c.shards[a].meta.Chunk < c.shards[b].meta.Chunk })
	cache := newGroupCache(cacheBytes)
	for i, s := range c.shards {
		if s.meta.Chunk != i {
			return nil, fmt.Errorf("chunk %d of the corpus is not there: the next one is %s with chunk %d", i, s.name, s.meta.Chunk)
		}
		if s.meta.Corpus != c.shards[0].meta.Corpus {
			return nil, fmt.Errorf("%s belongs to corpus %s, not to %s", s.name, s.meta.Corpus, c.shards[0].meta.Corpus)
		}
		s.cache = cache
		c.starts = append(c.starts, c.n)
		c.n += s.meta.Sequences
		c.tokens += s.meta.Tokens
	}
	return c, nil
}

// Sequences is the number of sequences of all shards.
func (c *Corpus) Sequences() int { return c.n }

// Tokens is the number of tokens of all shards, inserted ones included.
func (c *Corpus) Tokens() int64 { return c.tokens }

// Sequence returns sequence i. Its slices are shared with other callers: do not change them.
func (c *Corpus) Sequence(i int) (corpus.Sequence, error) {
	if i < 0 || i >= c.n {
		return corpus.Sequence{}, fmt.Errorf("sequence %d is not in the corpus, which has %d", i, c.n)
	}
	shard := sort.Search(len(c.starts), func(s int) bool { return c.starts[s] > i }) - 1
	return c.shards[shard].Sequence(i - c.starts[shard])
}

// Close closes the shards.
func (c *Corpus) Close() error {
	var first error
	for _, s := range c.shards {
		if err := s.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
