package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/domain/eventlog"
)

var segment = eventlog.Work{Kind: "segment", Subject: "a", Index: 0}

// openWork opens a log with one piece of work.
func openWork(t *testing.T, change ...func(*postgres.Config)) *postgres.Log {
	t.Helper()
	log := open(t, change...)
	_, err := log.Append(t.Context(), to("a", 0, note("planned", eventlog.OpenWork{Work: segment})))
	require.NoError(t, err)
	return log
}

func claim(t *testing.T, log *postgres.Log, owner string) *eventlog.Lease {
	t.Helper()
	lease, err := log.Claim(t.Context(), eventlog.Claim{Owner: owner, Kinds: []string{"segment"}})
	require.NoError(t, err)
	return lease
}

// expire makes every lease look as old as a lease of a worker that died.
func expire(t *testing.T, log *postgres.Log) {
	t.Helper()
	_, err := log.Pool().Exec(t.Context(), `update work set expires_at = clock_timestamp() - interval '1 ms' where owner is not null`)
	require.NoError(t, err)
}

func TestWorkOfADeadWorkerIsGivenOutAgainAndTheDeadOneIsFenced(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	first := claim(t, log, "worker-1")
	require.WithinDuration(t, time.Now().Add(30*time.Second), first.ExpiresAt, 10*time.Second)
	require.Nil(t, claim(t, log, "worker-2"), "it is taken")
	expire(t, log)
	second := claim(t, log, "worker-2")
	require.Equal(t, 2, second.Attempt)

	late := to("a", 1, note("recorded", eventlog.CloseWork{Work: segment}))
	late.Fence = first.Held()
	_, err := log.Append(t.Context(), late)
	require.Equal(t, &eventlog.FencedError{Fence: *first.Held()}, err)
	_, err = log.Heartbeat(t.Context(), *first, eventlog.Progress{})
	require.Equal(t, &eventlog.FencedError{Fence: *first.Held()}, err)

	record := to("a", 1, note("recorded", eventlog.CloseWork{Work: segment}))
	record.Fence = second.Held()
	_, err = log.Append(t.Context(), record)
	require.NoError(t, err)
	require.Nil(t, claim(t, log, "worker-3"))
}

func TestALeaseThatExpiredButWasNotGivenAwayCanBeRenewed(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	lease := claim(t, log, "worker-1")
	expire(t, log)
	_, err := log.Heartbeat(t.Context(), *lease, eventlog.Progress{Batches: 1})
	require.NoError(t, err)
	lost, err := log.Reap(t.Context())
	require.NoError(t, err)
	require.Empty(t, lost)
	require.Nil(t, claim(t, log, "worker-2"))
}

// lostAtLast waits until work counts as lost for the last time.
func lostAtLast(t *testing.T, log *postgres.Log) (lost []eventlog.Lost) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		lost, err = log.Reap(t.Context())
		return err == nil && len(lost) > 0
	}, 20*time.Second, 50*time.Millisecond)
	require.Len(t, lost, 1)
	return lost
}

func TestTheThirdLossIsReportedUntilAnEventClosesTheWork(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	for attempt := 1; attempt <= 3; attempt++ {
		lease := claim(t, log, "worker-1")
		require.Equal(t, attempt, lease.Attempt)
		expire(t, log)
		lost, err := log.Reap(t.Context())
		require.NoError(t, err)
		require.Empty(t, lost, "who lost it may still speak")
		if attempt < 3 {
			continue
		}
		lost = lostAtLast(t, log)
		require.Equal(t, segment, lost[0].Work)
		require.Equal(t, 3, lost[0].Attempts)
		require.Len(t, lost[0].Causes, 3)
		for i, c := range lost[0].Causes {
			require.Equal(t, i+1, c.Attempt)
			require.Equal(t, "lost", c.Outcome)
			require.Contains(t, c.Detail, "no sign of life")
		}
	}
	require.Nil(t, claim(t, log, "worker-2"), "it is not given out a fourth time")
	lost, err := log.Reap(t.Context())
	require.NoError(t, err)
	require.Len(t, lost, 1, "whoever was told may have died")

	_, err = log.Append(t.Context(), to("a", 1, note("failed: worker_lost", eventlog.CloseAllWork{Subject: "a"})))
	require.NoError(t, err)
	lost, err = log.Reap(t.Context())
	require.NoError(t, err)
	require.Empty(t, lost)
}

func TestALeaseWhoseBatchCounterStandsStillIsLost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		stood     string // since the counter moved
		batchTime time.Duration
		lost      bool
	}{
		{"shorter than the limit", "100 seconds", time.Second, false},
		{"longer than the limit", "130 seconds", time.Second, true},
		{"longer than the limit, but not than ten slow batches", "130 seconds", 20 * time.Second, false},
		{"longer than ten slow batches", "210 seconds", 20 * time.Second, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			log := openWork(t)
			lease := claim(t, log, "worker-1")
			beat := eventlog.Progress{Batches: 7, BatchTime: test.batchTime}
			_, err := log.Heartbeat(t.Context(), *lease, beat)
			require.NoError(t, err)
			_, err = log.Pool().Exec(t.Context(), `update work set advanced_at = advanced_at - $1::interval`, test.stood)
			require.NoError(t, err)
			_, err = log.Heartbeat(t.Context(), *lease, beat) // it lives, but does not get on
			require.NoError(t, err)
			_, err = log.Reap(t.Context())
			require.NoError(t, err)
			_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{Batches: 8})
			if test.lost {
				require.ErrorAs(t, err, new(*eventlog.FencedError))
			} else {
				require.NoError(t, err)
			}
		})
	}
}

func TestAShortLeaseEndsByItself(t *testing.T) {
	t.Parallel()
	log := openWork(t, func(c *postgres.Config) { c.LeaseTime = time.Millisecond })
	require.NotNil(t, claim(t, log, "worker-1"))
	require.Eventually(t, func() bool {
		lease, err := log.Claim(t.Context(), eventlog.Claim{Owner: "worker-2", Kinds: []string{"segment"}})
		return err == nil && lease != nil
	}, 10*time.Second, time.Millisecond)
}

func TestAClaimNeedsAName(t *testing.T) {
	t.Parallel()
	_, err := open(t).Claim(t.Context(), eventlog.Claim{Kinds: []string{"segment"}})
	require.ErrorContains(t, err, "no name")
}
