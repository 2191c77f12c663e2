package projector_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/projections/projector"
)

func TestAProjectionFollowsKafkaThroughTheBrokersDeath(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	broker := kafkatest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, kafka.EnsureTopic(ctx, broker.Addrs(), kafka.Topic))
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: broker.Addrs()})
	require.NoError(t, err)
	defer func() { require.NoError(t, publisher.Close()) }()
	publish := func(recs ...event.Recorded) {
		t.Helper()
		for _, rec := range recs {
			require.NoError(t, publisher.Publish(kafka.Topic, kafka.Marshal(rec)))
		}
	}

	// What the wiring does for every projection.
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: broker.Addrs(), Group: projector.ConsumerGroup(b.stars)})
	require.NoError(t, err)
	defer func() { require.NoError(t, subscriber.Close()) }()
	feed := projector.Messages(func(ctx context.Context, _ string) (<-chan *message.Message, error) {
		return subscriber.Subscribe(ctx, kafka.Topic)
	}, kafka.Unmarshal)

	first := b.note(0, "before")
	publish(first)
	r := b.runner(func(c *projector.Config) { c.Poll = time.Hour })
	stop := b.running(r, feed)
	b.waitFor(first.Position)

	var last event.Recorded
	for _, n := range []string{"a", "b", "c"} {
		last = b.note(0, n)
		publish(last)
	}
	b.waitFor(last.Position)
	require.Zero(t, r.Stats().Holes)
	require.Zero(t, r.Stats().Foreign)

	broker.Kill()
	lost := b.note(0, "while the broker was away")
	broker.Restart()
	last = b.note(0, "after")
	publish(last) // a relay that lost its place for once: the one before it never comes
	b.waitFor(last.Position)
	require.EqualValues(t, 1, r.Stats().Holes)
	require.NoError(t, stop())
	require.Equal(t, []string{"before", "a", "b", "c", "while the broker was away", "after"}, b.notes()[latent(0)])
	require.Equal(t, last.Position, lost.Position+1)
}
