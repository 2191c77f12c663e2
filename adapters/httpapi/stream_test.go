package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/httpapi"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
)

// message is one server-sent event.
type message struct {
	event, id string
	data      map[string]any
}

// listen opens an event stream. next returns its next message; stop ends it.
func (b *bundle) listen(t *testing.T, path, lastEventID string) (next func() message, stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.server.URL+path, http.NoBody)
	require.NoError(t, err)
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := b.client.Do(req) //nolint:bodyclose // stop closes it
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() message {
			var m message
			for lines.Scan() {
				key, value, _ := strings.Cut(lines.Text(), ": ")
				switch key {
				case "event":
					m.event = value
				case "id":
					m.id = value
				case "data":
					require.NoError(t, json.Unmarshal([]byte(value), &m.data))
				case "":
					if m.data != nil {
						return m
					}
					m = message{}
				}
			}
			require.NoError(t, lines.Err())
			require.Fail(t, "the stream ended")
			return m
		}, func() {
			cancel()
			_ = resp.Body.Close()
		}
}

// fact skips progress.
func fact(next func() message) message {
	for {
		if m := next(); m.event == "" {
			return m
		}
	}
}

func TestAReaderOfEventsGoesOnWhereItBrokeOff(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	head := int(b.head(t))

	next, stop := b.listen(t, "/api/v1/events?after=0", "")
	for i := range head - 2 {
		m := fact(next)
		require.Equal(t, strconv.Itoa(i+1), m.id)
		require.EqualValues(t, i+1, m.data["position"])
	}
	stop()
	id := b.start(t, w) // while nobody listens

	next, stop = b.listen(t, "/api/v1/events", strconv.Itoa(head-2))
	for i := head - 1; i <= head; i++ {
		require.Equal(t, strconv.Itoa(i), fact(next).id)
	}
	requested := fact(next)
	require.Equal(t, "ExtractionRequested", requested.data["type"])
	e := b.sent(t, 200, "GET", "/api/v1/extractions/"+requested.data["data"].(map[string]any)["id"].(string), nil)
	require.Equal(t, id, e["id"], "what was sent can be looked up")
	stop()

	p := b.sent(t, 422, "GET", "/api/v1/events?after=1000000", nil)
	require.Equal(t, "position_unknown", p["code"])
	require.Equal(t, "invalid_request", b.sent(t, 422, "GET", "/api/v1/events", nil, "Last-Event-ID", "x")["code"])
}

func TestOneExtractionIsFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	id := b.start(t, w)
	next, stop := b.listen(t, "/api/v1/extractions/"+id+"/events", "")
	defer stop()
	m := next()
	require.Equal(t, "progress", m.event)
	require.Empty(t, m.id, "it is no fact")
	require.Equal(t, "queued", m.data["status"])

	b.plan(t, id)
	b.compute(t, id, 3)
	var types []string
	for len(types) == 0 || types[len(types)-1] != "ExtractionCompleted" {
		m := fact(next)
		require.Equal(t, "extraction-"+id, m.data["stream"])
		types = append(types, m.data["type"].(string))
	}
	require.Equal(t, []string{"SelfTested", "ExtractionPlanned", "SegmentRecorded", "SegmentRecorded", "SegmentRecorded", "ExtractionCompleted"}, types)
	b.fold(t, id, "completed")
	for {
		m := next()
		if m.event == "progress" && m.data["status"] == "completed" {
			require.Contains(t, m.data, "statistics")
			break
		}
	}

	again, stop := b.listen(t, "/api/v1/extractions/"+id+"/events?after=0", "")
	defer stop()
	require.Equal(t, "ExtractionRequested", fact(again).data["type"])
}

func TestTheStreamOfAllExtractionsTellsOfTheEndOfEach(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	next, stop := b.listen(t, "/api/v1/events", "")
	defer stop()
	id := b.start(t, w)
	see := func(status string) {
		for {
			if m := next(); m.event == "progress" && m.data["id"] == id && m.data["status"] == status {
				return
			}
		}
	}
	see("queued")
	b.sent(t, 200, "POST", "/api/v1/extractions/"+id+"/cancel", nil)
	see("cancelled")
}

func TestShutdownEndsTheStreams(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	_ = w
	srv := b.handler.Server("127.0.0.1:0")
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.server.URL+"/api/v1/events?after=0", http.NoBody)
	require.NoError(t, err)
	resp, err := b.client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	require.NoError(t, srv.Shutdown(ctx))
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
	}
	require.NoError(t, lines.Err(), "it ends, it does not break")
}

// counting counts how often each fact is read.
type counting struct {
	eventlog.Log
	mu    sync.Mutex
	reads map[int64]int // by position
	most  int           // facts in one answer
}

func (c *counting) count(events []event.Recorded, err error) ([]event.Recorded, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		c.reads[e.Position]++
	}
	c.most = max(c.most, len(events))
	return events, err
}

func (c *counting) ReadAll(ctx context.Context, after int64, limit int) ([]event.Recorded, error) {
	return c.count(c.Log.ReadAll(ctx, after, limit))
}

func (c *counting) ReadStream(ctx context.Context, stream string, after int64) ([]event.Recorded, error) {
	return c.count(c.Log.ReadStream(ctx, stream, after))
}

func (c *counting) ReadPage(ctx context.Context, stream string, after int64, limit int) ([]event.Recorded, error) {
	return c.count(c.Log.ReadPage(ctx, stream, after, limit))
}

// take returns what was read since the last time.
func (c *counting) take() map[int64]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.reads
	c.reads = map[int64]int{}
	return out
}

func TestAStreamReadsEachFactOnce(t *testing.T) {
	t.Parallel()
	log := &counting{reads: map[int64]int{}}
	b := newBundle(t, func(c *httpapi.Config) { log.Log, c.Log = c.Log, log })
	w := b.world(t)
	id := b.start(t, w)
	stream := extraction.Stream(id)
	const segments = 450
	segment := func(i int) event.Data {
		return extraction.SegmentRecorded{Index: i, FirstSequence: i, Sequences: 1, Artifact: extraction.Artifact{ContentSHA256: "c", FileSHA256: "f"}}
	}
	facts := []event.Data{extraction.SelfTested{SelfTest: extraction.SelfTest{Taps: []extraction.Tap{}}},
		extraction.Planned{CorpusID: "c", BatchSize: 1, Part: extraction.Part{Sequences: segments + 50, SequencesPerSegment: 1}}}
	for i := range segments {
		facts = append(facts, segment(i))
	}
	b.append(t, stream, facts...)
	head := b.head(t)

	for name, test := range map[string]struct {
		path, from string
		first      int64 // position
		end        string
	}{
		"one extraction from its beginning": {"/api/v1/extractions/" + id + "/events?after=0", "", head - segments - 2, "ExtractionRequested"},
		"one extraction from the middle":    {"/api/v1/extractions/" + id + "/events", strconv.FormatInt(head-100, 10), head - 99, "SegmentRecorded"},
		"everything":                        {"/api/v1/events?after=0", "", 1, "ModelRegistered"},
	} {
		log.take()
		next, stop := b.listen(t, test.path, test.from)
		m := fact(next)
		require.Equal(t, test.end, m.data["type"], name)
		require.Equal(t, strconv.FormatInt(test.first, 10), m.id, name)
		for m.id != strconv.FormatInt(head, 10) {
			m = fact(next)
		}
		// While somebody listens, too.
		b.append(t, stream, segment(int(head)), segment(int(head)+1))
		head += 2
		for m.id != strconv.FormatInt(head, 10) {
			m = fact(next)
		}
		reads := log.take()
		require.Len(t, reads, int(head-test.first)+1, name)
		for position, n := range reads {
			require.GreaterOrEqual(t, position, test.first, name)
			require.Equal(t, 1, n, "%s: the fact at position %d", name, position)
		}
		stop()
	}
	require.LessOrEqual(t, log.most, 200, "what a stream holds at a time")

	log.take()
	page := b.sent(t, 200, "GET", "/api/v1/extractions/"+id+"/history?limit=3&offset=2", nil)
	require.Len(t, page["data"], 3)
	require.Len(t, log.take(), 3, "of a history only the page is read")
}
