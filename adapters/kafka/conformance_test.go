package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/domain/event"
)

const patience = 2 * time.Minute // for one wait on a real broker on a loaded machine

// TestConformance is what Featuremill expects of a broker. Every broker passes all of it.
func TestConformance(t *testing.T) {
	t.Parallel()
	start := kafkatest.StartKfakeProcess
	if os.Getenv(kafkatest.Env) == "apache" {
		start = kafkatest.StartApache
	}
	// The cases share the broker, and some kill it: one after the other, on topics of their own.
	broker := start(t)
	for _, c := range []struct {
		name string
		run  func(t *testing.T, b bench)
	}{
		{"events arrive in order and byte for byte", testOrder},
		{"a group goes on where it stopped", testGroupGoesOn},
		{"groups do not take from each other", testTwoGroups},
		{"what was not acknowledged comes again", testUnacknowledged},
		{"another member takes over", testTakeover},
		{"without a group only news arrives", testNoGroup},
		{"a foreign record is told, and the next event arrives", testForeign},
		{"making the topic twice is fine, with many partitions it is refused", testEnsureTopic},
		{"a broker killed in the middle loses, repeats and swaps nothing", testKill},
		{"a publication is called off while the broker is away, and repeated", testAway},
		{"a subscriber waits for its broker", testSubscribeWhileAway},
		{"closed means closed", testClosed},
	} {
		t.Run(broker.Name+": "+c.name, func(t *testing.T) { //nolint:paralleltest // see above
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			b := bench{Broker: broker, ctx: ctx, topic: fmt.Sprintf("events.%d", time.Now().UnixNano())}
			require.NoError(t, kafka.EnsureTopic(ctx, broker.Addrs(), b.topic))
			c.run(t, b)
		})
	}
}

// bench is one case's place at the broker.
type bench struct {
	*kafkatest.Broker
	ctx   context.Context
	topic string
}

func (b bench) publisher(t *testing.T) *kafka.Publisher {
	t.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.Addrs()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func (b bench) subscribe(t *testing.T, group string) (<-chan *message.Message, *kafka.Subscriber) {
	t.Helper()
	s, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: b.Addrs(), Group: group})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	in, err := s.Subscribe(b.ctx, b.topic)
	require.NoError(t, err)
	return in, s
}

func (b bench) group(name string) string { return b.topic + "-" + name }

func (b bench) messages(events []event.Recorded) []*message.Message {
	ms := make([]*message.Message, len(events))
	for i, e := range events {
		ms[i] = kafka.Marshal(e)
		ms[i].SetContext(b.ctx)
	}
	return ms
}

func (b bench) publish(t *testing.T, p *kafka.Publisher, events []event.Recorded) {
	t.Helper()
	require.NoError(t, p.Publish(b.topic, b.messages(events)...))
}

func (b bench) next(t *testing.T, in <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case m, ok := <-in:
		require.True(t, ok, "the subscription ended")
		return m
	case <-b.ctx.Done():
		require.FailNow(t, "nothing arrived")
		return nil
	}
}

// read takes and acknowledges n events, which must be next to each other.
func (b bench) read(t *testing.T, in <-chan *message.Message, n int) []event.Recorded {
	t.Helper()
	events := make([]event.Recorded, 0, n)
	for len(events) < n {
		m := b.next(t, in)
		r, err := kafka.Unmarshal(m)
		require.NoError(t, err)
		events = append(events, r)
		m.Ack()
	}
	return events
}

func testOrder(t *testing.T, b bench) {
	events := kafkatest.Events(2000, 0, [32]byte{})
	events[7].Data = nil // archived
	p := b.publisher(t)
	in, _ := b.subscribe(t, b.group("a"))
	for i := 0; i < len(events); i += 300 {
		b.publish(t, p, events[i:min(i+300, len(events))])
	}
	require.Equal(t, events, b.read(t, in, len(events)))
}

func testGroupGoesOn(t *testing.T, b bench) {
	events := kafkatest.Events(200, 0, [32]byte{})
	b.publish(t, b.publisher(t), events)
	in, s := b.subscribe(t, b.group("a"))
	require.Equal(t, events[:100], b.read(t, in, 100))
	require.NoError(t, s.Close())
	in, _ = b.subscribe(t, b.group("a"))
	b.readFrom(t, in, events, 100)
}

// readFrom reads to the last event. The reader before had acknowledged n of them, and then closed:
// its last acknowledgement may have come too late.
func (b bench) readFrom(t *testing.T, in <-chan *message.Message, events []event.Recorded, n int) {
	t.Helper()
	first := b.read(t, in, 1)
	if first[0].Position == int64(n) {
		first = b.read(t, in, 1)
	}
	require.Equal(t, events[n], first[0], "the acknowledgements were kept by the broker")
	require.Equal(t, events[n+1:], b.read(t, in, len(events)-n-1))
}

func testTwoGroups(t *testing.T, b bench) {
	events := kafkatest.Events(50, 0, [32]byte{})
	b.publish(t, b.publisher(t), events)
	one, _ := b.subscribe(t, b.group("one"))
	two, _ := b.subscribe(t, b.group("two"))
	require.Equal(t, events, b.read(t, one, 50))
	require.Equal(t, events, b.read(t, two, 50))
}

func testUnacknowledged(t *testing.T, b bench) {
	events := kafkatest.Events(20, 0, [32]byte{})
	b.publish(t, b.publisher(t), events)
	in, s := b.subscribe(t, b.group("a"))
	b.read(t, in, 10)
	m := b.next(t, in) // taken, and the reader ends before it is done
	require.Equal(t, events[10].ID.String(), m.UUID)
	require.NoError(t, s.Close())
	in, _ = b.subscribe(t, b.group("a"))
	require.Equal(t, events[10:], b.read(t, in, 10))
}

func testTakeover(t *testing.T, b bench) {
	events := kafkatest.Events(40, 0, [32]byte{})
	p := b.publisher(t)
	b.publish(t, p, events[:20])
	first, s := b.subscribe(t, b.group("a"))
	require.Equal(t, events[:20], b.read(t, first, 20))
	second, _ := b.subscribe(t, b.group("a"))
	// The first stays a member while the second joins; it may be given the partition or not.
	require.NoError(t, s.Close())
	b.publish(t, p, events[20:])
	b.readFrom(t, second, events, 20)
}

func testNoGroup(t *testing.T, b bench) {
	events := kafkatest.Events(100, 0, [32]byte{})
	p := b.publisher(t)
	b.publish(t, p, events[:50])
	in, _ := b.subscribe(t, "")
	// It cannot be seen from here when the reader is in place: publish until something arrives.
	for i := 50; i < len(events); i++ {
		b.publish(t, p, events[i:i+1])
		select {
		case m := <-in:
			r, err := kafka.Unmarshal(m)
			require.NoError(t, err)
			require.Greater(t, r.Position, int64(50))
			m.Ack()
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
	require.FailNow(t, "no news arrived")
}

func testForeign(t *testing.T, b bench) {
	events := kafkatest.Events(2, 0, [32]byte{})
	p := b.publisher(t)
	b.publish(t, p, events[:1])
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...))
	require.NoError(t, err)
	defer client.Close()
	twice := kgo.RecordHeader{Key: kafka.HeaderPosition, Value: []byte("1")}
	require.NoError(t, client.ProduceSync(b.ctx,
		&kgo.Record{Topic: b.topic, Value: []byte("hello")},
		&kgo.Record{Topic: b.topic, Value: []byte("hello"), Headers: []kgo.RecordHeader{twice, twice}},
	).FirstErr())
	b.publish(t, p, events[1:])

	in, _ := b.subscribe(t, b.group("a"))
	require.Equal(t, events[:1], b.read(t, in, 1))
	for _, want := range []struct {
		offset int64
		text   string
	}{{1, "ce_specversion"}, {2, "twice"}} {
		m := b.next(t, in)
		_, err := kafka.Unmarshal(m)
		var malformed *kafka.MalformedError
		require.ErrorAs(t, err, &malformed)
		require.Equal(t, want.offset, malformed.Offset)
		require.ErrorContains(t, err, want.text)
		require.Equal(t, fmt.Sprintf("%s/0/%d", b.topic, want.offset), m.UUID)
		require.Equal(t, "hello", string(m.Payload), "the record can be parked as it came")
		m.Ack()
	}
	require.Equal(t, events[1:], b.read(t, in, 1))
}

func testEnsureTopic(t *testing.T, b bench) {
	require.NoError(t, kafka.EnsureTopic(b.ctx, b.Addrs(), b.topic))
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...))
	require.NoError(t, err)
	defer client.Close()
	admin := kadm.NewClient(client)
	configs, err := admin.DescribeTopicConfigs(b.ctx, b.topic)
	require.NoError(t, err)
	config, err := configs.On(b.topic, nil)
	require.NoError(t, err)
	for _, c := range config.Configs {
		if c.Key == "retention.ms" {
			require.Equal(t, "-1", c.MaybeValue())
		}
	}
	many := b.topic + ".many"
	_, err = admin.CreateTopic(b.ctx, 3, 1, nil, many)
	require.NoError(t, err)
	var partitions *kafka.PartitionsError
	require.Eventually(t, func() bool { // the topic may take a moment to show
		return errors.As(kafka.EnsureTopic(b.ctx, b.Addrs(), many), &partitions)
	}, patience, 50*time.Millisecond)
	require.Equal(t, 3, partitions.Partitions)

	none, cancel := context.WithTimeout(b.ctx, 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, kafka.EnsureTopic(none, []string{"127.0.0.1:1"}, b.topic), context.DeadlineExceeded)
}

func testKill(t *testing.T, b bench) {
	const batches, size = 60, 50
	events := kafkatest.Events(batches*size, 0, [32]byte{})
	p := b.publisher(t)
	in, _ := b.subscribe(t, b.group("a"))

	failed := make(chan error, 1)
	half := make(chan struct{})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range batches {
			if i == batches/2 {
				close(half)
			}
			if err := p.Publish(b.topic, b.messages(events[i*size:(i+1)*size])...); err != nil {
				failed <- err
				return
			}
		}
	})
	<-half
	b.Kill()
	b.Restart()

	// The reader may see some events twice, never a hole and never a step back past what it has.
	seen, repeated := int64(0), 0
	for seen < int64(len(events)) {
		select {
		case err := <-failed:
			require.NoError(t, err, "the publisher outlives the outage by itself")
		default:
		}
		m := b.next(t, in)
		r, err := kafka.Unmarshal(m)
		require.NoError(t, err)
		m.Ack()
		if r.Position <= seen {
			repeated++
			continue
		}
		require.Equal(t, seen+1, r.Position, "a hole")
		seen = r.Position
	}
	publishing.Wait()
	t.Logf("%d events, %d of them read twice", len(events), repeated)

	// In the topic itself each event is there once.
	client, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.ConsumeTopics(b.topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	var ids []string
	for len(ids) < len(events) {
		fetches := client.PollFetches(b.ctx)
		require.NoError(t, b.ctx.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			for _, h := range r.Headers {
				if h.Key == kafka.HeaderID {
					ids = append(ids, string(h.Value))
				}
			}
		})
	}
	require.Len(t, ids, len(events))
	ends, err := kadm.NewClient(client).ListEndOffsets(b.ctx, b.topic)
	require.NoError(t, err)
	end, _ := ends.Lookup(b.topic, 0)
	require.EqualValues(t, len(events), end.Offset, "nothing comes after the last event")
	for i, e := range events {
		require.Equal(t, e.ID.String(), ids[i])
	}
}

func testAway(t *testing.T, b bench) {
	events := kafkatest.Events(20, 0, [32]byte{})
	p := b.publisher(t)
	b.publish(t, p, events[:10])
	b.Kill()
	ctx, cancel := context.WithTimeout(b.ctx, 500*time.Millisecond)
	defer cancel()
	ms := b.messages(events[10:])
	ms[0].SetContext(ctx)
	require.ErrorIs(t, p.Publish(b.topic, ms...), context.DeadlineExceeded)
	b.Restart()
	b.publish(t, p, events[10:])
	in, _ := b.subscribe(t, b.group("a"))
	require.Equal(t, events, b.read(t, in, 20))
}

func testSubscribeWhileAway(t *testing.T, b bench) {
	events := kafkatest.Events(5, 0, [32]byte{})
	b.publish(t, b.publisher(t), events)
	b.Kill()
	in, _ := b.subscribe(t, b.group("a"))
	lost, s := b.subscribe(t, b.group("b"))
	require.NoError(t, s.Close(), "closing does not wait for the broker")
	_, open := <-lost
	require.False(t, open)
	b.Restart()
	require.Equal(t, events, b.read(t, in, 5))
}

func testClosed(t *testing.T, b bench) {
	p := b.publisher(t)
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Publish(b.topic, b.messages(kafkatest.Events(1, 0, [32]byte{}))...), kafka.ErrClosed)
	in, s := b.subscribe(t, "")
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	_, open := <-in
	require.False(t, open)
	_, err := s.Subscribe(b.ctx, b.topic)
	require.ErrorIs(t, err, kafka.ErrClosed)
}
