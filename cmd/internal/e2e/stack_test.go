package e2e

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

// Ids of what every stack has in its library.
const (
	modelID   = "m_e2e"
	saeID     = "e2e"
	datasetID = "d_e2e"
)

// leaseTime is how soon a killed process's work is given out again. It must outlive a pause of a busy machine.
const leaseTime = 5 * time.Second

// patience bounds every wait for something that must come.
const patience = 90 * time.Second

// stack is an installation: a database, a broker, a store, and a library with the inputs.
type stack struct {
	t        testing.TB
	dsn      string
	server   *pgtest.Server // nil where the database is one of the shared server's
	broker   *kafkatest.Broker
	state    string
	address  string // of the store
	line     *line  // to the store, where that is one of objects
	store    blob.Store
	library  *library.Library
	commands *command.Handler
	log      *postgres.Log
	pool     *pgxpool.Pool // of the test's own questions
}

// options say what is special about a stack.
type options struct {
	ownServer bool // PostgreSQL is to be killed
	objects   bool // the store is one of objects, whatever the others have
	before    func(state string)
	texts     string
}

func newStack(t testing.TB, o options) *stack {
	t.Helper()
	programs(t)
	s := &stack{t: t, state: t.TempDir()}
	if o.before != nil {
		o.before(s.state)
	}
	if o.ownServer {
		s.server = pgtest.NewServer(t)
		s.dsn = s.server.DSN()
	} else {
		s.dsn = pgtest.New(t)
	}
	s.broker = kafkatest.Start(t)
	registry, err := facts.Registry()
	require.NoError(t, err)
	s.log, err = postgres.Open(t.Context(), s.dsn, postgres.Config{Registry: registry, Effects: facts.Effects, LeaseTime: leaseTime, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(s.log.Close)
	s.pool, err = pgxpool.New(t.Context(), s.dsn)
	require.NoError(t, err)
	t.Cleanup(s.pool.Close)
	s.address = filepath.Join(s.state, "files")
	if o.objects || os.Getenv(envStore) != "" {
		s.address, s.line = objects(t)
	}
	s.store, err = blob.Open(t.Context(), s.address, filepath.Join(s.state, "cache", "blobs"))
	require.NoError(t, err)
	s.library, err = library.New(s.store, filepath.Join(s.state, "cache"), nil)
	require.NoError(t, err)
	s.commands = command.NewHandler(s.log, registry, time.Now)

	m, name, err := s.library.Model(t.Context(), "testdata/model")
	require.NoError(t, err)
	_, err = s.commands.ImportModel(t.Context(), call(), model.Import{ID: modelID, Name: name, Facts: m})
	require.NoError(t, err)
	s.importSAE(saeID, "testdata/sae")
	texts := o.texts
	if texts == "" {
		texts = "testdata/texts.jsonl"
	}
	d, err := s.library.Dataset(t.Context(), texts, library.DatasetOptions{})
	require.NoError(t, err)
	_, err = s.commands.ImportDataset(t.Context(), call(), dataset.Import{ID: datasetID, Name: "speeches", Facts: d})
	require.NoError(t, err)
	return s
}

func call() command.Call { return command.Call{Metadata: event.Metadata{Actor: "test"}} }

func (s *stack) importSAE(id, path string) {
	s.t.Helper()
	f, err := s.library.SAE(s.t.Context(), path, library.SAEOptions{})
	require.NoError(s.t, err)
	_, err = s.commands.ImportSAE(s.t.Context(), call(), sae.Import{ID: id, Name: id, Facts: f, ModelID: modelID})
	require.NoError(s.t, err)
}

// config is the extraction that the tests run: 13 segments of 32 sequences, in batches of 4.
func config() extraction.Config {
	c := extraction.DefaultConfig()
	c.EvaluationSamples, c.BatchSize, c.ContextLength, c.TopKExamples = 416, 4, 1024, 10
	return c
}

// begin starts an extraction and returns its id.
func (s *stack) begin(c extraction.Config) string {
	s.t.Helper()
	r, err := s.commands.StartExtractionFromSAE(s.t.Context(), call(), command.StartExtractionFromSAE{SAEID: saeID, DatasetID: datasetID, Config: c})
	require.NoError(s.t, err)
	return r.ID
}

func (s *stack) args(more ...string) []string {
	args := append(more, "--state", s.state, "--database", s.dsn, "--store", s.address, "--log-level", "info")
	for _, b := range s.broker.Addrs() {
		args = append(args, "--kafka", b)
	}
	return args
}

// fast is the environment in which a lost lease is soon found.
var fast = []string{"FEATUREMILL_LEASE_TIME=" + leaseTime.String(), "FEATUREMILL_HEARTBEAT=500ms", "FEATUREMILL_REAP_EVERY=500ms"}

// serve starts a process with roles of featuremill.
func (s *stack) serve(roles string) *process {
	s.t.Helper()
	path, _ := programs(s.t)
	return start(s.t, roles, path, s.args("serve", "--roles", roles), fast)
}

// extractor starts a worker; env may hold failpoints.
func (s *stack) extractor(env ...string) *process {
	s.t.Helper()
	_, path := programs(s.t)
	return start(s.t, "extractor", path, s.args("work", "--threads", "1"), append(env, fast...))
}

// failpoints is the environment that breaks a worker.
func failpoints(text string) string { return "FEATUREMILL_FAILPOINTS=" + text }

// load reads an extraction from the log; ok is false while the database does not answer.
func (s *stack) load(id string) (state extraction.State, version int64, ok bool) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	state, version, err := command.Load[extraction.State](ctx, s.commands, extraction.Stream(id))
	return state, version, err == nil
}

// await waits until something that must come has come.
func (s *stack) await(what string, condition func() bool) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for !condition() {
		require.False(s.t, time.Now().After(end), "%s did not come", what)
		<-tick.C
	}
}

// awaitSegments waits until so many segments are recorded.
func (s *stack) awaitSegments(id string, n int) {
	s.t.Helper()
	s.await("a recorded segment", func() bool {
		state, _, ok := s.load(id)
		require.False(s.t, ok && state.Status == extraction.StatusFailed, "it failed: %v", state.Failure)
		return ok && state.Recorded.Len() >= n
	})
}

// awaitStatus waits until the extraction has a status, and returns it.
func (s *stack) awaitStatus(id string, status extraction.Status) extraction.State {
	s.t.Helper()
	var state extraction.State
	s.await(string(status), func() (ok bool) {
		state, _, ok = s.load(id)
		require.False(s.t, ok && state.Status.Terminal() && state.Status != status, "it is %s: %v", state.Status, state.Failure)
		return ok && state.Status == status
	})
	return state
}

// awaitFolded waits until the tables show the extraction as it ended.
func (s *stack) awaitFolded(id string) {
	s.t.Helper()
	_, version, ok := s.load(id)
	require.True(s.t, ok)
	s.await("the fold", func() bool {
		var folded bool
		err := s.pool.QueryRow(s.t.Context(), `select folded_version >= $2 from feature_folds where extraction_id = $1`, id, version).Scan(&folded)
		return err == nil && folded
	})
}

// verify runs featuremill events verify and returns what it said and its exit code.
func (s *stack) verify() (string, int) {
	s.t.Helper()
	path, _ := programs(s.t)
	return run(s.t, path, s.args("events", "verify")...)
}

// requireWhole requires that events verify finds nothing wrong.
func (s *stack) requireWhole() {
	s.t.Helper()
	out, code := s.verify()
	require.Zero(s.t, code, "events verify: %s", out)
	require.Contains(s.t, out, "all is as the log says")
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, data, 0o644))
}
