package generations

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

const (
	seedCollect   = 10
	collectorName = "featuremill collector"
)

// finish ends a detach that was begun.
const finish = "finalize" //nolint:misspell // SQL

// Retire notes that extractions are deleted: they show nothing any more, and what they showed is collected.
func (s *Store) Retire(ctx context.Context, extractionIDs []string) error {
	return s.in(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `delete from current where extraction_id = any($1)`, extractionIDs)
		if err == nil {
			_, err = tx.Exec(ctx, `update generations set retired_at = coalesce(retired_at, clock_timestamp()) where extraction_id = any($1) and state = 'ready'`, extractionIDs)
		}
		return err
	})
}

// Shown returns the extractions that show something.
func (s *Store) Shown(ctx context.Context) ([]string, error) {
	rows, _ := s.pool.Query(ctx, `select extraction_id from generations.current order by extraction_id`)
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return ids, Away(err)
}

// Collect drops the generations that no extraction shows, once they have not been shown for the store's time, and what
// loads left behind that did not come to an end. One process collects at a time; false: another one does.
//
// It has a connection of its own, on which nothing is cut short: a table is detached while readers go on, and the wait
// for those who began before holds nobody up. Every step can be repeated, so a crash in between is no matter.
func (s *Store) Collect(ctx context.Context) (dropped int, mine bool, err error) {
	cfg := s.pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = collectorName
	for _, limit := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		cfg.RuntimeParams[limit] = "0"
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return 0, false, Away(err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if err := conn.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended('generations', $1))`, seedCollect).Scan(&mine); err != nil || !mine {
		return 0, false, Away(err)
	}
	for {
		generation, found, err := s.next(ctx, conn)
		if err != nil || !found {
			return dropped, true, Away(err)
		}
		if err := s.drop(ctx, conn, generation); err != nil {
			return dropped, true, Away(fmt.Errorf("drop generation %d: %w", generation, err))
		}
		dropped++
	}
}

// next marks a generation as old whose time has come, or finds one that was marked before. One stays for as long as
// somebody reads a snapshot in which it is still shown. What is loading, or loaded and not shown yet, has a loader that
// holds its lock: who finds that free cannot know whether the loader has shown it a moment before, so the row is locked,
// and looked at again by a second statement.
func (s *Store) next(ctx context.Context, conn *pgx.Conn) (generation int64, found bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `
    select g.generation from generations.generations g
    where g.state = 'old'
       or g.state = 'ready' and g.retired_at < clock_timestamp() - $1 * interval '1 second'
          and not exists (select from generations.current c where c.generation = g.generation)
          and not exists (select from pg_stat_activity a where a.datname = current_database() and a.backend_type = 'client backend'
              and a.application_name not like 'featuremill%' and a.backend_xmin is not null and a.xact_start < g.retired_at)
       or (g.state = 'loading' or g.state = 'ready' and g.retired_at is null and not exists (select from generations.current c where c.generation = g.generation))
          and pg_try_advisory_xact_lock_shared(hashtextextended(g.generation::text, $2))
    order by g.generation limit 1 for update skip locked`, max(s.retain, 0).Seconds(), seedLoading).Scan(&generation)
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
update generations.generations g set state = 'old'
where generation = $1 and not exists (select from generations.current c where c.generation = g.generation) returning generation`, generation).Scan(&generation)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return generation, err == nil, err
}

func (s *Store) drop(ctx context.Context, conn *pgx.Conn, generation int64) error {
	for _, t := range tables {
		table := Table(t.name, generation)
		var pending *bool // null: it is not attached
		err := conn.QueryRow(ctx, `select (select inhdetachpending from pg_inherits where inhrelid = to_regclass($1) and inhparent = to_regclass($2))`, table, parent(t.name)).Scan(&pending)
		if err != nil {
			return err
		}
		if err := s.finishOthers(ctx, conn, parent(t.name), table); err != nil {
			return err
		}
		detach := ""
		switch {
		case pending != nil && *pending: // somebody died while it waited for readers
			detach = finish
		case pending != nil:
			detach = "concurrently"
		}
		if detach != "" {
			if _, err := conn.Exec(ctx, fmt.Sprintf("alter table %s detach partition %s %s", parent(t.name), table, detach)); err != nil {
				return err
			}
		}
		if _, err := conn.Exec(ctx, "drop table if exists "+table); err != nil {
			return err
		}
	}
	_, err := conn.Exec(ctx, `delete from generations.generations where generation = $1`, generation)
	return err
}

// finishOthers ends the detaching of other partitions that was begun and not ended: PostgreSQL detaches no second one.
func (s *Store) finishOthers(ctx context.Context, conn *pgx.Conn, parent, but string) error {
	rows, _ := conn.Query(ctx, `select inhrelid::regclass::text from pg_inherits where inhparent = to_regclass($1) and inhdetachpending and inhrelid <> coalesce(to_regclass($2), 0::oid::regclass)`, parent, but)
	begun, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, table := range begun {
		if _, err := conn.Exec(ctx, fmt.Sprintf("alter table %s detach partition %s %s", parent, table, finish)); err != nil {
			return err
		}
	}
	return nil
}
