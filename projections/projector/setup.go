package projector

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Advisory locks: two numbers of the namespace "FMIL" of which the event log uses 1 and 2, and hashed
// names with seeds of which it uses 1 to 3.
const (
	lockNamespace = 1179471180
	lockSetup     = 3
	seedRunner    = 4
)

// ownTables are the runner's. A slot is a projection's version, or the rebuild of one.
const ownTables = `
create schema if not exists projections;

create table if not exists projections.projection_checkpoints (
    projection text        not null,
    version    integer     not null,
    rebuild    boolean     not null default false,
    position   bigint      not null default 0,
    hash       bytea       not null default '\x0000000000000000000000000000000000000000000000000000000000000000',
    setup      bytea       not null, -- sha256 of the statements that made the tables
    created_at timestamptz not null default now(),
    primary key (projection, version, rebuild)
) with (fillfactor = 50);

create table if not exists projections.active_versions (
    projection  text        not null primary key,
    version     integer     not null,
    switched_at timestamptz not null default now()
);

-- A stream has a row here while any of its events is parked: locking the row locks the stream.
create table if not exists projections.parked_streams (
    projection text    not null,
    version    integer not null,
    rebuild    boolean not null,
    stream     text    not null,
    primary key (projection, version, rebuild, stream)
);

create table if not exists projections.parked (
    projection text        not null,
    version    integer     not null,
    rebuild    boolean     not null,
    position   bigint      not null,
    event_id   uuid        not null,
    stream     text        not null,
    stream_version bigint  not null,
    type       text        not null,
    error      text        not null, -- '' = it waits for an earlier event of its stream
    reason     text        not null, -- unknown_type, unreadable, failed, waiting
    attempts   integer     not null,
    parked_at  timestamptz not null default now(),
    primary key (projection, version, rebuild, position)
);
create index if not exists parked_by_stream on projections.parked (projection, version, rebuild, stream, stream_version);
`

const insertCheckpoint = `insert into projections.projection_checkpoints (projection, version, rebuild, setup) values ($1, $2, $3, $4)`

func setupDigest(p Projection) []byte {
	h := sha256.Sum256([]byte(p.Setup()))
	return h[:]
}

// connect opens a connection of our own. It is not one of the pool's, because it is held for long.
func (r *Runner) connect(ctx context.Context, schema string) (*pgx.Conn, error) {
	cfg := r.cfg.Pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = "featuremill " + schema
	cfg.RuntimeParams["search_path"] = schema
	return pgx.ConnectConfig(ctx, cfg)
}

// Setup makes the version's tables if they are not there, and makes the version active if the
// projection has no active one. Any number of processes may call it at the same time. Run and
// RunToEnd call it themselves; a process that only queries may call it so that the views are there.
func (r *Runner) Setup(ctx context.Context) error {
	if done, err := r.isSetUp(ctx); err != nil || done {
		return err
	}
	return r.administer(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, ownTables); err != nil {
			return fmt.Errorf("make the projector's tables: %w", err)
		}
		var digest []byte
		err := tx.QueryRow(ctx, `select setup from projections.projection_checkpoints where projection = $1 and version = $2 and not rebuild`,
			r.slot.projection, r.slot.version).Scan(&digest)
		switch {
		case err == nil && string(digest) != string(setupDigest(r.p)):
			return &SetupChangedError{Projection: r.slot.projection, Version: r.slot.version}
		case err == nil: // another process was faster
		case errors.Is(err, pgx.ErrNoRows):
			if err := r.makeTables(ctx, tx); err != nil {
				return err
			}
		default:
			return err
		}
		tag, err := tx.Exec(ctx, `insert into projections.active_versions (projection, version) values ($1, $2) on conflict do nothing`, r.slot.projection, r.slot.version)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		return r.makeViews(ctx, tx)
	})
}

func (r *Runner) isSetUp(ctx context.Context) (bool, error) {
	var there bool
	if err := r.cfg.Pool.QueryRow(ctx, `select to_regclass('projections.parked_by_stream') is not null`).Scan(&there); err != nil || !there {
		return false, err
	}
	var digest []byte
	var active bool
	err := r.cfg.Pool.QueryRow(ctx, `select c.setup, exists (select from projections.active_versions a where a.projection = c.projection)
		from projections.projection_checkpoints c where c.projection = $1 and c.version = $2 and not c.rebuild`,
		r.slot.projection, r.slot.version).Scan(&digest, &active)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, err
	case string(digest) != string(setupDigest(r.p)):
		return false, &SetupChangedError{Projection: r.slot.projection, Version: r.slot.version}
	}
	return active, nil
}

// makeTables makes the slot's schema, tables and checkpoint.
func (r *Runner) makeTables(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, "create schema "+r.slot.schema); err != nil {
		return fmt.Errorf("make schema %s: %w", r.slot.schema, err)
	}
	if _, err := tx.Exec(ctx, r.p.Setup()); err != nil {
		return fmt.Errorf("make the tables of %s: %w", r.slot.schema, err)
	}
	_, err := tx.Exec(ctx, insertCheckpoint, r.slot.projection, r.slot.version, r.slot.rebuild, setupDigest(r.p))
	return err
}

// What changes schemas waits this long for those who use them, then lets others through and tries again, for as long
// as a reader may hold a transaction. The wait is shorter than PostgreSQL's deadlock_timeout (1 s): where a reader and we
// wait for each other, it is we who give way.
const (
	schemaWait      = "200ms"
	schemaPause     = 100 * time.Millisecond
	mostSchemaPause = 5 * time.Second
	schemaPatience  = 15 * time.Minute
)

// administer runs what changes schemas, one at a time. Whoever waits for a table that somebody reads
// makes all later readers wait as well, so it waits for a short time and then starts over.
func (r *Runner) administer(ctx context.Context, do func(context.Context, pgx.Tx) error) error {
	conn, err := r.connect(ctx, r.slot.schema)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	began, pause := time.Now(), schemaPause
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `set local statement_timeout = 0; set local lock_timeout = 0; set local client_min_messages = warning`); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1, $2)`, lockNamespace, lockSetup); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `set local lock_timeout = '`+schemaWait+`'`); err != nil {
				return err
			}
			return do(ctx, tx)
		})
		var pg *pgconn.PgError
		busy := errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01") // lock_not_available, deadlock_detected
		if !busy || time.Since(began) > schemaPatience {
			return err
		}
		r.cfg.Logger.WarnContext(ctx, "tables that are to be changed are in use; trying again", "attempt", attempt, "error", err)
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
		pause = min(2*pause, mostSchemaPause)
	}
}

// Switch makes this version the active one: the views show its tables from one moment to the next.
// *BehindError: the active version knows more.
func (r *Runner) Switch(ctx context.Context) error {
	return r.administer(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var active int
		var mine, theirs int64
		err := tx.QueryRow(ctx, `
			select a.version, m.position, coalesce(t.position, 0)
			from projections.active_versions a
			join projections.projection_checkpoints m on m.projection = a.projection and m.version = $2 and not m.rebuild
			left join projections.projection_checkpoints t on t.projection = a.projection and t.version = a.version and not t.rebuild
			where a.projection = $1 for update of a`, r.slot.projection, r.slot.version).Scan(&active, &mine, &theirs)
		if err != nil {
			return fmt.Errorf("switch projection %s to v%d: %w", r.slot.projection, r.slot.version, err)
		}
		if active == r.slot.version {
			return nil
		}
		if mine < theirs {
			return &BehindError{Projection: r.slot.projection, Version: r.slot.version, Active: active, Position: mine, Wanted: theirs}
		}
		if err := r.makeViews(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `update projections.active_versions set version = $2, switched_at = now() where projection = $1`, r.slot.projection, r.slot.version); err != nil {
			return err
		}
		r.cfg.Logger.InfoContext(ctx, "the projection's active version was switched", "from", active, "position", mine)
		return nil
	})
}

// makeViews points the stable views at the slot's tables. A view whose columns changed is made anew,
// which PostgreSQL refuses while somebody's own view depends on it: then the error names that view.
func (r *Runner) makeViews(ctx context.Context, tx pgx.Tx) error {
	for _, v := range r.p.Views() {
		as := fmt.Sprintf("view public.%s as select * from %s.%s", v, r.slot.schema, v)
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "create or replace "+as)
			return err
		})
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "42P16" { // invalid_table_definition: other columns
			_, err = tx.Exec(ctx, "drop view public."+v+"; create "+as)
		}
		if err != nil {
			return fmt.Errorf("make the view %s: %w", v, err)
		}
	}
	return nil
}

// activeVersion returns 0 when the projection was never set up.
func activeVersion(ctx context.Context, pool *pgxpool.Pool, projection string) (int, error) {
	var version int
	err := pool.QueryRow(ctx, `select version from projections.active_versions where projection = $1`, projection).Scan(&version)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return version, err
}
