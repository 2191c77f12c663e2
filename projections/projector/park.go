package projector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
)

// Why an event is parked.
const (
	unknownType = "unknown_type" // written by a newer program
	unreadable  = "unreadable"
	failed      = "failed"
	waiting     = "waiting" // behind an earlier event of its stream
)

type fault struct {
	err      error
	attempts int
}

func reason(err error) string {
	var unknown *event.UnknownTypeError
	var decode *event.DecodeError
	switch {
	case errors.As(err, &unknown):
		return unknownType
	case errors.As(err, &decode):
		return unreadable
	}
	return failed
}

// parkingLot is what a transaction knows and changes about parked events. A stream that was found
// parked stays locked until the transaction ends, so a retry by somebody else waits, and we wait for it.
type parkingLot struct {
	tx        pgx.Tx
	slot      slot
	streams   map[string]bool
	parkedNow int64
}

// lockStreams finds out which of the events' streams are parked.
func (l *parkingLot) lockStreams(ctx context.Context, recs []event.Recorded) error {
	names := make([]string, 0, len(recs))
	seen := make(map[string]bool, len(recs))
	for _, rec := range recs {
		if !seen[rec.Stream] {
			seen[rec.Stream] = true
			names = append(names, rec.Stream)
		}
	}
	rows, err := l.tx.Query(ctx, `select stream from projections.parked_streams
		where projection = $1 and version = $2 and rebuild = $3 and stream = any($4) order by stream for update`,
		l.slot.projection, l.slot.version, l.slot.rebuild, names)
	if err != nil {
		return err
	}
	parked, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	l.streams = map[string]bool{}
	for _, name := range parked {
		l.streams[name] = true
	}
	return nil
}

func (l *parkingLot) isParked(stream string) bool { return l.streams[stream] }

// park sets an event aside; a nil fault means that it waits for an earlier one.
func (l *parkingLot) park(ctx context.Context, rec event.Recorded, f *fault) error {
	why, text, attempts := waiting, "", 0
	if f != nil {
		why, text, attempts = reason(f.err), f.err.Error(), f.attempts
	}
	_, err := l.tx.Exec(ctx, `insert into projections.parked_streams (projection, version, rebuild, stream) values ($1, $2, $3, $4) on conflict do nothing`,
		l.slot.projection, l.slot.version, l.slot.rebuild, rec.Stream)
	if err != nil {
		return err
	}
	_, err = l.tx.Exec(ctx, `insert into projections.parked (projection, version, rebuild, position, event_id, stream, stream_version, type, error, reason, attempts)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		l.slot.projection, l.slot.version, l.slot.rebuild, rec.Position, rec.ID.String(), rec.Stream, rec.Version, rec.Type, text, why, attempts)
	l.streams[rec.Stream] = true
	l.parkedNow++
	return err
}

// Parked is an event that waits for a retry or a skip.
type Parked struct {
	Position      int64     `db:"position"`
	EventID       string    `db:"event_id"`
	Stream        string    `db:"stream"`
	StreamVersion int64     `db:"stream_version"`
	Type          string    `db:"type"`
	Error         string    `db:"error"`  // "" = it waits for an earlier event of its stream
	Reason        string    `db:"reason"` // unknown_type, unreadable, failed, waiting
	Attempts      int       `db:"attempts"`
	ParkedAt      time.Time `db:"parked_at"`
}

// Parked returns the parked events of this version in order.
func (r *Runner) Parked(ctx context.Context) ([]Parked, error) {
	rows, err := r.cfg.Pool.Query(ctx, `select position, event_id::text, stream, stream_version, type, error, reason, attempts, parked_at
		from projections.parked where projection = $1 and version = $2 and rebuild = $3 order by position`,
		r.slot.projection, r.slot.version, r.slot.rebuild)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Parked])
}

// Retried says what a retry came to.
type Retried struct {
	Applied int   // events
	Left    int   // events that are still parked
	Err     error // why; nil when none are left
}

// Retry applies the parked events of a stream in order and then unparks it; it stops at the first
// that fails again. New events of the stream wait meanwhile. Any process may call it.
func (r *Runner) Retry(ctx context.Context, stream string) (Retried, error) {
	conn, err := r.connect(ctx, r.slot.schema)
	if err != nil {
		return Retried{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return r.retry(ctx, conn, stream)
}

func (r *Runner) retry(ctx context.Context, conn *pgx.Conn, stream string) (Retried, error) {
	var done Retried
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var one int
		err := tx.QueryRow(ctx, `select 1 from projections.parked_streams
			where projection = $1 and version = $2 and rebuild = $3 and stream = $4 for update`,
			r.slot.projection, r.slot.version, r.slot.rebuild, stream).Scan(&one)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil // nothing is parked, or somebody else's retry was through
		}
		if err != nil {
			return err
		}
		done, err = r.drain(ctx, tx, stream)
		return err
	})
	if err != nil {
		return Retried{}, fmt.Errorf("retry the parked events of %s: %w", stream, err)
	}
	return done, nil
}

// drain applies the parked events of a locked stream in order. What fails again stays, with all after it.
func (r *Runner) drain(ctx context.Context, tx pgx.Tx, stream string) (Retried, error) {
	rows, err := tx.Query(ctx, `select position, stream_version from projections.parked
		where projection = $1 and version = $2 and rebuild = $3 and stream = $4 order by stream_version`,
		r.slot.projection, r.slot.version, r.slot.rebuild, stream)
	if err != nil {
		return Retried{}, err
	}
	type place struct{ Position, Version int64 }
	parked, err := pgx.CollectRows(rows, pgx.RowToStructByPos[place])
	if err != nil {
		return Retried{}, err
	}
	byVersion := map[int64]event.Recorded{}
	if len(parked) > 0 {
		recs, err := r.cfg.Log.ReadStream(ctx, stream, parked[0].Version-1)
		if err != nil {
			return Retried{}, err
		}
		for _, rec := range recs {
			byVersion[rec.Version] = rec
		}
	}
	for i, p := range parked {
		rec, ok := byVersion[p.Version]
		if !ok || rec.Position != p.Position {
			return Retried{}, fmt.Errorf("event %d of %s is parked, but the log does not have it", p.Position, stream)
		}
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return r.reapply(ctx, tx, rec) })
		if err != nil && (!eventsFault(err) || tx.Conn().IsClosed()) {
			return Retried{}, err
		}
		if err != nil {
			_, dbErr := tx.Exec(ctx, `update projections.parked set error = $5, reason = $6, attempts = attempts + 1
				where projection = $1 and version = $2 and rebuild = $3 and position = $4`,
				r.slot.projection, r.slot.version, r.slot.rebuild, p.Position, err.Error(), reason(err))
			return Retried{Applied: i, Left: len(parked) - i, Err: fmt.Errorf("event %d (%s): %w", p.Position, rec.Type, err)}, dbErr
		}
		_, err = tx.Exec(ctx, `delete from projections.parked where projection = $1 and version = $2 and rebuild = $3 and position = $4`,
			r.slot.projection, r.slot.version, r.slot.rebuild, p.Position)
		if err != nil {
			return Retried{}, err
		}
	}
	_, err = tx.Exec(ctx, `delete from projections.parked_streams where projection = $1 and version = $2 and rebuild = $3 and stream = $4`,
		r.slot.projection, r.slot.version, r.slot.rebuild, stream)
	return Retried{Applied: len(parked)}, err
}

func (r *Runner) reapply(ctx context.Context, tx pgx.Tx, rec event.Recorded) error {
	data, err := r.decode(rec)
	if errors.Is(err, event.ErrArchived) {
		return nil
	}
	if err != nil {
		return err
	}
	return r.apply(ctx, tx, rec, data)
}

// skip leaves a parked event out for good and goes on with what waits behind it. An event that was
// applied before it was skipped stays in the tables until they are rebuilt.
func (s *session) skip(ctx context.Context, tx pgx.Tx, lot *parkingLot, id event.ID) error {
	var stream string
	err := tx.QueryRow(ctx, `select stream from projections.parked where projection = $1 and version = $2 and rebuild = $3 and event_id = $4`,
		s.r.slot.projection, s.r.slot.version, s.r.slot.rebuild, id.String()).Scan(&stream)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // not there yet (we rebuild, and it is left out when it comes), or never parked
	}
	if err != nil {
		return err
	}
	// The lock comes before the delete: a retry that holds the stream may be through with it.
	_, err = tx.Exec(ctx, `select from projections.parked_streams where projection = $1 and version = $2 and rebuild = $3 and stream = $4 for update`,
		s.r.slot.projection, s.r.slot.version, s.r.slot.rebuild, stream)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `delete from projections.parked where projection = $1 and version = $2 and rebuild = $3 and event_id = $4`,
		s.r.slot.projection, s.r.slot.version, s.r.slot.rebuild, id.String())
	if err != nil {
		return err
	}
	left, err := s.r.drain(ctx, tx, stream)
	lot.streams[stream] = left.Left > 0
	return err
}

// retryUnknown applies what was parked because an older program did not know its type, once this one does.
func (r *Runner) retryUnknown(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `select distinct stream, type from projections.parked
		where projection = $1 and version = $2 and rebuild = $3 and reason = $4 order by stream`,
		r.slot.projection, r.slot.version, r.slot.rebuild, unknownType)
	if err != nil {
		return err
	}
	type entry struct{ Stream, Type string }
	parked, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return err
	}
	for _, p := range parked {
		if r.cfg.Registry.SchemaVersion(p.Type) == 0 {
			continue
		}
		if _, err := r.retry(ctx, conn, p.Stream); err != nil {
			return err
		}
	}
	return nil
}
