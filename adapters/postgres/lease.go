package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// claimSQL takes the oldest row that fits. A row whose lease has expired is free again without
// waiting for the reaper. SKIP LOCKED: a row that another worker is about to take is not waited for.
const claimSQL = `
update work w
set owner = $1, fence = nextval('work_fence'), attempts = w.attempts + 1, expires_at = clock_timestamp() + $6 * interval '1 second',
    progress = null, batches = 0, batch_seconds = 0, advanced_at = clock_timestamp()
from (
    select kind, subject, index from work
    where kind = any($2) and (owner is null or expires_at < clock_timestamp()) and attempts < $7
      and (requirement = '' or requirement = any($5)) and ($4::text[] is null or subject = any($4))
    order by kind = any($8), subject = any($3) desc, opened
    limit 1 for update skip locked
) free
where w.kind = free.kind and w.subject = free.subject and w.index = free.index
returning w.kind, w.subject, w.index, w.owner, w.fence, w.attempts, w.expires_at`

// Claim takes a lease of open work that the worker fits; nil when there is none.
func (l *Log) Claim(ctx context.Context, c eventlog.Claim) (*eventlog.Lease, error) {
	if c.Owner == "" {
		return nil, errors.New("claim work: the worker has no name")
	}
	var lease eventlog.Lease
	err := l.pool.QueryRow(ctx, claimSQL, c.Owner, c.Kinds, notNil(c.Prefer), c.Subjects, notNil(c.Capabilities), l.cfg.LeaseTime.Seconds(), l.cfg.MaxAttempts, notNil(c.Last)).
		Scan(&lease.Work.Kind, &lease.Work.Subject, &lease.Work.Index, &lease.Owner, &lease.Fence, &lease.Attempt, &lease.ExpiresAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("claim work: %w", unavailable(err))
	}
	lease.ExpiresAt = lease.ExpiresAt.UTC()
	return &lease, nil
}

// notNil keeps "= any" from being null, which would let nothing through.
func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

const heartbeatSQL = `
update work set expires_at = clock_timestamp() + $6 * interval '1 second', progress = $7, batch_seconds = $9,
    advanced_at = case when batches = $8 then advanced_at else clock_timestamp() end, batches = $8
where kind = $1 and subject = $2 and index = $3 and owner = $4 and fence = $5
returning expires_at`

// Heartbeat renews a lease and stores what its worker tells. *FencedError: stop at the next batch.
func (l *Log) Heartbeat(ctx context.Context, lease eventlog.Lease, p eventlog.Progress) (time.Time, error) {
	var detail any
	if len(p.Detail) > 0 {
		detail = []byte(p.Detail)
	}
	var expires time.Time
	err := l.pool.QueryRow(ctx, heartbeatSQL, lease.Work.Kind, lease.Work.Subject, lease.Work.Index, lease.Owner, lease.Fence,
		l.cfg.LeaseTime.Seconds(), detail, p.Batches, p.BatchTime.Seconds()).Scan(&expires)
	if errors.Is(err, pgx.ErrNoRows) {
		return time.Time{}, &eventlog.FencedError{Fence: *lease.Held()}
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("heartbeat of %s: %w", lease.Work, unavailable(err))
	}
	return expires.UTC(), nil
}

const releaseSQL = `
update work set owner = null, expires_at = null, attempts = greatest(attempts - 1, 0)
where kind = $1 and subject = $2 and index = $3 and owner = $4 and fence = $5`

// ReleaseLease gives work back that was not finished, as a worker does that is told to stop: nothing
// was lost, so no attempt is counted. A lease that was lost already is no error.
func (l *Log) ReleaseLease(ctx context.Context, lease eventlog.Lease) error {
	_, err := l.pool.Exec(ctx, releaseSQL, lease.Work.Kind, lease.Work.Subject, lease.Work.Index, lease.Owner, lease.Fence)
	if err != nil {
		return fmt.Errorf("give back the lease of %s: %w", lease.Work, unavailable(err))
	}
	return nil
}

const reapSQL = `
update work w set owner = null, expires_at = null
from (
    select kind, subject, index from work
    where owner is not null
      and (expires_at < clock_timestamp()
        or advanced_at < clock_timestamp() - greatest($1, 10 * batch_seconds) * interval '1 second')
    order by kind, subject, index for update skip locked
) lost
where w.kind = lost.kind and w.subject = lost.subject and w.index = lost.index`

// Reap frees the work whose lease has expired, or whose batch counter stood still, and returns the
// work that was lost for the last time: it is not given out again, and Reap returns it until an
// event closes it.
func (l *Log) Reap(ctx context.Context) ([]eventlog.Lost, error) {
	if _, err := l.pool.Exec(ctx, reapSQL, l.cfg.StallTime.Seconds()); err != nil {
		return nil, fmt.Errorf("free lost leases: %w", unavailable(err))
	}
	rows, err := l.pool.Query(ctx, `select kind, subject, index, attempts from work where owner is null and attempts >= $1 order by opened`, l.cfg.MaxAttempts)
	if err != nil {
		return nil, fmt.Errorf("look for lost work: %w", unavailable(err))
	}
	lost, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (x eventlog.Lost, err error) {
		err = row.Scan(&x.Work.Kind, &x.Work.Subject, &x.Work.Index, &x.Attempts)
		return x, err
	})
	if err != nil {
		return nil, fmt.Errorf("look for lost work: %w", unavailable(err))
	}
	return lost, nil
}

// ListWork returns the open work of a subject, by kind and index.
func (l *Log) ListWork(ctx context.Context, subject string) ([]eventlog.WorkStatus, error) {
	rows, err := l.pool.Query(ctx, `
select kind, subject, index, requirement, coalesce(owner, ''), attempts, expires_at, progress, batches, batch_seconds
from work where subject = $1 order by kind, index`, subject)
	if err != nil {
		return nil, fmt.Errorf("list the work of %s: %w", subject, unavailable(err))
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (eventlog.WorkStatus, error) {
		var s eventlog.WorkStatus
		var expires *time.Time
		var detail []byte
		var seconds float64
		err := row.Scan(&s.Work.Kind, &s.Work.Subject, &s.Work.Index, &s.Requirement, &s.Owner, &s.Attempts, &expires, &detail, &s.Progress.Batches, &seconds)
		if expires != nil {
			s.ExpiresAt = expires.UTC()
		}
		s.Progress.Detail = json.RawMessage(detail)
		s.Progress.BatchTime = time.Duration(seconds * float64(time.Second))
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the work of %s: %w", subject, unavailable(err))
	}
	return list, nil
}
