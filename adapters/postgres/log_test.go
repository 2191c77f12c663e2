package postgres_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

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

// note makes a proposed fact with effects.
func note(text string, effects ...eventlog.Effect) event.Proposed {
	return event.Proposed{ID: event.NewID(time.Now()), Data: eventlogtest.Noted{Text: text, Effects: eventlogtest.Do(effects...)}}
}

// to makes a request for one stream.
func to(stream string, expected int64, events ...event.Proposed) eventlog.Request {
	return eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: expected, Events: events}}}
}

func TestAnAppendIsReadBackByteForByte(t *testing.T) {
	t.Parallel()
	log := open(t)
	first := note("bank \u0000 é \" <b>")
	first.Metadata = event.Metadata{Actor: "cli", CorrelationID: "c1"}
	done, err := log.Append(t.Context(), to("extraction-a", 0, first, note("two")))
	require.NoError(t, err)
	require.EqualValues(t, 2, done.Position)
	require.False(t, done.Replayed)

	read, err := log.ReadStream(context.Background(), "extraction-a", 0)
	require.NoError(t, err)
	require.Equal(t, done.Events, read)
	for i, r := range read {
		require.EqualValues(t, i+1, r.Position)
		require.Equal(t, r.ChainHash(), r.Hash, "the hash that PostgreSQL computed is the one that Go computes")
	}
	all, err := log.ReadAll(t.Context(), 1, 10)
	require.NoError(t, err)
	require.Equal(t, read[1:], all)
	position, hash, err := log.Head(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, position)
	require.Equal(t, read[1].Hash, hash)
}
