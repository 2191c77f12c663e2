package projector

import (
	"context"
	"time"

	"github.com/featuremill/featuremill/domain/event"
)

// Message is one message of a feed.
type Message struct {
	Event event.Recorded
	Err   error // the message could not be read as an event; what it stood for is read from PostgreSQL
	Ack   func()
}

// Feed is a copy of the log that makes projections quick, such as a Kafka topic. It may repeat, lose
// and invent messages: an event counts only where it follows on the checkpoint, hash by hash.
type Feed interface {
	// Follow returns messages until ctx ends, or closes the channel when the copy is away.
	Follow(ctx context.Context, group string) (<-chan Message, error)
}

// Messages makes a feed from a subscription, such as that of a watermill message.Subscriber. Every
// message is acknowledged as soon as it is received, and none is ever refused: after a crash the
// checkpoint says what is missing, not the broker.
func Messages[M interface{ Ack() bool }](subscribe func(ctx context.Context, group string) (<-chan M, error), decode func(M) (event.Recorded, error)) Feed {
	return subscription[M]{subscribe, decode}
}

type subscription[M interface{ Ack() bool }] struct {
	subscribe func(context.Context, string) (<-chan M, error)
	decode    func(M) (event.Recorded, error)
}

func (f subscription[M]) Follow(ctx context.Context, group string) (<-chan Message, error) {
	in, err := f.subscribe(ctx, group)
	if err != nil {
		return nil, err
	}
	out := make(chan Message)
	go func() { // ends with ctx, or with the subscription
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case m, ok := <-in:
				if !ok {
					return
				}
				rec, err := f.decode(m)
				select {
				case out <- Message{Event: rec, Err: err, Ack: func() { m.Ack() }}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}

// resubscribeAfter is the pause until a feed that went away is tried again.
const resubscribeAfter = 2 * time.Second

// follow applies what the feed brings, and reads PostgreSQL where it brings nothing.
func (s *session) follow(ctx context.Context, feed Feed) error {
	ctx, cancel := context.WithCancel(ctx)
	in := make(chan Message, s.r.cfg.Batch)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.r.pump(ctx, feed, in)
	}()
	defer func() {
		cancel()
		<-done
	}()
	poll := time.NewTicker(s.r.cfg.Poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-in:
			if err := s.takeIn(ctx, gather(m, in)); err != nil {
				return err
			}
			poll.Reset(s.r.cfg.Poll)
		case <-poll.C:
			if err := s.catchUp(ctx); err != nil {
				return err
			}
		}
	}
}

// gather adds what is waiting already, so that a burst becomes one transaction.
func gather(first Message, in <-chan Message) []Message {
	out := []Message{first}
	for len(out) < cap(in) {
		select {
		case m := <-in:
			out = append(out, m)
		default:
			return out
		}
	}
	return out
}

// pump acknowledges and buffers messages; it blocks while the buffer is full, which slows the feed down.
func (r *Runner) pump(ctx context.Context, feed Feed, in chan<- Message) {
	if feed == nil {
		return
	}
	for ctx.Err() == nil {
		messages, err := feed.Follow(ctx, ConsumerGroup(r.p))
		if err == nil {
			r.stats.following.Store(true)
			err = forward(ctx, messages, in)
			r.stats.following.Store(false)
		}
		if ctx.Err() != nil {
			return
		}
		r.cfg.Logger.WarnContext(ctx, "the feed of events is away; PostgreSQL is polled until it is back", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeAfter):
		}
	}
}

func forward(ctx context.Context, messages <-chan Message, in chan<- Message) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m, ok := <-messages:
			if !ok {
				return nil
			}
			if m.Ack != nil {
				m.Ack()
			}
			select {
			case in <- m:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// takeIn applies the messages that follow on the checkpoint. At the first that does not, PostgreSQL
// decides: it fills a hole, and tells a message of another log from a log that was restored.
func (s *session) takeIn(ctx context.Context, messages []Message) error {
	var next []event.Recorded
	position, hash := s.position, s.hash
	ask := false
	for _, m := range messages {
		switch {
		case m.Err == nil && len(m.Event.Data) == 0: // archived, says the message; PostgreSQL has to say so
			ask = true
		case m.Err != nil || !genuine(m.Event):
			s.r.stats.foreign.Add(1)
			ask = true
		case m.Event.Position <= position:
			s.r.stats.dropped.Add(1)
		case m.Event.Position > position+1:
			if !ask {
				s.r.stats.holes.Add(1)
			}
			ask = true
		case m.Event.PrevHash != hash:
			s.r.stats.foreign.Add(1)
			ask = true
		default:
			next = append(next, m.Event)
			position, hash = m.Event.Position, m.Event.Hash
		}
	}
	if err := s.advance(ctx, next); err != nil {
		return err
	}
	if !ask {
		return nil
	}
	if err := s.sameLog(ctx); err != nil {
		return err
	}
	return s.catchUp(ctx)
}
