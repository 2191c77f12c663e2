package eventlog

import (
	"context"
	"time"

	"github.com/featuremill/featuremill/domain/event"
)

// Moment is a point in the log's history: a position, or a time where Position is 0. Its zero value is now.
type Moment struct {
	Position int64
	Time     time.Time
}

// Streams reads streams piece by piece: one that has grown for years never has to be in memory as a whole. A stream's
// versions are 1, 2, 3 …, so its version is also the number of its events.
//
// Both methods may return an error that wraps ErrUnavailable.
type Streams interface {
	// ReadPage returns at most limit events of a stream with a version above after, in order.
	ReadPage(ctx context.Context, stream string, after int64, limit int) ([]event.Recorded, error)
	// VersionAt returns the version that a stream had at a moment; 0 if it was not there yet.
	VersionAt(ctx context.Context, stream string, at Moment) (int64, error)
}
