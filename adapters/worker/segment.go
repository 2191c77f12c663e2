package worker

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/domain/command"
	corpora "github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/extraction"
)

// sinkFactor × the median norm is the norm above which a token is a sink.
const sinkFactor = 3

// ArtifactKey is where a segment's postings are kept.
func ArtifactKey(extractionID string, index int, fileSHA256 string) string {
	return fmt.Sprintf("extractions/%s/%d-%s.parquet", extractionID, index, fileSHA256)
}

// segment runs a segment's sequences and records its postings.
func (w *Worker) segment(ctx context.Context, task *Task) error {
	started := time.Now()
	id, index := task.Lease.Work.Subject, task.Lease.Work.Index
	in, err := w.inputs(ctx, id)
	if err != nil {
		return err
	}
	first, _, ok := in.extraction.Range(index)
	if in.extraction.Status != extraction.Extracting || !ok {
		return nil
	}
	ctx = fetching(ctx, task)
	made, err := w.compute(ctx, in, index, func(t telemetry) error { return task.Batch(t) })
	if err != nil {
		return err
	}
	if err := w.store.Put(ctx, ArtifactKey(id, index, made.artifact.FileSHA256), bytes.NewReader(made.file)); err != nil {
		return fmt.Errorf("store the artifact: %w", err)
	}
	w.at("artifact")
	result := extraction.SegmentRecorded{
		Index: index, FirstSequence: first, Sequences: made.sequences, Tokens: made.tokens, Artifact: made.artifact,
		Seconds: time.Since(started).Seconds(), Device: w.engine.Profile().Device, Worker: w.name, Attempt: task.Lease.Attempt,
	}
	err = w.record(ctx, task, func() error {
		_, err := w.commands.RecordSegment(ctx, w.call(task), task.Lease, id, result)
		return err
	})
	w.at("recorded")
	return err
}

// computed is a segment's artifact before it is stored.
type computed struct {
	file      []byte
	artifact  extraction.Artifact
	sequences int
	tokens    int64 // fed
}

// compute runs the sequences of a segment. What comes out depends on the extraction and the compute profile alone. told is
// called after every batch.
func (w *Worker) compute(ctx context.Context, in inputs, index int, told func(telemetry) error) (computed, error) {
	none, started := computed{}, time.Now()
	first, count, _ := in.extraction.Range(index)
	built, _, err := command.Load[corpora.State](ctx, w.commands, corpora.Stream(in.extraction.CorpusID))
	if err != nil {
		return none, err
	}
	encoder, err := w.open(ctx, in)
	if err != nil {
		return none, err
	}
	sequences := make([][]int32, 0, count)
	var fed int64
	for seq := range w.sequences(ctx, built, first, count) {
		if seq.err != nil {
			return none, seq.err
		}
		sequences = append(sequences, seq.sequence.Tokens)
		fed += int64(len(seq.sequence.Tokens))
	}
	// Equal lengths run together, so that little is padded; the order is fixed by the segment alone.
	order := make([]int, len(sequences))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(sequences[b]), len(sequences[a])) })

	columns := &postings.Columns{}
	meta := postings.Metadata{Segment: index, FirstSequence: first, Sequences: len(sequences), Tokens: int(fed), Latents: in.sae.DSAE}
	limit := sinkFactor * in.extraction.SelfTest.SelfTest.MedianNorm
	batches := (len(order) + in.extraction.BatchSize - 1) / max(1, in.extraction.BatchSize)
	var done int64
	for b := 0; b < len(order); b += in.extraction.BatchSize {
		members := order[b:min(b+in.extraction.BatchSize, len(order))]
		batch := make([][]int32, len(members))
		for i, m := range members {
			batch[i] = sequences[m]
			done += int64(len(batch[i]))
		}
		from := columns.Len()
		w.at("batch")
		norms, err := encoder.Batch(ctx, batch, columns)
		if err != nil {
			return none, err
		}
		for i := from; i < columns.Len(); i++ {
			columns.Sequence[i] = uint32(first + members[columns.Sequence[i]])
		}
		for i, m := range members {
			for offset, norm := range norms[i] {
				if float64(norm) > limit {
					meta.Sinks = append(meta.Sinks, postings.TokenRef{Sequence: uint32(first + m), Offset: uint16(offset)})
				}
			}
		}
		if err := told(telemetry{Stage: "extracting", TokensDone: done, TokensTotal: fed, TokensPerSecond: rate(done, started), Batch: b/in.extraction.BatchSize + 1, Batches: batches}); err != nil {
			return none, err
		}
	}
	slices.SortFunc(meta.Sinks, func(a, b postings.TokenRef) int {
		return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Offset, b.Offset))
	})
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	bySequence(columns, first, count)
	columns.Sort(in.sae.DSAE)
	var file bytes.Buffer
	sum, err := postings.Write(&file, columns, meta)
	if err != nil {
		return none, err
	}
	artifact := extraction.Artifact{ContentSHA256: hexDigest(sum.Content), FileSHA256: hexDigest(sum.File), Bytes: sum.Bytes, Postings: sum.Rows}
	return computed{file: file.Bytes(), artifact: artifact, sequences: len(sequences), tokens: fed}, nil
}

// bySequence orders rows that came batch by batch by their sequence and keeps the order inside a sequence.
func bySequence(c *postings.Columns, first, count int) {
	next := make([]int, count+1)
	for _, s := range c.Sequence {
		next[int(s)-first+1]++
	}
	for i := range count {
		next[i+1] += next[i]
	}
	n := c.Len()
	sorted := postings.Columns{Latent: make([]uint32, n), Sequence: make([]uint32, n), Offset: make([]uint16, n), Activation: make([]float32, n)}
	for i, s := range c.Sequence {
		to := next[int(s)-first]
		next[int(s)-first]++
		sorted.Latent[to], sorted.Sequence[to], sorted.Offset[to], sorted.Activation[to] = c.Latent[i], s, c.Offset[i], c.Activation[i]
	}
	*c = sorted
}
