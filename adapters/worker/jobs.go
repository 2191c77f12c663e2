package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
)

// Engine runs models and SAEs. It is libtorch in cmd/extractor.
type Engine interface {
	Profile() extraction.ComputeProfile
	// Open loads a model up to the SAE's hook, and the SAE. A *Failure says why they cannot be run.
	Open(ctx context.Context, p Pair) (Encoder, error)
	// Tokenizer loads a tokenizer.json.
	Tokenizer(path string) (Tokenizer, error)
}

// Pair is a model and an SAE as files on this machine.
type Pair struct {
	ModelDir string
	Model    model.Facts
	SAEDir   string
	SAE      sae.Facts
	Fold     string // none | decoder-norm
	Shared   bool   // other SAEs were asked for with this one, on the same model and text: what the model gives is worth keeping
}

// Tokenizer is a tokenizer with its vocabulary.
type Tokenizer interface {
	corpus.Tokenizer
	Vocabulary() []corpus.Token
	Close() error
}

// SelfTestInput is what a self-test runs on.
type SelfTestInput struct {
	Sequences  [][]int32 // without any inserted BOS, of at most the context length
	Context    int
	BOS        int32 // −1 = the tokenizer has none to insert
	PrependBOS *bool // nil = try both and keep the lower FVU
	SkipFirst  int
	Exclude    []int32
	Tokens     int // counted tokens to measure on
	// Beat is called after every forward and ends the test with its error: a long self-test is no hung one.
	Beat func() error
}

// Encoder is a loaded model with its SAE.
type Encoder interface {
	SelfTest(ctx context.Context, in SelfTestInput) (extraction.SelfTest, error)
	// Batch runs sequences and appends their postings in the order of (sequence, offset, latent), with
	// sequence = the index in the batch. norms[i][j] = ‖x‖₂ of token j of sequence i at the hook.
	Batch(ctx context.Context, sequences [][]int32, out *postings.Columns) (norms [][]float32, err error)
	Close() error
}

// Worker does plans, corpus chunks and segments.
type Worker struct {
	commands *command.Handler
	leases   eventlog.Leases
	store    blob.Store
	library  *library.Library
	engine   Engine
	name     string

	mu     sync.Mutex
	loaded struct {
		key     string
		encoder Encoder
	}
	tokenizers map[string]Tokenizer
	shards     shardCache
	failpoint  func(name string) // nil in production
}

// New returns a worker. The name stands in events.
func New(commands *command.Handler, leases eventlog.Leases, store blob.Store, lib *library.Library, engine Engine, name string) *Worker {
	return &Worker{commands: commands, leases: leases, store: store, library: lib, engine: engine, name: name, tokenizers: map[string]Tokenizer{}}
}

// Failpoints makes the worker call at at places where tests break it: "tested" between the self-test and its
// record, "chunk" between a stored chunk of a corpus and its record, "planned" between the plan's append and its
// answer; "batch" before a batch of a segment, "artifact" between the stored artifact and its record, "recorded"
// between the append and its answer.
func (w *Worker) Failpoints(at func(name string)) { w.failpoint = at }

func (w *Worker) at(name string) {
	if w.failpoint != nil {
		w.failpoint(name)
	}
}

// Jobs returns the jobs by the kind of work.
func (w *Worker) Jobs() map[string]Job {
	return map[string]Job{facts.PlanWork: job(w.plan), facts.CorpusWork: job(w.corpus), facts.SegmentWork: job(w.segment), facts.SelfTestWork: job(w.testSAE)}
}

// Capabilities returns the requirements that this worker meets.
func (w *Worker) Capabilities() []string { return []string{w.engine.Profile().Requirement()} }

// Close frees what is loaded.
func (w *Worker) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var errs []error
	if w.loaded.encoder != nil {
		errs = append(errs, w.loaded.encoder.Close())
		w.loaded.encoder = nil
	}
	for _, t := range w.tokenizers {
		errs = append(errs, t.Close())
	}
	clear(w.tokenizers)
	return errors.Join(append(errs, w.shards.close())...)
}

type job func(context.Context, *Task) error

func (j job) Do(ctx context.Context, t *Task) error { return j(ctx, t) }

// recordPause is how long record waits for a log that is away.
const recordPause = 200 * time.Millisecond

func (w *Worker) record(ctx context.Context, task *Task, do func() error) error {
	return UntilRecorded(ctx, task, do)
}

// UntilRecorded repeats what the log could not take because it was away: what took minutes to compute is not
// thrown away for that. It ends when the worker is to stop, or with the lease; one that has run out meanwhile is taken
// back if nobody else was given the work.
func UntilRecorded(ctx context.Context, task *Task, do func() error) error {
	for renewed := false; ; {
		err := do()
		var fenced *eventlog.FencedError
		switch {
		case errors.As(err, &fenced) && !renewed && task.renew(ctx) == nil:
			renewed = true
			continue
		case err != nil && over(err):
			return errors.Join(ErrLost, err) // it ended meanwhile
		case !errors.Is(err, eventlog.ErrUnavailable):
			return err
		}
		renewed = false
		if ended := task.Batch(nil); ended != nil {
			return errors.Join(ended, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(recordPause):
		}
	}
}

func (w *Worker) call(t *Task) command.Call {
	return command.Call{Metadata: event.Metadata{Actor: "worker " + w.name, CorrelationID: t.Lease.Work.Subject}}
}

// Fail records that work cannot be done. It is Config.OnFailure.
func (w *Worker) Fail(ctx context.Context, lease eventlog.Lease, f *Failure) error {
	call := w.call(&Task{Lease: lease})
	switch lease.Work.Kind {
	case facts.CorpusWork:
		_, err := w.commands.FailCorpus(ctx, call, lease.Held(), corpus.Failed{Chunk: lease.Work.Index, Code: f.Code, Detail: f.Detail})
		return err
	case facts.SelfTestWork:
		_, err := w.commands.FailSAESelfTest(ctx, call, lease.Held(), saeOf(lease.Work), f.Code, f.Detail)
		return err
	}
	_, err := w.commands.FailWork(ctx, call, lease.Held(), lease.Work.Subject, extraction.Failed{Code: f.Code, Detail: f.Detail, Segment: segmentOf(lease.Work), Resumable: f.Resumable})
	return err
}

// Lost records that work was lost too often. It is Config.OnLost.
func (w *Worker) Lost(ctx context.Context, lost eventlog.Lost) error {
	return RecordLost(ctx, w.commands, w.call(&Task{Lease: eventlog.Lease{Work: lost.Work}}), lost)
}

// RecordLost ends what lost work belongs to, whatever its kind: every loop finds the lost work of all.
func RecordLost(ctx context.Context, commands *command.Handler, call command.Call, lost eventlog.Lost) error {
	detail := fmt.Sprintf("%s was given to %d processes and none came back: they were killed, ran out of memory, or hung (%s)", lost.Work, lost.Attempts, told(lost.Causes))
	again := detail + "; resume when that is mended"
	var err error
	switch lost.Work.Kind {
	case facts.SelfTestWork:
		_, err = commands.FailSAESelfTest(ctx, call, lost.Held(), saeOf(lost.Work), "worker_lost", detail+"; ask again when that is mended")
	case facts.CorpusWork:
		_, err = commands.FailCorpus(ctx, call, lost.Held(), corpus.Failed{Chunk: lost.Work.Index, Code: "worker_lost", Detail: again})
	case facts.DownloadWork:
		_, err = commands.FailDownload(ctx, call, lost.Held(), "worker_lost", again)
	case facts.FoldWork:
		_, err = commands.FailFold(ctx, call, lost.Held(), "worker_lost", detail+"; ask for the fold again when that is mended")
	default:
		_, err = commands.FailWork(ctx, call, lost.Held(), lost.Work.Subject, extraction.Failed{Code: "worker_lost", Detail: again, Segment: segmentOf(lost.Work), Resumable: true})
	}
	return err
}

func segmentOf(work eventlog.Work) *int {
	if work.Kind != facts.SegmentWork {
		return nil
	}
	return &work.Index
}

// inputs is everything that an extraction is made of, as the log has it.
type inputs struct {
	extraction extraction.State
	model      model.Facts
	sae        sae.Facts
	dataset    dataset.Facts
}

func (w *Worker) inputs(ctx context.Context, id string) (in inputs, err error) {
	if in.extraction, _, err = command.Load[extraction.State](ctx, w.commands, extraction.Stream(id)); err != nil {
		return in, err
	}
	r := in.extraction.Request
	m, _, err := command.Load[model.State](ctx, w.commands, model.Stream(r.ModelID))
	if err != nil {
		return in, err
	}
	d, _, err := command.Load[dataset.State](ctx, w.commands, dataset.Stream(r.DatasetID))
	if err != nil {
		return in, err
	}
	in.model, in.dataset = m.Facts, d.Facts
	if saeID := r.Source.SAEID(); saeID != "" {
		s, _, err := command.Load[sae.State](ctx, w.commands, sae.Stream(saeID))
		if err != nil {
			return in, err
		}
		in.sae = s.Facts
		return in, nil
	}
	t, _, err := command.Load[training.State](ctx, w.commands, training.Stream(r.Source.TrainingID()))
	if err != nil {
		return in, err
	}
	for _, one := range t.SAEs {
		if one.Path == r.SAEPath {
			in.sae = one.Facts
			return in, nil
		}
	}
	return in, &Failure{Code: "sae_missing", Detail: fmt.Sprintf("training %s has no SAE at %q", r.Source.TrainingID(), r.SAEPath)}
}

// pairKey tells loaded pairs apart: by everything that is loaded. The same files may have been imported twice, with other
// facts stated of them, such as the hook.
func pairKey(in inputs, shared bool) (string, error) {
	key, err := json.Marshal(struct {
		Model  model.Facts
		SAE    sae.Facts
		Fold   string // how weights are changed
		Shared bool
	}{in.model, in.sae, in.extraction.Request.Config.Fold, shared})
	return string(key), err
}

// open returns the loaded pair; the one that was loaded before is kept while it is the same.
func (w *Worker) open(ctx context.Context, in inputs) (Encoder, error) {
	batch := in.extraction.Request.Batch
	shared := batch != nil && batch.Total > 1
	key, err := pairKey(in, shared)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.loaded.encoder != nil && w.loaded.key == key {
		return w.loaded.encoder, nil
	}
	if w.loaded.encoder != nil {
		err := w.loaded.encoder.Close()
		w.loaded.encoder = nil
		if err != nil {
			return nil, err
		}
	}
	modelDir, err := w.library.Folder(ctx, in.model.Files)
	if err != nil {
		return nil, missing("the model's files", err)
	}
	saeDir, err := w.library.Folder(ctx, in.sae.Files)
	if err != nil {
		return nil, missing("the SAE's files", err)
	}
	e, err := w.engine.Open(ctx, Pair{ModelDir: modelDir, Model: in.model, SAEDir: saeDir, SAE: in.sae, Fold: in.extraction.Request.Config.Fold, Shared: shared})
	if err != nil {
		return nil, err
	}
	w.loaded.encoder, w.loaded.key = e, key
	return e, nil
}

// missing says that files are not there, if that is what is wrong; a store that is away is another matter.
func missing(what string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return &Failure{Code: "files_missing", Detail: what + " are not in the store: import them again, or put the store back, and resume", Resumable: true, Err: err}
}

func (w *Worker) tokenizer(ctx context.Context, m model.Facts) (Tokenizer, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.tokenizers[m.Tokenizer]; t != nil {
		return t, nil
	}
	path, err := w.store.Local(ctx, blob.FileKey(m.Tokenizer), m.Tokenizer)
	if err != nil {
		return nil, missing("the tokenizer's files", err)
	}
	t, err := w.engine.Tokenizer(path)
	if err != nil {
		return nil, &Failure{Code: "tokenizer_unreadable", Detail: err.Error(), Err: err}
	}
	w.tokenizers[m.Tokenizer] = t
	return t, nil
}

// telemetry is what people see of running work.
type telemetry struct {
	Stage           string  `json:"stage"`
	TokensDone      int64   `json:"tokens_done,omitempty"`
	TokensTotal     int64   `json:"tokens_total,omitempty"`
	TokensPerSecond float64 `json:"tokens_per_second,omitempty"`
	Batch           int     `json:"current_batch,omitempty"`
	Batches         int     `json:"total_batches,omitempty"`
	BytesDone       int64   `json:"bytes_done,omitempty"`
	BytesTotal      int64   `json:"bytes_total,omitempty"` // 0 = not known yet
}

const showEvery = 200 * time.Millisecond

// fetching has what is fetched from the store reported: bytes that arrive are progress, and no watchdog ends them.
func fetching(ctx context.Context, task *Task) context.Context {
	var shown time.Time
	return blob.WithProgress(ctx, func(done, total int64) error {
		if time.Since(shown) < showEvery && done < total {
			return task.Batch(nil)
		}
		shown = time.Now()
		return task.Batch(telemetry{Stage: "fetching", BytesDone: done, BytesTotal: total})
	})
}

func rate(tokens int64, since time.Time) float64 {
	if s := time.Since(since).Seconds(); s > 0 {
		return float64(tokens) / s
	}
	return 0
}
