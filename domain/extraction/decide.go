package extraction

import (
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/problem"
)

// SegmentMismatchError says that a segment was computed twice inside one profile with two results.
// The event that alarms is in Events.
type SegmentMismatchError struct {
	Segment           int
	Recorded, Offered string
}

func (e *SegmentMismatchError) Error() string {
	return fmt.Sprintf("segment %d is recorded with content %.12s…, and was now computed as %.12s…: the first result stands", e.Segment, e.Recorded, e.Offered)
}

// NotFound says that there is no such extraction.
func NotFound(id string) error {
	return problem.New(problem.NotFound, "extraction_not_found", "there is no extraction %s", id)
}

func (s State) exists(id string) error {
	if s.Status == Absent || s.Status == StatusDeleted {
		return NotFound(id)
	}
	return nil
}

func (s State) wrongStatus(verb string) error {
	return problem.New(problem.Conflict, "wrong_status", "extraction %s is %s and cannot be %s", s.Request.ID, s.Status, verb).With("status", string(s.Status))
}

// DecideStart requests an extraction.
func (s State) DecideStart(c Requested) ([]event.Data, error) {
	if s.Status != Absent {
		return nil, problem.New(problem.Conflict, "extraction_exists", "extraction %s exists already", c.ID)
	}
	if c.Source.IsZero() {
		return nil, problem.New(problem.Invalid, "no_source", "an extraction needs exactly one source: a training or an SAE")
	}
	if err := c.Config.Validate(); err != nil {
		return nil, err
	}
	return []event.Data{c}, nil
}

// DecideSelfTested records the self-test; an SAE that does not fit fails the extraction unless the request forces it.
func (s State) DecideSelfTested(t SelfTest) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	if s.Status != Queued {
		return nil, s.wrongStatus("self-tested")
	}
	forced := t.Mismatch != "" && s.Request.Config.Force
	out := []event.Data{SelfTested{SelfTest: t, Forced: forced}}
	if t.Mismatch != "" && !forced {
		out = append(out, Failed{Code: "sae_mismatch", Detail: t.Mismatch, Resumable: false})
	}
	return out, nil
}

// DecidePlan fixes the segments. A part must follow what is planned already.
func (s State) DecidePlan(c Planned) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	if s.Status != Queued || !s.NeedsPlan {
		return nil, s.wrongStatus("planned")
	}
	sequences, _ := s.Planned()
	switch {
	case c.Part.Sequences > 0 && c.Part.SequencesPerSegment < 1, c.BatchSize < 1:
		return nil, problem.New(problem.Invalid, "invalid_plan", "a plan needs at least one sequence a segment and one a batch")
	case c.Part.FirstSegment != s.Segments() || c.Part.FirstSequence != sequences:
		return nil, problem.New(problem.Conflict, "plan_out_of_order", "the next part begins at segment %d and sequence %d, not %d and %d", s.Segments(), sequences, c.Part.FirstSegment, c.Part.FirstSequence)
	case s.SelfTest == nil:
		return nil, problem.New(problem.Conflict, "plan_untested", "extraction %s has no self-test: nothing says yet that its SAE belongs where it is to be run", s.Request.ID)
	case s.CorpusID != "" && s.CorpusID != c.CorpusID:
		return nil, problem.New(problem.Conflict, "plan_other_corpus", "the extraction is planned on corpus %s, not %s", s.CorpusID, c.CorpusID)
	case s.CorpusID != "" && s.Profile != c.Profile:
		return nil, problem.New(problem.Conflict, "plan_other_profile", "the extraction is planned on another compute profile")
	}
	if n := s.Segments() + c.Part.Segments(); n > MaxSegments {
		return nil, problem.New(problem.Invalid, tooMany, "a plan of %d segments is more than the %d that a run may have", n, MaxSegments)
	}
	out := []event.Data{c}
	if next := s.Evolve(c); next.Recorded.Len() == next.Segments() {
		out = append(out, next.completed())
	}
	return out, nil
}

func (s State) completed() Completed {
	return Completed{Segments: s.Segments(), Tokens: s.Tokens, Postings: s.Postings}
}

// DecideRecord records a segment; the last one completes the extraction. The same result again is no
// change. Another result for a recorded segment is an alarm: the events hold it, and the error says so.
func (s State) DecideRecord(c SegmentRecorded) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	if old, ok := s.Recorded.Get(c.Index); ok {
		if old.ContentSHA256 == c.Artifact.ContentSHA256 {
			return nil, nil // a redelivery
		}
		return []event.Data{SegmentMismatched{Index: c.Index, Recorded: old.ContentSHA256, Offered: c.Artifact.ContentSHA256, Worker: c.Worker}},
			&SegmentMismatchError{Segment: c.Index, Recorded: old.ContentSHA256, Offered: c.Artifact.ContentSHA256}
	}
	if s.Status != Extracting {
		return nil, s.wrongStatus("given a segment")
	}
	first, count, ok := s.Range(c.Index)
	if !ok || first != c.FirstSequence || count != c.Sequences {
		return nil, problem.New(problem.Invalid, "segment_not_in_plan", "segment %d with sequences %d to %d is not in the plan of %d segments", c.Index, c.FirstSequence, c.FirstSequence+c.Sequences-1, s.Segments())
	}
	out := []event.Data{c}
	if next := s.Evolve(c); next.Recorded.Len() == next.Segments() {
		out = append(out, next.completed())
	}
	return out, nil
}

// DecideCancel calls the extraction off at once.
func (s State) DecideCancel(reason string) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	if s.Status == StatusCancelled {
		return nil, nil
	}
	if !s.Status.Active() {
		return nil, s.wrongStatus("cancelled")
	}
	return []event.Data{Cancelled{Segments: s.Recorded.Len(), Reason: reason}}, nil
}

// DecideFail records that the extraction cannot go on.
func (s State) DecideFail(c Failed) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	if !s.Status.Active() {
		return nil, s.wrongStatus("failed")
	}
	return []event.Data{c}, nil
}

// DecideResume goes on from the recorded segments.
func (s State) DecideResume(saeID string) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	switch {
	case s.Status == StatusFailed && !s.Failure.Resumable:
		return nil, problem.New(problem.Conflict, "not_resumable", "extraction %s failed with %s, which trying again cannot mend: %s", s.Request.ID, s.Failure.Code, s.Failure.Detail)
	case s.Status != StatusFailed && s.Status != StatusCancelled:
		return nil, s.wrongStatus("resumed")
	}
	return []event.Data{Resumed{
		SourceKey: s.Request.Source.Key(), SAEID: saeID, ModelID: s.Request.ModelID, DatasetID: s.Request.DatasetID,
		Plan: s.NeedsPlan, Missing: s.Missing(), Profile: s.Profile,
	}}, nil
}

// DecideExtend asks for more sequences than were planned.
func (s State) DecideExtend(evaluationSamples int, saeID string) ([]event.Data, error) {
	if err := s.exists(s.Request.ID); err != nil {
		return nil, err
	}
	if s.Status != StatusCompleted {
		return nil, s.wrongStatus("extended")
	}
	if evaluationSamples <= s.Wanted || evaluationSamples > MaxSequences {
		return nil, problem.InvalidFields("invalid_request", problem.Field{Name: "evaluation_samples", Detail: fmt.Sprintf(
			"%d is not above the %d that were asked for before, and at most %d", evaluationSamples, s.Wanted, MaxSequences)})
	}
	return []event.Data{Extended{
		SourceKey: s.Request.Source.Key(), SAEID: saeID, ModelID: s.Request.ModelID, DatasetID: s.Request.DatasetID,
		EvaluationSamples: evaluationSamples,
	}}, nil
}

// DecideDelete deletes an extraction that does not run.
func (s State) DecideDelete() ([]event.Data, error) {
	switch {
	case s.Status == Absent:
		return nil, NotFound(s.Request.ID)
	case s.Status == StatusDeleted:
		return nil, nil
	case s.Status.Active():
		return nil, problem.New(problem.Conflict, "extraction_active", "extraction %s is %s: cancel it first", s.Request.ID, s.Status).With("active_extraction_id", s.Request.ID)
	}
	return []event.Data{Deleted{}}, nil
}
