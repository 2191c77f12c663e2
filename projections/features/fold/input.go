package fold

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/featuremill/featuremill/domain/corpus"
)

// ErrInput is wrapped when artifacts, corpus, vocabulary and options do not fit together.
var ErrInput = errors.New("fold input")

// Input is everything that the result depends on, and how to compute it.
type Input struct {
	// Artifacts in the order of their sequences (segment order). They must not overlap; there may be holes:
	// only the sequences of the given artifacts count.
	Artifacts  []Artifact
	Corpus     Corpus
	Vocabulary Vocabulary
	Latents    int // width of the SAE
	Options    Options

	// Merge writes neighbouring artifacts as one. It is called with up to 16 of them where there are more
	// than 64, and then with what it returned, so that a latent range is not gathered from thousands of files
	// and no more than 64 are open at once. What it returns is closed when it was merged, or at the end, if it is
	// an io.Closer. Nil: nothing is merged.
	Merge func(ctx context.Context, run []Artifact) (Artifact, error)

	// Beat is called again and again, from several goroutines; its error ends the fold. Nil: nobody wants to know.
	Beat func() error
}

func (in Input) heart() func() error {
	if in.Beat == nil {
		return func() error { return nil }
	}
	return in.Beat
}

// Artifact is the postings of one segment. Scan calls visit with runs of rows of the latents from … to-1
// in (latent, sequence, offset) order; the slices are valid until visit returns. It must be safe for
// concurrent use.
type Artifact interface {
	Span() (first, sequences int)
	Latents() int
	Scan(ctx context.Context, from, to uint32, visit func(latent, sequence []uint32, offset []uint16, activation []float32) error) error
	EachSink(visit func(sequence uint32, offset uint16))
}

// Corpus gives the sequences that were fed to the model. It is never called concurrently. A corpus of up to
// 16 Mi tokens is read once; a larger one is read again for each range of latents.
type Corpus interface {
	Sequences() int
	Sequence(i int) (corpus.Sequence, error)
}

// Vocabulary gives a token as the tokenizer's file spells it (Ġthe, ▁the, ##ing, <0x0A>), and says whether it
// is special. Ids are 0 … Len()-1.
type Vocabulary interface {
	Len() int
	Piece(id int32) string
	Special(id int32) bool
}

// Options choose which tokens count and which examples are kept.
type Options struct {
	// SkipFirst is the number of positions at the start of each sequence that do not count.
	SkipFirst int
	// Seqpos, if set, says instead which positions count.
	Seqpos *Seqpos
	// ExcludeTokens are ids that do not count.
	ExcludeTokens []int32

	TopExamples         int // at most so many top examples
	ExamplesPerInterval int
	NonFiring           int // windows in which the latent is silent
	Prefix, Suffix      int // tokens of a window before and after the prime token
	Filters             Filters
	TopTokens           int // at most so many rows in a latent's table of tokens
	Seed                uint64

	// Preview is for a run in progress: the statistics, and of the examples only the first five top ones.
	Preview bool

	Workers int // 0: one for each core
	// RangePostings is about how many postings a worker holds at once; 0: by their number, 16 Mi at most
	// in all workers together. One latent is always held whole.
	RangePostings int

	// residentTokens is up to how many tokens the corpus is kept in memory; 0: residentTokens.
	residentTokens int64
}

// Seqpos is Python's slice(start, stop, step) over the positions of a sequence. Nil is None; Step 0 is 1.
type Seqpos struct {
	Start, Stop *int
	Step        int
}

// Filters leave a token out as the prime token of top and interval examples. They never change a count.
// The text of a token is its piece decoded (byte-level, SentencePiece or WordPiece alphabet, found by what
// most pieces look like), without white space around it.
type Filters struct {
	Special    bool // special tokens
	SingleChar bool // one character or none, unless it is a Han ideograph
	// Punctuation: no letter and no number of any script.
	Punctuation bool
	// Numbers: nothing but numbers of any script.
	Numbers bool
	// Fragments: tokens that continue a word: they start with a letter (or an apostrophe and a letter)
	// without white space before it, of a script that puts spaces between words, and the token before it in
	// the document ends in a letter or number. Pieces of a character (invalid UTF-8) too.
	Fragments bool
	StopWords bool // common English function words
}

// DefaultOptions are those of a start request that sets nothing.
func DefaultOptions() Options {
	return Options{
		SkipFirst:           1,
		TopExamples:         100,
		ExamplesPerInterval: 5,
		NonFiring:           5,
		Prefix:              25,
		Suffix:              25,
		TopTokens:           100,
		Filters:             Filters{Special: true, SingleChar: true, Punctuation: true, Numbers: true, Fragments: true},
	}
}

const previewExamples = 5

func (o Options) effective() (Options, error) {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"skip_first", o.SkipFirst}, {"top_k_examples", o.TopExamples}, {"examples_per_interval", o.ExamplesPerInterval},
		{"non_firing", o.NonFiring}, {"context_prefix_tokens", o.Prefix}, {"context_suffix_tokens", o.Suffix},
		{"top tokens", o.TopTokens}, {"workers", o.Workers}, {"range postings", o.RangePostings},
	} {
		if f.value < 0 || f.value > math.MaxInt32 {
			return o, fmt.Errorf("%w: %s is %d, it must not be negative", ErrInput, f.name, f.value)
		}
	}
	if o.Seqpos != nil && o.Seqpos.Step < 0 {
		return o, fmt.Errorf("%w: seqpos_slice has the step %d, only positive ones have a meaning here", ErrInput, o.Seqpos.Step)
	}
	if o.Preview {
		o.TopExamples = min(o.TopExamples, previewExamples)
		o.ExamplesPerInterval, o.NonFiring = 0, 0
	}
	return o, nil
}

// counts reports, for a sequence of n tokens, whether a position may count, by position alone.
func (o Options) positions(n int) func(position int) bool {
	if o.Seqpos == nil {
		return func(p int) bool { return p >= o.SkipFirst }
	}
	bound := func(v *int, unset int) int {
		if v == nil {
			return unset
		}
		if *v < 0 {
			return max(0, *v+n)
		}
		return min(*v, n)
	}
	start, stop, step := bound(o.Seqpos.Start, 0), bound(o.Seqpos.Stop, n), max(1, o.Seqpos.Step)
	return func(p int) bool { return p >= start && p < stop && (p-start)%step == 0 }
}
