package projector

import (
	"context"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
)

// Projection turns events into tables. It is a pure function of the log: no clock, no randomness, no
// table of anybody else.
//
// Its tables live in a schema of their own, Schema(p). While Setup and Apply run, that schema is the
// search path, so tables are named without it.
type Projection interface {
	Name() string
	Version() int // a changed table is a new version, built beside the old one

	// Setup returns the statements that make the tables.
	Setup() string
	// Views returns the tables that SQL users and queries see by these names in the schema public,
	// whatever version is active.
	Views() []string

	// Apply reads and writes only rows of the event's own stream, and ignores types that it does not
	// care for. An error parks the event, unless it is the database's: then the same event comes again.
	Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, data event.Data) error
}

// Schema is the PostgreSQL schema of a projection's version.
func Schema(p Projection) string { return fmt.Sprintf("%s_v%d", p.Name(), p.Version()) }

// ConsumerGroup is the Kafka consumer group of a projection's version. It never changes for a version:
// offsets hang on it.
func ConsumerGroup(p Projection) string { return fmt.Sprintf("%s-v%d", p.Name(), p.Version()) }

// Names become SQL identifiers and Kafka groups.
var name = regexp.MustCompile(`^[a-z][a-z_]{0,39}$`)

func check(p Projection) error {
	if !name.MatchString(p.Name()) {
		return fmt.Errorf("projection %q: a name has 1 to 40 lower-case letters and underscores", p.Name())
	}
	if p.Version() < 1 {
		return fmt.Errorf("projection %s: version %d: versions count from 1", p.Name(), p.Version())
	}
	for _, v := range p.Views() {
		if !name.MatchString(v) {
			return fmt.Errorf("projection %s: view %q: a name has 1 to 40 lower-case letters and underscores", p.Name(), v)
		}
	}
	return nil
}
