package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/featuremill/featuremill/schema"
)

// Keys of advisory locks, (namespace, number). The namespace is "FMIL"; append_events uses number 1.
const (
	lockNamespace = 1179471180
	lockMigrate   = 2
)

// Migrate brings the schema of a database up to date, as Open does.
func Migrate(ctx context.Context, dsn string) error {
	config, err := PoolConfig(dsn)
	if err != nil {
		return err
	}
	return migrate(ctx, config.ConnConfig)
}

// migrate brings the schema up to date. Concurrent starts queue up behind one session lock: waiting
// for it beats polling, and it goes with the connection if the process dies.
func migrate(ctx context.Context, config *pgx.ConnConfig) (err error) {
	config = config.Copy()
	config.RuntimeParams["statement_timeout"] = "0" // an index on a long log takes its time
	config.RuntimeParams["lock_timeout"] = "0"
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()

	provider, err := goose.NewProvider(goose.DialectPostgres, db, schema.Migrations(), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	if current, err := upToDate(ctx, db, provider); err != nil || current {
		return unavailable(err)
	}
	lock, err := db.Conn(ctx)
	if err != nil {
		return unavailable(err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if _, err := lock.ExecContext(ctx, `select pg_advisory_lock($1, $2)`, lockNamespace, lockMigrate); err != nil {
		return fmt.Errorf("wait for another start to bring the schema up to date: %w", unavailable(err))
	}
	_, err = provider.Up(ctx)
	_, unlock := lock.ExecContext(context.WithoutCancel(ctx), `select pg_advisory_unlock($1, $2)`, lockNamespace, lockMigrate)
	if err := errors.Join(err, unlock); err != nil {
		return fmt.Errorf("bring the schema up to date: %w", unavailable(err))
	}
	return nil
}

// upToDate answers without a lock in the usual case: nothing is to be done.
func upToDate(ctx context.Context, db *sql.DB, provider *goose.Provider) (bool, error) {
	var exists bool
	err := db.QueryRowContext(ctx, `select to_regclass($1) is not null`, goose.DefaultTablename).Scan(&exists)
	if err != nil || !exists {
		return false, err
	}
	pending, err := provider.HasPending(ctx)
	return !pending, err
}
