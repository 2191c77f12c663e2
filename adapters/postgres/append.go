package postgres

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// A call in the select list answers with one record; in the from clause its one row would be stored and read again.
const appendSQL = `select append_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`

// retryPauses are the waits between attempts whose outcome is unknown. They are short: somebody waits
// for the answer, and a longer outage is the caller's to handle.
var retryPauses = [...]time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond}

// Append appends to all streams of the request or to none.
//
// A call whose answer was lost is repeated: the event ids are looked up where the stream has moved
// on, so the second attempt finds what the first one wrote, and Appended says Replayed. The same is
// true for a caller that sends the same request again. When an idempotency key was used before for
// the same request, Appended holds the events of that time, and FindIdempotent their answer.
func (l *Log) Append(ctx context.Context, r eventlog.Request) (eventlog.Appended, error) {
	return l.append(ctx, r, nil)
}

func (l *Log) append(ctx context.Context, r eventlog.Request, archive []event.ID) (eventlog.Appended, error) {
	call, err := l.prepare(r, archive)
	if err != nil {
		return eventlog.Appended{}, err
	}
	for attempt := 0; ; attempt++ {
		done, err := l.call(ctx, call)
		if err == nil {
			return done, nil
		}
		refused := refusal(err, r)
		// A key that is still running can be our own lost attempt, which the server is about to end.
		var key *eventlog.IdempotencyError
		ours := attempt > 0 && errors.As(refused, &key) && key.Running
		if ctx.Err() != nil || attempt == len(retryPauses) || !ours && !outcomeUnknown(err) {
			return eventlog.Appended{}, refused
		}
		l.cfg.Logger.WarnContext(ctx, "an append is repeated: it got no answer", "attempt", attempt+1, "error", err)
		select {
		case <-ctx.Done():
			return eventlog.Appended{}, refused
		case <-time.After(retryPauses[attempt]):
		}
	}
}

// appendCall is a request as append_events takes it.
type appendCall struct {
	streams  []string
	expected []int64
	written  []bool

	ids       []pgtype.UUID
	recorded  []event.Recorded // what is known of them before they have a position
	versions  []int64
	ofStream  []string
	types     []string
	schemas   []int32
	datas     []string
	metadatas []string
	side      []byte // JSON, or nil
	opens     int    // work rows
}

func (l *Log) prepare(r eventlog.Request, archive []event.ID) (*appendCall, error) {
	type lock struct {
		stream  string
		version int64
		written bool
	}
	var locks []lock
	var effects []effect
	c := &appendCall{}
	for _, s := range r.Streams {
		locks = append(locks, lock{s.Stream, s.Expected, true})
		for i, p := range s.Events {
			rec, err := l.encode(s.Stream, s.Expected+int64(i)+1, p)
			if err != nil {
				return nil, err
			}
			c.add(rec)
			if l.cfg.Effects == nil {
				continue
			}
			done, err := l.cfg.Effects(s.Stream, p.Data)
			if err != nil {
				return nil, fmt.Errorf("append: the effects of %s on %s are not known: %w", p.Data.EventType(), s.Stream, err)
			}
			for _, e := range done {
				row, err := encodeEffect(e)
				if err != nil {
					return nil, fmt.Errorf("effects of %s on %s: %w", p.Data.EventType(), s.Stream, err)
				}
				effects = append(effects, row)
				c.opens += max(0, row.Until-row.Index)
			}
		}
	}
	if len(c.ids) == 0 {
		return nil, fmt.Errorf("append: the request has no events")
	}
	for _, s := range r.Unchanged {
		locks = append(locks, lock{s.Stream, s.Version, false})
	}
	slices.SortFunc(locks, func(a, b lock) int { return cmp.Compare(a.stream, b.stream) })
	for i, s := range locks {
		if i > 0 && locks[i-1].stream == s.stream {
			return nil, fmt.Errorf("append: stream %s is named twice", s.stream)
		}
		c.streams = append(c.streams, s.stream)
		c.expected = append(c.expected, s.version)
		c.written = append(c.written, s.written)
	}
	var err error
	c.side, err = encodeSide(r, effects, archive)
	return c, err
}

// encode makes the bytes of an event; its position, time and hashes come from the log.
func (l *Log) encode(stream string, version int64, p event.Proposed) (event.Recorded, error) {
	if p.Data == nil {
		return event.Recorded{}, fmt.Errorf("append to %s: an event has no data", stream)
	}
	name := p.Data.EventType()
	schemaVersion := l.cfg.Registry.SchemaVersion(name)
	if schemaVersion == 0 {
		return event.Recorded{}, fmt.Errorf("append to %s: event type %s is not registered", stream, name)
	}
	if p.ID == (event.ID{}) {
		return event.Recorded{}, fmt.Errorf("append to %s: an event of type %s has no id", stream, name)
	}
	data, err := json.Marshal(p.Data)
	if err != nil {
		return event.Recorded{}, fmt.Errorf("append to %s: encode %s: %w", stream, name, err)
	}
	metadata, err := json.Marshal(p.Metadata)
	if err != nil {
		return event.Recorded{}, fmt.Errorf("append to %s: encode the metadata of %s: %w", stream, name, err)
	}
	if l.cfg.Refuse != nil {
		if err := l.cfg.Refuse(name, data); err != nil {
			return event.Recorded{}, err
		}
	}
	if n := len(data) + len(metadata); n > eventlog.MaxEventBytes {
		return event.Recorded{}, &eventlog.TooLargeError{ID: p.ID, Type: name, Bytes: n}
	}
	return event.Recorded{
		ID: p.ID, Stream: stream, Version: version, Type: name, SchemaVersion: schemaVersion, Data: data, Metadata: metadata,
	}, nil
}

func (c *appendCall) add(r event.Recorded) {
	c.recorded = append(c.recorded, r)
	c.ids = append(c.ids, pgtype.UUID{Bytes: r.ID, Valid: true})
	c.ofStream = append(c.ofStream, r.Stream)
	c.versions = append(c.versions, r.Version)
	c.types = append(c.types, r.Type)
	c.schemas = append(c.schemas, int32(r.SchemaVersion))
	c.datas = append(c.datas, string(r.Data))
	c.metadatas = append(c.metadatas, string(r.Metadata))
}

// manyRows is how many work rows an append opens that takes longer than others may: a row takes some 30 µs.
const manyRows = 4096

// answer is what append_events returns.
type answer struct {
	first          int64
	at             *time.Time
	previous, last []byte
	replayed       bool
}

// collect reads on to the end of the statement: alone in its transaction, it is committed only then.
func collect(rows pgx.Rows, err error) (answer, error) {
	if err != nil {
		return answer{}, err
	}
	return pgx.CollectExactlyOneRow(rows, func(row pgx.CollectableRow) (a answer, err error) {
		err = row.Scan(pgtype.CompositeFields{&a.first, &a.at, &a.previous, &a.last, &a.replayed})
		return a, err
	})
}

// call is one attempt.
func (l *Log) call(ctx context.Context, c *appendCall) (eventlog.Appended, error) {
	args := []any{c.streams, c.expected, c.written, c.ids, c.ofStream, c.versions, c.types, c.schemas, c.datas, c.metadatas, c.side}
	var got answer
	var err error
	if c.opens < manyRows {
		got, err = collect(l.pool.Query(ctx, appendSQL, args...))
	} else {
		// Both statements are sent at once, and are one transaction. Close reads on to its commit, and says whether there was one.
		batch := &pgx.Batch{}
		batch.Queue(`select set_config('statement_timeout', '60s', true)`)
		batch.Queue(appendSQL, args...)
		results := l.pool.SendBatch(ctx, batch)
		if _, err = results.Exec(); err == nil {
			got, err = collect(results.Query())
		}
		if closed := results.Close(); err == nil {
			err = closed
		}
	}
	if err != nil {
		return eventlog.Appended{}, err
	}
	if got.replayed {
		return l.replayed(ctx, c, got.first)
	}
	recorded := slices.Clone(c.recorded)
	previous := digest(got.previous)
	for i := range recorded {
		r := &recorded[i]
		r.Position = got.first + int64(i)
		r.RecordedAt = got.at.UTC()
		r.DataSHA256, r.MetadataSHA256 = sum(r.Data), sum(r.Metadata)
		r.PrevHash = previous
		r.Hash = r.ChainHash()
		previous = r.Hash
	}
	if string(previous[:]) != string(got.last) {
		return eventlog.Appended{}, fmt.Errorf("append: event %d was recorded with hash %x, but its bytes give %x: program and database disagree about the chain",
			recorded[len(recorded)-1].Position, got.last, previous)
	}
	return eventlog.Appended{Position: recorded[len(recorded)-1].Position, Events: recorded}, nil
}

// replayed answers with what an earlier attempt, or an earlier request with this idempotency key, has recorded.
func (l *Log) replayed(ctx context.Context, c *appendCall, first int64) (eventlog.Appended, error) {
	events, err := l.query(ctx, `where event_id = any($1) order by position`, c.ids)
	if err != nil {
		return eventlog.Appended{}, err
	}
	if len(events) == 0 { // another request with the same key
		events, err = l.query(ctx, `where position between $1 and (select k.position from idempotency_keys k where k.first_position = $1) order by position`, first)
		if err != nil {
			return eventlog.Appended{}, err
		}
	}
	if len(events) == 0 {
		return eventlog.Appended{}, fmt.Errorf("append: position %d was said to hold an earlier attempt, but is not there", first)
	}
	return eventlog.Appended{Position: events[len(events)-1].Position, Events: events, Replayed: true}, nil
}

// effect is one entry of append_events' list; which fields are set depends on Op.
type effect struct {
	Op          string `json:"op"`
	Key         string `json:"key,omitempty"`
	Holder      string `json:"holder,omitempty"`
	Shared      bool   `json:"shared"`
	Kind        string `json:"kind,omitempty"`
	Subject     string `json:"subject,omitempty"`
	Index       int    `json:"index"`
	Until       int    `json:"until,omitempty"`
	Fence       int64  `json:"fence,omitempty"`
	Requirement string `json:"requirement,omitempty"`
}

func encodeEffect(e eventlog.Effect) (effect, error) {
	switch e := e.(type) {
	case eventlog.Reserve:
		return effect{Op: "reserve", Key: e.Key, Holder: e.Holder, Shared: e.Shared}, nil
	case eventlog.Release:
		return effect{Op: "release", Holder: e.Holder}, nil
	case eventlog.RefuseIfReserved:
		return effect{Op: "refuse", Key: e.Key}, nil
	case eventlog.OpenWork:
		return effect{Op: "open", Kind: e.Work.Kind, Subject: e.Work.Subject, Index: e.Work.Index, Until: e.Until, Requirement: e.Requirement}, nil
	case eventlog.CloseWork:
		return effect{Op: "close", Kind: e.Work.Kind, Subject: e.Work.Subject, Index: e.Work.Index}, nil
	case eventlog.CloseAllWork:
		return effect{Op: "close_all", Subject: e.Subject}, nil
	default:
		return effect{}, fmt.Errorf("the event log does not know the effect %T", e)
	}
}

// encodeSide returns nil for the usual append, which touches nothing but events.
func encodeSide(r eventlog.Request, effects []effect, archive []event.ID) ([]byte, error) {
	type key struct {
		Key         string `json:"key"`
		Fingerprint string `json:"fingerprint"`
		Status      int    `json:"status"`
		Resource    string `json:"resource"`
	}
	type fence struct {
		Kind    string `json:"kind"`
		Subject string `json:"subject"`
		Index   int    `json:"index"`
		Owner   string `json:"owner"`
		Fence   int64  `json:"fence"`
	}
	var side struct {
		Idempotency *key       `json:"idempotency,omitempty"`
		Fence       *fence     `json:"fence,omitempty"`
		Effects     []effect   `json:"effects,omitempty"`
		Archive     []event.ID `json:"archive,omitempty"`
	}
	side.Effects, side.Archive = effects, archive
	if i := r.Idempotency; i != nil {
		side.Idempotency = &key{i.Key, hex.EncodeToString(i.Fingerprint[:]), i.Status, i.Resource}
	}
	if f := r.Fence; f != nil && f.Owner == "" {
		side.Effects = append([]effect{{Op: "unheld", Kind: f.Work.Kind, Subject: f.Work.Subject, Index: f.Work.Index, Fence: f.Fence}}, effects...)
	} else if f != nil {
		side.Fence = &fence{f.Work.Kind, f.Work.Subject, f.Work.Index, f.Owner, f.Fence}
	}
	if side.Idempotency == nil && side.Fence == nil && len(side.Effects) == 0 && len(archive) == 0 {
		return nil, nil
	}
	return json.Marshal(side)
}
