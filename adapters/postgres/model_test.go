package postgres_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// model is the log as a few maps.
type model struct {
	prefix   string // keeps the runs on one database apart
	streams  map[string][]event.ID
	reserved map[string]map[string]bool // key → holder → shared
	work     map[eventlog.Work]string
}

// effects draws what an event does.
func (m *model) effects(t *rapid.T) []eventlog.Effect {
	name := func(kind string, n int) string { return fmt.Sprint(m.prefix, kind, rapid.IntRange(1, n).Draw(t, kind)) }
	work := func() eventlog.Work {
		return eventlog.Work{Kind: "segment", Subject: name("subject", 2), Index: rapid.IntRange(0, 2).Draw(t, "index")}
	}
	list := make([]eventlog.Effect, rapid.IntRange(0, 3).Draw(t, "effects"))
	for i := range list {
		switch rapid.IntRange(0, 7).Draw(t, "effect") {
		case 0, 1:
			list[i] = eventlog.Reserve{Key: name("key", 3), Holder: name("holder", 3), Shared: rapid.Bool().Draw(t, "shared")}
		case 2:
			list[i] = eventlog.Release{Holder: name("holder", 3)}
		case 3:
			list[i] = eventlog.RefuseIfReserved{Key: name("key", 3)}
		case 4, 5:
			list[i] = eventlog.OpenWork{Work: work(), Requirement: rapid.SampledFrom([]string{"", "gpu"}).Draw(t, "requirement")}
		case 6:
			list[i] = eventlog.CloseWork{Work: work()}
		default:
			list[i] = eventlog.CloseAllWork{Subject: name("subject", 2)}
		}
	}
	return list
}

// apply changes the model, or says what refuses the effect.
func (m *model) apply(e eventlog.Effect) error {
	switch e := e.(type) {
	case eventlog.Reserve:
		for holder, shared := range m.reserved[e.Key] {
			if holder != e.Holder && (!shared || !e.Shared) {
				return &eventlog.ReservedError{Key: e.Key}
			}
		}
		if m.reserved[e.Key] == nil {
			m.reserved[e.Key] = map[string]bool{}
		}
		m.reserved[e.Key][e.Holder] = e.Shared
	case eventlog.RefuseIfReserved:
		if len(m.reserved[e.Key]) > 0 {
			return &eventlog.ReservedError{Key: e.Key}
		}
	case eventlog.Release:
		for _, holders := range m.reserved {
			delete(holders, e.Holder)
		}
	case eventlog.OpenWork:
		if _, open := m.work[e.Work]; !open {
			m.work[e.Work] = e.Requirement
		}
	case eventlog.CloseWork:
		delete(m.work, e.Work)
	case eventlog.CloseAllWork:
		for w := range m.work {
			if w.Subject == e.Subject {
				delete(m.work, w)
			}
		}
	}
	return nil
}

func (m *model) clone() *model {
	c := newModel(m.prefix)
	for k, v := range m.streams {
		c.streams[k] = append([]event.ID(nil), v...)
	}
	for k, v := range m.reserved {
		c.reserved[k] = map[string]bool{}
		for h, s := range v {
			c.reserved[k][h] = s
		}
	}
	for k, v := range m.work {
		c.work[k] = v
	}
	return c
}

func newModel(prefix string) *model {
	return &model{prefix: prefix, streams: map[string][]event.ID{}, reserved: map[string]map[string]bool{}, work: map[eventlog.Work]string{}}
}

// TestRandomAppendsDoWhatTheModelDoes draws requests, right and wrong ones, and compares every answer
// and what is stored in the end.
func TestRandomAppendsDoWhatTheModelDoes(t *testing.T) {
	t.Parallel()
	log := open(t)
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		m := newModel(fmt.Sprintf("r%d-", run))
		var sent []eventlog.Request
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			if len(sent) > 0 && rapid.IntRange(0, 9).Draw(t, "repeat") == 0 {
				r := rapid.SampledFrom(sent).Draw(t, "sent before")
				done, err := log.Append(t.Context(), r)
				require.NoError(t, err)
				require.True(t, done.Replayed)
				continue
			}
			r, next, want := m.request(t)
			done, err := log.Append(t.Context(), r)
			var conflict *eventlog.ConflictError
			var reserved *eventlog.ReservedError
			switch want.(type) { //nolint:errorlint // what the model expects, as it made it
			case nil:
				require.NoError(t, err)
				require.False(t, done.Replayed)
				m, sent = next, append(sent, r)
			case *eventlog.ConflictError:
				require.ErrorAs(t, err, &conflict)
			case *eventlog.ReservedError:
				require.ErrorAs(t, err, &reserved)
				require.NotEmpty(t, reserved.Holder)
				if key := (&eventlog.ReservedError{}); errors.As(want, &key) {
					require.Equal(t, key.Key, reserved.Key)
				}
			}
		}
		m.compare(t, log)
	})
	report, err := log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
}

// request draws a request, and says what it makes of the model or how it is refused.
func (m *model) request(t *rapid.T) (eventlog.Request, *model, error) {
	var r eventlog.Request
	next := m.clone()
	var refused error
	conflicting := false
	for i, stream := range rapid.Permutation([]string{"a", "b", "c"}).Draw(t, "streams")[:rapid.IntRange(1, 3).Draw(t, "n")] {
		name := m.prefix + stream
		version := int64(len(m.streams[name]))
		if rapid.IntRange(0, 9).Draw(t, "stale") == 0 {
			version += int64(rapid.SampledFrom([]int{-1, 1}).Draw(t, "by"))
			conflicting = true
		}
		if i > 0 && rapid.Bool().Draw(t, "only unchanged") {
			r.Unchanged = append(r.Unchanged, eventlog.StreamVersion{Stream: name, Version: version})
			continue
		}
		s := eventlog.StreamAppend{Stream: name, Expected: version}
		for range rapid.IntRange(1, 3).Draw(t, "events") {
			effects := m.effects(t)
			p := note(rapid.String().Draw(t, "text"), effects...)
			s.Events = append(s.Events, p)
			next.streams[name] = append(next.streams[name], p.ID)
			for _, e := range effects {
				if err := next.apply(e); err != nil && refused == nil {
					refused = err
				}
			}
		}
		r.Streams = append(r.Streams, s)
	}
	if conflicting {
		refused = &eventlog.ConflictError{}
	}
	return r, next, refused
}

// compare checks streams and work of this run; Verify compares the side tables of all runs at the end.
func (m *model) compare(t *rapid.T, log interface {
	eventlog.Log
	eventlog.Leases
}) {
	for stream, ids := range m.streams {
		read, err := log.ReadStream(t.Context(), stream, 0)
		require.NoError(t, err)
		var got []event.ID
		for _, r := range read {
			got = append(got, r.ID)
		}
		require.Equal(t, ids, got)
	}
	for i := range 2 {
		subject := fmt.Sprint(m.prefix, "subject", i+1)
		list, err := log.ListWork(t.Context(), subject)
		require.NoError(t, err)
		got := map[eventlog.Work]string{}
		for _, w := range list {
			got[w.Work] = w.Requirement
		}
		want := map[eventlog.Work]string{}
		for w, requirement := range m.work {
			if w.Subject == subject {
				want[w] = requirement
			}
		}
		require.Equal(t, want, got)
	}
}
