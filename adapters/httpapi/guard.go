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
	cross  *http.CrossOriginProtection
	fail   func(*gin.Context, error)
}

func newGuard(cfg Config, fail func(*gin.Context, error)) (*guard, error) {
	g := &guard{token: sha256.Sum256([]byte(cfg.Token)), locked: cfg.Token != "", hosts: map[string]bool{}, cross: http.NewCrossOriginProtection(), fail: fail}
	for _, h := range cfg.Hosts {
		g.hosts[strings.ToLower(h)] = true
	}
	for _, o := range cfg.Origins {
		if err := g.cross.AddTrustedOrigin(o); err != nil {
			return nil, fmt.Errorf("http interface: trusted origin: %w", err)
		}
	}
	return g, nil
}

func (g *guard) check(c *gin.Context) {
	if err := g.refuses(c); err != nil {
		g.fail(c, err)
	}
}

func (g *guard) refuses(c *gin.Context) error {
	if !g.locked && !g.served(c.Request.Host) {
		return refuse(http.StatusMisdirectedRequest, "host_not_served", "this server does not answer as %s: without a token it serves localhost only; start it with a token, or with this name among its hosts", c.Request.Host)
	}
	if err := g.cross.Check(c.Request); err != nil {
		return refuse(http.StatusForbidden, "foreign_origin", "a page of %s may not send commands here", c.Request.Header.Get("Origin"))
	}
	if !g.locked || c.FullPath() == "/healthz" || c.FullPath() == "/readyz" {
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
