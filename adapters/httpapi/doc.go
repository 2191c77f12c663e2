// Package httpapi is the HTTP interface: commands, queries and server-sent events, as
// schema/openapi.yaml says. Requests are checked against that file before a handler sees them, so a
// handler only decodes, calls one command or query, and encodes.
//
// Every error becomes a problem+json by the one table in problem.go. A command's answer waits until
// the read models show it. Without a token only names of this machine are served, and no other
// origin's page can send commands. New starts nothing: what runs belongs to requests, and Close ends
// the event streams among them. Only cmd imports it.
package httpapi
