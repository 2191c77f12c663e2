package generations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// tables lists the tables of a generation, and the indexes that a loaded one gets. A sort's index holds what its page
// needs, so that a page deep in the list is read from the index alone.
var tables = []struct {
	name    string
	indexes []string
}{
	{"features", []string{
		"create unique index on %[1]s (latent) include (generation, firings)",
		"create index on %[1]s (density desc, latent) include (generation, firings)",
		"create index on %[1]s (activation_frequency desc, latent) include (generation, firings)",
		"create index on %[1]s (max_activation desc, latent) include (generation, firings)",
		"create index on %[1]s (mean_activation desc, latent) include (generation, firings)",
		"create index on %[1]s (sink_share desc, latent) include (generation, firings)",
		"create index on %[1]s (top_token_share desc, latent) include (generation, firings)",
		"create index on %[1]s (firing_documents desc, latent) include (generation, firings)",
		"create index on %[1]s (interpretability_score desc, latent) include (generation, firings)",
	}},
	{"feature_distributions", []string{"create unique index on %[1]s (latent)"}},
	{"feature_tokens", []string{"create unique index on %[1]s (latent, rank)", "create index on %[1]s (token) include (generation, latent, count, share, rate) where count >= 5"}},
	{"feature_activations", []string{"create unique index on %[1]s (latent, kind, rank)"}},
	{"token_features", []string{"create unique index on %[1]s (token)"}},
}

// Table is where a generation's rows of a table are. Whoever knows the generation asks there: a plan over the table of all
// generations would open every one of them.
func Table(name string, generation int64) string {
	return fmt.Sprintf("generations.%s_g%d", name, generation)
}

func parent(name string) string { return "generations." + name }

// Statistics are the numbers of a whole extraction, as the fold found them.
type Statistics struct {
	fold.Summary
	Segments int `json:"segments"`
}

// Current is what an extraction shows.
type Current struct {
	Extraction  string
	Folded      int64 // version of the extraction's stream
	Terminal    bool  // it was folded as the run had ended
	FoldVersion int
	Generation  *int64 // nil: nothing was recorded
	Key         string
	Statistics  *Statistics
	Since       time.Time // when the run began or went on
	Seconds     float64   // that folds have taken since then
}

// Store is the store of folds. It is safe for concurrent use.
type Store struct {
	pool   *pgxpool.Pool
	retain time.Duration
}

// DefaultRetain is how long a generation stays that no extraction shows any more: a reader that has just found it can
// read on.
const DefaultRetain = time.Minute

// New returns the store. retain 0 is DefaultRetain.
func New(pool *pgxpool.Pool, retain time.Duration) *Store {
	if retain == 0 {
		retain = DefaultRetain
	}
	return &Store{pool: pool, retain: retain}
}

// in runs a transaction without the limits of the pool's connections, which are right for appends: a load takes longer.
func (s *Store) in(ctx context.Context, do func(pgx.Tx) error) error {
	return Away(pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; set local lock_timeout = 0; set local search_path to generations"); err != nil {
			return err
		}
		return do(tx)
	}))
}

// Current returns what an extraction shows; false if nothing was folded.
func (s *Store) Current(ctx context.Context, extractionID string) (c Current, folded bool, err error) {
	c.Extraction = extractionID
	var statistics []byte
	err = s.pool.QueryRow(ctx, `select c.folded_version, c.terminal, c.fold_version, c.generation, coalesce(g.key, ''), c.statistics, c.since, c.fold_seconds
from generations.current c left join generations.generations g on g.generation = c.generation where c.extraction_id = $1`, extractionID).
		Scan(&c.Folded, &c.Terminal, &c.FoldVersion, &c.Generation, &c.Key, &statistics, &c.Since, &c.Seconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, false, nil
	}
	if err != nil || statistics == nil {
		return c, err == nil, Away(err)
	}
	c.Statistics = &Statistics{}
	return c, true, json.Unmarshal(statistics, c.Statistics)
}

// Switch makes an extraction show c, from one moment to the next. It does nothing, and says so, where a fold of more
// is shown already: then somebody else was faster.
func (s *Store) Switch(ctx context.Context, c Current) (done bool, err error) {
	if c.Generation != nil {
		if err := s.attach(ctx, *c.Generation); err != nil {
			return false, err
		}
	}
	var statistics []byte
	features := 0
	if c.Statistics != nil {
		if statistics, err = json.Marshal(c.Statistics); err != nil {
			return false, err
		}
		features = c.Statistics.Alive
	}
	err = s.in(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `insert into current as c (extraction_id, folded_version, terminal, fold_version, generation, features, statistics, folded_at, since, fold_seconds)
values ($1, $2, $3, $4, $5, $6, $7, clock_timestamp(), $8, $9)
on conflict (extraction_id) do update set folded_version = excluded.folded_version, terminal = excluded.terminal, fold_version = excluded.fold_version,
    generation = excluded.generation, features = excluded.features, statistics = excluded.statistics, folded_at = excluded.folded_at, since = excluded.since, fold_seconds = excluded.fold_seconds
where (c.folded_version, c.fold_version) <= (excluded.folded_version, excluded.fold_version)`,
			c.Extraction, c.Folded, c.Terminal, c.FoldVersion, c.Generation, features, statistics, c.Since, c.Seconds)
		if err != nil {
			return err
		}
		if done = tag.RowsAffected() == 1; !done || c.Generation == nil {
			return s.retire(ctx, tx, c.Extraction)
		}
		if err := lock(ctx, tx, *c.Generation, "ready"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `update generations set retired_at = null where generation = $1`, *c.Generation); err != nil {
			return err
		}
		return s.retire(ctx, tx, c.Extraction)
	})
	return done, err
}

// dropped is what became of a generation whose loader's connection broke: it is loaded again.
func dropped(generation int64) error {
	return fmt.Errorf("%w: generation %d was dropped meanwhile: its loader had lost its connection", eventlog.ErrUnavailable, generation)
}

// lock holds the row of a generation that is in one of these states until the transaction ends.
func lock(ctx context.Context, tx pgx.Tx, generation int64, states ...string) error {
	var state string
	err := tx.QueryRow(ctx, `select state from generations where generation = $1 and state = any($2) for update`, generation, states).Scan(&state)
	if errors.Is(err, pgx.ErrNoRows) {
		return dropped(generation)
	}
	return err
}

// attach makes a loaded generation part of what SQL users read, before anything says that it is shown: a statement that
// was planned without it must not find it shown when it runs.
func (s *Store) attach(ctx context.Context, generation int64) error {
	attached := false
	var since time.Time
	err := s.in(ctx, func(tx pgx.Tx) error {
		if err := lock(ctx, tx, generation, "loading", "ready"); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `update generations set state = 'ready' where generation = $1 and state = 'loading'`, generation)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		for _, t := range tables {
			if _, err := tx.Exec(ctx, fmt.Sprintf(`alter table %s attach partition %s for values in (%d)`, parent(t.name), Table(t.name, generation), generation)); err != nil {
				return err
			}
		}
		attached = true
		return tx.QueryRow(ctx, `select clock_timestamp()`).Scan(&since)
	})
	if err != nil || !attached {
		return err
	}
	return s.settle(ctx, since)
}

// Planning takes milliseconds; a statement that reads for longer than longestPlanning is past it.
const (
	longestPlanning = 3 * time.Second
	planningPoll    = 10 * time.Millisecond
)

// settle waits until no statement is still being planned that began before.
func (s *Store) settle(ctx context.Context, before time.Time) error {
	parents := make([]string, len(tables))
	for i, t := range tables {
		parents[i] = parent(t.name)
	}
	for end := time.Now().Add(longestPlanning); time.Now().Before(end); {
		var planning bool
		err := s.pool.QueryRow(ctx, `select exists (select from pg_locks l join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database()) and l.relation = any($1::text[]::regclass[])
    and a.state = 'active' and a.backend_type = 'client backend' and a.query_start <= $2 and a.application_name <> $3 and a.pid <> pg_backend_pid())`, parents, before, collectorName).Scan(&planning)
		if err != nil || !planning {
			return Away(err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(planningPoll):
		}
	}
	return nil
}

// retire notes since when generations of an extraction are not shown any more.
func (s *Store) retire(ctx context.Context, tx pgx.Tx, extractionID string) error {
	_, err := tx.Exec(ctx, `update generations g set retired_at = clock_timestamp()
where g.extraction_id = $1 and g.state = 'ready' and g.retired_at is null and not exists (select from current c where c.generation = g.generation)`, extractionID)
	return err
}

// Find returns the generation of an extraction that is made of the same, if there is one that is not being dropped.
func (s *Store) Find(ctx context.Context, extractionID, key string) (generation int64, found bool, err error) {
	err = s.pool.QueryRow(ctx, `select generation from generations.generations where extraction_id = $1 and key = $2 and state = 'ready' order by generation desc limit 1`, extractionID, key).Scan(&generation)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return generation, err == nil, Away(err)
}
