package library

import "sync"

// Tokens remembers the hub's tokens that requests brought, until their downloads end. They are kept in memory alone: a
// download that goes on in another process, or after a restart, uses the configured token.
type Tokens struct {
	mu sync.Mutex
	of map[string]string
}

// Put remembers the token of a download; "" forgets it.
func (t *Tokens) Put(download, token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if token == "" {
		delete(t.of, download)
		return
	}
	if t.of == nil {
		t.of = map[string]string{}
	}
	t.of[download] = token
}

// Get returns the token of a download; "" = the configured one.
func (t *Tokens) Get(download string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[download]
}
