package projector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

const besideWait = 3 * time.Second

// Rebuild builds this version's tables anew beside the ones in use, from the first event on, and then
// puts them in their place in one transaction. Readers see the old tables until then. A runner that is
// active meanwhile goes on by itself from where the new tables are. It also mends what
// *RestoredLogError and *SetupChangedError complain about.
func (r *Runner) Rebuild(ctx context.Context) error {
	return r.beside(ctx, func(b *Runner) error {
		if err := b.runToEnd(ctx); err != nil {
			return fmt.Errorf("rebuild %s: %w", r.slot.schema, err)
		}
		if err := r.administer(ctx, func(ctx context.Context, tx pgx.Tx) error { return r.swap(ctx, tx, b.slot) }); err != nil {
			return fmt.Errorf("put the rebuilt tables of %s in place: %w", r.slot.schema, err)
		}
		r.cfg.Logger.InfoContext(ctx, "the projection was rebuilt", "position", b.Stats().Position)
		return nil
	})
}

// beside makes empty tables of this version beside the ones in use, and a runner for them. One process
// at a time may do so.
func (r *Runner) beside(ctx context.Context, do func(*Runner) error) error {
	b := *r
	b.stats = &counters{}
	b.slot.rebuild = true
	b.slot.schema += "_rebuild"
	conn, err := b.connect(ctx, b.slot.schema)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	// Whoever has just ended may still have the lock for a moment: the server learns of it after them.
	free := false
	for end := time.Now().Add(besideWait); !free; {
		if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended($1, $2))`, "tables of "+b.slot.lockKey(), seedRunner).Scan(&free); err != nil {
			return err
		}
		if time.Now().After(end) {
			break
		}
		if !free {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(lockPoll / 5):
			}
		}
	}
	if !free {
		return fmt.Errorf("projection %s v%d is being rebuilt or verified by another process", r.slot.projection, r.slot.version)
	}
	if err := b.administer(ctx, b.startOver); err != nil {
		return fmt.Errorf("make tables beside %s: %w", r.slot.schema, err)
	}
	return do(&b)
}

// startOver makes the tables of a rebuild; what an earlier one left behind is thrown away.
func (r *Runner) startOver(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, ownTables); err != nil {
		return fmt.Errorf("make the projector's tables: %w", err)
	}
	if err := r.forget(ctx, tx, r.slot); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "drop schema if exists "+r.slot.schema+" cascade"); err != nil {
		return err
	}
	return r.makeTables(ctx, tx)
}

func (r *Runner) forget(ctx context.Context, tx pgx.Tx, s slot) error {
	for _, table := range []string{"projection_checkpoints", "parked", "parked_streams"} {
		if _, err := tx.Exec(ctx, "delete from projections."+table+" where projection = $1 and version = $2 and rebuild = $3", s.projection, s.version, s.rebuild); err != nil {
			return err
		}
	}
	return nil
}

// swap throws the old tables away and gives the new ones their name. The order is that of a runner's
// own transaction, tables first and checkpoint last, so the two cannot wait for each other. A runner
// that had the old checkpoint in mind finds it moved, writes nothing, and starts over.
func (r *Runner) swap(ctx context.Context, tx pgx.Tx, from slot) error {
	var active int
	err := tx.QueryRow(ctx, `select version from projections.active_versions where projection = $1`, r.slot.projection).Scan(&active)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if active == 0 {
		if _, err := tx.Exec(ctx, `insert into projections.active_versions (projection, version) values ($1, $2)`, r.slot.projection, r.slot.version); err != nil {
			return err
		}
		active = r.slot.version
	}
	old := r.slot.schema + "_old"
	for _, sql := range []string{
		"drop schema if exists " + old + " cascade",
		"create schema if not exists " + r.slot.schema, // it was never set up
		"alter schema " + r.slot.schema + " rename to " + old,
		"alter schema " + from.schema + " rename to " + r.slot.schema,
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if active == r.slot.version {
		if err := r.makeViews(ctx, tx); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, "drop schema "+old+" cascade"); err != nil {
		return err
	}
	if err := r.forget(ctx, tx, r.slot); err != nil {
		return err
	}
	for _, table := range []string{"projection_checkpoints", "parked", "parked_streams"} {
		if _, err := tx.Exec(ctx, "update projections."+table+" set rebuild = false where projection = $1 and version = $2 and rebuild", from.projection, from.version); err != nil {
			return err
		}
	}
	return nil
}
