// Package hubtest is a server that speaks the hub's protocol for tests: a host with the API and small
// files, and another one, as a content network is, that large files are redirected to. It can cut
// connections, refuse, hold, and tell lies. It is a real HTTP server on this machine; only tests import it.
package hubtest
