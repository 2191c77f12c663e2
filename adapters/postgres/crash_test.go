package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// TestAKilledServerLosesNothingAndDoublesNothing: writers that try the same request again until they
// get an answer, and a server that is killed under them.
func TestAKilledServerLosesNothingAndDoublesNothing(t *testing.T) {
	t.Parallel()
	const writers, each = 6, 60
	server := pgtest.NewServer(t)
	log := openAt(t, server.DSN())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	var acknowledged atomic.Int64
	enough, restarted := make(chan struct{}), make(chan struct{})
	var writing errgroup.Group
	for w := range writers {
		writing.Go(func() error {
			stream := fmt.Sprint("s-", w)
			for version := range int64(each) {
				request := to(stream, version, note("x"))
				for {
					done, err := log.Append(ctx, request)
					if err == nil {
						if done.Events[0].Version != version+1 {
							return fmt.Errorf("version %d was recorded as %d", version+1, done.Events[0].Version)
						}
						break
					}
					if !errors.Is(err, eventlog.ErrUnavailable) {
						return err
					}
					<-restarted
				}
				if acknowledged.Add(1) == writers*each/3 {
					close(enough)
				}
			}
			return nil
		})
	}
	<-enough
	server.Kill()
	server.Restart()
	close(restarted)
	require.NoError(t, writing.Wait())

	report, err := log.Verify(ctx, nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Equal(t, writers*each, report.Events)
}
