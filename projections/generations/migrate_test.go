package generations_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/projections/generations"
	"github.com/featuremill/featuremill/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

func TestWhatAnOlderInstallationShowsIsShownAfterItsUpgrade(t *testing.T) {
	t.Parallel()
	dsn := pgtest.NewEmpty(t)
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	db := stdlib.OpenDB(*cfg)
	defer func() { require.NoError(t, db.Close()) }()
	migrations, err := goose.NewProvider(goose.DialectPostgres, db, schema.Migrations())
	require.NoError(t, err)
	_, err = migrations.UpTo(t.Context(), 3)
	require.NoError(t, err)

	old, err := os.ReadFile("testdata/features_v1.sql")
	require.NoError(t, err)
	for _, sql := range []string{
		`create schema features_v1; set search_path to features_v1`, string(old),
		`insert into extractions (extraction_id, source_key, external_sae_id, model_id, dataset_id, latents, mask, config, requested, deleted)
		 select 'x' || i, 'sae_s', 's', 'm', 'd', 3, '{}', '{}', i, i = 3 from generate_series(1, 120) i`,
		`insert into folds (extraction_id, wanted_version, terminal, running_since, folded_version, generation, features, folded_at)
		 select 'x' || i, 7, true, now(), 7, i, 2, now() from generate_series(1, 120) i`,
		`insert into generations select i, 'x' || i, 'current' from generate_series(1, 120) i`,
		`insert into vocabulary values ('v', 0, 'a', false)`, `insert into corpus_sequences values ('c', 0, array[0])`,
		`do $$ declare t text; begin
		    for i in 1 .. 120 loop
		        foreach t in array array['features', 'feature_distributions', 'feature_tokens', 'feature_activations', 'token_features'] loop
		            execute format('create table %s_g%s (like %s including constraints, constraint is_generation check (generation = %s))', t, i, t, i);
		            execute format('alter table %s attach partition %s_g%s for values in (%s)', t, t, i, i);
		        end loop;
		    end loop;
		end $$`,
		`insert into token_features select i, 0, array[1, 2] from generate_series(1, 120) i`,
		`create view public.features as select * from features_v1.features`,
		`reset search_path`,
	} {
		_, err := db.ExecContext(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	_, err = migrations.UpTo(t.Context(), 4)
	require.NoError(t, err)
	// One of them holds the migration up, and it ends there.
	reader, err := db.Conn(t.Context())
	require.NoError(t, err)
	_, err = reader.ExecContext(t.Context(), `begin; select from features_v1.features_g40`)
	require.NoError(t, err)
	impatient := *cfg
	impatient.RuntimeParams = map[string]string{"lock_timeout": "100ms"}
	hurried := stdlib.OpenDB(impatient)
	first, err := goose.NewProvider(goose.DialectPostgres, hurried, schema.Migrations())
	require.NoError(t, err)
	_, err = first.Up(t.Context())
	require.ErrorContains(t, err, "lock timeout")
	require.NoError(t, hurried.Close())
	_, err = reader.ExecContext(t.Context(), `rollback`)
	require.NoError(t, err)
	require.NoError(t, reader.Close())
	var moved int
	require.NoError(t, db.QueryRowContext(t.Context(), `select count(*) from generations.current`).Scan(&moved))
	require.Equal(t, 80, moved, "the newest first")
	_, err = migrations.Up(t.Context())
	require.NoError(t, err)

	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	defer pool.Close()
	store := generations.New(pool, time.Hour)
	for i := 1; i <= 120; i++ {
		id := fmt.Sprint("x", i)
		if i == 3 {
			continue
		}
		c, folded, err := store.Current(t.Context(), id)
		require.NoError(t, err)
		require.True(t, folded)
		require.EqualValues(t, 7, c.Folded)
		require.Zero(t, c.FoldVersion, "so it is folded again, and shown until then")
		var latents []int32
		require.NoError(t, pool.QueryRow(t.Context(), `select latents from `+generations.Table("token_features", *c.Generation)+` where token = 0`).Scan(&latents))
		require.Equal(t, []int32{1, 2}, latents)
	}
	_, folded, err := store.Current(t.Context(), "x3")
	require.NoError(t, err)
	require.False(t, folded, "it is deleted")
	var n, next int
	require.NoError(t, pool.QueryRow(t.Context(), `select (select count(*) from public.token_features), nextval('generations.number')`).Scan(&n, &next))
	require.Equal(t, 119, n)
	require.Greater(t, next, 120)
	require.NoError(t, pool.QueryRow(t.Context(), `select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = 'features_v1' and c.relkind = 'r' and c.relname ~ '_g[0-9]+$'`).Scan(&n))
	require.Zero(t, n, "what nobody shows is gone")
	require.NoError(t, pool.QueryRow(t.Context(), `select count(*) from public.vocabulary`).Scan(&n))
	require.Equal(t, 1, n)
}
