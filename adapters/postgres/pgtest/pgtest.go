package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/adapters/embedded"
)

const template = "featuremill_template"

// shared holds the one server of this test binary.
var shared struct {
	once     sync.Once
	server   *server
	err      error
	database atomic.Int64
}

type server struct {
	pg    *embedded.Postgres
	state *state
	dsn   *url.URL
}

// New returns the address of a fresh database with the schema in it. It is dropped when the test ends.
func New(t testing.TB) string {
	t.Helper()
	return create(t, template)
}

// NewEmpty returns the address of a fresh database without any table.
func NewEmpty(t testing.TB) string {
	t.Helper()
	return create(t, "template0")
}

func create(t testing.TB, from string) string {
	t.Helper()
	shared.once.Do(func() { shared.server, shared.err = start(context.Background()) })
	if shared.err != nil {
		t.Fatalf("start PostgreSQL for tests: %v", shared.err)
	}
	s := shared.server
	name := fmt.Sprintf("t%d_%s", shared.database.Add(1), identifier(t.Name()))
	if err := s.admin(t.Context(), `create database "`+name+`" template `+from); err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := s.admin(context.Background(), `drop database "`+name+`" with (force)`); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	return s.address(name)
}

// identifier makes a name that says which test a database belongs to.
func identifier(test string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '_'
		}
	}, test[:min(len(test), 40)])
}

func (s *server) address(database string) string {
	u := *s.dsn
	u.Path = "/" + database
	return u.String()
}

// admin runs one statement in a database that no test uses.
func (s *server) admin(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.address("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // the statement's own error is what counts
	_, err = conn.Exec(ctx, sql)
	return err
}

// M runs a test binary's tests and then stops the server. It satisfies goleak's TestingM.
type M struct{ m *testing.M }

// Main wraps m: os.Exit(pgtest.Main(m).Run()), or goleak.VerifyTestMain(pgtest.Main(m)).
func Main(m *testing.M) M { return M{m} }

// Run returns the exit code of the tests.
func (m M) Run() int {
	code := m.m.Run()
	if shared.server != nil {
		if err := shared.server.stop(); err != nil {
			fmt.Println("stop PostgreSQL for tests:", err)
			return max(code, 1)
		}
	}
	return code
}

func (s *server) stop() error {
	// Nothing in it is wanted any more, so it need not be written: a context that has ended asks for
	// the hard way, which is what the error says. (SIGKILL would leave shared memory behind.)
	hard, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.pg.Stop(hard)
	return s.state.remove()
}
