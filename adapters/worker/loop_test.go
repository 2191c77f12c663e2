package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
	"github.com/featuremill/featuremill/domain/problem"
)

var piece = eventlog.Work{Kind: "segment", Subject: "a", Index: 7}

// mill is a log with one piece of work, and a loop that does it as a test says.
type mill struct {
	t    *testing.T
	log  *postgres.Log
	said bytes.Buffer // by the loop
	mu   sync.Mutex
	loop *Loop

	version  int64
	failures []*Failure
	lost     []eventlog.Lost
}

func (m *mill) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said.Write(b)
}

func newMill(t *testing.T, dsn string, do func(context.Context, *Task) error) *mill {
	t.Helper()
	registry, err := eventlogtest.Registry()
	require.NoError(t, err)
	m := &mill{t: t}
	m.log, err = postgres.Open(t.Context(), dsn, postgres.Config{Registry: registry, Effects: eventlogtest.Effects, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(m.log.Close)
	m.append(eventlog.OpenWork{Work: piece})
	m.loop = NewLoop(m.log, Config{
		Owner: "w", Jobs: map[string]Job{"segment": job(do)}, Poll: 10 * time.Millisecond, Heartbeat: 50 * time.Millisecond, ReapEvery: 50 * time.Millisecond,
		OnHung: func(eventlog.Lease) {},
		OnFailure: func(_ context.Context, lease eventlog.Lease, f *Failure) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.failures = append(m.failures, f)
			return m.close(lease.Held())
		},
		OnLost: func(_ context.Context, lost eventlog.Lost) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.lost = append(m.lost, lost)
			return problem.New(problem.Conflict, "wrong_status", "extraction a is failed and cannot be failed")
		},
		Logger: slog.New(slog.NewTextHandler(m, nil)),
	})
	return m
}

func (m *mill) append(effects ...eventlog.Effect) {
	m.t.Helper()
	_, err := m.log.Append(m.t.Context(), eventlogtest.To("a", m.version, eventlogtest.Note("planned", effects...)))
	require.NoError(m.t, err)
	m.version++
}

func (m *mill) close(held *eventlog.Fence) error {
	request := eventlogtest.To("a", m.version, eventlogtest.Note("ended", eventlog.CloseWork{Work: piece}))
	request.Fence = held
	_, err := m.log.Append(context.WithoutCancel(m.t.Context()), request)
	return err
}

// do has the loop do the piece once.
func (m *mill) do() bool {
	m.t.Helper()
	lease, err := m.log.Claim(m.t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{"segment"}})
	require.NoError(m.t, err)
	require.NotNil(m.t, lease, "there is work")
	return m.loop.Do(m.t.Context(), *lease)
}

func (m *mill) open() []eventlog.WorkStatus {
	m.t.Helper()
	list, err := m.log.ListWork(m.t.Context(), "a")
	require.NoError(m.t, err)
	return list
}

// hurry ends a pause.
func (m *mill) hurry() {
	m.t.Helper()
	_, err := m.log.Pool().Exec(m.t.Context(), `update work set not_before = clock_timestamp()`)
	require.NoError(m.t, err)
}

func TestAnOutageUsesNoAttemptUpHoweverLongItLasts(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{
		"the store answers 503":    fmt.Errorf("store the artifact: %w: 503 Service Unavailable", blob.ErrUnavailable),
		"the database is away":     fmt.Errorf("read extraction-a: %w", eventlog.ErrUnavailable),
		"the hub cannot be asked":  problem.New(problem.Unavailable, "hub_unavailable", "the hub fails with 502"),
		"the hub wants it slower":  problem.New(problem.Unavailable, "hub_rate_limited", "too many requests"),
		"the disk has no room any": fmt.Errorf("store the artifact: %w", syscall.ENOSPC),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMill(t, pgtest.New(t), func(context.Context, *Task) error { return err })
			for i := range 10 {
				require.False(t, m.do())
				w := m.open()[0]
				require.Zero(t, w.Attempts)
				require.Zero(t, w.Failures)
				require.Len(t, w.Causes, i+1)
				require.Contains(t, w.Causes[i].Detail, err.Error())
				require.WithinDuration(t, w.Causes[i].At.Add(min(time.Second<<i, time.Minute)), w.NotBefore, 500*time.Millisecond)
				m.hurry()
			}
			require.Empty(t, m.failures)
			if errors.Is(err, syscall.ENOSPC) {
				require.Contains(t, m.open()[0].Causes[9].Detail, "make room")
			}
		})
	}
}

func TestAnErrorThatNobodyKnowsEndsTheWorkAfterThreeWithItsCause(t *testing.T) {
	t.Parallel()
	m := newMill(t, pgtest.New(t), func(context.Context, *Task) error { return errors.New("the matrix has no columns") })
	for range 2 {
		require.False(t, m.do())
		require.Zero(t, m.open()[0].Attempts)
		m.hurry()
	}
	require.True(t, m.do())
	require.Empty(t, m.open())
	require.Len(t, m.failures, 1)
	require.Equal(t, "failed_repeatedly", m.failures[0].Code)
	require.True(t, m.failures[0].Resumable)
	require.Contains(t, m.failures[0].Detail, "the matrix has no columns")
}

func TestHowAJobEndsDecidesWhatBecomesOfItsWork(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err      error
		again    bool
		attempts int
		cause    string
		after    time.Duration
		failure  string
	}{
		"done, and an event has closed it":        {again: true, attempts: -1},
		"not wanted any more, and still open":     {again: true, after: time.Second},
		"to go on later":                          {err: Later{After: time.Hour}, again: true, after: time.Hour},
		"given back":                              {err: ErrStopping},
		"final":                                   {err: &Failure{Code: "sae_missing"}, again: true, attempts: -1, failure: "sae_missing"},
		"what it belongs to has ended":            {err: problem.New(problem.Conflict, "wrong_status", "extraction a is cancelled"), again: true, attempts: 1},
		"its lease was lost":                      {err: &eventlog.FencedError{}, again: true, attempts: 1},
		"to be tried again, for a cause it tells": {err: errors.New("odd"), cause: "odd", after: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var m *mill
			m = newMill(t, pgtest.New(t), func(_ context.Context, task *Task) error {
				if test.err == nil && test.attempts < 0 {
					return m.close(task.Lease.Held())
				}
				return test.err
			})
			require.Equal(t, test.again, m.do())
			if test.failure != "" {
				require.Equal(t, test.failure, m.failures[0].Code)
			}
			open := m.open()
			if test.attempts < 0 {
				require.Empty(t, open)
				return
			}
			require.Equal(t, test.attempts, open[0].Attempts)
			if test.cause != "" {
				require.Equal(t, test.cause, open[0].Causes[0].Detail)
			} else {
				require.Empty(t, open[0].Causes)
			}
			if test.after > 0 {
				require.WithinDuration(t, time.Now().Add(test.after), open[0].NotBefore, 5*time.Second)
			}
		})
	}
}

func TestTheDatabaseMayBeRestartedWhileAJobWorks(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	working, goOn := make(chan struct{}), make(chan struct{})
	var m *mill
	m = newMill(t, server.DSN(), func(_ context.Context, task *Task) error {
		close(working)
		<-goOn
		return UntilRecorded(t.Context(), task, func() error { return m.close(task.Lease.Held()) })
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.loop.Run(ctx) }()
	<-working
	server.Kill()
	server.Restart()
	until := time.Now().Add(2500 * time.Millisecond) // the loop reaps meanwhile; for longer than a worker may be away
	require.Eventually(t, func() bool { return time.Now().After(until) }, 10*time.Second, 50*time.Millisecond)
	require.Equal(t, 1, m.open()[0].Attempts)
	close(goOn)
	require.Eventually(t, func() bool { return len(m.open()) == 0 }, 20*time.Second, 20*time.Millisecond)
	stop()
	require.NoError(t, <-ended)
	require.Empty(t, m.lost)
}

func TestWorkOfAnEndedExtractionIsDroppedWithoutAnError(t *testing.T) {
	t.Parallel()
	m := newMill(t, pgtest.New(t), func(context.Context, *Task) error { return nil })
	_, err := m.log.Pool().Exec(t.Context(), `update work set attempts = 3`)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.loop.Run(ctx) }()
	require.Eventually(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.lost) > 2
	}, 20*time.Second, 10*time.Millisecond)
	stop()
	require.NoError(t, <-ended)
	require.NotContains(t, m.said.String(), "level=ERROR")
}

func TestWhatWasLostTellsWhatBecameOfEachAttempt(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	require.Equal(t, "w2 (attempt 2, 2026-01-02T03:04:05Z): its process ended; w3 (attempt 3, 2026-01-02T03:04:05Z): it got nowhere for 120 s; w4 (attempt 3, 2026-01-02T03:04:05Z): its process ended",
		told([]eventlog.Cause{{Owner: "w1", Outcome: "lost"}, {At: at, Owner: "w2", Attempt: 2, Outcome: "lost", Detail: "its process ended"}, {Owner: "w2", Outcome: "put off", Detail: "the store is away"}, {At: at, Owner: "w3", Attempt: 3, Outcome: "lost", Detail: "it got nowhere for 120 s"}, {At: at, Owner: "w4", Attempt: 3, Outcome: "lost", Detail: "its process ended"}}))
}

func TestAJobThatHangsIsCalledOffWhereTheProcessNeedNotEnd(t *testing.T) {
	t.Parallel()
	m := newMill(t, pgtest.New(t), func(ctx context.Context, _ *Task) error {
		<-ctx.Done()
		return ctx.Err()
	})
	m.loop.cfg.Hung, m.loop.cfg.OnHung = 100*time.Millisecond, nil
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.loop.Run(ctx) }()
	require.Eventually(t, func() bool {
		work, err := m.log.ListWork(t.Context(), piece.Subject)
		require.NoError(t, err)
		return len(work) == 1 && work[0].Failures == 1
	}, 20*time.Second, 10*time.Millisecond)
	work, err := m.log.ListWork(t.Context(), piece.Subject)
	require.NoError(t, err)
	require.Contains(t, work[0].Causes[0].Detail, "it got nowhere")
	stop()
	require.NoError(t, <-ended)
}

func TestWhatBecameOfWorkIsSaidWhenTheLogIsBackHoweverLate(t *testing.T) {
	t.Parallel()
	server := pgtest.NewServer(t)
	killed := make(chan struct{})
	m := newMill(t, server.DSN(), func(context.Context, *Task) error {
		server.Kill()
		close(killed)
		return fmt.Errorf("read extraction-a: %w", eventlog.ErrUnavailable)
	})
	var back sync.WaitGroup
	back.Go(func() {
		<-killed
		time.Sleep(12 * time.Second)
		server.Restart()
	})
	require.False(t, m.do())
	back.Wait()
	w := m.open()[0]
	require.Zero(t, w.Attempts)
	require.Empty(t, w.Owner)
	require.Equal(t, "put off", w.Causes[len(w.Causes)-1].Outcome)
}
