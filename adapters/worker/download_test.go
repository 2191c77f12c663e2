package worker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What reports although nothing gets on would never be found to hang.
func TestADownloadInWhichNothingGetsOnStopsReporting(t *testing.T) {
	t.Parallel()
	require.Greater(t, quietImport, time.Minute)
	stopping := make(chan struct{})
	task := &Task{stop: stopping, lost: make(chan struct{}), reports: &reports{}}
	ctx, moved, stop := Report(t.Context(), task, 2*beatEvery, func() any { return nil })
	batches := task.reports.batches.Load
	require.Eventually(t, func() bool { return batches() > 0 }, 20*time.Second, time.Millisecond)
	still := func() bool {
		before := batches()
		time.Sleep(2 * beatEvery)
		return batches() == before
	}
	require.Eventually(t, still, 20*time.Second, time.Millisecond, "nothing got on")
	before := batches()
	moved()
	require.Eventually(t, func() bool { return batches() > before }, 20*time.Second, time.Millisecond)
	close(stopping)
	moved()
	<-ctx.Done()
	require.ErrorIs(t, stop(), ErrStopping)
}

func TestAReportEndsWithItsJob(t *testing.T) {
	t.Parallel()
	task := &Task{stop: make(chan struct{}), lost: make(chan struct{}), reports: &reports{}}
	ctx, _, stop := Report(t.Context(), task, time.Hour, func() any { return nil })
	require.NoError(t, stop())
	require.Error(t, ctx.Err())
}
