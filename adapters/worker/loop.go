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
	// Do works until it is done. It calls task.Batch after every batch and returns its error at once. nil = done: an
	// event has closed the work, or it is not wanted any more. A *Failure ends what the work belongs to, a Later puts it
	// off. Any other error puts it off with its cause: an outage for as long as it lasts, all else a few times.
	Do(ctx context.Context, task *Task) error
}

// Task is a piece of work that this process holds the lease of.
type Task struct {
	Lease eventlog.Lease

	stop    <-chan struct{}
	lost    chan struct{}
	reports *reports
	renew   func(context.Context) error // says to the log that the lease is still held
}

// reports is what the heartbeat sends and the watchdog watches.
type reports struct {
	batches atomic.Int64
	last    atomic.Int64 // ticks at the last report
	longest atomic.Int64 // the longest batch, ns
	detail  atomic.Pointer[json.RawMessage]
}

// Batch reports that a batch is done, with what people may see of it. It returns ErrStopping or ErrLost
// when the job is to end here.
func (t *Task) Batch(detail any) error {
	now := ticks()
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

// ticks are nanoseconds of a clock that nobody sets, and that stands still while the machine sleeps.
func ticks() int64 { return int64(time.Since(begun)) }

var begun = time.Now()

// Config says how a Loop works. The zero values of the times are replaced by the defaults in brackets.
type Config struct {
	Owner        string   // names this process and no other
	Capabilities []string // what this worker can meet, such as its compute profile
	Jobs         map[string]Job
	Last         []string                                              // kinds of work that wait until there is nothing else to do
	Wake         <-chan struct{}                                       // something may have been opened; nil = polling only
	Poll         time.Duration                                         // how often to look without being woken [500 ms]
	Heartbeat    time.Duration                                         // a third of the lease's life [10 s]
	ReapEvery    time.Duration                                         // how often to look for leases that were lost [400 ms]; negative = other loops of the process do
	Hung         time.Duration                                         // a job without a report for max(Hung, 10 × its longest batch) ends the process [2 min]
	OnHung       func(eventlog.Lease)                                  // nil: the job is cancelled, and put off
	OnFailure    func(context.Context, eventlog.Lease, *Failure) error // records that the work cannot be done
	OnLost       func(context.Context, eventlog.Lost) error            // records that work was lost too often
	Logger       *slog.Logger
}

func (c *Config) defaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&c.Poll, 500 * time.Millisecond}, {&c.Heartbeat, 10 * time.Second}, {&c.ReapEvery, 400 * time.Millisecond}, {&c.Hung, 2 * time.Minute}} {
		if *d.v == 0 {
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

// sayTime is how long one call of the log may take: a connection to what cannot be reached says nothing for long.
const sayTime = 15 * time.Second

// attendWait is how long the first claim waits for a session. Without one, a lease is known by its time alone.
const attendWait = 5 * time.Second

// Run works until ctx ends; then it finishes the batch, gives the lease back and returns nil.
func (l *Loop) Run(ctx context.Context) error {
	kinds := make([]string, 0, len(l.cfg.Jobs))
	for kind := range l.cfg.Jobs {
		kinds = append(kinds, kind)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	session, end := context.WithCancel(context.WithoutCancel(ctx)) // until the last lease is given back
	defer end()
	attended := make(chan struct{})
	wg.Go(func() { l.leases.Attend(session, l.cfg.Owner, sync.OnceFunc(func() { close(attended) })) })
	if l.cfg.ReapEvery > 0 {
		wg.Go(func() { l.reap(ctx) })
	}
	select {
	case <-attended:
	case <-ctx.Done():
	case <-time.After(attendWait):
	}
	poll := time.NewTicker(l.cfg.Poll)
	defer poll.Stop()
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, sayTime)
		lease, err := l.leases.Claim(try, eventlog.Claim{Owner: l.cfg.Owner, Kinds: kinds, Last: l.cfg.Last, Prefer: l.prefer, Capabilities: l.cfg.Capabilities})
		cancel()
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

// Do does one piece of work whose lease this process holds. It reports whether to look for more at once.
func (l *Loop) Do(ctx context.Context, lease eventlog.Lease) bool {
	log := l.cfg.Logger.With("work", lease.Work.String(), "fence", lease.Fence, "attempt", lease.Attempt)
	task := &Task{Lease: lease, stop: ctx.Done(), lost: make(chan struct{}), reports: &reports{}}
	task.renew = func(ctx context.Context) error {
		_, err := l.leases.Heartbeat(ctx, lease, task.reports.progress())
		return err
	}
	task.reports.last.Store(ticks())

	// The job outlives ctx by one batch: it ends at task.Batch. Only a lost lease cancels it at once.
	jobCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	beat, stopBeat := context.WithCancel(context.WithoutCancel(ctx))
	var hung error
	wg.Go(func() {
		hung = l.keep(beat, task, log)
		cancel()
	})
	started := time.Now()
	err := l.cfg.Jobs[lease.Work.Kind].Do(jobCtx, task)
	stopBeat()
	wg.Wait()
	cancel()
	select {
	case <-task.lost:
		err = errors.Join(ErrLost, err)
	default:
		if hung != nil && err != nil {
			err = hung
		}
	}

	// While the log is away nothing can be said to it, and nothing else can be claimed. A worker that is to stop waits only a moment.
	after, done := context.WithCancel(context.WithoutCancel(ctx))
	defer done()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-after.Done():
		case <-time.After(min(max(lease.Life, time.Second), 10*time.Second)):
			done()
		}
	})()
	end := func(do func(context.Context) error) bool { return l.untilSaid(after, log, do) }
	var failure *Failure
	var later Later
	switch {
	case err == nil:
		log.Info("done", "seconds", time.Since(started).Seconds())
		// Usually an event has closed it. What is still open is not wanted by anybody who could say so: it must not wait for its lease.
		return end(func(ctx context.Context) error { return l.leases.PutOff(ctx, lease, eventlog.Pause{After: firstPause}) })
	case errors.Is(err, ErrLost) || over(err):
		log.Info("called off, or given to another worker")
		return true
	case errors.Is(err, ErrStopping):
		log.Info("given back")
		end(func(ctx context.Context) error { return l.leases.ReleaseLease(ctx, lease) })
		return false
	case errors.As(err, &later):
		return end(func(ctx context.Context) error {
			return l.leases.PutOff(ctx, lease, eventlog.Pause{After: later.After})
		})
	case errors.As(err, &failure):
	default:
		if p := putOff(lease, err); p != nil {
			log.Warn("put off", "seconds", p.After.Seconds(), "error", err)
			end(func(ctx context.Context) error { return l.leases.PutOff(ctx, lease, *p) })
			return false
		}
		failure = &Failure{Code: "failed_repeatedly", Resumable: true, Err: err,
			Detail: fmt.Sprintf("it was tried %d times, and failed each time; the last time: %s", lease.Failures+1, err)}
	}
	log.Error("failed", "error", failure)
	return end(func(ctx context.Context) error {
		err := l.cfg.OnFailure(ctx, lease, failure)
		var fenced *eventlog.FencedError
		if errors.As(err, &fenced) && task.renew(ctx) == nil { // it was lost, and nobody else has it
			err = l.cfg.OnFailure(ctx, lease, failure)
		}
		if err != nil && over(err) {
			log.Info("what it belongs to has ended meanwhile")
			return nil
		}
		return err
	})
}

// untilSaid repeats what the log could not take because it was away. What was not said in the end is found out by the
// lease, which runs out.
func (l *Loop) untilSaid(ctx context.Context, log *slog.Logger, do func(context.Context) error) bool {
	for told := false; ; told = true {
		try, cancel := context.WithTimeout(ctx, sayTime)
		err := do(try)
		cancel()
		switch {
		case err == nil:
			return true
		case !errors.Is(err, eventlog.ErrUnavailable):
			log.Error("tell the log how work ended", "error", err)
			return false
		case !told:
			log.Warn("the log is to be told how work ended, as soon as it is back", "error", err)
		}
		select {
		case <-ctx.Done():
			log.Warn("the log was not told how work ended: it is away", "error", err)
			return false
		case <-time.After(l.cfg.Poll):
		}
	}
}

// keep sends heartbeats until ctx ends or the lease is lost. A job that hangs it gives to OnHung, or returns as an error.
func (l *Loop) keep(ctx context.Context, task *Task, log *slog.Logger) error {
	tick := time.NewTicker(l.cfg.Heartbeat)
	defer tick.Stop()
	renewed := time.Now() // by this machine's clock, which need not be the server's
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		hung := max(l.cfg.Hung, 10*time.Duration(task.reports.longest.Load()))
		if since := time.Duration(ticks() - task.reports.last.Load()); since > hung {
			if l.cfg.OnHung == nil {
				return fmt.Errorf("it got nowhere for %.0f s", since.Seconds())
			}
			log.Error("no batch for too long: the process ends, so that another worker can take over", "seconds", since.Seconds())
			l.cfg.OnHung(task.Lease)
			close(task.lost)
			return nil
		}
		// A database that does not answer must not keep the watchdog from looking.
		asked := time.Now()
		try, cancel := context.WithTimeout(ctx, max(l.cfg.Heartbeat, 5*time.Second))
		_, err := l.leases.Heartbeat(try, task.Lease, task.reports.progress())
		cancel()
		var fenced *eventlog.FencedError
		switch {
		case err == nil:
			renewed = asked
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &fenced):
			close(task.lost)
			return nil
		default:
			// It may have run out by now. What is computed meanwhile still counts if nobody else was given the work.
			log.Warn("heartbeat", "error", err, "seconds", time.Since(renewed).Seconds())
		}
	}
}

// reap frees leases that were lost, and records what was lost too often. Every worker does it: the store decides.
func (l *Loop) reap(ctx context.Context) {
	tick := time.NewTicker(l.cfg.ReapEvery)
	defer tick.Stop()
	told := map[eventlog.Work]bool{} // that it cannot be recorded
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		try, cancel := context.WithTimeout(ctx, sayTime)
		lost, err := l.leases.Reap(try)
		cancel()
		if err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("reap", "error", err)
		}
		for _, w := range lost {
			err := l.cfg.OnLost(ctx, w)
			switch {
			case err == nil || over(err) || ctx.Err() != nil:
				delete(told, w.Work)
			case !told[w.Work]:
				told[w.Work] = true
				l.cfg.Logger.Error("record lost work", "work", w.Work.String(), "error", err)
			}
		}
	}
}
