package extraction

import (
	"fmt"
	"math"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/problem"
)

// What one segment is at most: small enough that a worker which is lost loses little, and that its postings fit in memory.
const (
	maxSegmentTokens   = 32_768
	maxSegmentPostings = 8 << 20
	minSegments        = 8    // where there are as many batches: several workers can share even a short run
	batchTokens        = 4096 // of one forward, where the batch size is auto
)

// MaxSegments is how many segments a run may have, extensions included: with short sequences, two billion tokens. Every
// step carries so many: the state, its events, the work and the fold.
const MaxSegments = 65_536

// Lengths of a sequence that a request may ask for, and of one where nobody says anything; in tokens.
const (
	minContext     = 16
	maxContext     = 8192
	defaultContext = 128
)

// MaxSequences is how many sequences a run may have: those of the shortest context, in segments that are full. A longer one
// has room for fewer.
const MaxSequences = MaxSegments * maxSegmentTokens / minContext

// Context is the length in tokens at which sequences are cut: what the request says, else what the SAE was trained with
// (0 = not known), else 128; and no more than the model can take (0 = not known), nor an artifact.
func (c Config) Context(sae, model int) int {
	n := c.ContextLength
	if n == 0 {
		n = sae
	}
	if n == 0 {
		n = defaultContext
	}
	if model > 0 {
		n = min(n, model)
	}
	return min(n, corpus.MaxContextLength)
}

// tooMany is the code of a refusal of more than MaxSegments.
const tooMany = "too_many_segments"

// Size is what decides how a run is cut into segments: never a measured speed, so that two runs have equal plans.
type Size struct {
	Context int     // tokens of a sequence
	Batch   int     // sequences of a forward; 0 = auto
	L0      float64 // postings a token, measured or published; not above 0 = not known
}

// BatchSize is the number of sequences in one forward.
func (z Size) BatchSize() int {
	if z.Batch > 0 {
		return z.Batch
	}
	return max(1, min(256, batchTokens/max(1, z.Context)))
}

// SequencesPerSegment is how many sequences go into a segment, of so many that are to be planned.
func (z Size) SequencesPerSegment(sequences int) int {
	batch := z.BatchSize()
	tokens := maxSegmentTokens
	if z.L0 > 0 && !math.IsInf(z.L0, 0) {
		tokens = min(tokens, int(maxSegmentPostings/z.L0))
	}
	size := max(1, tokens/max(1, z.Context))
	if batches := (sequences + batch - 1) / batch; batches >= minSegments {
		size = min(size, (sequences+minSegments-1)/minSegments)
	}
	if size > batch {
		size -= size % batch // whole batches, so that no forward is run for a rest
	}
	return size
}

// Most is how many sequences fit in so many segments.
func (z Size) Most(segments int) int {
	if segments < 1 {
		return 0
	}
	// No segment is larger than one of a run without end; only very few segments may be smaller ones.
	n := segments * z.SequencesPerSegment(MaxSequences)
	for n > 0 && !z.fits(n, segments) {
		n--
	}
	return n
}

// Size is how the next part of the run is cut: in batches of the part before, by the L0 that the self-test has measured.
func (s State) Size(context int) Size {
	z := Size{Context: context, Batch: s.Request.Config.BatchSize}
	if s.BatchSize > 0 {
		z.Batch = s.BatchSize
	}
	if s.SelfTest != nil {
		z.L0 = s.SelfTest.SelfTest.L0All
	}
	return z
}

func (z Size) fits(sequences, segments int) bool {
	return Part{Sequences: sequences, SequencesPerSegment: z.SequencesPerSegment(sequences)}.Segments() <= segments
}

// Fits refuses more sequences, in all, than this run has room for after what is planned. The refusal says how many would do.
func (s State) Fits(z Size, sequences int) error {
	planned, _ := s.Planned()
	left := MaxSegments - s.Segments()
	if sequences <= planned || z.fits(sequences-planned, left) {
		return nil
	}
	most := planned + z.Most(left)
	why := ""
	if z.L0 > 0 {
		why = fmt.Sprintf(" and %.4g active latents a token", z.L0)
	}
	e := problem.InvalidFields(tooMany, problem.Field{Name: "evaluation_samples", Detail: fmt.Sprintf(
		"%d sequences of up to %d tokens%s need more than the %d segments that a run may have: at most %d work", sequences, z.Context, why, MaxSegments, most)})
	return e.With("max_evaluation_samples", most)
}
