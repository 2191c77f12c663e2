package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Topic carries the whole log in order.
const Topic = "featuremill.events.v1"

const topicPoll = 100 * time.Millisecond

// PartitionsError says that a topic cannot carry the log, because order holds inside a partition only.
type PartitionsError struct {
	Topic      string
	Partitions int
}

func (e *PartitionsError) Error() string {
	return fmt.Sprintf("topic %s has %d partitions; the log is one ordered story and needs exactly 1: delete the topic (the relay writes it again from PostgreSQL after its checkpoint is removed) or choose another name", e.Topic, e.Partitions)
}

// EnsureTopic makes the topic if it is not there, with one partition and records that stay for ever,
// and returns once clients can see its partition. An existing topic's settings are left as they are.
// It tries for as long as ctx lets it; a topic with more partitions is a *PartitionsError at once.
func EnsureTopic(ctx context.Context, brokers []string, topic string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.AlwaysRetryEOF(), kgo.DisableClientMetrics(),
		kgo.MetadataMinAge(topicPoll/2))
	if err != nil {
		return fmt.Errorf("kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	tick := time.NewTicker(topicPoll)
	defer tick.Stop()
	var last error
	for {
		ready, err := ensureOnce(ctx, admin, topic)
		var partitions *PartitionsError
		switch {
		case ready:
			return nil
		case errors.As(err, &partitions):
			return err
		case err != nil:
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("topic %s on %v: %w", topic, brokers, errors.Join(ctx.Err(), last))
		}
	}
}

func ensureOnce(ctx context.Context, admin *kadm.Client, topic string) (bool, error) {
	details, err := admin.ListTopics(ctx, topic)
	if err != nil {
		return false, err
	}
	switch d := details[topic]; {
	case errors.Is(d.Err, kerr.UnknownTopicOrPartition) || !details.Has(topic):
	case d.Err != nil:
		return false, d.Err
	case len(d.Partitions) > 1:
		return false, &PartitionsError{Topic: topic, Partitions: len(d.Partitions)}
	default:
		p, ok := d.Partitions[0]
		return ok && p.Err == nil && p.Leader >= 0, p.Err
	}
	forever := "-1"
	// -1 replicas: the cluster knows best.
	_, err = admin.CreateTopic(ctx, 1, -1, map[string]*string{"retention.ms": &forever, "retention.bytes": &forever}, topic)
	if errors.Is(err, kerr.TopicAlreadyExists) {
		err = nil
	}
	return false, err
}
