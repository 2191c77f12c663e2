package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// Claim takes a lease of open work that the worker fits; nil when there is none. claim_work takes one row at most.
func (l *Log) Claim(ctx context.Context, c eventlog.Claim) (*eventlog.Lease, error) {
	if c.Owner == "" {
		return nil, errors.New("claim work: the worker has no name")
	}
	rows, err := l.pool.Query(ctx, `select kind, subject, index, owner, fence, attempts, pauses, failures, expires_at, causes from claim_work($1, $2, $3, $4, $5, $6, $7, $8)`,
		c.Owner, c.Kinds, notNil(c.Last), notNil(c.Prefer), c.Subjects, notNil(c.Capabilities), l.cfg.LeaseTime.Seconds(), l.cfg.MaxAttempts)
	if err != nil {
		return nil, fmt.Errorf("claim work: %w", unavailable(err))
	}
	lease, err := pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (eventlog.Lease, error) {
		lease := eventlog.Lease{Life: l.cfg.LeaseTime}
		err := row.Scan(&lease.Work.Kind, &lease.Work.Subject, &lease.Work.Index, &lease.Owner, &lease.Fence, &lease.Attempt, &lease.Pauses, &lease.Failures,
			&lease.ExpiresAt, (*causes)(&lease.Causes))
		lease.ExpiresAt = lease.ExpiresAt.UTC()
		return lease, err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim work: %w", unavailable(err))
	}
	return &lease, nil
}

// causes are stored as JSON; none read as nil.
type causes []eventlog.Cause

// Scan implements sql.Scanner.
func (c *causes) Scan(src any) error {
	var list []eventlog.Cause
	var err error
	switch v := src.(type) {
	case string:
		err = json.Unmarshal([]byte(v), &list)
	case []byte:
		err = json.Unmarshal(v, &list)
	default:
		err = fmt.Errorf("causes of work are %T", src)
	}
	for i := range list {
		list[i].At = list[i].At.UTC()
	}
	if len(list) > 0 {
		*c = list
	}
	return err
}

// notNil keeps "= any" from being null, which would let nothing through.
func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// An attempt that speaks has given back counts again when its worker goes on. How long a counter stood still is known only
// while the lease was renewed.
const heartbeatSQL = `
update work set expires_at = clock_timestamp() + $6 * interval '1 second', progress = $7, batch_seconds = $9,
    advanced_at = case when batches = $8 and owner is not null and expires_at >= clock_timestamp() then advanced_at else clock_timestamp() end, batches = $8,
    owner = $4, attended = case when owner is null then attends($4) else attended end,
    attempts = case when owner is null and causes -> -1 ->> 'outcome' = 'cut off' then attempts + 1 else attempts end,
    causes = ` + said + `
where ` + held + `
returning expires_at`

// Heartbeat renews a lease and stores what its worker tells. One that was lost because the worker was not heard of is
// taken back, if nobody else was given the work. *FencedError: stop at the next batch.
func (l *Log) Heartbeat(ctx context.Context, lease eventlog.Lease, p eventlog.Progress) (time.Time, error) {
	var detail any
	if len(p.Detail) > 0 {
		detail = []byte(p.Detail)
	}
	var expires time.Time
	err := l.pool.QueryRow(ctx, heartbeatSQL, lease.Work.Kind, lease.Work.Subject, lease.Work.Index, lease.Owner, lease.Fence,
		l.cfg.LeaseTime.Seconds(), detail, p.Batches, p.BatchTime.Seconds()).Scan(&expires)
	if errors.Is(err, pgx.ErrNoRows) {
		if _, err := l.pool.Exec(ctx, speaksSQL, lease.Owner); err != nil {
			return time.Time{}, fmt.Errorf("heartbeat of %s: %w", lease.Work, unavailable(err))
		}
		return time.Time{}, &eventlog.FencedError{Fence: *lease.Held()}
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("heartbeat of %s: %w", lease.Work, unavailable(err))
	}
	return expires.UTC(), nil
}

const speaksSQL = `select speaks($1)`

// held is the condition that a lease is its worker's, or was lost and nobody else was given the work. The last two are
// what becomes of its attempt and causes when it is given back: the attempt is unused, unless speaks has said so already.
const (
	held   = `kind = $1 and subject = $2 and index = $3 and (owner = $4 or owner is null) and fence = $5`
	unused = `case when owner is null and causes -> -1 ->> 'outcome' = 'cut off' then attempts else greatest(attempts - 1, 0) end`
	said   = `case when owner is null then jsonb_set(causes, '{-1,outcome}', '"cut off"') else causes end`
)

const giveBackSQL = `
update work set owner = null, attended = false, expires_at = null, fence = nextval('work_fence'), attempts = ` + unused + `, not_before = clock_timestamp() + $6 * interval '1 second',
    pauses = case when $7 = '' then 0 else pauses + 1 end, failures = case when $7 = '' then 0 when $8 then failures + 1 else failures end,
    causes = case when $7 = '' then ` + said + ` else add_cause(` + said + `, $4, attempts, 'put off', $7) end
where ` + held

// ReleaseLease gives work back that was not finished, as a worker does that is told to stop: nothing
// was lost, so no attempt is counted. A lease that somebody else has by now is no error.
func (l *Log) ReleaseLease(ctx context.Context, lease eventlog.Lease) error {
	_, err := l.pool.Exec(ctx, `update work set owner = null, attended = false, expires_at = null, fence = nextval('work_fence'), attempts = `+unused+`, causes = `+said+`
where `+held, lease.Work.Kind, lease.Work.Subject, lease.Work.Index, lease.Owner, lease.Fence)
	if err != nil {
		return fmt.Errorf("give back the lease of %s: %w", lease.Work, unavailable(err))
	}
	return nil
}

// PutOff gives work back to be done later, with the cause. A lease that somebody else has by now is no error.
func (l *Log) PutOff(ctx context.Context, lease eventlog.Lease, p eventlog.Pause) error {
	_, err := l.pool.Exec(ctx, giveBackSQL, lease.Work.Kind, lease.Work.Subject, lease.Work.Index, lease.Owner, lease.Fence, p.After.Seconds(), storable(p.Cause), p.Failure)
	if err != nil {
		return fmt.Errorf("put %s off: %w", lease.Work, unavailable(err))
	}
	return nil
}

// RetryWork gives work out at once, whatever became of earlier attempts. False: it is held by a worker, or not open.
func (l *Log) RetryWork(ctx context.Context, w eventlog.Work) (bool, error) {
	tag, err := l.pool.Exec(ctx, `update work set not_before = '-infinity', attempts = 0, pauses = 0, failures = 0, fence = nextval('work_fence')
where kind = $1 and subject = $2 and index = $3 and owner is null`, w.Kind, w.Subject, w.Index)
	if err != nil {
		return false, fmt.Errorf("retry %s: %w", w, unavailable(err))
	}
	if tag.RowsAffected() > 0 {
		_, _ = l.pool.Exec(ctx, `select pg_notify('featuremill_events', '')`) // whoever waits for events looks for work, too
	}
	return tag.RowsAffected() > 0, nil
}

// goneAfter is how long a worker's session must be away until the worker counts as ended: one that has lost its session
// alone, or with a restart of the server, is back sooner.
const goneAfter = 1200 * time.Millisecond

// absences remembers since when workers that hold leases have had no session.
type absences struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// gone returns the workers that are away for long enough, of those that are away now.
func (a *absences) gone(away []string, now time.Time) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := map[string]time.Time{}
	var gone []string
	for _, owner := range away {
		since, known := a.since[owner]
		if !known {
			since = now
		}
		if next[owner] = since; now.Sub(since) >= goneAfter {
			gone = append(gone, owner)
		}
	}
	a.since = next
	return gone
}

// forget begins anew: while the server was away nobody could have a session.
func (a *absences) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since = nil
}

// Reap frees the work whose process ended, whose lease has expired, or whose batch counter stood still, and returns the
// work that was lost for the last time: it is not given out again, and Reap returns it until an event closes it. Who lost it
// has had time to speak by then.
// It is to be called about twice a second, by as many processes as like to.
func (l *Log) Reap(ctx context.Context) ([]eventlog.Lost, error) {
	lost, err := l.reap(ctx)
	if err != nil {
		l.absent.forget()
	}
	return lost, err
}

func (l *Log) reap(ctx context.Context) ([]eventlog.Lost, error) {
	rows, _ := l.pool.Query(ctx, `with owners as materialized (select distinct owner from work where owner is not null and attended)
select owner from owners where not attends(owner) order by owner`)
	away, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for workers that have ended: %w", unavailable(err))
	}
	if _, err := l.pool.Exec(ctx, `select free_lost($1, $2, $3)`, notNil(l.absent.gone(away, time.Now())), l.cfg.StallTime.Seconds(), l.cfg.LeaseTime.Seconds()); err != nil {
		return nil, fmt.Errorf("free lost leases: %w", unavailable(err))
	}
	rows, _ = l.pool.Query(ctx, `select kind, subject, index, attempts, fence, causes from work where owner is null and attempts >= $1 and attempts > 0
and coalesce((causes -> -1 ->> 'at')::timestamptz, '-infinity') < clock_timestamp() - $2 * interval '1 second' order by opened limit 1000`,
		l.cfg.MaxAttempts, min(l.cfg.LeaseTime, attendLook+time.Second).Seconds())
	lost, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (x eventlog.Lost, err error) {
		err = row.Scan(&x.Work.Kind, &x.Work.Subject, &x.Work.Index, &x.Attempts, &x.Fence, (*causes)(&x.Causes))
		return x, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for lost work: %w", unavailable(err))
	}
	return lost, nil
}

// attendPoll is how soon a session that broke is opened again, attendLook how often it says that its worker is there, and
// attendWait how long the server may take to answer.
const (
	attendPoll = 100 * time.Millisecond
	attendLook = 5 * time.Second
	attendWait = 30 * time.Second
)

// Attend keeps a session that holds the lock of the worker's name, until ctx ends. The server ends it with the process,
// at once where the process was killed. The server's end of a connection to a machine that cannot be reached stays for two
// minutes, which is longer than a lease lives, so such a worker's leases run out by time.
func (l *Log) Attend(ctx context.Context, owner string, attended func()) {
	for ctx.Err() == nil {
		if err := l.attendOnce(ctx, owner, attended); err != nil && ctx.Err() == nil {
			l.cfg.Logger.DebugContext(ctx, "a worker's session broke; it is opened again", "owner", owner, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(attendPoll):
		}
	}
}

func (l *Log) attendOnce(ctx context.Context, owner string, attended func()) error {
	cfg := l.pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = "featuremill worker " + owner
	for name, value := range map[string]string{"tcp_keepalives_idle": "60", "tcp_keepalives_interval": "15", "tcp_keepalives_count": "4"} {
		cfg.RuntimeParams[name] = value
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(end)
	}()
	for {
		var held bool
		if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended($1, 8))`, owner).Scan(&held); err != nil {
			return err
		}
		if held {
			break
		}
		select { // somebody looks whether we are there, or our session before has not ended yet
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(attendPoll / 10):
		}
	}
	speak := func() error {
		ctx, cancel := context.WithTimeout(ctx, attendWait)
		defer cancel()
		_, err := conn.Exec(ctx, speaksSQL, owner)
		return err
	}
	if err := speak(); err != nil {
		return err
	}
	attended()
	for {
		look, cancel := context.WithTimeout(ctx, attendLook)
		_, err := conn.WaitForNotification(look) // nothing is sent: it returns when the connection breaks
		quiet := look.Err() != nil
		cancel()
		if ctx.Err() != nil || err != nil && !quiet {
			return err
		}
		if err := speak(); err != nil && conn.IsClosed() { // what the server refuses for once is said again
			return err
		}
	}
}

// ListWork returns the open work of a subject, by kind and index; of "", of all subjects, what is held or was tried before.
func (l *Log) ListWork(ctx context.Context, subject string) ([]eventlog.WorkStatus, error) {
	where, args := `subject = $1`, []any{subject}
	if subject == "" {
		where, args = `owner is not null or causes <> '[]'`, nil
	}
	rows, _ := l.pool.Query(ctx, `
select kind, subject, index, requirement, coalesce(owner, ''), attempts, pauses, failures, expires_at, case when not_before > '-infinity' then not_before end, causes, progress, batches, batch_seconds
from work where `+where+` order by kind, subject, index`, args...)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventlog.WorkStatus, error) {
		var s eventlog.WorkStatus
		var expires, notBefore *time.Time
		var detail []byte
		var seconds float64
		err := row.Scan(&s.Work.Kind, &s.Work.Subject, &s.Work.Index, &s.Requirement, &s.Owner, &s.Attempts, &s.Pauses, &s.Failures, &expires, &notBefore, (*causes)(&s.Causes),
			&detail, &s.Progress.Batches, &seconds)
		if expires != nil {
			s.ExpiresAt = expires.UTC()
		}
		if notBefore != nil {
			s.NotBefore = notBefore.UTC()
		}
		s.Progress.Detail = json.RawMessage(detail)
		s.Progress.BatchTime = time.Duration(seconds * float64(time.Second))
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the work of %s: %w", subject, unavailable(err))
	}
	return slices.Clip(list), nil
}
