package projector

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// RestoredLogError says that the log is not the one that the tables were built from: it was restored
// from a backup, or the tables come from another database. The runner stops, because events that the
// tables show never happened.
type RestoredLogError struct {
	Projection string
	Version    int
	Position   int64    // where tables and log part
	Stored     [32]byte // hash of this position as the tables know it
	Found      [32]byte // hash of this position in the log; zeros when the log is shorter
}

func (e *RestoredLogError) Error() string {
	found := fmt.Sprintf("%x there", e.Found[:6])
	if e.Found == [32]byte{} {
		found = "no such event"
	}
	return fmt.Sprintf("projection %s v%d was built from another log: at position %d it knows hash %x, but the log has %s; "+
		"if the log was restored from a backup, rebuild the projection (featuremill projections rebuild %s)",
		e.Projection, e.Version, e.Position, e.Stored[:6], found, e.Projection)
}

// SetupChangedError says that the tables of a version were made by other statements than the
// program's: a changed table should have been a new version.
type SetupChangedError struct {
	Projection string
	Version    int
}

func (e *SetupChangedError) Error() string {
	return fmt.Sprintf("the tables of projection %s v%d were made by another program: rebuild it (featuremill projections rebuild %s), or raise its version",
		e.Projection, e.Version, e.Projection)
}

// BehindError says that a version cannot become the active one yet.
type BehindError struct {
	Projection       string
	Version, Active  int
	Position, Wanted int64
}

func (e *BehindError) Error() string {
	return fmt.Sprintf("projection %s v%d is at position %d and the active v%d at %d: it can take over when it has caught up",
		e.Projection, e.Version, e.Position, e.Active, e.Wanted)
}

// errMoved: somebody else wrote the checkpoint, by a rebuild or after our lock was lost. The session starts over.
var errMoved = errors.New("the checkpoint was moved by somebody else")

// eventsFault reports whether an error of Apply comes from the event or its handler, so that trying
// for ever would not help. What the database or the network did is nobody's fault here.
func eventsFault(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, eventlog.ErrUnavailable) ||
		errors.Is(err, errMoved) || pgconn.Timeout(err) || pgconn.SafeToRetry(err) {
		return false
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return false
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || len(pg.Code) != 5 {
		return true
	}
	switch pg.Code {
	case "42P01", "3F000": // the table or schema is gone: true for every event
		return false
	}
	switch pg.Code[:2] {
	case "08", "25", "28", "3D", "40", "53", "54", "55", "57", "58", "F0", "XX":
		return false
	}
	return true
}
