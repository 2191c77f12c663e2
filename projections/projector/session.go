package projector

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/facts"
)

// session is the time in which a runner holds the slot's lock. Lock and rows share one connection:
// whoever lost the lock cannot write any more.
type session struct {
	r        *Runner
	conn     *pgx.Conn
	position int64
	hash     [32]byte
	skipped  map[event.ID]bool // events that operators told this projection to leave out
}

const lockPoll = 250 * time.Millisecond

// open takes the lock, reads the checkpoint and compares it with the log.
func (r *Runner) open(ctx context.Context) (_ *session, err error) {
	conn, err := r.connect(ctx, r.slot.schema)
	if err != nil {
		return nil, err
	}
	s := &session{r: r, conn: conn, skipped: map[event.ID]bool{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.lock(ctx); err != nil {
		return nil, err
	}
	var hash []byte
	err = conn.QueryRow(ctx, `select position, hash from projections.projection_checkpoints where projection = $1 and version = $2 and rebuild = $3`,
		r.slot.projection, r.slot.version, r.slot.rebuild).Scan(&s.position, &hash)
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint of %s: %w", r.slot.schema, err)
	}
	copy(s.hash[:], hash)
	if err := s.sameLog(ctx); err != nil {
		return nil, err
	}
	if err := s.loadSkips(ctx); err != nil {
		return nil, err
	}
	r.stats.active.Store(true)
	r.stats.sessions.Add(1)
	r.stats.position.Store(s.position)
	return s, r.retryUnknown(ctx, conn)
}

// lock polls: a session that waits inside PostgreSQL would hold a snapshot all the while, and keep
// vacuum from its work.
func (s *session) lock(ctx context.Context) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		var got bool
		err := s.conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended($1, $2))`, s.r.slot.lockKey(), seedRunner).Scan(&got)
		if err != nil || got {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// close gives the lock back by closing the connection.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.conn.Close(ctx)
	s.r.stats.active.Store(false)
	s.r.stats.following.Store(false)
}

// sameLog refuses a log that does not hold the event that the tables end with.
func (s *session) sameLog(ctx context.Context) error {
	if s.position == 0 {
		return nil
	}
	last, err := s.r.cfg.Log.ReadAll(ctx, s.position-1, 1)
	if err != nil {
		return err
	}
	if len(last) == 0 || last[0].Position != s.position {
		return s.restored(s.position, [32]byte{})
	}
	if last[0].Hash != s.hash {
		return s.restored(s.position, last[0].Hash)
	}
	return nil
}

func (s *session) restored(position int64, found [32]byte) error {
	return &RestoredLogError{Projection: s.r.slot.projection, Version: s.r.slot.version, Position: position, Stored: s.hash, Found: found}
}

// loadSkips reads ahead what operators told us to leave out, so that a rebuild leaves it out as well.
func (s *session) loadSkips(ctx context.Context) error {
	recs, err := s.r.cfg.Log.ReadStream(ctx, facts.OperationsStream, 0)
	if err != nil {
		return err
	}
	for _, rec := range recs {
		data, err := s.r.cfg.Registry.Decode(rec)
		if err != nil {
			continue // it is parked when its turn comes
		}
		if skip, ok := data.(facts.EventSkipped); ok && skip.Projection == s.r.slot.projection {
			s.skipped[skip.EventID] = true
		}
	}
	return nil
}

// catchUp reads PostgreSQL until there is nothing new.
func (s *session) catchUp(ctx context.Context) error { return s.catchUpTo(ctx, math.MaxInt64) }

// catchUpTo goes no further than a position.
func (s *session) catchUpTo(ctx context.Context, position int64) error {
	for {
		limit := int(min(int64(s.r.cfg.Batch), position-s.position))
		if limit < 1 {
			return nil
		}
		recs, err := s.r.cfg.Log.ReadAll(ctx, s.position, limit)
		if err != nil || len(recs) == 0 {
			return err
		}
		if recs[0].Position != s.position+1 {
			return fmt.Errorf("the log has a hole: event %d follows on %d; nothing is applied until that is mended", recs[0].Position, s.position)
		}
		if recs[0].PrevHash != s.hash {
			return s.restored(s.position, recs[0].PrevHash)
		}
		if err := s.advance(ctx, recs); err != nil {
			return err
		}
	}
}

// advance applies events that follow on the checkpoint one after the other.
func (s *session) advance(ctx context.Context, recs []event.Recorded) error {
	attempts := 0
	for len(recs) > 0 {
		applied, err := s.transact(ctx, recs, nil)
		if err == nil {
			return nil
		}
		if !eventsFault(err) || s.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
		if applied > 0 { // what came before it was fine
			if _, err := s.transact(ctx, recs[:applied], nil); err != nil {
				return err
			}
			recs, attempts = recs[applied:], 0
		}
		attempts++
		if attempts < s.r.cfg.Attempts && reason(err) == failed {
			if err := s.pause(ctx, attempts); err != nil {
				return err
			}
			continue
		}
		if _, err := s.transact(ctx, recs[:1], &fault{err: err, attempts: attempts}); err != nil {
			return err
		}
		recs, attempts = recs[1:], 0
	}
	return nil
}

func (s *session) pause(ctx context.Context, attempt int) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(s.r.cfg.Retry<<(attempt-1), longestPause)):
		return nil
	}
}

// transact applies events and moves the checkpoint in one transaction. When one fails, nothing of it
// happens, and the number of those before it comes back. With a fault, the only event is parked instead.
func (s *session) transact(ctx context.Context, recs []event.Recorded, f *fault) (applied int, err error) {
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(ctx) }() // no change after a commit

	lot := &parkingLot{tx: tx, slot: s.r.slot}
	if err := lot.lockStreams(ctx, recs); err != nil {
		return 0, err
	}
	for i, rec := range recs {
		if f != nil {
			err = lot.park(ctx, rec, f)
		} else {
			err = s.handle(ctx, tx, lot, rec)
		}
		if err != nil {
			return i, fmt.Errorf("event %d (%s of %s): %w", rec.Position, rec.Type, rec.Stream, err)
		}
	}
	last := recs[len(recs)-1]
	if err := s.moveCheckpoint(ctx, tx, last); err != nil {
		return 0, err
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, err
	}
	s.position, s.hash = last.Position, last.Hash
	s.r.stats.position.Store(last.Position)
	s.r.stats.applied.Add(int64(len(recs)))
	s.r.stats.parked.Add(lot.parkedNow)
	if f != nil {
		s.r.stats.failed(f.err)
		s.r.cfg.Logger.ErrorContext(ctx, "an event could not be applied and is parked with the later ones of its stream",
			"position", last.Position, "stream", last.Stream, "type", last.Type, "error", f.err)
	}
	return len(recs), nil
}

// moveCheckpoint refuses to move a checkpoint that is not where we left it.
func (s *session) moveCheckpoint(ctx context.Context, tx pgx.Tx, last event.Recorded) error {
	tag, err := tx.Exec(ctx, `update projections.projection_checkpoints set position = $4, hash = $5
		where projection = $1 and version = $2 and rebuild = $3 and position = $6 and hash = $7`,
		s.r.slot.projection, s.r.slot.version, s.r.slot.rebuild, last.Position, last.Hash[:], s.position, s.hash[:])
	if err != nil {
		return err
	}
	if tag.RowsAffected() != 1 {
		return errMoved
	}
	if s.r.slot.rebuild {
		return nil
	}
	return notify(ctx, tx, Projected{Projection: s.r.slot.projection, Version: s.r.slot.version, Position: last.Position})
}

// handle gives one event to the projection, unless it is to be skipped or has to wait behind a parked one.
func (s *session) handle(ctx context.Context, tx pgx.Tx, lot *parkingLot, rec event.Recorded) error {
	if s.skipped[rec.ID] {
		return nil
	}
	if lot.isParked(rec.Stream) {
		return lot.park(ctx, rec, nil)
	}
	data, err := s.r.decode(rec)
	if errors.Is(err, event.ErrArchived) {
		return nil // the fact was forgotten on purpose
	}
	if err != nil {
		return err
	}
	if skip, ok := data.(facts.EventSkipped); ok {
		if skip.Projection != s.r.slot.projection {
			return nil
		}
		s.skipped[skip.EventID] = true
		return s.skip(ctx, tx, lot, skip.EventID)
	}
	return s.r.apply(ctx, tx, rec, data)
}

// decode reads an event as tables can hold it: a log may have facts of a time when U+0000 was not refused.
func (r *Runner) decode(rec event.Recorded) (event.Data, error) {
	rec.Data = event.WithoutNul(rec.Data)
	return r.cfg.Registry.Decode(rec)
}

// apply turns a panic of a handler into an error: one bad event must not end the process at every start.
func (r *Runner) apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, data event.Data) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the handler panicked: %v", p)
		}
	}()
	return r.p.Apply(ctx, tx, rec, data)
}

// genuine reports whether an event that did not come from PostgreSQL is what its hash says.
func genuine(rec event.Recorded) bool {
	return sha256.Sum256(rec.Data) == rec.DataSHA256 && rec.ChainHash() == rec.Hash
}
