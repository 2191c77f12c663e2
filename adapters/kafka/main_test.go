package kafka_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
)

func TestMain(m *testing.M) {
	kafkatest.ServeChild()
	goleak.VerifyTestMain(m, kafkatest.Leaks())
}
