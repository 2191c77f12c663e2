package extraction

import (
	"slices"

	"github.com/featuremill/featuremill/domain/event"
)

// Status is where an extraction stands. "finalizing" is not one of them: it is a completed extraction
// whose tables are not folded yet, which only a reader of both can know.
type Status string

// The states of an extraction.
const (
	Absent          Status = ""
	Queued          Status = "queued"     // until it has a plan
	Extracting      Status = "extracting" // segments are computed
	StatusCompleted Status = "completed"
	StatusFailed    Status = "failed"
	StatusCancelled Status = "cancelled"
	StatusDeleted   Status = "deleted"
)

// Active reports whether the extraction holds its source.
func (s Status) Active() bool { return s == Queued || s == Extracting }

// Terminal reports whether the extraction has ended, for now or for good.
func (s Status) Terminal() bool {
	return s == StatusCompleted || s == StatusFailed || s == StatusCancelled || s == StatusDeleted
}

// State is a folded extraction.
type State struct {
	Request   Requested
	Status    Status
	SelfTest  *SelfTested
	CorpusID  string
	BatchSize int
	Profile   ComputeProfile
	Parts     []Part
	Wanted    int // evaluation_samples, as extended
	NeedsPlan bool
	Recorded  Recorded
	Tokens    int64
	Postings  int64
	Failure   *Failed
}

// Bytes is about what the state takes in memory.
func (s State) Bytes() int { return 4<<10 + bytesPerSegment*s.Recorded.Len() }

// bytesPerSegment is an artifact with its two digests as text.
const bytesPerSegment = 256

// Segments is the number of planned segments.
func (s State) Segments() int {
	n := 0
	for _, p := range s.Parts {
		n += p.Segments()
	}
	return n
}

// Planned is the number of planned sequences and tokens.
func (s State) Planned() (sequences int, tokens int64) {
	for _, p := range s.Parts {
		sequences += p.Sequences
		tokens += p.Tokens
	}
	return sequences, tokens
}

// Range returns the sequences of a segment; ok is false if the plan has no such segment.
func (s State) Range(index int) (first, count int, ok bool) {
	for _, p := range s.Parts {
		if i := index - p.FirstSegment; i >= 0 && i < p.Segments() {
			first := p.FirstSequence + i*p.SequencesPerSegment
			return first, min(p.SequencesPerSegment, p.FirstSequence+p.Sequences-first), true
		}
	}
	return 0, 0, false
}

// Missing returns the planned segments that are not recorded, as runs in order.
func (s State) Missing() []Run {
	var out []Run
	next := 0
	for i := range s.Recorded.All() {
		if i > next {
			out = append(out, Run{From: next, To: i})
		}
		next = i + 1
	}
	if n := s.Segments(); n > next {
		out = append(out, Run{From: next, To: n})
	}
	return out
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Requested:
		s.Request, s.Status, s.Wanted, s.NeedsPlan = e, Queued, e.Config.EvaluationSamples, true
	case SelfTested:
		s.SelfTest = &e
	case Planned:
		s.CorpusID, s.BatchSize, s.Profile = e.CorpusID, e.BatchSize, e.Profile
		s.Parts = append(slices.Clip(s.Parts), e.Part)
		s.Status, s.NeedsPlan = Extracting, false
	case SegmentRecorded:
		s.Recorded = s.Recorded.With(e.Index, e.Artifact)
		s.Tokens += e.Tokens
		s.Postings += e.Artifact.Postings
	case Completed:
		s.Status = StatusCompleted
	case Failed:
		s.Status, s.Failure = StatusFailed, &e
	case Cancelled:
		s.Status = StatusCancelled
	case Resumed:
		s.Failure = nil
		if e.Plan {
			s.Status = Queued
		} else {
			s.Status = Extracting
		}
	case Extended:
		s.Wanted, s.NeedsPlan, s.Status, s.Failure = e.EvaluationSamples, true, Queued, nil
	case Deleted:
		s.Status = StatusDeleted
	}
	return s
}
