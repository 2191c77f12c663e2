package embedded

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childEnv makes this test binary play a program that runs a server and is then killed.
const childEnv = "FEATUREMILL_TEST_EMBEDDED_CHILD"

func TestMain(m *testing.M) {
	switch dir := os.Getenv(childEnv + "_DIR"); os.Getenv(childEnv) {
	case "postgres":
		runPostgresChild(dir)
	case "broker":
		runBrokerChild(dir)
	default:
		goleak.VerifyTestMain(m)
	}
}
