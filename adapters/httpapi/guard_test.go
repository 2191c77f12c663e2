package httpapi_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/httpapi"
	"github.com/featuremill/featuremill/domain/model"
)

func (b *bundle) raw(t *testing.T, method, path string, change func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(context.Background(), method, path, http.NoBody)
	req.Host = "localhost:8080"
	change(req)
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, req)
	return w
}

func TestAPageOfAnotherOriginCannotDriveTheLocalAPI(t *testing.T) {
	t.Parallel()
	b := newBundle(t, func(c *httpapi.Config) {
		c.Hosts, c.Origins = []string{"Workstation"}, []string{"http://localhost:5173"}
	})
	for _, c := range []struct {
		name   string
		method string
		change func(*http.Request)
		status int
	}{
		{"this machine by name", "GET", func(*http.Request) {}, 200},
		{"this machine by address", "GET", func(r *http.Request) { r.Host = "127.0.0.1:80" }, 200},
		{"this machine by its IPv6 address", "GET", func(r *http.Request) { r.Host = "[::1]:80" }, 200},
		{"a configured name", "GET", func(r *http.Request) { r.Host = "workstation:8080" }, 200},
		{"a name that somebody points here", "GET", func(r *http.Request) { r.Host = "evil.example" }, 421},
		{"an address of the network", "GET", func(r *http.Request) { r.Host = "192.168.0.7:8080" }, 421},
		{"a name that begins like ours", "GET", func(r *http.Request) { r.Host = "localhost.evil.example" }, 421},
		{"a command of another page", "POST", func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		{"a command that the browser calls cross-site", "POST", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		{"a command of a page of ours", "POST", func(r *http.Request) { r.Header.Set("Origin", "http://localhost:8080") }, 422},
		{"a command of a trusted page", "POST", func(r *http.Request) { r.Header.Set("Origin", "http://localhost:5173") }, 422},
		{"a command of a program", "POST", func(*http.Request) {}, 422},
	} {
		path := "/api/v1/saes"
		if c.method == "POST" {
			path = "/api/v1/saes/delete"
		}
		w := b.raw(t, c.method, path, c.change)
		require.Equal(t, c.status, w.Code, "%s: %s", c.name, w.Body)
		if c.name != "a command of a trusted page" {
			require.Empty(t, w.Header().Get("Access-Control-Allow-Origin"), c.name)
		}
	}
}

func TestAPageOfATrustedOriginMayAskAndRead(t *testing.T) {
	t.Parallel()
	const page = "http://localhost:5173"
	b := newBundle(t, func(c *httpapi.Config) { c.Origins, c.Token = []string{page, "https://lab.example"}, "secret" })
	preflight := func(origin string) *httptest.ResponseRecorder {
		return b.raw(t, "OPTIONS", "/api/v1/saes/delete", func(r *http.Request) {
			r.Header.Set("Origin", origin)
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			r.Header.Set("Access-Control-Request-Method", "POST")
			r.Header.Set("Access-Control-Request-Headers", "authorization,content-type,idempotency-key")
		})
	}
	for _, origin := range []string{page, "https://lab.example"} {
		w := preflight(origin)
		require.Equal(t, 204, w.Code, "a preflight has no token: %s", w.Body)
		require.Equal(t, origin, w.Header().Get("Access-Control-Allow-Origin"))
		require.Contains(t, w.Header().Get("Access-Control-Allow-Methods"), "POST")
		for _, header := range []string{"Authorization", "Content-Type", "Idempotency-Key"} {
			require.Contains(t, w.Header().Get("Access-Control-Allow-Headers"), header)
		}
		require.Empty(t, w.Header().Get("Access-Control-Allow-Credentials"))
		require.Contains(t, w.Header().Values("Vary"), "Origin")
		for token, status := range map[string]int{"Bearer secret": 200, "Bearer wrong": 401} {
			w = b.raw(t, "GET", "/api/v1/saes", func(r *http.Request) {
				r.Header.Set("Origin", origin)
				r.Header.Set("Sec-Fetch-Site", "cross-site")
				r.Header.Set("Authorization", token)
			})
			require.Equal(t, status, w.Code)
			require.Equal(t, origin, w.Header().Get("Access-Control-Allow-Origin"), "the page can read why")
			require.Contains(t, w.Header().Get("Access-Control-Expose-Headers"), "ETag")
		}
	}
	for _, origin := range []string{"http://localhost:5174", "http://localhost:5173.evil.example", "https://localhost:5173", "HTTP://LOCALHOST:5173", "null", "https://lab.example.", "*"} {
		w := preflight(origin)
		require.NotEqual(t, 204, w.Code, origin)
		require.Empty(t, w.Header().Get("Access-Control-Allow-Origin"), origin)
		require.Contains(t, w.Header().Values("Vary"), "Origin")
	}
	w := b.raw(t, "OPTIONS", "/api/v1/saes", func(r *http.Request) { r.Header.Set("Origin", page) })
	require.Equal(t, 401, w.Code, "not a preflight")
}

func TestATokenIsAskedForWhereThereIsOne(t *testing.T) {
	t.Parallel()
	b := newBundle(t, func(c *httpapi.Config) { c.Token = "secret" })
	for token, status := range map[string]int{"": 401, "Bearer wrong": 401, "Bearer ": 401, "Basic secret": 401, "Bearer secret": 200, "bearer secret": 200} {
		w := b.raw(t, "GET", "/api/v1/saes", func(r *http.Request) {
			r.Host = "anywhere.example"
			r.Header.Set("Authorization", token)
		})
		require.Equal(t, status, w.Code, token)
		if status == 401 {
			require.Contains(t, w.Header().Get("WWW-Authenticate"), "Bearer")
		}
	}
	require.Equal(t, 200, b.raw(t, "GET", "/healthz", func(*http.Request) {}).Code)
	require.Equal(t, 200, b.raw(t, "GET", "/readyz", func(*http.Request) {}).Code)
	require.Equal(t, 401, b.raw(t, "GET", "/metrics", func(*http.Request) {}).Code)
	require.Equal(t, 401, b.raw(t, "GET", "/nowhere", func(*http.Request) {}).Code, "what is there is nobody's business")
}

func TestEveryWrongRequestGetsAProblem(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.refused(t, 404, "unknown_path", "GET", "/api/v1/nothing", nil, "/api/v1/nothing")
	b.refused(t, 404, "unknown_path", "GET", "/", nil)
	b.refused(t, 405, "unknown_method", "PUT", "/api/v1/saes", nil, "GET")
	b.refused(t, 413, "body_too_large", "POST", "/api/v1/saes/import/file", `{"name":"`+strings.Repeat("x", 1<<20)+`"}`, "1048576")
	b.refused(t, 400, "malformed_query", "GET", "/api/v1/saes?search=%00", nil)
	b.refused(t, 400, "malformed_path", "GET", "/api/v1/saes/%ff", nil)
	require.Equal(t, "unsupported_media_type", b.sent(t, 415, "POST", "/api/v1/saes/delete", "a=b", "Content-Type", "application/x-www-form-urlencoded")["code"])
	p := b.refused(t, 400, "malformed_json", "POST", "/api/v1/saes/delete", "{\"sae_ids\": [\n\"ä\", x]}")
	require.EqualValues(t, 2, p["line"])
	require.EqualValues(t, 6, p["column"])
	p = b.refused(t, 422, "invalid_request", "POST", "/api/v1/saes/delete", `{"sae_ids": [""], "delete_files": 3}`)
	require.Len(t, p["errors"], 2)
	require.Equal(t, "invalid_request", b.sent(t, 422, "POST", "/api/v1/saes/delete", `{"sae_ids":["x"]}`, "Idempotency-Key", strings.Repeat("k", 201))["code"])
}

// exploding panics where it should import.
type exploding struct{ httpapi.Imports }

func (exploding) Model(context.Context, string) (model.Facts, string, error) {
	panic("the secret of the inside")
}

func TestAPanicTellsNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t, func(c *httpapi.Config) { c.Imports = exploding{c.Imports} })
	p := b.refused(t, 500, "internal", "POST", "/api/v1/models/import", map[string]any{"path": "x"})
	require.NotContains(t, p["detail"], "secret")
	b.sent(t, 200, "GET", "/api/v1/models", nil)
}

// waiting imports until whoever asked goes.
type waiting struct {
	httpapi.Imports
	began, ended chan struct{}
}

func (w waiting) Model(ctx context.Context, _ string) (model.Facts, string, error) {
	close(w.began)
	<-ctx.Done()
	close(w.ended)
	return model.Facts{}, "", ctx.Err()
}

func TestAnImportEndsWhenWhoeverAskedHasGone(t *testing.T) {
	t.Parallel()
	w := waiting{began: make(chan struct{}), ended: make(chan struct{})}
	b := newBundle(t, func(c *httpapi.Config) { w.Imports = c.Imports; c.Imports = w })
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.server.URL+"/api/v1/models/import", strings.NewReader(`{"path":"x"}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	go func() { <-w.began; cancel() }()
	resp, err := b.client.Do(req)
	if err == nil {
		_ = resp.Body.Close()
	}
	require.ErrorIs(t, err, context.Canceled)
	<-w.ended
	require.Zero(t, b.head(t))
}

func TestTheDatabaseBeingAwayIsSaidToPass(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	b.stop()
	b.log.Close()
	for _, path := range []string{"/api/v1/saes/" + w.sae, "/readyz", "/api/v1/events"} {
		a := b.send(t, "GET", path, nil)
		require.Equal(t, 503, a.status, "%s: %s", path, a.body)
		require.NotEmpty(t, a.header.Get("Retry-After"))
	}
	require.Equal(t, 503, b.send(t, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dataset_id=x", nil).status)
	require.Equal(t, "ok", b.sent(t, 200, "GET", "/healthz", nil)["status"])
}

func TestOperationsShowHowFarTheReadModelsAre(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.world(t)
	head := float64(b.head(t))
	require.Eventually(t, func() bool {
		r := decode(b.send(t, "GET", "/readyz", nil).body)
		p, _ := r["projections"].(map[string]any)
		return r["status"] == "ready" && r["position"] == head && p["library"] == head && p["extractions"] == head && p["features"] == head
	}, waitFor, poll)
	resp, err := b.client.Get(b.server.URL + "/metrics")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Contains(t, string(text), `featuremill_projection_position{projection="extractions"}`)
	require.Contains(t, string(text), `featuremill_http_requests_total{method="POST",route="/api/v1/models/import",status="201"} 1`)
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := httpapi.New(httpapi.Config{})
	require.ErrorContains(t, err, "required")
}
