package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
