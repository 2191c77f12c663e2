package relay_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/adapters/relay"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
)

// These make this test binary play a relay that is killed at a failpoint.
const (
	childDSN    = "FEATUREMILL_TEST_RELAY_DSN"
	childBroker = "FEATUREMILL_TEST_RELAY_BROKER"
	childPoint  = "FEATUREMILL_TEST_RELAY_POINT"
)

func TestMain(m *testing.M) {
	if os.Getenv(childDSN) != "" {
		fmt.Println("error:", runChild())
		os.Exit(1)
	}
	goleak.VerifyTestMain(pgtest.Main(m), kafkatest.Leaks())
}

// runChild copies until it comes to the failpoint for the second time, says so and waits for its end.
func runChild() error {
	ctx := context.Background()
	registry, err := eventlogtest.Registry()
	if err != nil {
		return err
	}
	log, err := postgres.Open(ctx, os.Getenv(childDSN), postgres.Config{Registry: registry})
	if err != nil {
		return err
	}
	publisher, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: []string{os.Getenv(childBroker)}})
	if err != nil {
		return err
	}
	passed := 0
	r, err := relay.New(relay.Config{Log: log, Pool: log.Pool(), Publisher: publisher, Batch: batch, Failpoint: func(name string) {
		if name != os.Getenv(childPoint) {
			return
		}
		if passed++; passed == 2 {
			fmt.Println("here")
			select {}
		}
	}})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}
