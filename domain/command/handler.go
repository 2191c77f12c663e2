package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/problem"
)

// Handler runs commands. It is safe for concurrent use.
type Handler struct {
	log      eventlog.Log
	registry *event.Registry
	now      func() time.Time
	states   *states
}

// NewHandler returns a handler on a log.
func NewHandler(log eventlog.Log, registry *event.Registry, now func() time.Time) *Handler {
	return &Handler{log: log, registry: registry, now: now, states: newStates(maxStateBytes)}
}

// Call says who asks, and how a repeated request is known.
type Call struct {
	Metadata    event.Metadata
	Idempotency *eventlog.Idempotency // nil = none
	IfVersion   *int64                // the version that the one stream of the use case must still have; nil = any
}

// Result says what a command did.
type Result struct {
	ID       string // of what was made or changed
	Position int64  // the read models show it from here on; 0 where nothing changed
	Replayed bool   // an earlier request with the same Idempotency-Key had done it
}

type aggregate[S any] interface{ Evolve(event.Data) S }

// page is how many events are read and folded at a time.
const page = 1000

// Load folds a stream. A stream that does not exist has version 0 and the zero state. Of one that was folded before, only
// what has come since is read.
func Load[S aggregate[S]](ctx context.Context, h *Handler, stream string) (S, int64, error) {
	var state S
	var version int64
	if known, at, ok := h.states.get(stream); ok {
		state, version = known.(S), at
	}
	before := version
	for {
		events, err := h.log.ReadPage(ctx, stream, version, page)
		if err != nil {
			return state, 0, fmt.Errorf("read %s: %w", stream, err)
		}
		for _, rec := range events {
			d, err := h.registry.Decode(rec)
			if err != nil {
				return state, 0, fmt.Errorf("fold %s: %w", stream, err)
			}
			state, version = state.Evolve(d), rec.Version
		}
		if len(events) < page {
			break
		}
	}
	if version > before {
		h.states.put(stream, state, version)
	}
	return state, version, nil
}

func (h *Handler) propose(call Call, data []event.Data) []event.Proposed {
	out := make([]event.Proposed, len(data))
	for i, d := range data {
		if c, ok := d.(event.Cleaner); ok {
			d = c.Clean()
		}
		out[i] = event.Proposed{ID: event.NewID(h.now()), Data: d, Metadata: call.Metadata}
	}
	return out
}

const maxTries = 8

// attempt is one try of a use case: what to append, and the id to answer with. No streams = nothing changes.
type attempt func(context.Context) (eventlog.Request, string, error)

// run tries until nobody was faster. With an idempotency key, a request that was done is answered from the log.
func (h *Handler) run(ctx context.Context, call Call, try attempt) (Result, error) {
	if k := call.Idempotency; k != nil {
		done, position, err := h.log.FindIdempotent(ctx, k.Key)
		if err != nil {
			return Result{}, err
		}
		if done != nil {
			if done.Fingerprint != k.Fingerprint {
				return Result{}, refuse(&eventlog.IdempotencyError{Key: k.Key})
			}
			return Result{ID: done.Resource, Position: position, Replayed: true}, nil
		}
	}
	for i := 0; ; i++ {
		req, id, err := try(ctx)
		if err != nil {
			return Result{}, refuse(err)
		}
		if len(req.Streams) == 0 {
			return Result{ID: id}, nil
		}
		if k := call.Idempotency; k != nil {
			key := *k
			key.Resource = id
			req.Idempotency = &key
		}
		done, err := h.log.Append(ctx, req)
		if err == nil {
			return Result{ID: id, Position: done.Position, Replayed: done.Replayed}, nil
		}
		var conflict *eventlog.ConflictError
		if !errors.As(err, &conflict) || i+1 >= maxTries {
			return Result{}, refuse(err)
		}
	}
}

// refuse turns what the log refused into words for people.
func refuse(err error) error {
	var reserved *eventlog.ReservedError
	var conflict *eventlog.ConflictError
	var idempotency *eventlog.IdempotencyError
	var unstorable *eventlog.UnstorableError
	switch {
	case errors.As(err, &unstorable):
		p := problem.New(problem.Invalid, "unstorable_text", "%s", unstorable.Error())
		p.Err = err
		return p.With("field", unstorable.Field)
	case errors.As(err, &reserved) && facts.IsSource(reserved.Key):
		p := problem.New(problem.Conflict, "source_busy", "%s is being extracted by %s: wait for it, or cancel it", facts.Describe(reserved.Key), reserved.Holder)
		p.Err = err
		return p.With("active_extraction_id", reserved.Holder)
	case errors.As(err, &reserved):
		p := problem.New(problem.Conflict, "in_use", "%s is in use by extraction %s: cancel it, or wait until it ends", facts.Describe(reserved.Key), reserved.Holder)
		p.Err = err
		return p.With("active_extraction_id", reserved.Holder)
	case errors.As(err, &idempotency) && idempotency.Running:
		return problem.New(problem.Conflict, "request_running", "%s", idempotency.Error())
	case errors.As(err, &idempotency):
		return problem.New(problem.Invalid, "idempotency_key_reused", "%s", idempotency.Error())
	case errors.As(err, &conflict):
		p := problem.New(problem.Conflict, "concurrent_change", "%s was changed at the same time, again and again: try once more", conflict.Stream)
		p.Err = err
		return p
	}
	return err
}

// change runs a use case on one stream.
func change[S aggregate[S]](ctx context.Context, h *Handler, call Call, stream, id string, decide func(S) ([]event.Data, error)) (Result, error) {
	return changeBeside(ctx, h, call, stream, id, nil, decide)
}

// changeBeside runs a use case on one stream that is decided by what others say, too: beside returns them with the
// versions that they must still have.
func changeBeside[S aggregate[S]](ctx context.Context, h *Handler, call Call, stream, id string, beside func(context.Context) ([]eventlog.StreamVersion, error), decide func(S) ([]event.Data, error)) (Result, error) {
	return h.run(ctx, call, func(ctx context.Context) (eventlog.Request, string, error) {
		var unchanged []eventlog.StreamVersion
		if beside != nil {
			var err error
			if unchanged, err = beside(ctx); err != nil {
				return eventlog.Request{}, id, err
			}
		}
		state, version, err := Load[S](ctx, h, stream)
		if err != nil {
			return eventlog.Request{}, id, err
		}
		if v := call.IfVersion; v != nil && *v != version {
			return eventlog.Request{}, id, problem.New(problem.Stale, "stale", "%s is at version %d now, not %d: look at it again before you change it", id, version, *v).With("version", version)
		}
		data, err := decide(state)
		if err != nil || len(data) == 0 {
			return eventlog.Request{}, id, err
		}
		return eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: version, Events: h.propose(call, data)}}, Unchanged: unchanged}, id, nil
	})
}
