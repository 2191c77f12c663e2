package pgtest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

func count(t *testing.T, dsn, sql string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close(context.Background())) }()
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

func TestEveryDatabaseIsFreshAndHasTheSchema(t *testing.T) {
	t.Parallel()
	for range 3 {
		dsn := pgtest.New(t)
		require.Equal(t, 0, count(t, dsn, `select count(*) from events`))
		require.Equal(t, 1, count(t, dsn, `with x as (insert into relay_checkpoint values ('r', 1) returning 1) select count(*) from x`))
	}
	require.Equal(t, 0, count(t, pgtest.NewEmpty(t), `select count(*) from pg_tables where schemaname = 'public'`))
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		pgtest.New(b)
	}
}
