package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/Shopify/sarama"
	"github.com/ThreeDotsLabs/watermill"
	wkafka "github.com/ThreeDotsLabs/watermill-kafka/v2/pkg/kafka"
	"github.com/ThreeDotsLabs/watermill/message"
)

var _ message.Subscriber = (*Subscriber)(nil)

const (
	reconnectFirst = 250 * time.Millisecond
	reconnectMost  = 5 * time.Second
)

// SubscriberConfig says what to read. Only Brokers is needed.
type SubscriberConfig struct {
	Brokers []string
	// Group shares the topic among its members and remembers how far they are: one reader at a time
	// of one partition. Without a group every subscriber gets what is published from now on, and
	// nothing is remembered: enough to be woken up.
	Group  string
	Logger *slog.Logger // nil: nowhere
}

// Subscriber reads a topic from its first record on, then, in its group, from where the group was.
//
// Every message must be acknowledged. Never Nack: it blocks the partition, comes back every 100 ms
// for ever, and has lost its offset; park what cannot be handled and acknowledge it. A rebalance does
// not cancel the message's context: handlers need a deadline of their own, well under a minute, after
// which the group gives the partition to somebody else. Acknowledgements reach the broker every
// second, so a crash repeats what came after.
type Subscriber struct {
	cfg     SubscriberConfig
	inner   *wkafka.Subscriber
	logger  *slog.Logger
	ctx     context.Context // of the subscriptions; ended by Close
	cancel  context.CancelFunc
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// NewSubscriber checks the configuration; it does not connect yet.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	inner, err := wkafka.NewSubscriber(wkafka.SubscriberConfig{
		Brokers:               cfg.Brokers,
		Unmarshaler:           unmarshaler{},
		OverwriteSaramaConfig: saramaConfig(cfg.Group),
		ConsumerGroup:         cfg.Group,
		ReconnectRetrySleep:   reconnectFirst,
	}, watermill.NewSlogLogger(quiet(logger)))
	if err != nil {
		return nil, fmt.Errorf("kafka subscriber: %w", err)
	}
	s := &Subscriber{cfg: cfg, inner: inner, logger: logger}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

func saramaConfig(group string) *sarama.Config {
	c := sarama.NewConfig()
	c.ClientID = "featuremill"
	c.Version = sarama.V3_3_1_0 // the newest that sarama 1.38 knows
	c.Net.DialTimeout = 5 * time.Second
	c.Net.ReadTimeout = 10 * time.Second
	c.Net.WriteTimeout = 10 * time.Second
	c.Metadata.Retry.Backoff = reconnectFirst
	c.Consumer.Retry.Backoff = reconnectFirst
	c.Consumer.Offsets.AutoCommit.Enable = true // off, watermill-kafka never commits
	c.Consumer.Offsets.AutoCommit.Interval = time.Second
	// A value makes sarama use OffsetCommit v2 and newer; without it, it sends v1, which Kafka 4 has
	// dropped, and every commit fails with no more than an EOF in the log.
	c.Consumer.Offsets.Retention = 7 * 24 * time.Hour
	c.Consumer.Offsets.Initial = sarama.OffsetOldest
	c.Consumer.Return.Errors = true
	if group == "" {
		c.Consumer.Offsets.Initial = sarama.OffsetNewest
		c.Consumer.Return.Errors = false // nobody drains them there, and a full channel would block
	}
	return c
}

// Subscribe returns at once. It connects in the background and tries again while the broker is away.
// The channel is closed when ctx ends or the subscriber is closed.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	unlink := context.AfterFunc(s.ctx, cancel)
	out := make(chan *message.Message)
	s.running.Go(func() {
		defer cancel()
		defer unlink()
		defer close(out)
		in := s.connect(ctx, topic)
		for m := range in { // closed by the inner subscriber when ctx ends; nil if it ended before
			select {
			case out <- m:
			case <-ctx.Done():
				// Not acknowledged: it will come again. The inner subscriber is on its way out.
			}
		}
	})
	return out, nil
}

func (s *Subscriber) connect(ctx context.Context, topic string) <-chan *message.Message {
	for wait := reconnectFirst; ; wait = min(2*wait, reconnectMost) {
		in, err := s.inner.Subscribe(ctx, topic)
		if err == nil {
			return in
		}
		s.logger.Warn("kafka: cannot subscribe yet", "topic", topic, "group", s.cfg.Group, "brokers", s.cfg.Brokers, "error", err)
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): //nolint:gosec // spreads load, keeps no secret
		case <-ctx.Done():
			closed := make(chan *message.Message)
			close(closed)
			return closed
		}
	}
}

// Close ends every subscription and returns when all of their goroutines have ended and the
// acknowledgements have been sent, except perhaps that of the last message.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.running.Wait() // first: the inner subscriber does not bear Subscribe and Close at once
	return s.inner.Close()
}

// unmarshaler never fails: an error here would make watermill-kafka read the same record for ever.
// What does not look like an event is told by Unmarshal, to somebody who can park it.
type unmarshaler struct{}

func (unmarshaler) Unmarshal(r *sarama.ConsumerMessage) (*message.Message, error) {
	metadata := make(message.Metadata, len(r.Headers))
	for _, h := range r.Headers {
		key := string(h.Key)
		if _, twice := metadata[key]; twice || key == markMalformed {
			metadata[markMalformed] = fmt.Sprintf("header %q must not be there, or not twice", key)
			continue
		}
		metadata[key] = string(h.Value)
	}
	id := metadata[HeaderID]
	if id == "" {
		id = fmt.Sprintf("%s/%d/%d", r.Topic, r.Partition, r.Offset)
	}
	m := message.NewMessage(id, r.Value)
	m.Metadata = metadata
	return m, nil
}

// quiet keeps watermill's and sarama's chatter out of the log: their errors during a broker's outage
// are warnings to us, their progress is detail.
func quiet(logger *slog.Logger) *slog.Logger { return slog.New(quietHandler{logger.Handler()}) }

type quietHandler struct{ slog.Handler }

func (h quietHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, softer(level))
}

func (h quietHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level, r.Message = softer(r.Level), "kafka: "+r.Message
	return h.Handler.Handle(ctx, r)
}

func (h quietHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quietHandler{h.Handler.WithAttrs(attrs)}
}

func (h quietHandler) WithGroup(name string) slog.Handler {
	return quietHandler{h.Handler.WithGroup(name)}
}

func softer(level slog.Level) slog.Level {
	if level >= slog.LevelError {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}
