package eventlogtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// Log is what the suite needs of a log.
type Log interface {
	eventlog.Log
	eventlog.Leases
}

// Open returns an empty log with this registry and these effects, which ends with the test.
type Open func(t *testing.T, r *event.Registry, e eventlog.Effects) Log

// Note makes a proposed fact that does these things to the side tables.
func Note(text string, effects ...eventlog.Effect) event.Proposed {
	return event.Proposed{ID: event.NewID(time.Now()), Data: Noted{Text: text, Effects: Do(effects...)}}
}

// To makes a request for one stream.
func To(stream string, expected int64, events ...event.Proposed) eventlog.Request {
	return eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: expected, Events: events}}}
}

// Run runs the suite.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*bench)
	}{
		{"an empty log has no head", emptyLog},
		{"what is appended is read back byte for byte", readBack},
		{"streams and the whole log are read in order and in pages", pages},
		{"a request without events, or with a stream twice, is refused", malformed},
		{"a wrong version is a conflict that names both versions", conflict},
		{"several streams are appended to, or none", allOrNothing},
		{"a stream that had to be unchanged and is not fails the append", unchanged},
		{"of twenty appends to one version exactly one wins", oneWinner},
		{"the same request again is answered with what it has recorded", replay},
		{"an exclusive reservation has one holder", exclusive},
		{"a shared reservation has many holders, but no exclusive one beside them", shared},
		{"what is reserved cannot be deleted, and can be once it is released", refuse},
		{"effects happen in the order of the events", effectOrder},
		{"a refused append leaves no reservation and no work", refusedLeavesNothing},
		{"an idempotency key makes a request happen once", idempotency},
		{"an event above the limit is refused, one at the limit is not", tooLarge},
		{"work is claimed oldest first, preferred subjects before", claimOrder},
		{"work goes only to those who meet its requirement", requirement},
		{"work that is open stays as it is when it is opened again", openTwice},
		{"an append with a fence needs the lease", fenced},
		{"a lease given back is claimed again without counting an attempt", givenBack},
		{"work that is called off fences its worker", calledOff},
		{"of many workers each takes another piece of work", claimRace},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			registry, err := Registry()
			if err != nil {
				t.Fatal(err)
			}
			test.run(&bench{T: t, log: open(t, registry, Effects)})
		})
	}
}

// bench is a test with its log.
type bench struct {
	*testing.T
	log Log
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("unexpected error: %v", err)
	}
}

func (b *bench) equal(want, got any) {
	b.Helper()
	if !reflect.DeepEqual(want, got) {
		b.Fatalf("want %+v (%T)\n got %+v (%T)", want, want, got, got)
	}
}

// append appends and expects success.
func (b *bench) append(r eventlog.Request) eventlog.Appended {
	b.Helper()
	done, err := b.log.Append(b.Context(), r)
	b.ok(err)
	return done
}

// refused appends and expects an error of type T.
func refused[T error](b *bench, r eventlog.Request) T {
	b.Helper()
	_, err := b.log.Append(b.Context(), r)
	var want T
	if !errors.As(err, &want) {
		b.Fatalf("want an error of type %T, got %v (%T)", want, err, err)
	}
	return want
}

func (b *bench) claim(c eventlog.Claim) *eventlog.Lease {
	b.Helper()
	if c.Owner == "" {
		c.Owner = "worker-1"
	}
	if c.Kinds == nil {
		c.Kinds = []string{"segment"}
	}
	lease, err := b.log.Claim(b.Context(), c)
	b.ok(err)
	return lease
}

func emptyLog(b *bench) {
	position, hash, err := b.log.Head(b.Context())
	b.ok(err)
	b.equal(int64(0), position)
	b.equal([32]byte{}, hash)
	all, err := b.log.ReadAll(b.Context(), 0, 10)
	b.ok(err)
	b.equal(0, len(all))
	stream, err := b.log.ReadStream(b.Context(), "nothing", 0)
	b.ok(err)
	b.equal(0, len(stream))
	found, _, err := b.log.FindIdempotent(b.Context(), "unknown")
	b.ok(err)
	b.equal((*eventlog.Idempotency)(nil), found)
}

func readBack(b *bench) {
	p := Note("‹ bank›\u0000\u2028 <é> \"\\ \U0001F600")
	p.Metadata = event.Metadata{Actor: "cli", CorrelationID: "c", CausationID: "p", TraceParent: "00-1-2-01"}
	before := time.Now().Add(-time.Hour)
	done := b.append(To("sae-1", 0, p, Note("two")))
	b.equal(int64(2), done.Position)
	b.equal(false, done.Replayed)
	read, err := b.log.ReadStream(b.Context(), "sae-1", 0)
	b.ok(err)
	b.equal(done.Events, read)
	var previous [32]byte
	for i, r := range read {
		b.equal(int64(i+1), r.Position)
		b.equal(int64(i+1), r.Version)
		b.equal("TestNoted", r.Type)
		b.equal(previous, r.PrevHash)
		b.equal(r.ChainHash(), r.Hash)
		b.equal(time.UTC, r.RecordedAt.Location())
		if r.RecordedAt.Before(before) || r.RecordedAt.Nanosecond()%1000 != 0 {
			b.Fatalf("recorded at %s", r.RecordedAt)
		}
		previous = r.Hash
	}
	b.equal(p.ID, read[0].ID)
	b.equal(p.Metadata, read[0].Meta())
	registry, err := Registry()
	b.ok(err)
	data, err := registry.Decode(read[0])
	b.ok(err)
	b.equal(p.Data, data)
	position, hash, err := b.log.Head(b.Context())
	b.ok(err)
	b.equal(int64(2), position)
	b.equal(previous, hash)
}

func pages(b *bench) {
	for i := range int64(5) {
		b.append(To("a", i, Note(fmt.Sprint("a", i))))
		b.append(To("b", i, Note(fmt.Sprint("b", i))))
	}
	var seen []int64
	for after := int64(0); ; {
		page, err := b.log.ReadAll(b.Context(), after, 3)
		b.ok(err)
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			seen = append(seen, r.Position)
			after = r.Position
		}
	}
	b.equal([]int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, seen)
	tail, err := b.log.ReadStream(b.Context(), "b", 3)
	b.ok(err)
	b.equal(2, len(tail))
	b.equal(int64(4), tail[0].Version)
	b.equal(int64(8), tail[0].Position)
	part, err := b.log.ReadPage(b.Context(), "b", 1, 2)
	b.ok(err)
	b.equal(2, len(part))
	b.equal([]int64{2, 3}, []int64{part[0].Version, part[1].Version})
	part, err = b.log.ReadPage(b.Context(), "b", 3, 10)
	b.ok(err)
	b.equal(tail, part)
	at := func(stream string, m eventlog.Moment) int64 {
		version, err := b.log.VersionAt(b.Context(), stream, m)
		b.ok(err)
		return version
	}
	b.equal(int64(5), at("b", eventlog.Moment{}))
	b.equal(int64(4), at("b", eventlog.Moment{Position: 8}))
	b.equal(int64(3), at("b", eventlog.Moment{Position: 7}))
	b.equal(int64(5), at("b", eventlog.Moment{Position: 1 << 40}))
	b.equal(int64(5), at("b", eventlog.Moment{Time: tail[1].RecordedAt}))
	b.equal(int64(0), at("b", eventlog.Moment{Time: tail[1].RecordedAt.Add(-time.Hour)}))
	b.equal(int64(0), at("nothing", eventlog.Moment{}))
}

func malformed(b *bench) {
	for _, r := range []eventlog.Request{
		{},
		{Unchanged: []eventlog.StreamVersion{{Stream: "a"}}},
		{Streams: []eventlog.StreamAppend{{Stream: "a", Events: []event.Proposed{Note("x")}}, {Stream: "a", Expected: 1, Events: []event.Proposed{Note("y")}}}},
		To("a", 0, event.Proposed{Data: Noted{}}),
		To("a", 0, event.Proposed{ID: event.NewID(time.Now())}),
		To("a", 0, event.Proposed{ID: event.NewID(time.Now()), Data: unregistered{}}),
	} {
		if _, err := b.log.Append(b.Context(), r); err == nil {
			b.Fatalf("%+v was appended", r)
		}
	}
	emptyLog(b)
}

type unregistered struct{}

func (unregistered) EventType() string { return "TestUnregistered" }

func conflict(b *bench) {
	b.equal(&eventlog.ConflictError{Stream: "a", Expected: 1, Actual: 0}, refused[*eventlog.ConflictError](b, To("a", 1, Note("x"))))
	b.append(To("a", 0, Note("x"), Note("y")))
	b.equal(&eventlog.ConflictError{Stream: "a", Expected: 0, Actual: 2}, refused[*eventlog.ConflictError](b, To("a", 0, Note("z"))))
	b.equal(&eventlog.ConflictError{Stream: "a", Expected: 3, Actual: 2}, refused[*eventlog.ConflictError](b, To("a", 3, Note("z"))))
	b.append(To("a", 2, Note("z")))
}

func allOrNothing(b *bench) {
	b.append(To("b", 0, Note("b")))
	both := func(expectB int64) eventlog.Request {
		return eventlog.Request{Streams: []eventlog.StreamAppend{
			{Stream: "c", Expected: 0, Events: []event.Proposed{Note("c1")}},
			{Stream: "b", Expected: expectB, Events: []event.Proposed{Note("b2"), Note("b3")}},
		}}
	}
	b.equal("b", refused[*eventlog.ConflictError](b, both(5)).Stream)
	c, err := b.log.ReadStream(b.Context(), "c", 0)
	b.ok(err)
	b.equal(0, len(c))
	done := b.append(both(1))
	b.equal(int64(4), done.Position)
	b.equal([]string{"c", "b", "b"}, []string{done.Events[0].Stream, done.Events[1].Stream, done.Events[2].Stream})
	b.equal([]int64{1, 2, 3}, []int64{done.Events[0].Version, done.Events[1].Version, done.Events[2].Version})
}

func unchanged(b *bench) {
	b.append(To("sae-1", 0, Note("ready")))
	start := To("extraction-1", 0, Note("requested"))
	start.Unchanged = []eventlog.StreamVersion{{Stream: "sae-1", Version: 1}, {Stream: "never", Version: 0}}
	b.append(start)
	b.append(To("sae-1", 1, Note("deleted")))
	start.Streams[0] = To("extraction-2", 0, Note("requested")).Streams[0]
	b.equal(&eventlog.ConflictError{Stream: "sae-1", Expected: 1, Actual: 2}, refused[*eventlog.ConflictError](b, start))
}

func oneWinner(b *bench) {
	var won, lost int
	b.race(20, func(int) error {
		_, err := b.log.Append(context.WithoutCancel(b.Context()), To("a", 0, Note("x")))
		return err
	}, func(_ int, err error) {
		var conflict *eventlog.ConflictError
		switch {
		case err == nil:
			won++
		case errors.As(err, &conflict):
			lost++
		default:
			b.Errorf("unexpected error: %v", err)
		}
	})
	b.equal([]int{1, 19}, []int{won, lost})
}

// race starts n calls at once and then reports their results one after the other.
func (b *bench) race(n int, do func(i int) error, result func(i int, err error)) {
	var all sync.WaitGroup
	errs := make([]error, n)
	start := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-start
			errs[i] = do(i)
		})
	}
	close(start)
	all.Wait()
	for i, err := range errs {
		result(i, err)
	}
}

func replay(b *bench) {
	r := To("a", 0, Note("one"), Note("two"))
	first := b.append(r)
	b.append(To("a", 2, Note("later")))
	again := b.append(r)
	b.equal(true, again.Replayed)
	b.equal(first.Position, again.Position)
	b.equal(first.Events, again.Events)
	position, _, err := b.log.Head(b.Context())
	b.ok(err)
	b.equal(int64(3), position)
}

func tooLarge(b *bench) {
	fact := func(n int) event.Proposed { return Note(strings.Repeat("x", n)) }
	overhead := len(`{"text":""}{}`)
	b.append(To("a", 0, fact(eventlog.MaxEventBytes-overhead)))
	p := fact(eventlog.MaxEventBytes - overhead + 1)
	b.equal(&eventlog.TooLargeError{ID: p.ID, Type: "TestNoted", Bytes: eventlog.MaxEventBytes + 1}, refused[*eventlog.TooLargeError](b, To("a", 1, p)))
	read, err := b.log.ReadAll(b.Context(), 0, 10)
	b.ok(err)
	b.equal(1, len(read))
	b.equal(true, bytes.HasPrefix(read[0].Data, []byte(`{"text":"xxx`)))
}

func idempotency(b *bench) {
	request := func(body byte, stream string) eventlog.Request {
		r := To(stream, 0, Note("started"))
		r.Idempotency = &eventlog.Idempotency{Key: "key", Fingerprint: [32]byte{body}, Status: 202, Resource: stream}
		return r
	}
	failed := request(1, "a")
	failed.Streams[0].Expected = 7
	refused[*eventlog.ConflictError](b, failed) // a rejection is not stored
	first := b.append(request(1, "a"))
	again := b.append(request(1, "b")) // the client sent it again, and we gave it another id
	b.equal(true, again.Replayed)
	b.equal(first.Events, again.Events)
	b.equal(&eventlog.IdempotencyError{Key: "key", Running: false}, refused[*eventlog.IdempotencyError](b, request(2, "c")))
	found, position, err := b.log.FindIdempotent(b.Context(), "key")
	b.ok(err)
	b.equal(&eventlog.Idempotency{Key: "key", Fingerprint: [32]byte{1}, Status: 202, Resource: "a"}, found)
	b.equal(first.Position, position)
	head, _, err := b.log.Head(b.Context())
	b.ok(err)
	b.equal(int64(1), head)
}
