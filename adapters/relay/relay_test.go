package relay_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/kafka"
	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/adapters/relay"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
)

const (
	batch    = 10
	patience = time.Minute
	tick     = 5 * time.Millisecond
)

// testBundle is a log and a broker, and what runs between them.
type testBundle struct {
	dsn     string
	log     *postgres.Log
	broker  *kafkatest.Broker
	version int64 // of the one stream that tests write
}

func setup(t testing.TB) *testBundle {
	t.Helper()
	b := &testBundle{dsn: pgtest.New(t), broker: kafkatest.Start(t)}
	registry, err := eventlogtest.Registry()
	require.NoError(t, err)
	b.log, err = postgres.Open(t.Context(), b.dsn, postgres.Config{Registry: registry, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(b.log.Close)
	require.NoError(t, kafka.EnsureTopic(t.Context(), b.broker.Addrs(), kafka.Topic))
	return b
}

func (b *testBundle) append(t testing.TB, n int) {
	t.Helper()
	const most = 100
	for n > 0 {
		events := make([]event.Proposed, min(n, most))
		for i := range events {
			events[i] = eventlogtest.Note(fmt.Sprintf("note %d", b.version+int64(i)))
		}
		_, err := b.log.Append(t.Context(), eventlogtest.To("notes", b.version, events...))
		require.NoError(t, err)
		b.version += int64(len(events))
		n -= len(events)
	}
}

func (b *testBundle) publisher(t testing.TB) *kafka.Publisher {
	t.Helper()
	p, err := kafka.NewPublisher(kafka.PublisherConfig{Brokers: b.broker.Addrs()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func (b *testBundle) relay(t testing.TB, change ...func(*relay.Config)) *relay.Relay {
	t.Helper()
	cfg := relay.Config{
		Log: b.log, Pool: b.log.Pool(), Publisher: b.publisher(t),
		Batch: batch, Poll: 20 * time.Millisecond, Standby: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg)
	}
	r, err := relay.New(cfg)
	require.NoError(t, err)
	return r
}

// run runs a relay until the returned function is called, at the latest until the test ends.
func run(t testing.TB, r *relay.Relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
		require.False(t, r.Stats().Leader)
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, tick, what)
}

func (b *testBundle) checkpoint(t testing.TB) (position int64) {
	t.Helper()
	err := b.log.Pool().QueryRow(t.Context(), "SELECT coalesce(max(position), 0) FROM relay_checkpoint WHERE name = $1", kafka.Topic).Scan(&position)
	require.NoError(t, err)
	return position
}

// endLeader ends the session that holds the leader's lock.
func (b *testBundle) endLeader(t testing.TB) {
	t.Helper()
	const terminate = `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	_, err := b.log.Pool().Exec(t.Context(), terminate)
	require.NoError(t, err)
}

// topic reads the topic until it has seen position last, proves its order, and returns how many
// events were there more than once.
func (b *testBundle) topic(t testing.TB, last int64) (repeated int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	want, err := b.log.ReadAll(ctx, 0, int(last))
	require.NoError(t, err)
	s, err := kafka.NewSubscriber(kafka.SubscriberConfig{Brokers: b.broker.Addrs(), Group: fmt.Sprintf("reader-%d", time.Now().UnixNano())})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	in, err := s.Subscribe(ctx, kafka.Topic)
	require.NoError(t, err)
	before, most := int64(0), int64(0)
	for most < last {
		m, ok := <-in
		require.True(t, ok, "position %d did not arrive", most+1)
		got, err := kafka.Unmarshal(m)
		require.NoError(t, err)
		m.Ack()
		require.Equal(t, want[got.Position-1], got, "what is on the topic is what was recorded")
		// A crash repeats a suffix: the story goes back, and on from there; it never skips.
		if got.Position <= before {
			repeated += int(most - got.Position + 1)
		} else {
			require.Equal(t, before+1, got.Position, "an event was left out")
		}
		before, most = got.Position, max(most, got.Position)
	}
	return repeated
}

func TestRelayCopiesTheLogAndFollowsIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 5*batch+3)
	// With an hour between polls only the wake-up can bring the later events in time.
	r := b.relay(t, func(c *relay.Config) { c.Poll = time.Hour })
	stop := run(t, r)
	eventually(t, "the old events are copied", func() bool { return b.checkpoint(t) == b.version })
	b.append(t, 1)
	eventually(t, "a new event is copied", func() bool { return b.checkpoint(t) == b.version })
	require.Zero(t, b.topic(t, b.version))
	s := r.Stats()
	require.True(t, s.Leader)
	require.Equal(t, b.version, s.Position)
	require.Equal(t, b.version, s.Events)
	require.EqualValues(t, 7, s.Batches)
	require.EqualValues(t, 1, s.Elections)
	require.Zero(t, s.Failures)
	require.Empty(t, s.LastError)
	require.False(t, s.PublishedAt.IsZero())
	stop()

	b.append(t, 2*batch)
	stop = run(t, b.relay(t))
	eventually(t, "another relay goes on from the checkpoint", func() bool { return b.checkpoint(t) == b.version })
	stop()
	require.Zero(t, b.topic(t, b.version))
}

func TestRelayKilledBetweenPublishAndCheckpointRepeatsASuffixAndSwapsNothing(t *testing.T) {
	t.Parallel()
	for point, repeats := range map[string]int{relay.AfterRead: 0, relay.AfterPublish: batch} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.append(t, 5*batch)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childDSN+"="+b.dsn, childBroker+"="+b.broker.Addrs()[0], childPoint+"="+point)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "here", strings.TrimSpace(line))
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()
			require.EqualValues(t, batch, b.checkpoint(t), "the second batch is not in the checkpoint")

			run(t, b.relay(t))
			eventually(t, "the next relay finishes", func() bool { return b.checkpoint(t) == b.version })
			require.Equal(t, repeats, b.topic(t, b.version))
		})
	}
}

func TestRelaysTakeOverWhenTheLeadersSessionIsLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	relays := []*relay.Relay{b.relay(t), b.relay(t), b.relay(t)}
	for _, r := range relays {
		run(t, r)
	}
	elections := func() (n int64) {
		for _, r := range relays {
			n += r.Stats().Elections
		}
		return n
	}
	const rounds = 5
	for round := range int64(rounds) {
		b.append(t, 3*batch)
		eventually(t, "one leads", func() bool { return elections() > round })
		b.endLeader(t)
	}
	eventually(t, "everything is copied", func() bool { return b.checkpoint(t) == b.version })
	t.Logf("%d elections, %d events repeated", elections(), b.topic(t, b.version))
}

func TestOnlyOneRelayPublishes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.relay(t)
	stop := run(t, first)
	eventually(t, "the first leads", func() bool { return first.Stats().Leader })
	second := b.relay(t)
	run(t, second)
	b.append(t, 5*batch)
	eventually(t, "everything is copied", func() bool { return b.checkpoint(t) == b.version })
	require.Zero(t, second.Stats().Elections)
	require.Zero(t, second.Stats().Events)
	stop()
	eventually(t, "the second takes over", func() bool { return second.Stats().Leader })
	b.append(t, 1)
	eventually(t, "and goes on", func() bool { return b.checkpoint(t) == b.version })
	require.Zero(t, b.topic(t, b.version))
}

func TestCommandsGoOnWhileTheBrokerIsAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.relay(t, func(c *relay.Config) { c.PublishTimeout = 300 * time.Millisecond })
	run(t, r)
	b.append(t, batch)
	eventually(t, "the first batch is copied", func() bool { return b.checkpoint(t) == b.version })
	b.broker.Kill()
	b.append(t, 3*batch)
	eventually(t, "failures are counted", func() bool { return r.Stats().Failures >= 2 })
	require.NotEmpty(t, r.Stats().LastError)
	require.True(t, r.Stats().Leader, "the leader waits; a change would not help")
	require.EqualValues(t, batch, b.checkpoint(t))
	b.broker.Restart()
	eventually(t, "everything is copied", func() bool { return b.checkpoint(t) == b.version })
	require.Empty(t, r.Stats().LastError)
	b.topic(t, b.version)
}

func TestRelayTellsWhatItCannotMend(t *testing.T) {
	t.Parallel()
	t.Run("a checkpoint past the end of the log", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.append(t, 3)
		_, err := b.log.Pool().Exec(t.Context(), "INSERT INTO relay_checkpoint VALUES ($1, 1000)", kafka.Topic)
		require.NoError(t, err)
		r := b.relay(t)
		run(t, r)
		eventually(t, "it says so", func() bool { return strings.Contains(r.Stats().LastError, "restored from an older backup") })
		require.Zero(t, r.Stats().Events)
	})
	t.Run("a hole in the log", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.append(t, 5)
		r := b.relay(t, func(c *relay.Config) { c.Log = holed{b.log} })
		run(t, r)
		eventually(t, "it says so", func() bool { return strings.Contains(r.Stats().LastError, "the log goes from position 2 to 4") })
		require.Zero(t, r.Stats().Events)
	})
	t.Run("a checkpoint that was moved under it", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.append(t, 4*batch)
		moved := sync.OnceFunc(func() {
			_, err := b.log.Pool().Exec(context.Background(), "UPDATE relay_checkpoint SET position = $1", 2*batch)
			require.NoError(t, err)
		})
		r := b.relay(t, func(c *relay.Config) {
			c.Failpoint = func(name string) {
				if name == relay.AfterPublish {
					moved()
				}
			}
		})
		run(t, r)
		eventually(t, "it steps down, leads again and goes on from there", func() bool { return b.checkpoint(t) == b.version })
		require.EqualValues(t, 2, r.Stats().Elections)
	})
	t.Run("a configuration without a log", func(t *testing.T) {
		t.Parallel()
		_, err := relay.New(relay.Config{})
		require.Error(t, err)
	})
}

// holed is a log that lost position 3.
type holed struct{ eventlog.Log }

func (h holed) ReadAll(ctx context.Context, after int64, limit int) ([]event.Recorded, error) {
	events, err := h.Log.ReadAll(ctx, after, limit)
	if len(events) > 2 {
		events = append(events[:2:2], events[3:]...)
	}
	return events, err
}

// stuck is a broker that never answers.
type stuck struct{ called chan struct{} }

func (s stuck) Publish(_ string, messages ...*message.Message) error {
	select {
	case s.called <- struct{}{}:
	default:
	}
	<-messages[0].Context().Done()
	return messages[0].Context().Err()
}

func (stuck) Close() error { return nil }

func TestRelayStopsPublishingAtOnceWhenItsSessionIsLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.append(t, 1)
	s := stuck{called: make(chan struct{}, 1)}
	r := b.relay(t, func(c *relay.Config) { c.Publisher, c.PublishTimeout = s, time.Hour })
	run(t, r)
	<-s.called
	b.endLeader(t)
	<-s.called // the publication of the lost session was called off, and it leads again
	require.EqualValues(t, 2, r.Stats().Elections)
}

func BenchmarkRelay(b *testing.B) {
	bundle := setup(b)
	const events = 100_000
	bundle.append(b, events)
	for b.Loop() {
		_, err := bundle.log.Pool().Exec(b.Context(), "DELETE FROM relay_checkpoint")
		require.NoError(b, err)
		r := bundle.relay(b, func(c *relay.Config) { c.Batch = relay.DefaultBatch })
		done := make(chan struct{})
		ctx, cancel := context.WithCancel(b.Context())
		go func() {
			defer close(done)
			_ = r.Run(ctx)
		}()
		for r.Stats().Position < events {
			select {
			case <-time.After(tick):
			case <-b.Context().Done():
				b.Fatal("it does not end")
			}
		}
		cancel()
		<-done
	}
	b.ReportMetric(events*float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
