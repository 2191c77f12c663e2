package eventlogtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/featuremill/featuremill/domain/eventlog"
)

func exclusive(b *bench) {
	b.append(To("a", 0, Note("start", eventlog.Reserve{Key: "source", Holder: "ext-a"})))
	b.append(To("a", 1, Note("the holder may take it again", eventlog.Reserve{Key: "source", Holder: "ext-a"})))
	for _, sharing := range []bool{false, true} {
		err := refused[*eventlog.ReservedError](b, To("b", 0, Note("start", eventlog.Reserve{Key: "source", Holder: "ext-b", Shared: sharing})))
		b.equal(&eventlog.ReservedError{Key: "source", Holder: "ext-a"}, err)
	}
	b.append(To("a", 2, Note("done", eventlog.Release{Holder: "ext-a"})))
	b.append(To("b", 0, Note("start", eventlog.Reserve{Key: "source", Holder: "ext-b"})))
}

func shared(b *bench) {
	for _, x := range []string{"a", "b"} {
		b.append(To(x, 0, Note("start", eventlog.Reserve{Key: "model", Holder: "ext-" + x, Shared: true})))
	}
	err := refused[*eventlog.ReservedError](b, To("c", 0, Note("start", eventlog.Reserve{Key: "model", Holder: "ext-c"})))
	b.equal(&eventlog.ReservedError{Key: "model", Holder: "ext-a"}, err)
	b.append(To("a", 1, Note("done", eventlog.Release{Holder: "ext-a"})))
	b.equal("ext-b", refused[*eventlog.ReservedError](b, To("c", 0, Note("start", eventlog.Reserve{Key: "model", Holder: "ext-c"}))).Holder)
	b.append(To("b", 1, Note("takes it alone", eventlog.Reserve{Key: "model", Holder: "ext-b"})))
	b.equal("ext-b", refused[*eventlog.ReservedError](b, To("c", 0, Note("start", eventlog.Reserve{Key: "model", Holder: "ext-c", Shared: true}))).Holder)
}

func refuse(b *bench) {
	b.append(To("ext", 0, Note("start", eventlog.Reserve{Key: "sae:1", Holder: "ext", Shared: true})))
	remove := To("sae-1", 0, Note("deleted", eventlog.RefuseIfReserved{Key: "sae:1"}))
	b.equal(&eventlog.ReservedError{Key: "sae:1", Holder: "ext"}, refused[*eventlog.ReservedError](b, remove))
	b.append(To("ext", 1, Note("done", eventlog.Release{Holder: "ext"})))
	b.append(remove)
}

func effectOrder(b *bench) {
	b.append(To("a", 0, Note("start", eventlog.Reserve{Key: "source", Holder: "a"})))
	b.append(To("a", 1,
		Note("done", eventlog.Release{Holder: "a"}),
		Note("handed on", eventlog.RefuseIfReserved{Key: "source"}, eventlog.Reserve{Key: "source", Holder: "b"}),
		Note("work", open("segment", "b", 0), eventlog.CloseAllWork{Subject: "b"}, open("segment", "b", 1)),
	))
	b.equal("b", refused[*eventlog.ReservedError](b, To("c", 0, Note("start", eventlog.Reserve{Key: "source", Holder: "c"}))).Holder)
	b.equal([]string{"segment b/1"}, b.works("b"))
}

func refusedLeavesNothing(b *bench) {
	b.append(To("a", 0, Note("start", eventlog.Reserve{Key: "y", Holder: "a"})))
	refused[*eventlog.ReservedError](b, To("b", 0, Note("start", eventlog.Reserve{Key: "x", Holder: "b"}, open("plan", "b", 0), eventlog.Reserve{Key: "y", Holder: "b"})))
	b.equal(0, len(b.works("b")))
	b.append(To("c", 0, Note("start", eventlog.Reserve{Key: "x", Holder: "c"})))
}

func open(kind, subject string, index int) eventlog.OpenWork {
	return eventlog.OpenWork{Work: eventlog.Work{Kind: kind, Subject: subject, Index: index}}
}

// works lists the open work of a subject.
func (b *bench) works(subject string) []string {
	b.Helper()
	list, err := b.log.ListWork(b.Context(), subject)
	b.ok(err)
	var names []string
	for _, w := range list {
		names = append(names, w.Work.String())
	}
	return names
}

func claimOrder(b *bench) {
	b.append(To("a", 0, Note("planned", open("segment", "a", 0), open("segment", "a", 1), open("plan", "a", 0))))
	b.append(To("b", 0, Note("planned", open("segment", "b", 0))))
	take := func(c eventlog.Claim) string {
		if lease := b.claim(c); lease != nil {
			return lease.Work.String()
		}
		return "nothing"
	}
	b.equal("segment b/0", take(eventlog.Claim{Prefer: []string{"b"}}))
	b.equal("nothing", take(eventlog.Claim{Subjects: []string{"b"}}))
	b.equal("segment a/0", take(eventlog.Claim{Prefer: []string{"b"}}))
	b.equal("segment a/1", take(eventlog.Claim{Kinds: []string{"segment", "plan"}}))
	b.equal("nothing", take(eventlog.Claim{}))
	b.equal("plan a/0", take(eventlog.Claim{Kinds: []string{"segment", "plan"}}))
	b.append(To("c", 0, Note("asked", open("test", "c", 0))))
	b.append(To("d", 0, Note("planned", open("segment", "d", 0))))
	claim := eventlog.Claim{Kinds: []string{"segment", "test"}, Last: []string{"test"}, Prefer: []string{"c"}}
	b.equal("segment d/0", take(claim))
	b.equal("test c/0", take(claim))
}

func requirement(b *bench) {
	work := open("segment", "a", 0)
	work.Requirement = "cuda:h100"
	b.append(To("a", 0, Note("planned", work)))
	for _, capabilities := range [][]string{nil, {"cpu"}} {
		b.equal((*eventlog.Lease)(nil), b.claim(eventlog.Claim{Capabilities: capabilities}))
	}
	list, err := b.log.ListWork(b.Context(), "a")
	b.ok(err)
	b.equal("cuda:h100", list[0].Requirement)
	b.equal(work.Work, b.claim(eventlog.Claim{Capabilities: []string{"cpu", "cuda:h100"}}).Work)
}

func openTwice(b *bench) {
	b.append(To("a", 0, Note("planned", open("segment", "a", 0))))
	lease := b.claim(eventlog.Claim{})
	b.append(To("a", 1, Note("resumed", open("segment", "a", 0), open("segment", "a", 1))))
	_, err := b.log.Heartbeat(b.Context(), *lease, eventlog.Progress{Batches: 1})
	b.ok(err)
	b.equal([]string{"segment a/0", "segment a/1"}, b.works("a"))
}

func fenced(b *bench) {
	b.append(To("a", 0, Note("planned", open("segment", "a", 0), open("segment", "a", 1))))
	lease := b.claim(eventlog.Claim{})
	b.equal(1, lease.Attempt)
	record := To("a", 1, Note("recorded", eventlog.CloseWork{Work: lease.Work}))
	for _, wrong := range []eventlog.Fence{
		{Work: lease.Work, Owner: "worker-2", Fence: lease.Fence},
		{Work: lease.Work, Owner: lease.Owner, Fence: lease.Fence + 1},
		{Work: eventlog.Work{Kind: "segment", Subject: "a", Index: 1}, Owner: lease.Owner, Fence: lease.Fence},
	} {
		record.Fence = &wrong
		b.equal(&eventlog.FencedError{Fence: wrong}, refused[*eventlog.FencedError](b, record))
	}
	record.Fence = lease.Held()
	first := b.append(record)
	b.equal([]string{"segment a/1"}, b.works("a"))

	again := b.append(record) // its answer was lost: the lease is gone, but the events are there
	b.equal(true, again.Replayed)
	b.equal(first.Events, again.Events)

	late := To("a", 2, Note("recorded once more", eventlog.CloseWork{Work: lease.Work}))
	late.Fence = lease.Held()
	refused[*eventlog.FencedError](b, late)
	_, err := b.log.Heartbeat(b.Context(), *lease, eventlog.Progress{})
	b.equal(true, errors.As(err, new(*eventlog.FencedError)))
}

func givenBack(b *bench) {
	b.append(To("a", 0, Note("planned", open("segment", "a", 0))))
	first := b.claim(eventlog.Claim{})
	detail := json.RawMessage(`{"tokens_per_second": 2077.5}`)
	expires, err := b.log.Heartbeat(b.Context(), *first, eventlog.Progress{Batches: 3, BatchTime: 2 * time.Second, Detail: detail})
	b.ok(err)
	b.equal(false, expires.Before(first.ExpiresAt))
	list, err := b.log.ListWork(b.Context(), "a")
	b.ok(err)
	b.equal(eventlog.WorkStatus{
		Work: first.Work, Owner: "worker-1", Attempts: 1, ExpiresAt: expires,
		Progress: eventlog.Progress{Batches: 3, BatchTime: 2 * time.Second, Detail: detail},
	}, list[0])
	b.ok(b.log.ReleaseLease(b.Context(), *first))
	b.ok(b.log.ReleaseLease(b.Context(), *first)) // twice is no error
	second := b.claim(eventlog.Claim{})
	b.equal(1, second.Attempt)
	b.equal(true, second.Fence > first.Fence)
	b.ok(b.log.ReleaseLease(b.Context(), *first)) // it is not the old worker's any more
	_, err = b.log.Heartbeat(b.Context(), *second, eventlog.Progress{})
	b.ok(err)
}

func calledOff(b *bench) {
	b.append(To("a", 0, Note("planned", open("segment", "a", 0))))
	first := b.claim(eventlog.Claim{})
	b.append(To("a", 1, Note("cancelled", eventlog.CloseAllWork{Subject: "a"})))
	_, err := b.log.Heartbeat(b.Context(), *first, eventlog.Progress{})
	var lost *eventlog.FencedError
	b.equal(true, errors.As(err, &lost))
	b.equal(*first.Held(), lost.Fence)

	// Resumed: the row is a new one, and the old lease does not fit even for the same worker.
	b.append(To("a", 2, Note("resumed", open("segment", "a", 0))))
	second := b.claim(eventlog.Claim{})
	b.equal(1, second.Attempt)
	late := To("a", 3, Note("recorded", eventlog.CloseWork{Work: first.Work}))
	late.Fence = first.Held()
	refused[*eventlog.FencedError](b, late)
}

func claimRace(b *bench) {
	const n = 20
	var effects []eventlog.Effect
	for i := range n {
		effects = append(effects, open("segment", "a", i))
	}
	b.append(To("a", 0, Note("planned", effects...)))
	leases := make([]*eventlog.Lease, n+5)
	b.race(len(leases), func(i int) error {
		// A row that another worker is about to take is passed over, so look again before giving up.
		for try := 0; leases[i] == nil && try < 3; try++ {
			var err error
			leases[i], err = b.log.Claim(context.WithoutCancel(b.Context()), eventlog.Claim{Owner: fmt.Sprint("worker-", i), Kinds: []string{"segment"}})
			if err != nil {
				return err
			}
		}
		return nil
	}, func(_ int, err error) { b.ok(err) })
	taken := map[eventlog.Work]bool{}
	for _, lease := range leases {
		if lease == nil {
			continue
		}
		if taken[lease.Work] {
			b.Fatalf("%s was given out twice", lease.Work)
		}
		taken[lease.Work] = true
	}
	for lease := b.claim(eventlog.Claim{}); lease != nil; lease = b.claim(eventlog.Claim{}) {
		taken[lease.Work] = true
	}
	b.equal(n, len(taken))
}
