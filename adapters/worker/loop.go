package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// Job does one kind of work.
type Job interface {
	// Do works until it is done. It calls task.Batch after every batch and returns its error at once.
	// A *Failure ends what the work belongs to; any other error gives the work back to be tried again.
	Do(ctx context.Context, task *Task) error
}

// Failure says that the work cannot be done, by anyone or by this worker.
type Failure struct {
	Code      string
	Detail    string
	Resumable bool
	Err       error
}

func (f *Failure) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %s: %v", f.Code, f.Detail, f.Err)
	}
	return f.Code + ": " + f.Detail
}

func (f *Failure) Unwrap() error { return f.Err }

// ErrStopping says that the process was asked to stop: the lease is given back.
var ErrStopping = errors.New("the worker is stopping")

// ErrLost says that the lease is no longer held: the work was called off, or given to another worker.
var ErrLost = errors.New("the lease was lost")

// Task is a piece of work that this process holds the lease of.
type Task struct {
	Lease eventlog.Lease

	stop    <-chan struct{}
	lost    chan struct{}
	reports *reports
}

// reports is what the heartbeat sends and the watchdog watches.
type reports struct {
	batches atomic.Int64
	last    atomic.Int64 // UnixNano of the last report
	longest atomic.Int64 // the longest batch, ns
	detail  atomic.Pointer[json.RawMessage]
}

// Batch reports that a batch is done, with what people may see of it. It returns ErrStopping or ErrLost
// when the job is to end here.
func (t *Task) Batch(detail any) error {
	now := time.Now().UnixNano()
	if took := now - t.reports.last.Swap(now); took > t.reports.longest.Load() {
		t.reports.longest.Store(took)
	}
	t.reports.batches.Add(1)
	if detail != nil {
		if b, err := json.Marshal(detail); err == nil {
			raw := json.RawMessage(b)
			t.reports.detail.Store(&raw)
		}
	}
	select {
	case <-t.lost:
		return ErrLost
	case <-t.stop:
		return ErrStopping
	default:
		return nil
	}
}

func (r *reports) progress() eventlog.Progress {
	p := eventlog.Progress{Batches: r.batches.Load(), BatchTime: time.Duration(r.longest.Load())}
	if d := r.detail.Load(); d != nil {
		p.Detail = *d
	}
	return p
}

// Config says how a Loop works. The zero values of the times are replaced by the defaults in brackets.
type Config struct {
	Owner        string   // names this process and no other
	Capabilities []string // what this worker can meet, such as its compute profile
	Jobs         map[string]Job
	Last         []string        // kinds of work that wait until there is nothing else to do
	Wake         <-chan struct{} // something may have been opened; nil = polling only
	Poll         time.Duration   // how often to look without being woken [500 ms]
	Heartbeat    time.Duration   // a third of the lease's life [10 s]
	ReapEvery    time.Duration   // how often to look for leases that were lost [5 s]
	Hung         time.Duration   // a job without a report for max(Hung, 10 × its longest batch) ends the process [2 min]
	OnHung       func(eventlog.Lease)
	OnFailure    func(context.Context, eventlog.Lease, *Failure) error // records that the work cannot be done
	OnLost       func(context.Context, eventlog.Lost) error            // records that work was lost too often
	Logger       *slog.Logger
}

func (c *Config) defaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.Poll, 500 * time.Millisecond}, {&c.Heartbeat, 10 * time.Second}, {&c.ReapEvery, 5 * time.Second}, {&c.Hung, 2 * time.Minute}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Loop claims and does work until it is stopped.
type Loop struct {
	leases eventlog.Leases
	cfg    Config
	prefer []string
}

// NewLoop returns a loop on these leases.
func NewLoop(leases eventlog.Leases, cfg Config) *Loop {
	cfg.defaults()
	return &Loop{leases: leases, cfg: cfg}
}

// Run works until ctx ends; then it finishes the batch, gives the lease back and returns nil.
func (l *Loop) Run(ctx context.Context) error {
	kinds := make([]string, 0, len(l.cfg.Jobs))
	for kind := range l.cfg.Jobs {
		kinds = append(kinds, kind)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.reap(ctx) })
	poll := time.NewTicker(l.cfg.Poll)
	defer poll.Stop()
	for ctx.Err() == nil {
		lease, err := l.leases.Claim(ctx, eventlog.Claim{Owner: l.cfg.Owner, Kinds: kinds, Last: l.cfg.Last, Prefer: l.prefer, Capabilities: l.cfg.Capabilities})
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("claim", "error", err)
		}
		if lease != nil {
			l.prefer = []string{lease.Work.Subject}
			if l.Do(ctx, *lease) {
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-l.cfg.Wake:
		case <-poll.C:
		}
	}
	return nil
}

// Do does one piece of work whose lease this process holds. It reports whether the work was done.
func (l *Loop) Do(ctx context.Context, lease eventlog.Lease) bool {
	log := l.cfg.Logger.With("work", lease.Work.String(), "fence", lease.Fence, "attempt", lease.Attempt)
	task := &Task{Lease: lease, stop: ctx.Done(), lost: make(chan struct{}), reports: &reports{}}
	task.reports.last.Store(time.Now().UnixNano())

	// The job outlives ctx by one batch: it ends at task.Batch. Only a lost lease cancels it at once.
	jobCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	beat, stopBeat := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() {
		l.keep(beat, task, log)
		cancel()
	})
	started := time.Now()
	err := l.cfg.Jobs[lease.Work.Kind].Do(jobCtx, task)
	stopBeat()
	wg.Wait()
	cancel()

	after, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer done()
	var failure *Failure
	var fenced *eventlog.FencedError
	select {
	case <-task.lost:
		err = errors.Join(ErrLost, err)
	default:
	}
	switch {
	case err == nil:
		log.Info("done", "seconds", time.Since(started).Seconds())
		return true
	case errors.Is(err, ErrLost) || errors.As(err, &fenced):
		log.Info("called off, or given to another worker")
		return true
	case errors.Is(err, ErrStopping):
		log.Info("given back")
	case errors.As(err, &failure):
		log.Error("failed", "error", err)
		err := l.cfg.OnFailure(after, lease, failure)
		if err == nil || errors.As(err, &fenced) {
			return true
		}
		log.Error("record the failure", "error", err)
	case errors.Is(err, eventlog.ErrUnavailable):
		log.Warn("given back: the log is away", "error", err)
		l.giveBack(after, lease)
		return false
	default:
		log.Error("given back to be tried again", "error", err)
		return false // the lease runs out and counts as an attempt: what always breaks must end
	}
	if err := l.leases.ReleaseLease(after, lease); err != nil && !errors.As(err, &fenced) {
		log.Warn("give the lease back", "error", err)
	}
	return false
}

// giveBack frees a lease when the log is back: that it was away is not the work's fault, and no attempt is counted.
func (l *Loop) giveBack(ctx context.Context, lease eventlog.Lease) {
	for l.leases.ReleaseLease(ctx, lease) != nil {
		select {
		case <-ctx.Done():
			return // it runs out by itself
		case <-time.After(l.cfg.Poll):
		}
	}
}

// keep sends heartbeats until ctx ends or the lease is lost, and ends the process when the job hangs.
func (l *Loop) keep(ctx context.Context, task *Task, log *slog.Logger) {
	tick := time.NewTicker(l.cfg.Heartbeat)
	defer tick.Stop()
	expires := task.Lease.ExpiresAt
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		hung := max(l.cfg.Hung, 10*time.Duration(task.reports.longest.Load()))
		if since := time.Since(time.Unix(0, task.reports.last.Load())); since > hung {
			log.Error("no batch for too long: the process ends, so that another worker can take over", "seconds", since.Seconds())
			l.cfg.OnHung(task.Lease)
			close(task.lost)
			return
		}
		// A database that does not answer must not keep the watchdog from looking.
		try, cancel := context.WithTimeout(ctx, max(l.cfg.Heartbeat, 5*time.Second))
		until, err := l.leases.Heartbeat(try, task.Lease, task.reports.progress())
		cancel()
		var fenced *eventlog.FencedError
		switch {
		case err == nil:
			expires = until
		case ctx.Err() != nil:
			return
		case errors.As(err, &fenced):
			close(task.lost)
			return
		case time.Now().After(expires): // the store is away and the lease has run out: nobody can know who holds it
			log.Warn("heartbeat", "error", err)
			close(task.lost)
			return
		default:
			log.Warn("heartbeat", "error", err)
		}
	}
}

// reap frees leases that were lost, and records what was lost too often. Every worker does it: the store decides.
func (l *Loop) reap(ctx context.Context) {
	tick := time.NewTicker(l.cfg.ReapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		lost, err := l.leases.Reap(ctx)
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("reap", "error", err)
		}
		for _, w := range lost {
			if err := l.cfg.OnLost(ctx, w); err != nil && ctx.Err() == nil {
				l.cfg.Logger.Error("record lost work", "work", w.Work.String(), "error", err)
			}
		}
	}
}
