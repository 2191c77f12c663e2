package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/projections/extractions"
)

const (
	heartbeat = 15 * time.Second // a comment, so that nobody between takes the connection for dead
	writeTime = 30 * time.Second // a reader who takes longer has gone
	batch     = 500
)

// StreamEvents sends every fact.
func (s *server) StreamEvents(ctx context.Context, r api.StreamEventsRequestObject) (api.StreamEventsResponseObject, error) {
	after, err := s.begin(ctx, r.Params.LastEventID, r.Params.After)
	return &stream{server: s, ctx: ctx, after: after}, err
}

// StreamExtractionEvents sends the facts of one extraction.
func (s *server) StreamExtractionEvents(ctx context.Context, r api.StreamExtractionEventsRequestObject) (api.StreamExtractionEventsResponseObject, error) {
	all, err := s.Log.ReadStream(ctx, extraction.Stream(r.ID), 0)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, extraction.NotFound(r.ID)
	}
	after, err := s.begin(ctx, r.Params.LastEventID, r.Params.After)
	return &stream{server: s, ctx: ctx, after: after, id: r.ID}, err
}

// begin is the position after which a stream begins: the last that the reader has seen, else where
// the tables stand now.
func (s *server) begin(ctx context.Context, lastEventID *string, after *int64) (int64, error) {
	now, err := s.Positions.Position(ctx, extractions.Name)
	if err != nil {
		return 0, err
	}
	at := now
	if after != nil {
		at = *after
	}
	if id := strings.TrimSpace(unset(lastEventID)); id != "" {
		if at, err = strconv.ParseInt(id, 10, 64); err != nil || at < 0 {
			return 0, problem.InvalidFields("invalid_request", problem.Field{Name: "Last-Event-ID", Detail: fmt.Sprintf("%q is not a position", id)})
		}
	}
	if at <= now {
		return at, nil
	}
	head, _, err := s.Log.Head(ctx)
	if err == nil && at > head {
		return 0, problem.New(problem.Invalid, "position_unknown", "the log ends at position %d, so %d was not given here: begin without a position", head, at)
	}
	return at, err
}

// stream is the answer of an event stream: it lasts until the reader goes or the server stops.
type stream struct {
	server *server
	ctx    context.Context
	id     string // of the extraction; "" = all
	after  int64  // position
	seen   int64  // version in the extraction's stream

	shown map[string][]byte // the last progress of each extraction
	moved map[string][]byte // and of each download
	out   *http.ResponseController
	w     http.ResponseWriter
}

// VisitStreamEventsResponse sends the stream.
func (s *stream) VisitStreamEventsResponse(w http.ResponseWriter) error { return s.send(w) }

// VisitStreamExtractionEventsResponse sends the stream.
func (s *stream) VisitStreamExtractionEventsResponse(w http.ResponseWriter) error { return s.send(w) }

// send never returns an error: an answer has begun, and the reader comes back with the last position.
func (s *stream) send(w http.ResponseWriter) error {
	s.w, s.out, s.shown, s.moved = w, http.NewResponseController(w), map[string][]byte{}, map[string][]byte{}
	s.server.metrics.streams.Inc()
	defer s.server.metrics.streams.Dec()
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // what nginx takes for "pass it on at once"
	h.Set(positionHeader, strconv.FormatInt(s.after, 10))
	w.WriteHeader(http.StatusOK)
	if err := s.follow(); err != nil && s.ctx.Err() == nil {
		s.server.Logger.WarnContext(s.ctx, "an event stream broke off", "position", s.after, "error", err)
	}
	return nil
}

func (s *stream) follow() error {
	news, stop := s.server.Positions.Listen()
	defer stop()
	tick := time.NewTicker(s.server.Tick)
	defer tick.Stop()
	if err := s.write("retry: 1000\n\n"); err != nil {
		return err
	}
	quiet := time.Now()
	for {
		facts, err := s.facts()
		if err != nil {
			return err
		}
		live, err := s.progress()
		if err != nil {
			return err
		}
		fetching, err := s.downloads()
		if err != nil {
			return err
		}
		if facts || live || fetching {
			quiet = time.Now()
		} else if time.Since(quiet) >= heartbeat {
			quiet = time.Now()
			if err := s.write(": still here\n\n"); err != nil {
				return err
			}
		}
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.server.closing:
			return nil
		case <-news:
		case <-tick.C:
		}
	}
}

// facts sends what the tables of extractions have passed.
func (s *stream) facts() (sent bool, err error) {
	limit, err := s.server.Positions.Position(s.ctx, extractions.Name)
	if err != nil {
		return false, err
	}
	for s.after < limit {
		events, err := s.read(limit)
		if err != nil {
			return sent, err
		}
		var b bytes.Buffer
		for _, e := range events {
			data, err := json.Marshal(encodeEvent(e))
			if err != nil {
				return sent, err
			}
			fmt.Fprintf(&b, "id: %d\ndata: %s\n\n", e.Position, data)
		}
		if len(events) == 0 {
			s.after = limit
			return sent, nil
		}
		if err := s.write(b.String()); err != nil {
			return sent, err
		}
		s.after, sent = events[len(events)-1].Position, true
	}
	return sent, nil
}

// read returns the next facts after the last sent one, none of them after limit.
func (s *stream) read(limit int64) ([]event.Recorded, error) {
	var events []event.Recorded
	var err error
	if s.id == "" {
		events, err = s.server.Log.ReadAll(s.ctx, s.after, batch)
	} else {
		events, err = s.server.Log.ReadStream(s.ctx, extraction.Stream(s.id), s.seen)
	}
	if err != nil {
		return nil, err
	}
	var next []event.Recorded
	for _, e := range events {
		if e.Position > limit || len(next) == batch {
			break
		}
		if s.id != "" {
			s.seen = e.Version
		}
		if e.Position > s.after {
			next = append(next, e)
		}
	}
	return next, nil
}

// progress sends how the running extractions stand, where that has changed.
func (s *stream) progress() (sent bool, err error) {
	now, err := s.server.live.now(s.ctx, s.server)
	if err != nil {
		return false, err
	}
	current := map[string][]byte{}
	for id, frame := range now {
		if s.id == "" || s.id == id {
			current[id] = frame
		}
	}
	for id := range s.shown { // it ended: once more, with its end
		if _, running := current[id]; !running {
			if current[id], err = s.server.frame(s.ctx, id); err != nil {
				return sent, err
			}
		}
	}
	if s.id != "" && len(s.shown) == 0 && len(current) == 0 {
		if current[s.id], err = s.server.frame(s.ctx, s.id); err != nil {
			return sent, err
		}
	}
	for id, frame := range current {
		if _, running := now[id]; !running && s.id == "" {
			delete(s.shown, id)
		} else if bytes.Equal(s.shown[id], frame) {
			continue
		} else {
			s.shown[id] = frame
		}
		if len(frame) == 0 {
			continue // deleted: the facts say so
		}
		if err := s.write("event: progress\ndata: " + string(frame) + "\n\n"); err != nil {
			return sent, err
		}
		sent = true
	}
	return sent, nil
}

func (s *stream) write(text string) error {
	_ = s.out.SetWriteDeadline(time.Now().Add(writeTime)) // a recorder in a test has none
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.out.Flush()
}

// frame is an extraction as JSON; empty if it is deleted.
func (s *server) frame(ctx context.Context, id string) ([]byte, error) {
	e, err := s.Extractions.Get(ctx, id)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out, err := s.encodeExtraction(ctx, e)
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// liveProgress is what all streams show of the running extractions: one look serves them all.
type liveProgress struct {
	mu     sync.Mutex
	looked time.Time
	frames map[string][]byte
}

func (l *liveProgress) now(ctx context.Context, s *server) (map[string][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.looked) < s.Tick*9/10 {
		return l.frames, nil
	}
	page, err := s.Extractions.List(ctx, extractions.Listing{Statuses: []string{string(extraction.Queued), string(extraction.Extracting), extractions.Finalizing}, Limit: 1000})
	if err != nil {
		return nil, err
	}
	frames := make(map[string][]byte, len(page.Items))
	for _, e := range page.Items {
		out, err := s.encodeExtraction(ctx, e)
		if err != nil {
			return nil, err
		}
		if frames[e.ID], err = json.Marshal(out); err != nil {
			return nil, err
		}
	}
	l.looked, l.frames = time.Now(), frames
	return frames, nil
}
