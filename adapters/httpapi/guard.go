package httpapi

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/gin-gonic/gin"
)

// guard keeps out whoever may not ask: senders without the token, and pages of other origins, which a
// browser on this machine would let reach a local port (also under a name of their own that they point
// here: DNS rebinding).
type guard struct {
	token  [32]byte // sha256, so that the comparison takes the same time for tokens of any length
	locked bool
	hosts  map[string]bool
	trusts map[string]bool // origins
	cross  *http.CrossOriginProtection
	fail   func(*gin.Context, error)
}

func newGuard(cfg Config, fail func(*gin.Context, error)) (*guard, error) {
	g := &guard{token: sha256.Sum256([]byte(cfg.Token)), locked: cfg.Token != "", hosts: map[string]bool{}, trusts: map[string]bool{}, cross: http.NewCrossOriginProtection(), fail: fail}
	for _, h := range cfg.Hosts {
		g.hosts[strings.ToLower(h)] = true
	}
	for _, o := range cfg.Origins {
		if err := g.cross.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("http interface: trusted origin: %w", err)
		}
		g.trusts[o] = true
	}
	return g, nil
}

func (g *guard) check(c *gin.Context) {
	preflight := g.share(c)
	if err := g.refuses(c, preflight); err != nil {
		g.fail(c, err)
	} else if preflight {
		c.AbortWithStatus(http.StatusNoContent)
	}
}

// What pages of trusted origins may send and read, beside what the Fetch standard lets every page.
const (
	mayUse  = "GET, HEAD, POST, PATCH, DELETE"
	maySend = "Authorization, Content-Type, Featuremill-Actor, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Traceparent, X-Correlation-ID"
	mayRead = "ETag, Featuremill-Position, Location, Retry-After, WWW-Authenticate, X-Correlation-ID"
)

// share tells the browser that a page of a trusted origin may read the answer, and reports whether this only asks whether
// it may ask (a preflight of the Fetch standard). Cookies are not used, so no credentials are allowed.
func (g *guard) share(c *gin.Context) (preflight bool) {
	if len(g.trusts) == 0 {
		return false
	}
	h := c.Writer.Header()
	h.Add("Vary", "Origin")
	origin := c.GetHeader("Origin")
	if !g.trusts[origin] {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Expose-Headers", mayRead)
	if c.Request.Method != http.MethodOptions || c.GetHeader("Access-Control-Request-Method") == "" {
		return false
	}
	h.Set("Access-Control-Allow-Methods", mayUse)
	h.Set("Access-Control-Allow-Headers", maySend)
	h.Set("Access-Control-Max-Age", "600")
	if c.GetHeader("Access-Control-Request-Private-Network") == "true" {
		h.Set("Access-Control-Allow-Private-Network", "true") // a page of the internet that is trusted to ask this machine
	}
	return true
}

func (g *guard) refuses(c *gin.Context, preflight bool) error {
	if !g.locked && !g.served(c.Request.Host) {
		return refuse(http.StatusMisdirectedRequest, "host_not_served", "this server does not answer as %s: without a token it serves localhost only; start it with a token, or with this name among its hosts", c.Request.Host)
	}
	if err := g.cross.Check(c.Request); err != nil {
		return refuse(http.StatusForbidden, "foreign_origin", "a page of %s may not send commands here", c.Request.Header.Get("Origin"))
	}
	if preflight || !g.locked || c.FullPath() == "/healthz" || c.FullPath() == "/readyz" {
		return nil
	}
	scheme, token, _ := strings.Cut(c.GetHeader("Authorization"), " ")
	digest := sha256.Sum256([]byte(strings.TrimSpace(token)))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(digest[:], g.token[:]) != 1 {
		return refuse(http.StatusUnauthorized, "unauthorized", "a bearer token is needed: Authorization: Bearer …")
	}
	return nil
}

// served reports whether a Host header names this machine.
func (g *guard) served(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") || g.hosts[name] || g.hosts[strings.ToLower(host)] {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap().IsLoopback()
}
