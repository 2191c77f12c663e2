package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/domain/command"
	corpora "github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
)

const selfTestTokens = 4096

// plan tests the SAE on a sample of the text, sees that the corpus is there, and fixes the segments.
func (w *Worker) plan(ctx context.Context, task *Task) error {
	id := task.Lease.Work.Subject
	in, err := w.inputs(ctx, id)
	if err != nil {
		return err
	}
	if in.extraction.Status != extraction.Queued {
		return nil
	}
	ctx = fetching(ctx, task)
	if err := task.Batch(telemetry{Stage: "loading"}); err != nil {
		return err
	}
	tokens, err := w.tokenizer(ctx, in.model)
	if err != nil {
		return err
	}
	encoder, err := w.open(ctx, in)
	if err != nil {
		return err
	}
	if err := task.Batch(telemetry{Stage: "self-test"}); err != nil {
		return err
	}
	if in.extraction.SelfTest == nil {
		tested, err := w.selfTest(ctx, task, in, tokens, encoder)
		if err != nil {
			return err
		}
		w.at("tested")
		err = w.record(ctx, task, func() error {
			_, err := w.commands.RecordSelfTest(ctx, w.call(task), task.Lease, id, tested)
			return err
		})
		if err != nil {
			return err
		}
		if in.extraction, _, err = command.Load[extraction.State](ctx, w.commands, extraction.Stream(id)); err != nil {
			return err
		}
		if in.extraction.Status != extraction.Queued {
			return nil // the SAE does not fit: the extraction has failed with the reason
		}
	}
	built, err := w.ensureCorpus(ctx, task, in, tokens)
	if err != nil {
		return err
	}
	planned, err := w.layOut(ctx, in, built)
	if err != nil {
		return err
	}
	err = w.record(ctx, task, func() error {
		_, err := w.commands.PlanExtraction(ctx, w.call(task), task.Lease, id, planned)
		return err
	})
	w.at("planned")
	return err
}

func contextLength(in inputs) int {
	return in.extraction.Request.Config.Context(in.sae.ContextLength, in.model.Context)
}

// bos is the token that is inserted where one is: bos_token, else eos; −1 if the model names neither.
func bos(in inputs) int32 {
	switch {
	case in.model.BOS != nil:
		return int32(*in.model.BOS)
	case in.model.EOS != nil:
		return int32(*in.model.EOS)
	}
	return -1
}

func (w *Worker) selfTest(ctx context.Context, task *Task, in inputs, tokens Tokenizer, encoder Encoder) (extraction.SelfTest, error) {
	c := in.extraction.Request.Config
	data, err := w.library.OpenDataset(ctx, in.dataset)
	if err != nil {
		return extraction.SelfTest{}, missing("the dataset's files", err)
	}
	defer func() { _ = data.Close() }()
	n := contextLength(in)
	found, err := corpus.First(ctx, data, reporting{tokens, task}, corpus.Options{Mode: corpus.Mode(c.Mode), ContextLength: n, Seed: uint64(c.Seed)}, int64(2*selfTestTokens+n))
	if err != nil {
		if stopped(err) || outage(err) {
			return extraction.SelfTest{}, err
		}
		return extraction.SelfTest{}, &Failure{Code: "corpus_failed", Detail: err.Error(), Err: err}
	}
	if len(found) == 0 {
		return extraction.SelfTest{}, &Failure{Code: "no_tokens", Detail: fmt.Sprintf("the first %d rows of the dataset give no sequence of 16 tokens or more", min(in.dataset.Rows, corpus.ChunkRows))}
	}
	sequences := make([][]int32, len(found))
	for i, s := range found {
		sequences[i] = s.Tokens
	}
	test, err := testInput(in, tokens, sequences, eachForward(task))
	if err != nil {
		return extraction.SelfTest{}, err
	}
	return w.tested(ctx, task.Lease.Work.Subject, in, encoder, test)
}

// eachForward reports every forward of a self-test.
func eachForward(task *Task) func() error {
	return func() error { return task.Batch(telemetry{Stage: "self-test"}) }
}

// testInput is what a self-test runs on: sequences of at most the context length. An error of beat ends it.
func testInput(in inputs, tokens Tokenizer, sequences [][]int32, beat func() error) (SelfTestInput, error) {
	c := in.extraction.Request.Config
	test := SelfTestInput{Sequences: sequences, Context: contextLength(in), BOS: bos(in), SkipFirst: c.SkipFirst, Beat: beat, Exclude: slices.Clone(c.ExcludeTokenIDs), Tokens: selfTestTokens, PrependBOS: in.sae.PrependBOS}
	if in.sae.ExcludeSpecialTokens {
		for id, t := range tokens.Vocabulary() {
			if t.Special {
				test.Exclude = append(test.Exclude, int32(id))
			}
		}
	}
	switch {
	case c.PrependBOS != "auto":
		forced := c.PrependBOS == "true"
		test.PrependBOS = &forced
	case in.dataset.Tokenised:
		no := false // the ids are taken as they are
		test.PrependBOS = &no
	}
	if test.PrependBOS != nil && *test.PrependBOS && test.BOS < 0 {
		return test, &Failure{Code: "no_bos", Detail: "a BOS token is to be prepended, but the model names neither a bos nor an eos token: start with prepend_bos false"}
	}
	return test, nil
}

// ensureCorpus asks for the corpus and waits until it is there. It builds chunks itself while nobody
// else does: a single worker must not wait for itself.
func (w *Worker) ensureCorpus(ctx context.Context, task *Task, in inputs, tokens Tokenizer) (corpora.State, error) {
	none := corpora.State{}
	t := in.extraction.SelfTest.SelfTest
	c := in.extraction.Request.Config
	options := corpora.Options{Mode: corpora.Mode(c.Mode), ContextLength: contextLength(in), PrependBOS: t.PrependBOS, BOS: -1, Seed: uint64(c.Seed)}
	if t.PrependBOS {
		options.BOS = t.BOS
	}
	data, err := w.library.OpenDataset(ctx, in.dataset)
	if err != nil {
		return none, missing("the dataset's files", err)
	}
	defer func() { _ = data.Close() }()
	id, err := corpus.ID(ctx, data, in.model.Tokenizer, buildOptions(options))
	if outage(err) {
		return none, err
	} else if err != nil {
		return none, &Failure{Code: "corpus_failed", Detail: err.Error(), Err: err}
	}
	request := corpora.Requested{
		ID: id, DatasetID: in.extraction.Request.DatasetID, DatasetDigest: in.dataset.Files.Digest(), TokenizerSHA256: in.model.Tokenizer,
		ModelID: in.extraction.Request.ModelID, Options: options, Sequences: in.extraction.Wanted,
	}
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	retried := false
	for {
		state, _, err := command.Load[corpora.State](ctx, w.commands, corpora.Stream(id))
		if err != nil {
			return none, err
		}
		switch {
		case state.Has(request.Sequences):
			return state, w.restore(ctx, task, state, data, tokens)
		case state.Failure != nil && retried:
			return none, &Failure{Code: "corpus_failed", Detail: fmt.Sprintf("chunk %d: %s", state.Failure.Chunk, state.Failure.Detail), Resumable: true}
		case !state.Building:
			retried = true // an old failure is tried again once: what it failed on may be mended
			if _, err := w.commands.RequestCorpus(ctx, w.call(task), request); err != nil {
				return none, err
			}
		}
		if err := task.Batch(telemetry{Stage: "tokenising", TokensDone: state.Tokens}); err != nil {
			return none, err
		}
		lease, err := w.leases.Claim(ctx, eventlog.Claim{Owner: task.Lease.Owner, Kinds: []string{facts.CorpusWork}, Subjects: []string{id}})
		if err != nil {
			return none, err
		}
		if lease == nil {
			select {
			case <-ctx.Done():
				return none, ctx.Err()
			case <-poll.C:
			}
			continue
		}
		if err := w.inline(ctx, task, *lease); err != nil {
			return none, err
		}
	}
}

// inline does a corpus chunk inside the plan's task, and keeps the chunk's lease alive as the loop keeps the plan's.
func (w *Worker) inline(ctx context.Context, task *Task, lease eventlog.Lease) error {
	inner := &Task{Lease: lease, stop: task.stop, lost: task.lost, reports: task.reports}
	inner.renew = func(ctx context.Context) error {
		_, err := w.leases.Heartbeat(ctx, lease, inner.reports.progress())
		return err
	}
	held, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.keepInline(held, inner, cancel) })
	err := w.corpus(held, inner)
	if cause := context.Cause(held); err != nil && cause != nil {
		err = errors.Join(cause, err)
	}
	cancel(nil)
	wg.Wait()
	var failure *Failure
	var fenced *eventlog.FencedError
	switch {
	case err == nil: // usually it is done; what is still open is nobody's, and must not wait for its lease
		return w.leases.PutOff(context.WithoutCancel(ctx), lease, eventlog.Pause{After: firstPause})
	case errors.As(err, &fenced):
		return nil
	case errors.As(err, &failure):
		return w.Fail(ctx, lease, failure)
	}
	return errors.Join(err, w.leases.ReleaseLease(context.WithoutCancel(ctx), lease))
}

func (w *Worker) keepInline(ctx context.Context, inner *Task, cancel context.CancelCauseFunc) {
	// A third of the lease's life, whatever the two machines' clocks say.
	tick := time.NewTicker(min(max(time.Until(inner.Lease.ExpiresAt)/3, 100*time.Millisecond), 10*time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var fenced *eventlog.FencedError
		if _, err := w.leases.Heartbeat(ctx, inner.Lease, inner.reports.progress()); errors.As(err, &fenced) {
			cancel(err)
			return
		}
	}
}

// layOut cuts what is not planned yet into segments. Sizes come from the config and the self-test's L0
// alone, never from a measured speed, so that two runs have equal plans.
func (w *Worker) layOut(ctx context.Context, in inputs, built corpora.State) (extraction.Planned, error) {
	planned, _ := in.extraction.Planned()
	first, total := planned, min(in.extraction.Wanted, built.Sequences)
	size := in.extraction.Size(contextLength(in))
	if err := in.extraction.Fits(size, total); err != nil {
		return extraction.Planned{}, &Failure{Code: "too_many_segments", Detail: err.Error()}
	}
	part := extraction.Part{FirstSegment: in.extraction.Segments(), FirstSequence: first, Sequences: max(0, total-first)}
	part.SequencesPerSegment = size.SequencesPerSegment(part.Sequences)
	if in.extraction.CorpusID != "" && in.extraction.CorpusID != built.Request.ID {
		return extraction.Planned{}, &Failure{Code: "corpus_changed", Detail: "what was imported under these ids gives another corpus now"}
	}
	var err error
	if part.Tokens, err = w.tokens(ctx, built, first, part.Sequences); err != nil {
		return extraction.Planned{}, err
	}
	return extraction.Planned{CorpusID: built.Request.ID, Part: part, BatchSize: size.BatchSize(), Profile: w.engine.Profile()}, nil
}

// tokens is the number of tokens of a run of sequences. Chunks that lie in it as a whole say how many they have; only those
// at its ends are read.
func (w *Worker) tokens(ctx context.Context, built corpora.State, first, count int) (n int64, err error) {
	end := first + count
	for _, chunk := range built.Chunks {
		from, to := max(first, chunk.FirstSequence), min(end, chunk.FirstSequence+chunk.Sequences)
		if from >= to {
			continue
		}
		if to-from == chunk.Sequences {
			n += chunk.Tokens
			continue
		}
		for seq := range w.sequences(ctx, built, from, to-from) {
			if seq.err != nil {
				return 0, seq.err
			}
			n += int64(len(seq.sequence.Tokens))
		}
	}
	return n, nil
}

func buildOptions(o corpora.Options) corpus.Options {
	b := corpus.Options{Mode: corpus.Mode(o.Mode), ContextLength: o.ContextLength, PrependBOS: o.PrependBOS, Seed: o.Seed}
	if o.PrependBOS {
		b.BOSID = o.BOS
	}
	return b
}
