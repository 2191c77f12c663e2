package projector_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/projections/projector"
)

// topic is a feed that the test writes by hand; a real broker could not be made to misbehave so well.
type topic struct {
	messages chan *letter
	away     atomic.Bool
	group    atomic.Pointer[string]
}

// letter has the Ack of watermill's *message.Message.
type letter struct {
	rec   event.Recorded
	err   error
	acked chan struct{}
}

func (l *letter) Ack() bool {
	close(l.acked)
	return true
}

func newTopic() *topic { return &topic{messages: make(chan *letter)} }

func (tp *topic) feed() projector.Feed {
	return projector.Messages(func(_ context.Context, group string) (<-chan *letter, error) {
		tp.group.Store(&group)
		if tp.away.Load() {
			return nil, errors.New("no broker")
		}
		return tp.messages, nil
	}, func(l *letter) (event.Recorded, error) { return l.rec, l.err })
}

// send returns when the message was acknowledged.
func (tp *topic) send(t *testing.T, l *letter) {
	t.Helper()
	l.acked = make(chan struct{})
	select {
	case tp.messages <- l:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody takes messages")
	}
	<-l.acked
}

// countingLog counts how often the whole log is read.
type countingLog struct {
	eventlog.Log
	reads atomic.Int64
}

func (c *countingLog) ReadAll(ctx context.Context, after int64, limit int) ([]event.Recorded, error) {
	c.reads.Add(1)
	return c.Log.ReadAll(ctx, after, limit)
}

type following struct {
	*bundle
	topic  *topic
	log    *countingLog
	runner *projector.Runner
	stop   func() error
}

// follow starts a runner that never polls, after one event that it reads from PostgreSQL.
func follow(t *testing.T) *following {
	t.Helper()
	b := newBundle(t)
	f := &following{bundle: b, topic: newTopic(), log: &countingLog{Log: b.log}}
	first := b.note(0, "first")
	f.runner = b.runner(func(c *projector.Config) { c.Log, c.Poll = f.log, time.Hour })
	f.stop = b.running(f.runner, f.topic.feed())
	b.waitFor(first.Position)
	require.Eventually(t, func() bool { return f.runner.Stats().Following }, 20*time.Second, time.Millisecond)
	f.log.reads.Store(0)
	return f
}

func TestMessagesAreAppliedWithoutReadingPostgreSQL(t *testing.T) {
	t.Parallel()
	f := follow(t)
	var last event.Recorded
	for _, n := range []string{"a", "b", "c"} {
		last = f.note(0, n)
		f.topic.send(t, &letter{rec: last})
		f.topic.send(t, &letter{rec: last}) // at least once
	}
	f.waitFor(last.Position)
	require.Equal(t, []string{"first", "a", "b", "c"}, f.notes()[latent(0)])
	require.Zero(t, f.log.reads.Load())
	require.NoError(t, f.stop())
	require.LessOrEqual(t, f.runner.Stats().Dropped, int64(3))
	require.Zero(t, f.runner.Stats().Holes)
	require.Equal(t, "stars-v1", *f.topic.group.Load())
}

func TestAHoleIsFilledFromPostgreSQLAndCounted(t *testing.T) {
	t.Parallel()
	f := follow(t)
	f.note(0, "lost")
	f.note(0, "lost too")
	last := f.note(0, "seen")
	f.topic.send(t, &letter{rec: last})
	f.waitFor(last.Position)
	require.Equal(t, []string{"first", "lost", "lost too", "seen"}, f.notes()[latent(0)])
	require.EqualValues(t, 1, f.runner.Stats().Holes)
}

func TestMessagesThatAreNotOfThisLogAreIgnored(t *testing.T) {
	t.Parallel()
	other := func(t *testing.T, f *following) *letter {
		theirs := openLog(t, f.registry)
		note(t, theirs, 0, "theirs")
		return &letter{rec: note(t, theirs, 0, "theirs")}
	}
	for name, make := range map[string]func(*testing.T, *following) *letter{
		"an unreadable message":                    func(*testing.T, *following) *letter { return &letter{err: errors.New("no CloudEvents header")} },
		"the next event of another log":            other,
		"an event whose data was changed":          changed(func(r *event.Recorded) { r.Data = []byte(`{"notes":"forged"}`) }),
		"an event whose position was changed":      changed(func(r *event.Recorded) { r.Position++ }),
		"an event whose hash and data are changed": changed(func(r *event.Recorded) { r.Data, r.Hash = []byte(`{}`), [32]byte{1} }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := follow(t)
			f.topic.send(t, make(t, f))
			last := f.note(0, "ours")
			f.topic.send(t, &letter{rec: last})
			f.waitFor(last.Position)
			require.Equal(t, []string{"first", "ours"}, f.notes()[latent(0)])
			require.NotZero(t, f.runner.Stats().Foreign)
			require.NoError(t, f.stop())
		})
	}
}

// changed makes a message of an event that is there, and changes it.
func changed(change func(*event.Recorded)) func(*testing.T, *following) *letter {
	return func(t *testing.T, f *following) *letter {
		recs, err := f.bundle.log.ReadAll(t.Context(), 0, 1)
		require.NoError(t, err)
		rec := recs[0]
		rec.Position++
		change(&rec)
		return &letter{rec: rec}
	}
}

func TestPostgreSQLIsPolledWhileTheFeedIsAway(t *testing.T) {
	t.Parallel()
	for name, feed := range map[string]func() projector.Feed{
		"no feed at all":          func() projector.Feed { return nil },
		"a broker that is away":   func() projector.Feed { tp := newTopic(); tp.away.Store(true); return tp.feed() },
		"a feed that went silent": func() projector.Feed { return newTopic().feed() },
		"a feed that ended":       func() projector.Feed { tp := newTopic(); close(tp.messages); return tp.feed() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.running(b.runner(func(c *projector.Config) { c.Poll = time.Millisecond }), feed())
			for _, n := range []string{"a", "b"} {
				rec := b.note(0, n)
				b.waitFor(rec.Position)
			}
			require.Equal(t, []string{"a", "b"}, b.notes()[latent(0)])
		})
	}
}

func TestEveryMessageIsAcknowledgedEvenWhenItsEventIsParked(t *testing.T) {
	t.Parallel()
	f := follow(t)
	f.stars.refuseWith(badNote("bad"))
	for _, n := range []string{"bad", "behind it"} {
		rec := f.note(0, n)
		f.topic.send(t, &letter{rec: rec})
		f.waitFor(rec.Position)
	}
	require.Len(t, f.parked(f.runner), 2)
}
