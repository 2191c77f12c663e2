package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// wakes hands one wake-up to everybody who listens. A wake-up carries nothing and may be missed or
// come too often: what is true is in the table.
type wakes struct {
	mu        sync.Mutex
	listeners map[chan struct{}]struct{}
}

func (w *wakes) add() chan struct{} {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.listeners == nil {
		w.listeners = map[chan struct{}]struct{}{}
	}
	w.listeners[c] = struct{}{}
	return c
}

func (w *wakes) remove(c chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.listeners, c)
}

func (w *wakes) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.listeners {
		select {
		case c <- struct{}{}:
		default: // one is waiting there already
		}
	}
}

// Listen returns a channel that receives a value soon after something was appended. Values coalesce,
// and one may get lost with a connection: poll too. stop must be called.
func (l *Log) Listen() (wake <-chan struct{}, stop func()) {
	c := l.wakes.add()
	l.startListen()
	return c, func() { l.wakes.remove(c) }
}

// Wait returns the head of the log as soon as it is above after.
func (l *Log) Wait(ctx context.Context, after int64) (int64, error) {
	wake, stop := l.Listen()
	defer stop()
	poll := time.NewTicker(l.cfg.PollTime)
	defer poll.Stop()
	for {
		head, _, err := l.Head(ctx)
		if err != nil || head > after {
			return head, err
		}
		select {
		case <-ctx.Done():
			return head, ctx.Err()
		case <-wake:
		case <-poll.C:
		}
	}
}

// listen keeps one connection for notifications until ctx ends, and opens a new one when it breaks.
func (l *Log) listen(ctx context.Context) {
	for ctx.Err() == nil {
		err := l.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		l.cfg.Logger.WarnContext(ctx, "the connection that waits for new events broke; readers poll until it is back", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(l.cfg.PollTime):
		}
	}
}

func (l *Log) listenOnce(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, l.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it is broken, or we stop
	if _, err := conn.Exec(ctx, "listen featuremill_events"); err != nil {
		return err
	}
	for {
		l.wakes.wake() // the first time for what came before we listened
		if _, err := conn.WaitForNotification(ctx); err != nil {
			return err
		}
	}
}
