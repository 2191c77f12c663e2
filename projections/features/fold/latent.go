package fold

// Words used below.
//
//   - A token is *counted* if it was not inserted by the corpus builder, its position is not masked
//     (Options.SkipFirst or Options.Seqpos) and its id is not in Options.ExcludeTokens.
//   - A *firing* is a posting on a counted token. Every number below is over firings, unless it says otherwise.
//   - A *sink* is a token that the artifact lists as one. Firings on sinks are firings, never prime tokens.
//   - A *document* is a row of the dataset, however many sequences it was cut into. A token belongs to the
//     document of its piece (corpus.Sequence.Document).
//   - The covered sequences are those of the given artifacts, numbered in ascending order.

// Latent is a latent seen through an extraction. A latent without firings (dead) is all zeros but for
// Index and Interval.
type Latent struct {
	Index   int
	Firings int64

	// Density is Firings ÷ counted tokens.
	Density float64
	// Interval is the 95 % interval of the density, nil where there is none: with one to four firing
	// documents, or without any counted token.
	Interval *Interval

	FiringSequences int64 // covered sequences with a firing
	FiringDocuments int64 // documents with a firing
	// ActivationFrequency is FiringSequences ÷ covered sequences.
	ActivationFrequency float64

	Max  float32
	Mean float64
	Std  float64 // of the population

	// Quantiles are the values at QuantilePercents: sorted[⌈p·n⌉ − 1].
	Quantiles [len(QuantilePercents)]float32
	// LogHistogram counts firings by float32 bits >> 21 (four bins an octave, the same for all latents),
	// without empty bins, ascending.
	LogHistogram []LogBin
	// LinearHistogram counts firings in 50 bins of equal width: a value x is in bin ⌈x·50/Max⌉ − 1, computed
	// in float64; bin b is (b·Max/50, (b+1)·Max/50].
	LinearHistogram [linearBins]int64
	// IntervalShares are the shares of firings in 5 intervals of (0, Max]: ten linear bins each.
	IntervalShares [intervals]float64

	SinkFirings int64   // firings on sinks
	SinkShare   float64 // SinkFirings ÷ Firings

	// Tokens are the ids that the latent fires on, by Count, then id; at most Options.TopTokens.
	Tokens         []Token
	DistinctTokens int // how many ids there are in all

	// InterpretabilityScore is what old clients know by this name (see interpretability).
	InterpretabilityScore float64

	Examples []Example // by Kind (top, interval, non_firing), then Rank
}

// Dead reports whether the latent has no firing.
func (l *Latent) Dead() bool { return l.Firings == 0 }

// QuantilePercents are the p of Latent.Quantiles in percent.
var QuantilePercents = [9]int{1, 5, 10, 25, 50, 75, 90, 95, 99}

const (
	linearBins = 50
	intervals  = 5
)

// Interval of the density. With five or more firing documents it is the normal 95 % interval of the
// document-clustered ratio estimator, cut at 0 and 1: with y firings and n counted tokens in each of the D
// documents that have a counted token, N = Σn, p = Σy ÷ N,
//
//	p ± 1.959963984540054 · sqrt(D÷(D−1) · Σ(y − p·n)²) ÷ N
//
// (Cochran, Sampling Techniques, 6.3). Without a firing it is 0 … min(1, 3÷N), the rule of three.
type Interval struct {
	Low, High float64
}

// LogBin is a bin of Latent.LogHistogram; it starts at math.Float32frombits(Bin << 21).
type LogBin struct {
	Bin   uint32
	Count int64
}

// Token is a row of the table of tokens of a latent.
type Token struct {
	ID    int32
	Count int64   // firings on this token
	Share float64 // Count ÷ Firings of the latent
	Rate  float64 // Count ÷ counted occurrences of the token
	Mean  float64 // mean activation of these firings
}

// Kind of an example.
type Kind string

// The kinds, in the order of Latent.Examples.
//
//   - Top: of each document the strongest eligible firing (equal ones: the first in the corpus), strongest
//     first, equal ones by row. Of those with equal prime token and equal 8 preceding ids (in the same
//     sequence and document; fewer where there are fewer) only the first is kept, with their number in
//     Collapsed. Then the first Options.TopExamples. A firing is eligible if it is not on a sink and no
//     filter leaves its token out.
//   - IntervalSample: of each interval (see Latent.IntervalShares), lowest first, the eligible firings with
//     the smallest hash(Seed, 1, latent, sequence, offset), smallest first, at most
//     Options.ExamplesPerInterval; none of the Top ones.
//   - NonFiring: for j = 0, 1, …, at most 64 · Options.NonFiring tries, the covered sequence number
//     hash(Seed, 2, latent, j) mod (covered sequences) is taken, with the window around its counted token
//     number hash(Seed, 3, latent, j) mod (its counted tokens), if the latent has no posting in that
//     window, on counted tokens or others, and the sequence was not taken before. None for dead latents.
const (
	Top            Kind = "top"
	IntervalSample Kind = "interval"
	NonFiring      Kind = "non_firing"
)

// Example is a prime token with its window. Its tokens are Tokens[Start:End] of the corpus's sequence.
type Example struct {
	Kind     Kind
	Rank     int // 0, 1, … in each kind
	Interval int // 0 … 4 for IntervalSample, else -1

	Activation float32 // of the prime token; 0 for NonFiring
	Row        int64   // row of the dataset (sample_index)
	Sequence   int     // number in the corpus
	Offset     int     // of the prime token in the sequence
	Piece      int     // index of the prime token's piece in the sequence

	// Start and End bound the window: Prefix tokens before the prime token, Suffix after it, cut at the
	// sequence and at the document. Inserted tokens at the start of a sequence belong to its first document.
	Start, End int
	// Activations are the latent's values on the tokens of the window, counted or not; 0 where it is silent.
	Activations []float32
	// Collapsed is the number of documents whose strongest eligible firing has the same prime token and 8
	// preceding ids, this one included ("×n"). 1 for other kinds.
	Collapsed int

	at int // the prime token's place in the latent's postings, while the fold works on it
}

// Summary of an extraction.
type Summary struct {
	Latents, Alive, Dead int

	Sequences        int   // covered sequences
	Tokens           int64 // tokens of the covered sequences, counted or not
	CountedTokens    int64
	SinkTokens       int64 // counted tokens that are sinks
	Documents        int   // documents with a token in a covered sequence
	CountedDocuments int   // documents with a counted token
	Postings         int64 // counted or not
	Firings          int64

	// LogDensity is the histogram of log10 density of the alive latents, without empty bins, ascending.
	LogDensity []DensityBin
	// L0 is the distribution of the number of latents that fire on a counted token, without empty bins,
	// ascending; tokens on which none fires are in it.
	L0     []L0Bin
	MeanL0 float64 // Firings ÷ CountedTokens

	borders []float64 // of the density bins, while they are counted
}

// DensityBin counts latents whose density is in [10^(Bin/10), 10^((Bin+1)/10)). Bin runs from -120; what is
// below is in it, and 1 is in bin 0. The borders are the float64 nearest to 10^(k/10).
type DensityBin struct {
	Bin     int
	Latents int
}

// L0Bin counts the counted tokens on which L0 latents fire.
type L0Bin struct {
	L0     int
	Tokens int64
}
