package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// lockSeed keeps our keys apart from those of other advisory locks that hash a name.
	lockSeed = 11
	channel  = "featuremill_events"

	// A session that has said nothing for watchEvery is asked; one that does not answer within
	// watchAnswer is lost.
	watchEvery  = 2 * time.Second
	watchAnswer = 5 * time.Second
	closeWithin = time.Second
)

var errNotLeader = errors.New("another relay leads")

// session holds the leader's lock. It is a connection of its own, outside the pool: PostgreSQL gives
// the lock back when it ends, for whatever reason. Wake-ups come over it, too.
type session struct {
	conn *pgx.Conn
	wake chan struct{}
}

// openSession returns errNotLeader if another session has the lock.
func openSession(ctx context.Context, pool *pgxpool.Pool, topic string) (*session, error) {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	s := &session{conn: conn, wake: make(chan struct{}, 1)}
	var leader bool
	err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtextextended('relay of ' || $1::text, $2))", topic, lockSeed).Scan(&leader)
	if err == nil && !leader {
		err = errNotLeader
	}
	if err == nil {
		_, err = conn.Exec(ctx, "LISTEN "+channel)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// watch wakes the copying up until the session is lost or ctx ends, and says why.
func (s *session) watch(ctx context.Context) error {
	for {
		err := s.waitOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			select {
			case s.wake <- struct{}{}:
			default: // a wake-up is waiting there already
			}
			continue
		case !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("the leader's session is lost: %w", err)
		}
		if err := s.ask(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("the leader's session does not answer: %w", err)
		}
	}
}

func (s *session) waitOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, watchEvery)
	defer cancel()
	_, err := s.conn.WaitForNotification(ctx)
	return err
}

func (s *session) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, watchAnswer)
	defer cancel()
	return s.conn.Ping(ctx)
}

func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	_ = s.conn.Close(ctx) // it may be broken; the server notices by itself
}
