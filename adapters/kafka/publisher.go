package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kgo"
)

var _ message.Publisher = (*Publisher)(nil)

// ErrClosed says that a publisher or subscriber was used after Close.
var ErrClosed = errors.New("kafka: closed")

// PublisherConfig says where to publish. Only Brokers is needed.
type PublisherConfig struct {
	Brokers []string
	Logger  *slog.Logger // gets the client's warnings; nil: nowhere
}

// Publisher writes messages to partition 0 of a topic, in order, and returns when all in-sync
// replicas have them. It is idempotent: a broker that dies in the middle neither loses nor repeats
// nor swaps messages. It may be used by several goroutines.
type Publisher struct {
	options []kgo.Opt

	mu     sync.Mutex
	client *kgo.Client // nil after a Publish was called off, until the next one
	closed bool
}

// NewPublisher checks the configuration; it does not connect yet.
func NewPublisher(cfg PublisherConfig) (*Publisher, error) {
	p := &Publisher{options: []kgo.Opt{
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.ClientID("featuremill"),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		// Batches come whole, so there is nothing to wait for.
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(1 << 17),
		// Trying again is the caller's decision, by its context.
		kgo.UnknownTopicRetries(-1),
		kgo.AlwaysRetryEOF(),
		kgo.DisableClientMetrics(),
		kgo.WithLogger(clientLog{cfg.Logger}),
	}}
	if _, err := p.current(); err != nil {
		return nil, fmt.Errorf("kafka publisher: %w", err)
	}
	return p, nil
}

func (p *Publisher) current() (*kgo.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrClosed
	}
	if p.client == nil {
		client, err := kgo.NewClient(p.options...)
		if err != nil {
			return nil, err
		}
		p.client = client
	}
	return p.client, nil
}

// Publish writes the messages of one batch in order and returns after the last acknowledgement. While
// no broker answers it keeps trying, until the context of the first message ends; then nothing of
// the batch is sent any more, but some of it may have been written: publish it again, from its first
// message, and readers see at most a repetition.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	if len(messages) == 0 {
		return nil
	}
	client, err := p.current()
	if err != nil {
		return err
	}
	ctx := messages[0].Context()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	records := make([]*kgo.Record, len(messages))
	for i, m := range messages {
		records[i] = record(topic, m)
	}
	// A record that may be in flight outlives its context: the client goes on with it, because it
	// cannot know what became of it. Only closing the client ends that, so the context watches it.
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ctx.Done():
			p.drop(client)
		case <-done:
		}
	}()
	err = client.ProduceSync(context.WithoutCancel(ctx), records...).FirstErr()
	close(done)
	<-watched
	if err != nil {
		return fmt.Errorf("publish to %s: %w", topic, errors.Join(ctx.Err(), err))
	}
	return nil
}

// drop closes a client, so that no batch of it is on its way when a newer one is sent.
func (p *Publisher) drop(client *kgo.Client) {
	p.mu.Lock()
	if p.client == client {
		p.client = nil
	}
	p.mu.Unlock()
	client.Close()
}

// Close ends the publisher; what is being published fails.
func (p *Publisher) Close() error {
	p.mu.Lock()
	client := p.client
	p.client, p.closed = nil, true
	p.mu.Unlock()
	if client != nil {
		client.Close()
	}
	return nil
}

func record(topic string, m *message.Message) *kgo.Record {
	r := &kgo.Record{
		Topic:   topic,
		Key:     []byte(m.Metadata[HeaderSubject]),
		Headers: make([]kgo.RecordHeader, 0, len(m.Metadata)+1),
	}
	if len(m.Payload) > 0 {
		r.Value = m.Payload // else null: an archived event
	}
	if _, ok := m.Metadata[HeaderID]; !ok {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: HeaderID, Value: []byte(m.UUID)})
	}
	for _, key := range slices.Sorted(maps.Keys(m.Metadata)) { // equal messages are equal bytes
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(m.Metadata[key])})
	}
	return r
}

type clientLog struct{ logger *slog.Logger }

func (l clientLog) Level() kgo.LogLevel {
	if l.logger == nil {
		return kgo.LogLevelNone
	}
	return kgo.LogLevelWarn
}

func (l clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	severity := slog.LevelWarn
	if level == kgo.LogLevelError {
		severity = slog.LevelError
	}
	l.logger.Log(context.Background(), severity, "kafka: "+msg, keyvals...)
}
