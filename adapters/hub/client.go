package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultEndpoint is where the public hub answers.
const DefaultEndpoint = "https://huggingface.co"

// Config says which hub is used and how. The zero values of numbers and times are replaced by the defaults in brackets.
type Config struct {
	Endpoint    string        // [DefaultEndpoint]
	Token       string        // "" = anonymous; sent to the endpoint only
	Cache       string        // required: the folder with models--owner--name/…
	Offline     bool          // use what is cached, ask nobody
	Concurrency int           // files that are fetched at the same time [4]
	Attempts    int           // tries in a row without one new byte [6]
	Backoff     time.Duration // pause after the first of them; it doubles [500 ms]
	Stall       time.Duration // a connection that gives no byte for so long is cut [60 s]
	UserAgent   string        // [featuremill]
	Logger      *slog.Logger
}

// Client talks to one hub. It is safe for concurrent use.
type Client struct {
	cfg      Config
	endpoint *url.URL
	http     *http.Client
	slots    chan struct{}
}

// New returns a client. It asks nothing yet.
func New(cfg Config) (*Client, error) {
	if cfg.Endpoint == "" {
		cfg.Endpoint = DefaultEndpoint
	}
	u, err := url.Parse(strings.TrimSuffix(cfg.Endpoint, "/"))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return nil, failed(BadReference, "hub endpoint %q: want a URL such as %s", cfg.Endpoint, DefaultEndpoint)
	}
	if cfg.Cache == "" {
		return nil, errors.New("hub: a cache folder is required")
	}
	if cfg.Cache, err = filepath.Abs(cfg.Cache); err != nil {
		return nil, err
	}
	if strings.ContainsAny(cfg.Token, "\r\n") {
		return nil, failed(BadToken, "the hub's token has a line break in it")
	}
	setDefault(&cfg.Concurrency, 4)
	setDefault(&cfg.Attempts, 6)
	setDefault(&cfg.Backoff, 500*time.Millisecond)
	setDefault(&cfg.Stall, time.Minute)
	if cfg.UserAgent == "" {
		cfg.UserAgent = "featuremill"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, endpoint: u, slots: make(chan struct{}, cfg.Concurrency), http: &http.Client{
		// Redirects are followed by hand: the token must not follow them.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   15 * time.Second,
			ResponseHeaderTimeout: min(cfg.Stall, time.Minute),
			IdleConnTimeout:       30 * time.Second,
			MaxIdleConnsPerHost:   cfg.Concurrency,
			ForceAttemptHTTP2:     true,
		},
	}}, nil
}

func setDefault[T int | time.Duration](v *T, otherwise T) {
	if *v <= 0 {
		*v = otherwise
	}
}

// WithToken returns a client that uses another token; "" keeps the configured one. Both share connections, cache and limits.
func (c *Client) WithToken(token string) *Client {
	if token = strings.TrimSpace(token); token == "" || strings.ContainsAny(token, "\r\n") {
		return c
	}
	other := *c
	other.cfg.Token = token
	return &other
}

// Cache is the cache folder.
func (c *Client) Cache() string { return c.cfg.Cache }

// Endpoint is the hub's address.
func (c *Client) Endpoint() string { return c.endpoint.String() }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// DefaultCache is where the hub's own tools keep their cache: HF_HUB_CACHE, else HF_HOME/hub, else
// ~/.cache/huggingface/hub; "" where there is no home.
func DefaultCache(getenv func(string) string) string {
	if dir := getenv("HF_HUB_CACHE"); dir != "" {
		return dir
	}
	if dir := home(getenv); dir != "" {
		return filepath.Join(dir, "hub")
	}
	return ""
}

func home(getenv func(string) string) string {
	if dir := getenv("HF_HOME"); dir != "" {
		return dir
	}
	if dir := getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "huggingface")
	}
	if dir := getenv("HOME"); dir != "" {
		return filepath.Join(dir, ".cache", "huggingface")
	}
	return ""
}

// DefaultToken is the token of the hub's own tools: HF_TOKEN, else the file that their login writes; "" = none.
func DefaultToken(getenv func(string) string) string {
	if t := strings.TrimSpace(getenv("HF_TOKEN")); t != "" {
		return t
	}
	file := getenv("HF_TOKEN_PATH")
	if file == "" && home(getenv) != "" {
		file = filepath.Join(home(getenv), "token")
	}
	if file == "" {
		return ""
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (c *Client) sameOrigin(u *url.URL) bool {
	return u.Scheme == c.endpoint.Scheme && u.Host == c.endpoint.Host
}

const maxRedirects = 10

// answer is what came back after redirects.
type answer struct {
	*http.Response
	own    bool        // of the endpoint, not of a host that it sent us to
	linked http.Header // the endpoint's last header: a redirect to another host says there what the file is
}

// get follows redirects. The token goes to the endpoint only. The caller closes the body.
func (c *Client) get(ctx context.Context, address *url.URL, header http.Header) (*answer, error) {
	out := &answer{}
	u := address
	for range maxRedirects {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, failed(Protocol, "the hub's address %s makes no sense: %w", u.Redacted(), err)
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", c.cfg.UserAgent)
		req.Header.Set("Accept-Encoding", "identity") // lengths and ranges are those of the file
		out.own = c.sameOrigin(u)
		if out.own && c.cfg.Token != "" {
			req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, failed(Unavailable, "the hub cannot be reached at %s: %w", u.Host, unwrapURL(err))
		}
		out.Response = resp
		if out.own {
			out.linked = resp.Header
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return out, nil
		}
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
		_ = resp.Body.Close()
		next, err := u.Parse(resp.Header.Get("Location"))
		switch {
		case err != nil || resp.Header.Get("Location") == "":
			return nil, failed(Protocol, "the hub redirects %s to nowhere", u.Path)
		case next.Scheme != "https" && next.Scheme != c.endpoint.Scheme: // what began with TLS goes on with it
			return nil, failed(Protocol, "the hub redirects %s to %s://%s, which is not safe", u.Path, next.Scheme, next.Host)
		}
		u = next
	}
	return nil, failed(Protocol, "the hub redirects %s again and again", address.Path)
}

// unwrapURL leaves out the address that net/http repeats in its errors: a signed one is a secret.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// maxDocument bounds one answer of the API.
const maxDocument = 64 << 20

// document reads a JSON answer of the API, trying again while the server cannot.
func (c *Client) document(ctx context.Context, u *url.URL, p place) (body []byte, h http.Header, err error) {
	err = c.patiently(ctx, func() (bool, error) {
		resp, err := c.get(ctx, u, http.Header{"Accept": {"application/json"}})
		if err != nil {
			return false, err
		}
		defer func() { _ = resp.Body.Close() }()
		if resp.StatusCode != http.StatusOK {
			return false, p.refused(resp.StatusCode, resp.linked)
		}
		if body, err = io.ReadAll(io.LimitReader(resp.Body, maxDocument+1)); err != nil {
			return false, failed(Unavailable, "the hub's answer for %s broke off: %w", p, err)
		}
		if len(body) > maxDocument {
			return false, failed(Protocol, "the hub's answer for %s has more than %d bytes", p, maxDocument)
		}
		h = resp.Header
		return true, nil
	})
	return body, h, err
}

// patiently tries until it works, or cfg.Attempts times in a row without getting on.
func (c *Client) patiently(ctx context.Context, try func() (gotOn bool, err error)) error {
	for tries := 0; ; {
		gotOn, err := try()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if !temporary(err) {
			return err
		}
		if tries++; gotOn {
			tries = 0
		}
		if tries >= c.cfg.Attempts {
			return fmt.Errorf("tried %d times: %w", tries, err)
		}
		pause := min(c.cfg.Backoff<<max(0, tries-1), 30*time.Second)
		if gotOn {
			pause = c.cfg.Backoff / 50 // it was cut, but it works
		}
		var e *Error
		if errors.As(err, &e) && e.retry > pause {
			pause = e.retry
		}
		pause += rand.N(pause/4 + 1) // many clients must not come back at the same moment
		c.cfg.Logger.Debug("the hub is asked again", "pause", pause, "error", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// temporary reports whether trying again is right.
func temporary(err error) bool {
	code := CodeOf(err)
	return code == Unavailable || code == RateLimited
}
