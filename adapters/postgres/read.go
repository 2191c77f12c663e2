package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

const selectEvents = `select position, event_id, stream_id, stream_version, type, schema_version, data, metadata, recorded_at, data_sha256, prev_hash, hash from events `

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// ReadStream returns the events of a stream with a version above after, in order. A stream that does not exist is empty.
func (l *Log) ReadStream(ctx context.Context, stream string, after int64) ([]event.Recorded, error) {
	events, err := l.query(ctx, `where stream_id = $1 and stream_version > $2 order by stream_version`, stream, after)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", stream, unavailable(err))
	}
	return events, nil
}

// ReadPage returns at most limit events of a stream with a version above after, in order.
func (l *Log) ReadPage(ctx context.Context, stream string, after int64, limit int) ([]event.Recorded, error) {
	events, err := l.query(ctx, `where stream_id = $1 and stream_version > $2 order by stream_version limit $3`, stream, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", stream, unavailable(err))
	}
	return events, nil
}

// VersionAt returns the version that a stream had at a moment; 0 if it was not there yet.
func (l *Log) VersionAt(ctx context.Context, stream string, at eventlog.Moment) (int64, error) {
	// Versions, positions and times grow together: whatever they are compared with, the index of the stream is walked
	// back from its end as far as the moment.
	sql, args := `select stream_version from events where stream_id = $1`, []any{stream}
	switch {
	case at.Position > 0:
		sql, args = sql+` and position <= $2`, append(args, at.Position)
	case !at.Time.IsZero():
		sql, args = sql+` and recorded_at <= $2`, append(args, at.Time)
	}
	var version int64
	err := l.pool.QueryRow(ctx, sql+` order by stream_version desc limit 1`, args...).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up the version of %s: %w", stream, unavailable(err))
	}
	return version, nil
}

// ReadAll returns at most limit events with a position above after, in order. What it returns has no gap.
func (l *Log) ReadAll(ctx context.Context, after int64, limit int) ([]event.Recorded, error) {
	events, err := l.query(ctx, `where position > $1 order by position limit $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read the log after position %d: %w", after, unavailable(err))
	}
	return events, nil
}

// Head returns position and hash of the last event; 0 and zeros when the log is empty.
func (l *Log) Head(ctx context.Context) (int64, [32]byte, error) {
	var position int64
	var hash []byte
	err := l.pool.QueryRow(ctx, `select position, hash from events order by position desc limit 1`).Scan(&position, &hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, [32]byte{}, nil
	}
	if err != nil {
		return 0, [32]byte{}, fmt.Errorf("read the head of the log: %w", unavailable(err))
	}
	return position, digest(hash), nil
}

// FindIdempotent returns what was answered to the request with this key, and the position of its last event; nil when the key is unknown.
func (l *Log) FindIdempotent(ctx context.Context, key string) (*eventlog.Idempotency, int64, error) {
	found := &eventlog.Idempotency{Key: key}
	var fingerprint []byte
	var position int64
	err := l.pool.QueryRow(ctx, `select fingerprint, status, resource, position from idempotency_keys where key = $1`, key).
		Scan(&fingerprint, &found.Status, &found.Resource, &position)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("look up an idempotency key: %w", unavailable(err))
	}
	found.Fingerprint = digest(fingerprint)
	return found, position, nil
}

func (l *Log) query(ctx context.Context, where string, args ...any) ([]event.Recorded, error) {
	return queryEvents(ctx, l.pool, where, args...)
}

func queryEvents(ctx context.Context, db querier, where string, args ...any) ([]event.Recorded, error) {
	rows, err := db.Query(ctx, selectEvents+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var events []event.Recorded
	for rows.Next() {
		r, err := scanEvent(rows)
		if err != nil {
			return nil, err
		}
		events = append(events, r)
	}
	return events, rows.Err()
}

func scanEvent(row pgx.Rows) (event.Recorded, error) {
	var r event.Recorded
	var id [16]byte
	var data, metadata, dataSHA, prev, hash []byte
	var at time.Time
	err := row.Scan(&r.Position, &id, &r.Stream, &r.Version, &r.Type, &r.SchemaVersion, &data, &metadata, &at, &dataSHA, &prev, &hash)
	if err != nil {
		return r, err
	}
	r.ID, r.Data, r.Metadata, r.RecordedAt = id, data, metadata, at.UTC()
	r.MetadataSHA256 = sum(metadata)
	r.DataSHA256, r.PrevHash, r.Hash = digest(dataSHA), digest(prev), digest(hash)
	return r, nil
}

func sum(b []byte) [32]byte { return sha256.Sum256(b) }

// digest pads or cuts what is not 32 bytes long: only tampering makes it so, and Verify then finds a digest that does not fit.
func digest(b []byte) (d [32]byte) {
	copy(d[:], b)
	return d
}
