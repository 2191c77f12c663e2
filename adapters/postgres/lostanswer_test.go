package postgres_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// cutter breaks a connection at the worst moment: the server has committed, and its answer is lost.
type cutter struct {
	armed atomic.Int32 // how many more answers get lost
}

type cutConn struct {
	net.Conn
	cutter *cutter
	lose   atomic.Bool // the answer to what is being sent
}

// ready is ReadyForQuery outside a transaction: after it, the statement is committed.
var ready = []byte{'Z', 0, 0, 0, 5, 'I'}

func (c *cutConn) Write(b []byte) (int, error) {
	// A Bind message starts the call of a prepared statement; a ping is none.
	if len(b) > 0 && b[0] == 'B' && c.cutter.armed.Load() > 0 {
		c.cutter.armed.Add(-1)
		c.lose.Store(true)
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.lose.Load() {
			return n, err
		}
		if bytes.Contains(b[:n], ready) {
			_ = c.Close()
			return 0, io.ErrUnexpectedEOF
		}
	}
}

func openCut(t *testing.T) (*postgres.Log, *cutter) {
	t.Helper()
	poolConfig, err := postgres.PoolConfig(pgtest.New(t))
	require.NoError(t, err)
	cut := &cutter{}
	dial := poolConfig.ConnConfig.DialFunc
	poolConfig.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: conn, cutter: cut}, nil
	}
	// A connection that has described the statement once sends Bind as the first message of a call.
	poolConfig.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	log, err := postgres.OpenPool(t.Context(), poolConfig, config(t, func(c *postgres.Config) { c.Connections = 1 }))
	require.NoError(t, err)
	t.Cleanup(log.Close)
	_, err = log.Append(t.Context(), to("warm", 0, note("the statement is prepared")))
	require.NoError(t, err)
	return log, cut
}

func TestAnAppendWhoseAnswerWasLostIsNotDoneTwice(t *testing.T) {
	t.Parallel()
	log, cut := openCut(t)
	request := to("a", 0, note("one"), note("two"))
	request.Idempotency = &eventlog.Idempotency{Key: "k", Status: 202, Resource: "a"}
	cut.armed.Store(1)
	done, err := log.Append(t.Context(), request)
	require.NoError(t, err)
	require.True(t, done.Replayed, "the first attempt was committed")
	require.EqualValues(t, 3, done.Position)

	read, err := log.ReadStream(t.Context(), "a", 0)
	require.NoError(t, err)
	require.Equal(t, done.Events, read)
	require.Equal(t, request.Streams[0].Events[0].ID, read[0].ID)
}

func TestACallerWhoTriesAgainAfterALostAnswerFindsItsEvents(t *testing.T) {
	t.Parallel()
	log, cut := openCut(t)
	request := to("a", 0, note("one"))
	cut.armed.Store(100)
	_, err := log.Append(t.Context(), request)
	require.ErrorIs(t, err, eventlog.ErrUnavailable, "no answer came through")

	cut.armed.Store(0)
	done, err := log.Append(t.Context(), request)
	require.NoError(t, err)
	require.True(t, done.Replayed)
	read, err := log.ReadStream(t.Context(), "a", 0)
	require.NoError(t, err)
	require.Equal(t, done.Events, read)
	require.Len(t, read, 1)
}
