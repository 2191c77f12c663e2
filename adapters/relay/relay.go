package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/domain/event"
)

// Defaults of Config.
const (
	DefaultBatch          = 2000
	DefaultPoll           = 250 * time.Millisecond
	DefaultStandby        = time.Second
	DefaultPublishTimeout = 30 * time.Second
)

const (
	backoffFirst = 200 * time.Millisecond
	backoffMost  = 10 * time.Second
)

// Failpoints at which a test may stop the relay.
const (
	AfterRead    = "after read"    // the batch is in memory
	AfterPublish = "after publish" // the broker has it, the checkpoint does not know
)

// Reader is the part of eventlog.Log that is copied from.
type Reader interface {
	ReadAll(ctx context.Context, after int64, limit int) ([]event.Recorded, error)
	Head(ctx context.Context) (position int64, hash [32]byte, err error)
}

// Config says what is copied where. Log, Pool and Publisher are needed.
type Config struct {
	Log       Reader
	Pool      *pgxpool.Pool     // the log's database: the leader's lock, wake-ups and the checkpoint
	Publisher message.Publisher // must keep the order of a batch and return after the acknowledgements
	Topic     string            // kafka.Topic if empty; it also names the checkpoint and the lock

	Batch          int           // events in one publication
	Poll           time.Duration // how often to look without being woken
	Standby        time.Duration // how often to try to become the leader
	PublishTimeout time.Duration // after which a publication is called off, told, and tried again
	Logger         *slog.Logger  // slog.Default() if nil

	// Failpoint is called at the points named above; nil outside tests.
	Failpoint func(name string)
}

func (c Config) withDefaults() (Config, error) {
	if c.Log == nil || c.Pool == nil || c.Publisher == nil {
		return c, errors.New("relay: the log, the pool or the publisher is missing")
	}
	if c.Topic == "" {
		c.Topic = kafka.Topic
	}
	if c.Batch <= 0 {
		c.Batch = DefaultBatch
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{{&c.Poll, DefaultPoll}, {&c.Standby, DefaultStandby}, {&c.PublishTimeout, DefaultPublishTimeout}} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Failpoint == nil {
		c.Failpoint = func(string) {}
	}
	return c, nil
}

// Stats is what a relay has done since it was made. Counters only grow.
type Stats struct {
	Leader      bool
	Position    int64     // the checkpoint, as far as this relay knows it
	PublishedAt time.Time // of the last acknowledged batch
	Events      int64     // published and acknowledged, repetitions included
	Batches     int64
	Failures    int64  // publications that failed or took too long
	Elections   int64  // how often this relay became the leader
	LastError   string // "" once a publication has succeeded again
}

// Relay is one candidate for leadership.
type Relay struct {
	cfg Config

	mu    sync.Mutex
	stats Stats
}

// New checks the configuration; Run does the work.
func New(cfg Config) (*Relay, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Relay{cfg: cfg}, nil
}

// Stats returns the counters for metrics and health checks.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

func (r *Relay) count(change func(*Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.stats)
}

// Run copies until ctx ends and returns nil then. It outlives every outage of PostgreSQL and the
// broker; what goes wrong is logged and counted. Call it once.
func (r *Relay) Run(ctx context.Context) error {
	var wait backoff
	for ctx.Err() == nil {
		elected := r.Stats().Elections
		err := r.lead(ctx)
		if r.Stats().Elections > elected {
			wait.reset()
		}
		r.rest(ctx, err, &wait)
	}
	return nil
}

// rest waits after a leadership that ended, or was not to be had.
func (r *Relay) rest(ctx context.Context, err error, wait *backoff) {
	r.count(func(s *Stats) { s.Leader = false })
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errNotLeader):
		wait.reset()
		sleep(ctx, r.cfg.Standby)
	default:
		r.count(func(s *Stats) { s.LastError = err.Error() })
		pause := wait.next()
		r.cfg.Logger.Warn("relay: not copying events to the broker; trying again", "error", err, "in", pause)
		sleep(ctx, pause)
	}
}

// lead waits for nothing: it leads until something ends its leadership, or returns errNotLeader.
func (r *Relay) lead(ctx context.Context) error {
	s, err := openSession(ctx, r.cfg.Pool, r.cfg.Topic)
	if err != nil {
		return err
	}
	defer s.close()
	position, err := r.checkpoint(ctx)
	if err != nil {
		return err
	}
	if err := r.checkHead(ctx, position); err != nil {
		return err
	}
	r.count(func(s *Stats) { s.Leader, s.Position, s.Elections = true, position, s.Elections+1 })
	r.cfg.Logger.Info("relay: leading", "topic", r.cfg.Topic, "position", position)

	// Everything the leader does hangs on its session: when that is lost, somebody else may lead.
	leading, stepDown := context.WithCancelCause(ctx)
	defer stepDown(nil)
	var watching sync.WaitGroup
	watching.Go(func() { stepDown(s.watch(leading)) })
	err = r.copy(leading, s.wake, position)
	stepDown(err)
	watching.Wait()
	return context.Cause(leading)
}

// page is what one read of the log gave.
type page struct {
	events []event.Recorded
	err    error
}

// copy publishes batch after batch. The next batch is read while the one before it is published.
func (r *Relay) copy(ctx context.Context, wake <-chan struct{}, position int64) error {
	var reading sync.WaitGroup
	defer reading.Wait()
	read := func(after int64) <-chan page {
		out := make(chan page, 1) // nobody waits for it when publishing has failed
		reading.Go(func() {
			events, err := r.read(ctx, after)
			out <- page{events, err}
		})
		return out
	}
	ahead := read(position)
	for {
		got := <-ahead
		if got.err != nil {
			return got.err
		}
		if len(got.events) == 0 {
			if err := r.waitForEvents(ctx, wake); err != nil {
				return err
			}
			ahead = read(position)
			continue
		}
		next := got.events[len(got.events)-1].Position
		ahead = read(next)
		r.cfg.Failpoint(AfterRead)
		if err := r.publish(ctx, got.events); err != nil {
			return err
		}
		r.cfg.Failpoint(AfterPublish)
		if err := r.moveCheckpoint(ctx, position, next); err != nil {
			return err
		}
		position = next
	}
}

// read returns what comes after a position, and proves that nothing is left out.
func (r *Relay) read(ctx context.Context, after int64) ([]event.Recorded, error) {
	events, err := r.cfg.Log.ReadAll(ctx, after, r.cfg.Batch)
	if err != nil {
		return nil, err
	}
	for i, e := range events {
		if want := after + int64(i) + 1; e.Position != want {
			return nil, fmt.Errorf("the log goes from position %d to %d: run featuremill events verify", want-1, e.Position)
		}
	}
	return events, nil
}

func (r *Relay) waitForEvents(ctx context.Context, wake <-chan struct{}) error {
	poll := time.NewTimer(r.cfg.Poll)
	defer poll.Stop()
	select {
	case <-wake:
	case <-poll.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// publish brings one batch to the broker, however long that takes.
func (r *Relay) publish(ctx context.Context, events []event.Recorded) error {
	var wait backoff
	for {
		err := r.publishOnce(ctx, events)
		if err == nil {
			r.count(func(s *Stats) {
				s.Events, s.Batches, s.PublishedAt, s.LastError = s.Events+int64(len(events)), s.Batches+1, time.Now(), ""
			})
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.count(func(s *Stats) { s.Failures, s.LastError = s.Failures+1, err.Error() })
		pause := wait.next()
		r.cfg.Logger.Warn("relay: the broker did not take the events; they wait in the log",
			"from", events[0].Position, "to", events[len(events)-1].Position, "error", err, "again_in", pause)
		sleep(ctx, pause)
	}
}

func (r *Relay) publishOnce(ctx context.Context, events []event.Recorded) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.PublishTimeout)
	defer cancel()
	messages := make([]*message.Message, len(events))
	for i, e := range events {
		messages[i] = kafka.Marshal(e)
		messages[i].SetContext(ctx)
	}
	return r.cfg.Publisher.Publish(r.cfg.Topic, messages...)
}

// backoff grows from try to try; its upper half is random, so that relays do not come in step.
type backoff struct{ last time.Duration }

func (b *backoff) reset() { b.last = 0 }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, backoffFirst), backoffMost)
	return b.last/2 + rand.N(b.last/2) //nolint:gosec // spreads load, keeps no secret
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
