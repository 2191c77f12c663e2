package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/kafka"
)

// requireTopic requires that the topic holds every event of the log, each after the one before it. What
// was sent may come again: a crash repeats what it is not sure of.
func (s *stack) requireTopic() {
	s.t.Helper()
	head, hash, err := s.log.Head(s.t.Context())
	require.NoError(s.t, err)
	subscriber, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: s.broker.Addrs(), Group: "e2e"})
	require.NoError(s.t, err)
	defer func() { require.NoError(s.t, subscriber.Close()) }()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	messages, err := subscriber.Subscribe(ctx, kafka.Topic)
	require.NoError(s.t, err)
	var last int64
	var lastHash [32]byte
	for last < head {
		select {
		case m := <-messages:
			require.NotNil(s.t, m, "the topic ended at event %d of %d", last, head)
			e, err := kafka.Unmarshal(m)
			require.NoError(s.t, err)
			require.LessOrEqual(s.t, e.Position, last+1, "an event was swapped or lost")
			if e.Position == last+1 {
				require.Equal(s.t, lastHash, e.PrevHash)
				last, lastHash = e.Position, e.Hash
			}
			m.Ack()
		case <-time.After(patience):
			require.FailNow(s.t, "the topic ended", "at event %d of %d", last, head)
		}
	}
	require.Equal(s.t, hash, lastHash)
}

func TestEverythingWorksWithoutKafkaAndTheTopicCatchesUp(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.broker.Kill()
	all := []*process{s.serve("relay"), s.serve("projector"), s.extractor()}
	id := s.begin(config())
	s.finish(id)
	s.broker.Restart()
	s.requireTopic()
	for _, p := range all {
		require.False(t, p.Ended(), "%s ended", p.name)
	}
}
