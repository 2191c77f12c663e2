package extractions_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/projector/projectiontest"
)

// plain folds the log in memory: the aggregate's own Evolve, and for what it does not keep (times,
// workers, alarms), the events.
func plain(events []projectiontest.Event) projectiontest.Rows {
	type folded struct {
		state    extraction.State
		row      projectiontest.Row
		segments []projectiontest.Row
		alarms   []projectiontest.Row
		seconds  float64
	}
	streams := map[string]*folded{}
	var order []string
	for _, e := range events {
		id, ok := strings.CutPrefix(e.Stream, "extraction-")
		if !ok {
			continue
		}
		f := streams[id]
		if f == nil {
			f = &folded{row: projectiontest.Row{"id": id, "created_at": e.RecordedAt}}
			streams[id] = f
			order = append(order, id)
		}
		f.state = f.state.Evolve(e.Fact)
		f.row["stream_version"], f.row["updated_at"] = e.Version, e.RecordedAt
		ended := func(at any, version any) { f.row["completed_at"], f.row["terminal_version"] = at, version }
		switch d := e.Fact.(type) {
		case extraction.Planned:
			if f.row["started_at"] == nil {
				f.row["started_at"] = e.RecordedAt
			}
		case extraction.SegmentRecorded:
			f.seconds += d.Seconds
			f.segments = append(f.segments, projectiontest.Row{"extraction_id": id, "index": d.Index, "first_sequence": d.FirstSequence, "sequences": d.Sequences, "tokens": d.Tokens,
				"content_sha256": d.Artifact.ContentSHA256, "file_sha256": d.Artifact.FileSHA256, "bytes": d.Artifact.Bytes, "postings": d.Artifact.Postings,
				"seconds": d.Seconds, "device": d.Device, "worker": d.Worker, "attempt": d.Attempt, "recorded_at": e.RecordedAt})
		case extraction.SegmentMismatched:
			f.alarms = append(f.alarms, projectiontest.Row{"extraction_id": id, "stream_version": e.Version, "index": d.Index,
				"recorded_content_sha256": d.Recorded, "offered_content_sha256": d.Offered, "worker": d.Worker, "raised_at": e.RecordedAt})
		case extraction.Completed, extraction.Failed:
			ended(e.RecordedAt, e.Version)
		case extraction.Cancelled:
			ended(e.RecordedAt, e.Version)
			if d.Reason != "" {
				f.row["cancel_reason"] = d.Reason
			}
		case extraction.Resumed, extraction.Extended:
			ended(nil, nil)
			f.row["cancel_reason"] = nil
		case extraction.Deleted:
			f.row["terminal_version"], f.row["deleted_at"] = e.Version, e.RecordedAt
			f.segments = nil
		}
	}
	out := projectiontest.Rows{}
	for _, id := range order {
		f := streams[id]
		f.row["compute_seconds"], f.row["mismatches"] = f.seconds, len(f.alarms)
		out["extraction_jobs"] = append(out["extraction_jobs"], jobRow(f.row, f.state))
		out["extraction_segments"] = append(out["extraction_segments"], f.segments...)
		out["extraction_alarms"] = append(out["extraction_alarms"], f.alarms...)
	}
	return out
}

func jobRow(row projectiontest.Row, s extraction.State) projectiontest.Row {
	r := s.Request
	sequences, tokens := s.Planned()
	var recorded int
	var bytes int64
	for i, a := range s.Recorded.All() {
		_, n, _ := s.Range(i)
		recorded += n
		bytes += a.Bytes
	}
	for column, v := range map[string]any{
		"source_key": r.Source.Key(), "model_id": r.ModelID, "dataset_id": r.DatasetID, "hook": r.Hook, "layer_index": r.Layer, "latents": r.Latents, "mask": r.Mask,
		"status": s.Status, "config": r.Config, "evaluation_samples": s.Wanted, "needs_plan": s.NeedsPlan, "self_test_forced": s.SelfTest != nil && s.SelfTest.Forced,
		"plan": append([]extraction.Part{}, s.Parts...), "segments_planned": s.Segments(), "sequences_planned": sequences, "tokens_planned": tokens,
		"segments_recorded": s.Recorded.Len(), "sequences_recorded": recorded, "tokens": s.Tokens, "postings": s.Postings, "artifact_bytes": bytes,
	} {
		row[column] = v
	}
	if id := r.Source.SAEID(); id != "" {
		row["external_sae_id"] = id
	} else {
		row["training_id"], row["sae_path"] = r.Source.TrainingID(), r.SAEPath
	}
	if b := r.Batch; b != nil {
		row["batch_id"], row["batch_position"], row["batch_total"] = b.ID, b.Position, b.Total
	}
	if s.SelfTest != nil {
		row["self_test"] = s.SelfTest.SelfTest
	}
	if s.CorpusID != "" {
		row["corpus_id"], row["batch_size"], row["compute_profile"] = s.CorpusID, s.BatchSize, s.Profile
	}
	if f := s.Failure; f != nil {
		row["error_code"], row["error_message"], row["error_resumable"] = f.Code, f.Detail, f.Resumable
		if f.Segment != nil {
			row["error_segment"] = *f.Segment
		}
	}
	return row
}

func TestLiveRebuiltAndFoldedExtractionsAreTheSame(t *testing.T) {
	t.Parallel()
	b := newBundle(t, nil) // no effects: reservations are not what is tested here
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	history := 0
	rapid.Check(t, func(t *rapid.T) {
		history++ // every history has its own stream in the one log
		at = at.Add(time.Microsecond)
		src := fromSAE(t, "sae_1")
		if rapid.Bool().Draw(t, "from a training") {
			src = fromTraining(t, "train_1")
		}
		h := &histories{bundle: b, t: t, id: src.ExtractionID(at), source: src}
		for range rapid.IntRange(1, 40).Draw(t, "commands") {
			h.step()
			if rapid.IntRange(0, 9).Draw(t, "advance") == 0 {
				b.law.Advance(t)
			}
		}
		if history%20 == 0 {
			b.law.RequireLive(t)
		}
	})
	b.law.RequireRebuilt(t)
}

// histories draws commands, lets the aggregate decide, and records what it decided.
type histories struct {
	*bundle
	t      *rapid.T
	id     string
	source source.Source
	state  extraction.State
}

func (h *histories) step() {
	text := rapid.SampledFrom([]string{"", "worn out", "ünïcode ‹ › 漢字", `quotes " ' \`}).Draw(h.t, "text")
	n := rapid.IntRange(0, 5).Draw(h.t, "n")
	if h.state.Status == extraction.Absent {
		r := requested(h.source, h.id)
		if h.source.TrainingID() != "" {
			r.SAEPath = "layer_8_residual"
		}
		r.Config.Force = n > 3
		h.decided(h.state.DecideStart(r))
		return
	}
	switch rapid.SampledFrom([]string{"test", "plan", "record", "record", "record", "record", "mismatch", "cancel", "fail", "resume", "resume", "extend", "delete"}).Draw(h.t, "verb") {
	case "test":
		test := selfTest()
		if n > 2 {
			test.FVU, test.Mismatch = nil, "blocks.7.hook_resid_post fits better"
		}
		h.decided(h.state.DecideSelfTested(test))
	case "plan":
		h.decided(h.state.DecidePlan(part(h.state, n)))
	case "record":
		h.decided(h.state.DecideRecord(segment(h.missing(n))))
	case "mismatch":
		other := segment(n)
		other.Artifact.ContentSHA256 = "another " + text
		data, err := h.state.DecideRecord(other)
		if _, ok := h.state.Recorded.Get(n); ok {
			err = nil // the alarm is recorded beside the refusal
		}
		h.decided(data, err)
	case "cancel":
		h.decided(h.state.DecideCancel(text))
	case "fail":
		f := extraction.Failed{Code: "worker_lost", Detail: text, Resumable: n > 0}
		if n > 1 {
			f.Segment = &n
		}
		h.decided(h.state.DecideFail(f))
	case "resume":
		h.decided(h.state.DecideResume(h.source.SAEID()))
	case "extend":
		h.decided(h.state.DecideExtend(h.state.Wanted+1+n, h.source.SAEID()))
	case "delete":
		if n == 0 {
			h.decided(h.state.DecideDelete())
		}
	}
}

// missing is the n-th planned segment that is not recorded, as far as there are so many.
func (h *histories) missing(n int) int {
	if runs := h.state.Missing(); len(runs) > 0 {
		return min(runs[0].From+n, runs[0].To-1)
	}
	return n
}

func (h *histories) decided(data []event.Data, err error) {
	if err != nil {
		return
	}
	h.record(h.t, extraction.Stream(h.id), data...)
	for _, d := range data {
		h.state = h.state.Evolve(d)
	}
}

func TestTheTableProvesTheSingleSource(t *testing.T) {
	t.Parallel()
	b := newBundle(t, nil)
	for name, columns := range map[string]string{"both sources": `'t', 's'`, "no source": `null, null`} {
		_, err := b.pool.Exec(t.Context(), fmt.Sprintf(`insert into extractions_v2.extraction_jobs
			(training_id, external_sae_id, id, source_key, model_id, dataset_id, hook, layer_index, latents, mask, status, config, evaluation_samples, needs_plan, stream_version, created_at, updated_at)
			values (%s, 'x', 'k', 'm', 'd', 'h', 0, 1, '{}', 'queued', '{}', 1, true, 1, now(), now())`, columns))
		require.ErrorContains(t, err, "check_single_source", name)
	}
}
