package postgres_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

// open opens a log on a fresh database.
func open(t testing.TB, change ...func(*postgres.Config)) *postgres.Log {
	t.Helper()
	return openAt(t, pgtest.New(t), change...)
}

func openAt(t testing.TB, dsn string, change ...func(*postgres.Config)) *postgres.Log {
	t.Helper()
	log, err := postgres.Open(t.Context(), dsn, config(t, change...))
	require.NoError(t, err)
	t.Cleanup(log.Close)
	return log
}

func config(t testing.TB, change ...func(*postgres.Config)) postgres.Config {
	t.Helper()
	registry, err := eventlogtest.Registry()
	require.NoError(t, err)
	cfg := postgres.Config{Registry: registry, Effects: eventlogtest.Effects, Logger: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

func TestTheLogKeepsThePromisesOfThePort(t *testing.T) {
	t.Parallel()
	eventlogtest.Run(t, func(t *testing.T, r *event.Registry, e eventlog.Effects) eventlogtest.Log {
		return open(t, func(c *postgres.Config) { c.Registry, c.Effects = r, e })
	})
}
