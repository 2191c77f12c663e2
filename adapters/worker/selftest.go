package worker

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

// sample is what an SAE is tested on before anybody has said what it is to run on: a document a line.
//
//go:embed sample.txt
var sample string

const (
	sampleName  = "built-in sample: English speeches of 1794 to 1962"
	lookEvery   = 2 * time.Second // for other work
	minSequence = 16              // tokens; a shorter rest of a document is dropped, as corpora do
)

// saeOf is the SAE of a self-test.
func saeOf(work eventlog.Work) string { return strings.TrimPrefix(work.Subject, sae.Stream("")) }

// testSAE tests an SAE at the model that it is linked to, as an extraction without a special wish would run it.
func (w *Worker) testSAE(ctx context.Context, task *Task) error {
	id := saeOf(task.Lease.Work)
	s, _, err := command.Load[sae.State](ctx, w.commands, sae.Stream(id))
	if err != nil || !s.SelfTestWanted {
		return err
	}
	tested, err := w.testedSAE(ctx, task, s)
	if err != nil {
		return failedTest(err)
	}
	w.at("sae-tested")
	return w.record(ctx, task, func() error {
		_, err := w.commands.RecordSAESelfTest(ctx, w.call(task), task.Lease, id, tested)
		return err
	})
}

func (w *Worker) testedSAE(ctx context.Context, task *Task, s sae.State) (sae.SelfTested, error) {
	none := sae.SelfTested{}
	m, _, err := command.Load[model.State](ctx, w.commands, model.Stream(s.ModelID))
	if err != nil {
		return none, err
	}
	in := inputs{sae: s.Facts}
	in.extraction.Request.Config = extraction.DefaultConfig()
	for _, token := range s.Facts.ExcludeTokenIDs {
		in.extraction.Request.Config.ExcludeTokenIDs = append(in.extraction.Request.Config.ExcludeTokenIDs, int32(token))
	}
	if in.model, err = m.Usable(s.ModelID); err != nil {
		return none, err
	}
	if err := s.Facts.Fits(s.ModelID, in.model); err != nil {
		return none, err
	}
	ctx = fetching(ctx, task)
	if err := task.Batch(telemetry{Stage: "loading"}); err != nil {
		return none, err
	}
	tokens, err := w.tokenizer(ctx, in.model)
	if err != nil {
		return none, err
	}
	sequences, err := sampled(ctx, reporting{tokens, task}, contextLength(in))
	if err != nil {
		return none, err
	}
	encoder, err := w.open(ctx, in)
	if err != nil {
		return none, err
	}
	beat, yield := eachForward(task), w.yielding(ctx, task, lookEvery)
	test, err := testInput(in, tokens, sequences, func() error {
		if err := beat(); err != nil {
			return err
		}
		return yield()
	})
	if err != nil {
		return none, err
	}
	report, err := encoder.SelfTest(ctx, test)
	if err != nil {
		return none, err
	}
	return sae.SelfTested{ModelID: s.ModelID, Text: sampleName, Report: &report}, nil
}

// yielding ends a self-test with ErrStopping where there is work that somebody waits for: it is claimed to see that it is
// there, and given back, and the loop takes it before the self-test, which starts over later.
func (w *Worker) yielding(ctx context.Context, task *Task, every time.Duration) func() error {
	looked := time.Now()
	claim := eventlog.Claim{Owner: task.Lease.Owner, Kinds: []string{facts.PlanWork, facts.CorpusWork, facts.SegmentWork}, Capabilities: w.Capabilities()}
	return func() error {
		if time.Since(looked) < every {
			return nil
		}
		looked = time.Now()
		lease, err := w.leases.Claim(ctx, claim)
		if err != nil || lease == nil {
			return nil //nolint:nilerr // a log that is away is no reason to stop
		}
		return errors.Join(ErrStopping, w.leases.ReleaseLease(ctx, *lease))
	}
}

// sampled cuts the documents of the sample into sequences.
func sampled(ctx context.Context, tokens Tokenizer, length int) ([][]int32, error) {
	documents, err := tokens.EncodeBatch(ctx, strings.Split(strings.TrimSpace(sample), "\n"))
	if err != nil {
		return nil, fmt.Errorf("tokenise the sample: %w", err)
	}
	var out [][]int32
	for _, d := range documents {
		for part := range slices.Chunk(d.IDs, length) {
			if len(part) >= min(minSequence, length) {
				out = append(out, part)
			}
		}
	}
	if len(out) == 0 {
		return nil, &Failure{Code: "no_tokens", Detail: fmt.Sprintf("the sample gives no sequence of %d tokens or more", minSequence)}
	}
	return out, nil
}

// failedTest says why there is no self-test. Whatever it was is recorded at once: people see the reason, and may ask again.
func failedTest(err error) error {
	var failure *Failure
	var refused *problem.Error
	switch {
	case stopped(err), outage(err), errors.As(err, &failure):
		return err
	case errors.As(err, &refused):
		return &Failure{Code: refused.Code, Detail: refused.Error(), Err: err}
	}
	return &Failure{Code: "self_test_failed", Detail: err.Error(), Err: err}
}
