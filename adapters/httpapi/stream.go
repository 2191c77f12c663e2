package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/projections/extractions"
)

const (
	heartbeat = 15 * time.Second // a comment, so that nobody between takes the connection for dead
	writeTime = 30 * time.Second // a reader who takes longer has gone
	batch     = 200              // events that a stream holds at a time
	written   = 64 << 10         // bytes after which they are sent; then the next waits until the reader has taken them
)

// fresh is how old what is shown of the live progress may be.
func (s *server) fresh() time.Duration { return s.Tick * 9 / 10 }

// StreamEvents sends every fact.
func (s *server) StreamEvents(ctx context.Context, r api.StreamEventsRequestObject) (api.StreamEventsResponseObject, error) {
	after, err := s.begin(ctx, r.Params.LastEventID, r.Params.After)
	return &stream{server: s, ctx: ctx, after: after}, err
}

// StreamExtractionEvents sends the facts of one extraction.
func (s *server) StreamExtractionEvents(ctx context.Context, r api.StreamExtractionEventsRequestObject) (api.StreamExtractionEventsResponseObject, error) {
	version, err := s.Log.VersionAt(ctx, extraction.Stream(r.ID), eventlog.Moment{})
	if err != nil {
		return nil, err
	}
	if version == 0 {
		return nil, extraction.NotFound(r.ID)
	}
	after, err := s.begin(ctx, r.Params.LastEventID, r.Params.After)
	if err != nil {
		return nil, err
	}
	seen := int64(0)
	if after > 0 {
		seen, err = s.Log.VersionAt(ctx, extraction.Stream(r.ID), eventlog.Moment{Position: after})
	}
	return &stream{server: s, ctx: ctx, after: after, seen: seen, id: r.ID}, err
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

	running bool              // the one extraction, at the last look
	looked  time.Time         // at the one extraction while it rests
	shown   map[string][]byte // the last progress of each extraction
	moved   map[string][]byte // and of each download
	out     *http.ResponseController
	w       http.ResponseWriter
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
	if err := s.write([]byte("retry: 1000\n\n")); err != nil {
		return err
	}
	quiet := time.Now()
	for {
		facts, err := s.facts()
		if err != nil {
			return err
		}
		live, err := s.progress(facts)
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
			if err := s.write([]byte(": still here\n\n")); err != nil {
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
		if len(events) == 0 {
			s.after = limit
			return sent, nil
		}
		if err := s.tell(events); err != nil {
			return sent, err
		}
		sent = true
	}
	return sent, nil
}

// read returns the next facts after the last sent one, none of them after limit. Each is read once.
func (s *stream) read(limit int64) ([]event.Recorded, error) {
	if s.id == "" { // positions have no gap
		return s.server.Log.ReadAll(s.ctx, s.after, int(min(batch, limit-s.after)))
	}
	last, err := s.server.Log.VersionAt(s.ctx, extraction.Stream(s.id), eventlog.Moment{Position: limit})
	if err != nil || last <= s.seen {
		return nil, err
	}
	return s.server.Log.ReadPage(s.ctx, extraction.Stream(s.id), s.seen, int(min(batch, last-s.seen)))
}

func (s *stream) tell(events []event.Recorded) error {
	var b bytes.Buffer
	for i, e := range events {
		data, err := json.Marshal(encodeEvent(e))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "id: %d\ndata: %s\n\n", e.Position, data)
		if b.Len() >= written || i == len(events)-1 {
			if err := s.write(b.Bytes()); err != nil {
				return err
			}
			b.Reset()
		}
		s.after, s.seen = e.Position, e.Version
	}
	return nil
}

// progress sends how the running extractions stand, where that has changed. news says that facts have been sent just now.
func (s *stream) progress(news bool) (sent bool, err error) {
	now, err := s.server.live.now(s.ctx, s.server.fresh())
	if err != nil {
		return false, err
	}
	if s.id != "" {
		return s.progressOfOne(now, news)
	}
	for id := range s.shown { // it ended: once more, with its end
		if _, running := now[id]; running {
			continue
		}
		frame, err := s.server.frame(s.ctx, id)
		if err != nil {
			return sent, err
		}
		told, err := s.show(id, frame)
		if err != nil {
			return sent, err
		}
		sent = sent || told
		delete(s.shown, id)
	}
	for id, frame := range now {
		told, err := s.show(id, frame)
		if err != nil {
			return sent, err
		}
		sent = sent || told
	}
	return sent, nil
}

// progressOfOne sends how the one extraction stands. While it rests it is looked up where something may have changed: at
// first, when it has just ended, after facts, and now and then, because its tables may be folded anew.
func (s *stream) progressOfOne(now map[string][]byte, news bool) (bool, error) {
	frame, running := now[s.id]
	if !running {
		if !s.running && !news && time.Since(s.looked) < heartbeat {
			return false, nil
		}
		var err error
		if frame, err = s.server.frame(s.ctx, s.id); err != nil {
			return false, err
		}
		s.looked = time.Now()
	}
	s.running = running
	return s.show(s.id, frame)
}

// show sends a frame that is not what was shown last.
func (s *stream) show(id string, frame []byte) (bool, error) {
	if len(frame) == 0 || bytes.Equal(s.shown[id], frame) { // deleted: the facts say so
		return false, nil
	}
	s.shown[id] = frame
	return true, s.write(fmt.Appendf(nil, "event: progress\ndata: %s\n\n", frame))
}

func (s *stream) write(text []byte) error {
	_ = s.out.SetWriteDeadline(time.Now().Add(writeTime)) // a recorder in a test has none
	if _, err := s.w.Write(text); err != nil {
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
