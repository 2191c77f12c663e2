package pgtest

import (
	"context"
	"testing"
)

// Server is a server that belongs to one test, which may kill it.
type Server struct {
	t testing.TB
	s *server
}

// NewServer starts a server of the test's own with the schema in its only database. It ends with the test.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s, err := start(t.Context())
	if err != nil {
		t.Fatalf("start PostgreSQL for a test: %v", err)
	}
	own := &Server{t: t, s: s}
	t.Cleanup(func() {
		if err := own.s.stop(); err != nil {
			t.Errorf("stop the test's PostgreSQL: %v", err)
		}
	})
	return own
}

// DSN returns the address of the database; it stays the same after Restart.
func (s *Server) DSN() string { return s.s.address(template) }

// Kill ends the server as a crash of its machine's processes would, with SIGKILL.
func (s *Server) Kill() {
	s.t.Helper()
	if err := s.s.pg.Kill(); err != nil {
		s.t.Fatalf("kill the test's PostgreSQL: %v", err)
	}
}

// Restart starts the killed server again; it recovers what was committed.
func (s *Server) Restart() {
	s.t.Helper()
	again, err := s.s.state.serve(context.Background())
	if err != nil {
		s.t.Fatalf("restart the test's PostgreSQL: %v", err)
	}
	s.s = again
}
