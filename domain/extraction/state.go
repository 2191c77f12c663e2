package extraction

import (
	"maps"
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
	Recorded  map[int]Artifact
	Tokens    int64
	Postings  int64
	Failure   *Failed
}

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
	for i := range s.Segments() {
		if _, ok := s.Recorded[i]; ok {
			continue
		}
		if n := len(out); n > 0 && out[n-1].To == i {
			out[n-1].To++
		} else {
			out = append(out, Run{From: i, To: i + 1})
		}
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
		recorded := maps.Clone(s.Recorded)
		if recorded == nil {
			recorded = map[int]Artifact{}
		}
		recorded[e.Index] = e.Artifact
		s.Recorded = recorded
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
