package wiring

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/relay"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/features"
	librarian "github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector"
)

// process names this process and no other.
func process() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	var b [4]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), hex.EncodeToString(b[:]))
}

// background runs loops from start to stop. A loop that ends with an error shuts the program down.
func background(lc fx.Lifecycle, shut fx.Shutdowner, log *slog.Logger, name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	lc.Append(fx.Hook{
		OnStart: func(context.Context) error {
			wg.Go(func() {
				if err := run(ctx); err != nil && ctx.Err() == nil {
					log.Error(name+" ended", "error", err)
					_ = shut.Shutdown(fx.ExitCode(1))
				}
			})
			return nil
		},
		OnStop: func(stop context.Context) error {
			cancel()
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			select {
			case <-done:
				return nil
			case <-stop.Done():
				return fmt.Errorf("%s did not stop: %w", name, stop.Err())
			}
		},
	})
}

// Relay copies the log to Kafka.
func Relay() fx.Option {
	return fx.Invoke(func(lc fx.Lifecycle, shut fx.Shutdowner, l *postgres.Log, brokers Brokers, log *slog.Logger) error {
		log = log.With("part", "relay")
		publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: brokers, Logger: log})
		if err != nil {
			return err
		}
		lc.Append(fx.StopHook(publisher.Close))
		r, err := relay.New(relay.Config{Log: l, Pool: l.Pool(), Publisher: publisher, Topic: Topic, Logger: log})
		if err != nil {
			return err
		}
		background(lc, shut, log, "relay", func(ctx context.Context) error {
			if err := ensureTopic(ctx, brokers, log); err != nil {
				return err
			}
			return r.Run(ctx)
		})
		return nil
	})
}

// ensureTopic waits until the broker is there: commands keep working while Kafka is down.
func ensureTopic(ctx context.Context, brokers Brokers, log *slog.Logger) error {
	for {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := kafka.EnsureTopic(try, brokers, Topic)
		expired := try.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil || !expired {
			return err
		}
		log.Warn("the broker does not answer yet", "error", err)
	}
}

// Projections lists every projection in the order in which they are set up.
func Projections() []projector.Projection {
	return []projector.Projection{librarian.Projection{}, features.Projection{}, extractions.Projection{}}
}

// Runner builds the runner of a projection. It touches nothing, so that a projection whose tables were
// made by another program can be rebuilt.
func Runner(l *postgres.Log, registry *event.Registry, log *slog.Logger, p projector.Projection) (*projector.Runner, error) {
	return projector.New(projector.Config{Pool: l.Pool(), Log: l, Registry: registry, Logger: log.With("part", p.Name())}, p)
}

// Runners builds a runner for every projection and sets up their tables.
func Runners(ctx context.Context, l *postgres.Log, registry *event.Registry, log *slog.Logger) ([]*projector.Runner, error) {
	var out []*projector.Runner
	for _, p := range Projections() {
		r, err := Runner(l, registry, log, p)
		if err != nil {
			return nil, err
		}
		if err := r.Setup(ctx); err != nil {
			return nil, fmt.Errorf("set up the tables of %s: %w", p.Name(), err)
		}
		out = append(out, r)
	}
	return out, nil
}

func newRunners(cfg Config, l *postgres.Log, registry *event.Registry, log *slog.Logger) (out []*projector.Runner, err error) {
	err = patiently(cfg, log, func(ctx context.Context) (err error) {
		out, err = Runners(ctx, l, registry, log)
		return err
	})
	return out, err
}

// Projector keeps every read model current, and folds.
func Projector() fx.Option {
	return fx.Options(fx.Provide(newRunners, NewFolder), fx.Invoke(folds, sweeps, func(lc fx.Lifecycle, shut fx.Shutdowner, runners []*projector.Runner, brokers Brokers, log *slog.Logger) {
		for i, p := range Projections() {
			background(lc, shut, log, "projection "+p.Name(), func(ctx context.Context) error {
				var subscribers sync.WaitGroup
				err := runners[i].Run(ctx, follow(brokers, &subscribers, log))
				if ctx.Err() != nil {
					waitFor(&subscribers, subscribersEnd) // the broker is stopped next
				}
				return err
			})
		}
	}))
}

// subscribersEnd is how long a stop waits for subscribers. One that is joining its group cannot be called off:
// it waits for the broker to give up a member that was killed, half a minute or so.
const subscribersEnd = 2 * time.Second

func waitFor(group *sync.WaitGroup, most time.Duration) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(most):
	}
}

// follow is the topic as a projection reads it.
func follow(brokers Brokers, subscribers *sync.WaitGroup, log *slog.Logger) projector.Feed {
	return projector.Messages(func(ctx context.Context, group string) (<-chan *message.Message, error) {
		s, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: brokers, Group: group, Logger: log.With("part", "kafka", "group", group)})
		if err != nil {
			return nil, err
		}
		subscribers.Add(1)
		context.AfterFunc(ctx, func() {
			defer subscribers.Done()
			_ = s.Close()
		})
		return s.Subscribe(ctx, Topic)
	}, kafka.Unmarshal)
}

// Queries provides what reads the read models.
func Queries() fx.Option {
	return fx.Provide(
		func(l *postgres.Log) *pgxpool.Pool { return l.Pool() },
		librarian.NewQueries, features.NewQueries,
		func(pool *pgxpool.Pool) *extractions.Queries { return extractions.NewQueries(pool, nil) },
		func(l *postgres.Log, log *slog.Logger) *projector.Positions {
			return projector.NewPositions(l.Pool(), log.With("part", "positions"))
		},
	)
}

// WorkerOptions say how a worker works. Zero values mean the defaults.
type WorkerOptions struct {
	Poll, Heartbeat, ReapEvery, Hung time.Duration

	Failpoints string // see failpoints; "" in production
}

// Worker claims and does work with an engine.
func Worker(engine func() (worker.Engine, error), o WorkerOptions) fx.Option {
	return fx.Options(fx.Provide(engine), fx.Invoke(func(lc fx.Lifecycle, shut fx.Shutdowner, e worker.Engine, commands *command.Handler, l *postgres.Log, store blob.Store, lib *library.Library, brokers Brokers, log *slog.Logger) error {
		name := process()
		log = log.With("part", "worker")
		w := worker.New(commands, l, store, lib, e, name)
		lc.Append(fx.StopHook(w.Close))
		if o.Failpoints != "" {
			at, err := failpoints(o.Failpoints)
			if err != nil {
				return err
			}
			w.Failpoints(at)
		}
		wake := make(chan struct{}, 1)
		loop := worker.NewLoop(l, worker.Config{
			Owner: name, Capabilities: w.Capabilities(), Jobs: w.Jobs(), Last: []string{facts.SelfTestWork}, Wake: wake, Logger: log,
			Poll: o.Poll, Heartbeat: o.Heartbeat, ReapEvery: o.ReapEvery, Hung: o.Hung,
			OnFailure: w.Fail, OnLost: w.Lost,
			OnHung: hung,
		})
		background(lc, shut, log, "worker", func(ctx context.Context) error {
			log.Info("ready", "profile", e.Profile().Requirement(), "name", name)
			return loop.Run(ctx)
		})
		background(lc, shut, log, "wake-up", func(ctx context.Context) error { return wakeUp(ctx, brokers, wake, log) })
		return nil
	}))
}

// wakeUp turns every event into a look for work. Losing one is harmless: the loop also polls.
func wakeUp(ctx context.Context, brokers Brokers, wake chan<- struct{}, log *slog.Logger) error {
	s, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: brokers, Logger: log})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	for ctx.Err() == nil {
		messages, err := s.Subscribe(ctx, Topic)
		if err == nil {
			for m := range messages {
				m.Ack()
				select {
				case wake <- struct{}{}:
				default:
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// PureTables names a projection's tables that are a pure function of the log; none = all that its views show.
func PureTables(p projector.Projection) []string {
	if p.Name() == (features.Projection{}).Name() {
		return features.PureTables()
	}
	return nil
}
