package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// joined is a claim as one would write it at first: a row is chosen in a sub-select and joined to the table that is
// updated. Where the planner puts the sub-select on the inner side of a nested loop, it runs once for each row.
const joined = `
update work w
set owner = $1, fence = nextval('work_fence'), attempts = w.attempts + 1, expires_at = clock_timestamp() + 30 * interval '1 second',
    progress = null, batches = 0, batch_seconds = 0, advanced_at = clock_timestamp()
from (
    select kind, subject, index from work
    where kind = any(array['plan', 'segment']) and (owner is null or expires_at < clock_timestamp()) and attempts < 3
      and (requirement = '' or requirement = any('{}')) and (null::text[] is null or subject = any(null))
    order by kind = any('{}'), subject = any(array['a']) desc, opened
    limit 1 for update skip locked
) free
where w.kind = free.kind and w.subject = free.subject and w.index = free.index
returning w.index`

// byKey is the claim as it is.
const byKey = `select index from claim_work($1, array['plan', 'segment'], '{}', array['a'], null, '{}', 30, 3)`

// claimSettings are combinations of what the planner may use.
func claimSettings() (out []string) {
	switches := []string{"enable_nestloop", "enable_hashjoin", "enable_mergejoin", "enable_indexscan", "enable_seqscan", "enable_material"}
	for bits := range 1 << len(switches) {
		set := ""
		for i, name := range switches {
			set += fmt.Sprintf("set %s = %v;", name, bits>>i&1 == 1)
		}
		out = append(out, set)
	}
	return out
}

// claimStatistics are what the planner may believe of the table when the rows are claimed.
var claimStatistics = map[string]struct{ before, after string }{
	"analysed while it was empty": {before: "analyze work"},
	"analysed full":               {after: "analyze work"},
	"never analysed":              {before: "delete from pg_statistic where starelid = 'work'::regclass; update pg_class set reltuples = -1, relpages = 0 where oid = 'work'::regclass"},
	"believed to be huge":         {after: "update pg_class set reltuples = 1e8, relpages = 1e6 where oid = 'work'::regclass"},
}

// claims has every claimer take once at the same time, and then until there is nothing; it returns what each call took.
func claims(ctx context.Context, conns []*pgx.Conn, statement string, rows int) (first, rest [][]int, err error) {
	take := func(i int) ([]int, error) {
		got, _ := conns[i].Query(ctx, statement, fmt.Sprint("worker-", i))
		return pgx.CollectRows(got, pgx.RowTo[int])
	}
	first = make([][]int, len(conns))
	var all errgroup.Group
	for i := range conns {
		all.Go(func() (err error) { first[i], err = take(i); return err })
	}
	if err := all.Wait(); err != nil {
		return nil, nil, err
	}
	var mu sync.Mutex
	for i := range conns {
		all.Go(func() error {
			for range rows {
				taken, err := take(i)
				if err != nil || len(taken) == 0 {
					return err
				}
				mu.Lock()
				rest = append(rest, taken)
				mu.Unlock()
			}
			return nil
		})
	}
	return first, rest, all.Wait()
}

func TestOneClaimTakesOneRowWhateverPlanTheStatisticsSuggest(t *testing.T) {
	t.Parallel()
	const claimers, rows = 16, 24
	log := open(t)
	admin := log.Pool()
	conns := make([]*pgx.Conn, claimers)
	for i := range conns {
		cfg := admin.Config().ConnConfig
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe // a plan for each call, by the settings of the moment
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
		conns[i] = conn
	}
	round := func(set string, statistics struct{ before, after string }, statement string) (first, rest [][]int) {
		do := func(sql string) {
			if sql != "" {
				_, err := admin.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
				require.NoError(t, err)
			}
		}
		do("delete from work")
		do(statistics.before)
		do(fmt.Sprintf("insert into work (kind, subject, index) select 'segment', 'b', i from generate_series(0, %d) i", rows-1))
		do(statistics.after)
		for _, conn := range conns {
			_, err := conn.Exec(t.Context(), set, pgx.QueryExecModeSimpleProtocol)
			require.NoError(t, err)
		}
		first, rest, err := claims(t.Context(), conns, statement, rows)
		require.NoError(t, err)
		return first, rest
	}
	combinations, greedy := 0, 0
	for name, statistics := range claimStatistics {
		for _, set := range claimSettings() {
			combinations++
			first, rest := round(set, statistics, byKey)
			taken := map[int]bool{}
			for _, call := range slices.Concat(first, rest) { // of the first, everybody has one: there was enough
				require.Len(t, call, 1, "%s %s", name, set)
				require.False(t, taken[call[0]], "row %d was given out twice: %s %s", call[0], name, set)
				taken[call[0]] = true
			}
			require.Len(t, taken, rows, "%s %s", name, set)
		}
		for _, set := range claimSettings() {
			first, rest := round(set, statistics, joined)
			if slices.ContainsFunc(slices.Concat(first, rest), func(call []int) bool { return len(call) > 1 }) {
				greedy++
			}
		}
	}
	require.GreaterOrEqual(t, combinations, 200)
	require.Positive(t, greedy, "the statistics and settings of this test no longer lead a claim that is a join astray: find others")
}

// session attends under a name until the returned function is called.
func session(t *testing.T, log *postgres.Log, owner string) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	attended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		log.Attend(ctx, owner, sync.OnceFunc(func() { close(attended) }))
	}()
	end = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(end)
	select {
	case <-attended:
	case <-time.After(20 * time.Second):
		require.Fail(t, "no session")
	}
	return end
}

// reapUntil reaps as workers do, until something is so.
func reapUntil(t *testing.T, log *postgres.Log, so func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		require.Less(t, time.Since(began), 30*time.Second)
		_, err := log.Reap(t.Context())
		if err != nil {
			require.ErrorIs(t, err, eventlog.ErrUnavailable)
		}
		<-tick.C
	}
	return time.Since(began)
}

func only(t *testing.T, log *postgres.Log) eventlog.WorkStatus {
	t.Helper()
	list, err := log.ListWork(t.Context(), "a")
	require.NoError(t, err)
	require.Len(t, list, 1)
	return list[0]
}

func TestTheEndOfAWorkersSessionFreesItsLeases(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	end := session(t, log, "worker-1")
	require.NotNil(t, claim(t, log, "worker-1"))
	_, err := log.Reap(t.Context())
	require.NoError(t, err)
	require.Equal(t, "worker-1", only(t, log).Owner, "it is there")
	end()
	reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
	w := only(t, log)
	require.Equal(t, 1, w.Attempts, "its process did not come back")
	require.Len(t, w.Causes, 1)
	require.Equal(t, "its process ended", w.Causes[0].Detail)
	require.Equal(t, 2, claim(t, log, "worker-2").Attempt)
}

// short leases: a session that is older than one is not just back.
func short(c *postgres.Config) { c.LeaseTime = 300 * time.Millisecond }

func TestALeaseThatRanOutIsTakenBackByAWorkerThatIsHeardOfAgain(t *testing.T) {
	t.Parallel()
	log := openWork(t, short)
	session(t, log, "worker-1")
	lease := claim(t, log, "worker-1")
	reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
	w := only(t, log)
	require.Equal(t, 1, w.Attempts)
	require.Contains(t, w.Causes[0].Detail, "no sign of life")
	_, err := log.Heartbeat(t.Context(), *lease, eventlog.Progress{Batches: 1})
	require.NoError(t, err)
	w = only(t, log)
	require.Equal(t, "worker-1", w.Owner)
	require.Equal(t, 1, w.Attempts, "it is the same attempt")
	require.Equal(t, "cut off", w.Causes[0].Outcome)
	record := to("a", 1, note("recorded", eventlog.CloseWork{Work: segment}))
	record.Fence = lease.Held()
	_, err = log.Append(t.Context(), record)
	require.NoError(t, err)
}

func TestALeaseThatWasGivenAwayMeanwhileCostsNoAttemptOnceItsWorkerIsHeardOf(t *testing.T) {
	t.Parallel()
	for name, speak := range map[string]func(*testing.T, *postgres.Log, eventlog.Lease){
		"by a heartbeat": func(t *testing.T, log *postgres.Log, lease eventlog.Lease) {
			_, err := log.Heartbeat(t.Context(), lease, eventlog.Progress{})
			require.ErrorAs(t, err, new(*eventlog.FencedError))
		},
		"by its next session": func(t *testing.T, log *postgres.Log, _ eventlog.Lease) { session(t, log, "worker-1")() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := openWork(t)
			end := session(t, log, "worker-1")
			lease := claim(t, log, "worker-1")
			end()
			reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
			require.Equal(t, 2, claim(t, log, "worker-2").Attempt, "as if its process had ended")
			for range 2 {
				speak(t, log, *lease)
				require.Equal(t, 1, only(t, log).Attempts)
			}
			require.Equal(t, "cut off", only(t, log).Causes[0].Outcome)
		})
	}
}

// A machine that lost its power leaves a session behind for a while.
func TestAWorkerThatIsNotHeardOfUsesAnAttemptUpThoughItsSessionStands(t *testing.T) {
	t.Parallel()
	log := openWork(t, short)
	for i := range 3 {
		owner := fmt.Sprint("worker-", i)
		conn, err := pgx.ConnectConfig(t.Context(), log.Pool().Config().ConnConfig)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, conn.Close(context.Background())) })
		_, err = conn.Exec(t.Context(), `select pg_advisory_lock(hashtextextended($1, 8))`, owner)
		require.NoError(t, err)
		require.Equal(t, i+1, claim(t, log, owner).Attempt)
		reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
	}
	require.Equal(t, 3, lostAtLast(t, log)[0].Attempts)
}

func TestAWorkerThatIsThereHasUsedNoAttemptUp(t *testing.T) {
	t.Parallel()
	log := openWork(t, short)
	session(t, log, "worker-1")
	for range 3 { // it was given the work, and the answer was lost
		require.Equal(t, 1, claim(t, log, "worker-1").Attempt)
		reapUntil(t, log, func() bool { w := only(t, log); return w.Owner == "" && w.Attempts == 0 })
	}
	require.Equal(t, "cut off", only(t, log).Causes[2].Outcome)
}

func TestWhatIsGivenBackAfterItsLeaseWasLostIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	for name, meanwhile := range map[string]func(*testing.T, *postgres.Log, eventlog.Lease){
		"at once":                       func(*testing.T, *postgres.Log, eventlog.Lease) {},
		"after its worker was heard of": func(t *testing.T, log *postgres.Log, _ eventlog.Lease) { session(t, log, "worker-1")() },
		"after it was taken back":       beat,
		"after both": func(t *testing.T, log *postgres.Log, lease eventlog.Lease) {
			session(t, log, "worker-1")()
			beat(t, log, lease)
		},
	} {
		for how, give := range map[string]func(*postgres.Log, eventlog.Lease) error{
			"put off": func(log *postgres.Log, lease eventlog.Lease) error {
				return log.PutOff(t.Context(), lease, eventlog.Pause{Cause: "the store is away"})
			},
			"released": func(log *postgres.Log, lease eventlog.Lease) error { return log.ReleaseLease(t.Context(), lease) },
		} {
			t.Run(how+" "+name, func(t *testing.T) {
				t.Parallel()
				log := openWork(t)
				end := session(t, log, "dead")
				claim(t, log, "dead")
				end()
				reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
				end = session(t, log, "worker-1")
				lease := claim(t, log, "worker-1")
				require.Equal(t, 2, lease.Attempt)
				end()
				reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
				meanwhile(t, log, *lease)
				for range 2 { // the second time it is somebody else's already, for all that is known
					require.NoError(t, give(log, *lease))
					w := only(t, log)
					require.Equal(t, 1, w.Attempts, "one process did not come back")
					require.Empty(t, w.Owner)
					var outcomes []string
					for _, c := range w.Causes {
						outcomes = append(outcomes, c.Owner+" "+c.Outcome)
					}
					want := []string{"dead lost", "worker-1 cut off"}
					if how == "put off" {
						want = append(want, "worker-1 put off")
					}
					require.Equal(t, want, outcomes)
				}
			})
		}
	}
}

func beat(t *testing.T, log *postgres.Log, lease eventlog.Lease) {
	t.Helper()
	_, err := log.Heartbeat(t.Context(), lease, eventlog.Progress{})
	require.NoError(t, err)
	require.Equal(t, 2, only(t, log).Attempts, "it is the same attempt")
}

func TestWhileTheDatabaseIsAwayNobodyGetsNowhere(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	log := openAt(t, server.DSN(), func(c *postgres.Config) { c.LeaseTime, c.StallTime = 2*time.Second, time.Second })
	_, err := log.Append(t.Context(), to("a", 0, note("planned", eventlog.OpenWork{Work: segment})))
	require.NoError(t, err)
	session(t, log, "worker-1")
	lease := claim(t, log, "worker-1")
	_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{Batches: 1, BatchTime: time.Millisecond})
	require.NoError(t, err)
	server.Kill()
	time.Sleep(3 * time.Second) // longer than a lease, and than a counter may stand still
	server.Restart()
	until := time.Now().Add(1500 * time.Millisecond)
	reapUntil(t, log, func() bool { return time.Now().After(until) })
	for range 2 { // the job itself waited for the database, so its counter stood still
		_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{Batches: 1, BatchTime: time.Millisecond})
		require.NoError(t, err)
		_, err = log.Reap(t.Context())
		require.NoError(t, err)
	}
	require.Equal(t, "worker-1", only(t, log).Owner)
	require.Equal(t, 1, only(t, log).Attempts)
	require.Empty(t, only(t, log).Causes)
	require.Eventually(t, func() bool {
		_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{Batches: 1, BatchTime: time.Millisecond})
		if err != nil {
			return true
		}
		_, err := log.Reap(t.Context())
		require.NoError(t, err)
		return false
	}, 20*time.Second, 50*time.Millisecond, "one that gets nowhere while the database is there is told from it")
	require.ErrorAs(t, err, new(*eventlog.FencedError))
}

func TestWhoWasCutOffHasUsedNothingUpWhoeverHasLostTheWorkSince(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	for i, owner := range []string{"worker-1", "dead", "dead too"} {
		end := session(t, log, owner)
		require.Equal(t, i+1, claim(t, log, owner).Attempt)
		end()
		reapUntil(t, log, func() bool { return only(t, log).Owner == "" })
	}
	lost, err := log.Reap(t.Context())
	require.NoError(t, err)
	require.Empty(t, lost, "it is the third time, but whoever lost it may still speak")
	for range 2 {
		session(t, log, "worker-1")()
		w := only(t, log)
		require.Equal(t, 2, w.Attempts)
		var outcomes []string
		for _, c := range w.Causes {
			outcomes = append(outcomes, c.Owner+" "+c.Outcome)
		}
		require.Equal(t, []string{"worker-1 cut off", "dead lost", "dead too lost"}, outcomes)
	}
	require.Equal(t, 3, claim(t, log, "worker-2").Attempt)
}

func TestAWorkerThatIsJustBackHasALeasesLifeToSaySo(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	session(t, log, "worker-1")
	lease := claim(t, log, "worker-1")
	expire(t, log)
	_, err := log.Reap(t.Context())
	require.NoError(t, err)
	require.Nil(t, claim(t, log, "worker-2"))
	_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{})
	require.NoError(t, err)
	require.Empty(t, only(t, log).Causes)
}

func TestWhoGotNowhereCannotTakeTheWorkBack(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	lease := claim(t, log, "worker-1")
	_, err := log.Pool().Exec(t.Context(), `update work set advanced_at = advanced_at - interval '1 hour'`)
	require.NoError(t, err)
	_, err = log.Reap(t.Context())
	require.NoError(t, err)
	_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{})
	require.ErrorAs(t, err, new(*eventlog.FencedError))
	require.Equal(t, 1, only(t, log).Attempts, "it lives, but it used an attempt up")
	require.Equal(t, "lost", only(t, log).Causes[0].Outcome)
}

func TestARestartOfTheServerTakesNoLeaseFromAWorkerThatLives(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	log := openAt(t, server.DSN())
	_, err := log.Append(t.Context(), to("a", 0, note("planned", eventlog.OpenWork{Work: segment})))
	require.NoError(t, err)
	session(t, log, "worker-1")
	lease := claim(t, log, "worker-1")
	server.Kill()
	_, err = log.Reap(t.Context())
	require.ErrorIs(t, err, eventlog.ErrUnavailable)
	server.Restart()
	// For longer than a worker may be away.
	until := time.Now().Add(2500 * time.Millisecond)
	reapUntil(t, log, func() bool { return time.Now().After(until) })
	_, err = log.Heartbeat(t.Context(), *lease, eventlog.Progress{})
	require.NoError(t, err)
	require.Equal(t, 1, only(t, log).Attempts)
	require.Empty(t, only(t, log).Causes)
}

func TestWorkIsPutOffWithItsCauseAndCanBeHurried(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	for i := range 25 {
		lease := claim(t, log, "worker-1")
		require.Equal(t, 1, lease.Attempt, "what is put off uses no attempt up")
		require.Equal(t, i, lease.Pauses)
		require.Equal(t, i/2, lease.Failures)
		require.NoError(t, log.PutOff(t.Context(), *lease, eventlog.Pause{After: time.Hour, Cause: fmt.Sprintf("the store is away %d\x00\xff", i), Failure: i%2 == 1}))
		w := only(t, log)
		require.Greater(t, time.Until(w.NotBefore), 50*time.Minute)
		require.Nil(t, claim(t, log, "worker-2"), "not yet")
		if i == 24 {
			require.Len(t, w.Causes, 20, "the latest are kept")
			require.Equal(t, "the store is away 24␀\uFFFD", w.Causes[19].Detail)
			require.Equal(t, "put off", w.Causes[19].Outcome)
			break
		}
		_, err := log.Pool().Exec(t.Context(), `update work set not_before = clock_timestamp()`)
		require.NoError(t, err)
	}
	for _, test := range []struct {
		work eventlog.Work
		done bool
	}{{segment, true}, {eventlog.Work{Kind: "segment", Subject: "nobody"}, false}} {
		done, err := log.RetryWork(t.Context(), test.work)
		require.NoError(t, err)
		require.Equal(t, test.done, done)
	}
	lease := claim(t, log, "worker-1")
	require.Zero(t, lease.Pauses)
	require.Len(t, lease.Causes, 20, "what became of it before is still known")
	done, err := log.RetryWork(t.Context(), segment)
	require.NoError(t, err)
	require.False(t, done, "it is held")
	require.NoError(t, log.PutOff(t.Context(), *lease, eventlog.Pause{}))
	require.Len(t, only(t, log).Causes, 20, "going on later is no failure")
	require.NotNil(t, claim(t, log, "worker-1"))
}

func TestWorkThatWasLostTooOftenIsClosedOnlyIfNobodyHasItSince(t *testing.T) {
	t.Parallel()
	log := openWork(t)
	for range 3 {
		require.NotNil(t, claim(t, log, "worker-1"))
		expire(t, log)
		_, err := log.Reap(t.Context())
		require.NoError(t, err)
	}
	lost := lostAtLast(t, log)
	done, err := log.RetryWork(t.Context(), segment)
	require.NoError(t, err)
	require.True(t, done)
	lease := claim(t, log, "worker-2")
	require.NotNil(t, lease)
	fail := to("a", 1, note("failed: worker_lost", eventlog.CloseAllWork{Subject: "a"}))
	fail.Fence = lost[0].Held()
	_, err = log.Append(t.Context(), fail)
	require.Equal(t, &eventlog.FencedError{Fence: *lost[0].Held()}, err)
	require.NoError(t, log.ReleaseLease(t.Context(), *lease))
	_, err = log.Append(t.Context(), fail)
	require.Equal(t, &eventlog.FencedError{Fence: *lost[0].Held()}, err, "it was given out since")
	now := eventlog.Lost{Work: segment}
	require.NoError(t, log.Pool().QueryRow(t.Context(), `select fence from work`).Scan(&now.Fence))
	require.Greater(t, now.Fence, lease.Fence)
	fail.Fence = now.Held()
	_, err = log.Append(t.Context(), fail)
	require.NoError(t, err)
}

func TestARunOfManySegmentsIsOneEffect(t *testing.T) {
	t.Parallel()
	log := open(t)
	const n = 65_536
	_, err := log.Append(t.Context(), to("a", 0, note("planned", eventlog.OpenWork{Work: eventlog.Work{Kind: "segment", Subject: "a"}, Until: n, Requirement: "cpu"})))
	require.NoError(t, err)
	var count, first, last int
	require.NoError(t, log.Pool().QueryRow(t.Context(), `select count(*), min(index), max(index) from work where requirement = 'cpu'`).Scan(&count, &first, &last))
	require.Equal(t, []int{n, 0, n - 1}, []int{count, first, last})
	report, err := log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Equal(t, n, report.Work)
	for i := range 3 {
		lease, err := log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{"segment"}, Capabilities: []string{"cpu"}})
		require.NoError(t, err)
		require.Equal(t, i, lease.Work.Index)
	}
	_, err = log.Append(t.Context(), to("a", 1, note("cancelled", eventlog.CloseAllWork{Subject: "a"})))
	require.NoError(t, err)
}

func TestAnEventWhoseEffectsAreNotKnownIsNotAppended(t *testing.T) {
	t.Parallel()
	unknown := errors.New("the source key cannot be read")
	log := open(t, func(c *postgres.Config) { c.Effects = failing(unknown) })
	_, err := log.Append(t.Context(), to("a", 0, note("resumed")))
	require.ErrorIs(t, err, unknown)
	head, _, err := log.Head(t.Context())
	require.NoError(t, err)
	require.Zero(t, head)
}

// The index of a claim's order is used also where the planner believes that the table is empty.
func TestAClaimWalksTheIndexOfItsOrder(t *testing.T) {
	t.Parallel()
	log := open(t)
	for _, sql := range []string{
		`insert into work (kind, subject, index) values ('x', 'x', 0)`, `delete from work`, `analyze work`,
		`insert into work (kind, subject, index, requirement) select 'segment', 's' || i % 7, i, case when i % 3 = 0 then 'cpu' else 'cuda' end from generate_series(1, 50000) i`,
	} {
		_, err := log.Pool().Exec(t.Context(), sql)
		require.NoError(t, err)
	}
	read := func() (n int64) {
		_, err := log.Pool().Exec(t.Context(), `select pg_stat_force_next_flush()`)
		require.NoError(t, err)
		require.NoError(t, log.Pool().QueryRow(t.Context(), `select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = 'work'`).Scan(&n))
		return n
	}
	for _, prefer := range [][]string{nil, {"s3"}} {
		for range 20 { // beyond what a plan is made anew for
			_, err := log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{"plan", "segment"}, Prefer: prefer, Capabilities: []string{"cpu"}})
			require.NoError(t, err)
		}
	}
	require.Eventually(t, func() bool { return read() > 0 }, 20*time.Second, 10*time.Millisecond)
	require.Less(t, read(), int64(40*200), "rows that 40 claims have looked at")
}

func failing(err error) eventlog.Effects {
	return func(string, event.Data) ([]eventlog.Effect, error) { return nil, err }
}
