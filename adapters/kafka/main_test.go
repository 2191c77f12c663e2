package kafka_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
)

func TestMain(m *testing.M) {
	kafkatest.ServeChild()
	// sarama's metrics keep one ticker for the life of the program.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}
