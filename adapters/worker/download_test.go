package worker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What reports although nothing gets on would never be found to hang.
func TestADownloadInWhichNothingGetsOnStopsReporting(t *testing.T) {
	t.Parallel()
	m := &meter{moved: time.Now().Add(-time.Hour)}
	require.Greater(t, m.quiet(), quietImport)
	m.touch()
	require.Less(t, m.quiet(), time.Minute)
	task := &Task{stop: make(chan struct{}), lost: make(chan struct{}), reports: &reports{}}
	done, ended := make(chan struct{}), make(chan struct{})
	i := &Importer{quiet: 50 * time.Millisecond}
	go func() {
		defer close(ended)
		i.report(task, m, done, func(error) {})
	}()
	require.Eventually(t, func() bool { return task.reports.batches.Load() > 0 }, 20*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return m.quiet() > 2*beatEvery }, 20*time.Second, time.Millisecond)
	still := task.reports.batches.Load()
	require.Eventually(t, func() bool { return m.quiet() > 4*beatEvery }, 20*time.Second, time.Millisecond)
	require.Equal(t, still, task.reports.batches.Load(), "nothing got on")
	m.touch()
	close(done)
	<-ended
}
