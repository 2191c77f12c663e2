package httpapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/problem"
)

// call is what a command is told of the request that asks for it.
func (s *server) call(ctx context.Context, key *string, status int) command.Call {
	r := requestOf(ctx)
	call := command.Call{Metadata: event.Metadata{CorrelationID: r.correlation, Actor: r.actor, TraceParent: r.traceparent}}
	if c, ok := ctx.(*gin.Context); ok && key != nil {
		h := sha256.New()
		fmt.Fprintf(h, "%s\n%s\n%s\n", c.Request.Method, c.Request.URL.EscapedPath(), c.Request.URL.RawQuery)
		h.Write(r.body)
		call.Idempotency = &eventlog.Idempotency{Key: *key, Fingerprint: [32]byte(h.Sum(nil)), Status: status}
	}
	return call
}

// part is the call for one of several commands of a request: each happens once.
func part(call command.Call, name string) command.Call {
	if call.Idempotency != nil {
		i := *call.Idempotency
		i.Key += "#" + name
		call.Idempotency = &i
	}
	return call
}

// replayed looks, before long work is done for a command, whether an earlier request did it already.
func (s *server) replayed(ctx context.Context, call command.Call) (command.Result, bool, error) {
	k := call.Idempotency
	if k == nil {
		return command.Result{}, false, nil
	}
	done, position, err := s.Log.FindIdempotent(ctx, k.Key)
	switch {
	case err != nil || done == nil:
		return command.Result{}, false, err
	case done.Fingerprint != k.Fingerprint:
		return command.Result{}, false, problem.New(problem.Invalid, "idempotency_key_reused", "%s", (&eventlog.IdempotencyError{Key: k.Key}).Error())
	}
	return command.Result{ID: done.Resource, Position: position, Replayed: true}, true, nil
}

const positionHeader = "Featuremill-Position"

// shows waits until a read model shows what a command did, and says so in the answer. It reports
// false when the read model is late: then the answer is made from what the command knows.
func (s *server) shows(ctx context.Context, projection string, done command.Result) (bool, error) {
	if done.Position == 0 {
		return true, s.reflects(ctx, projection)
	}
	there, err := s.Positions.WaitFor(ctx, projection, done.Position, s.Wait)
	header(ctx, positionHeader, strconv.FormatInt(done.Position, 10))
	if err != nil && unavailable(err) {
		return false, nil // what was asked for has happened, whatever the tables say
	}
	return there, err
}

// reflects tells which position the following reads show: at least this one, because it is read first.
func (s *server) reflects(ctx context.Context, projection string) error {
	position, err := s.Positions.Position(ctx, projection)
	if err != nil {
		return err
	}
	header(ctx, positionHeader, strconv.FormatInt(position, 10))
	return nil
}

// header sets a header of the answer. Handlers get gin's context as their context.
func header(ctx context.Context, name, value string) {
	if c, ok := ctx.(*gin.Context); ok {
		c.Header(name, value)
	}
}

func etag(ctx context.Context, version int64) {
	header(ctx, "ETag", `"`+strconv.FormatInt(version, 10)+`"`)
}

// expected reads If-Match: the version that must still be the newest, or nil.
func expected(ifMatch *string) (*int64, error) {
	if ifMatch == nil || strings.TrimSpace(*ifMatch) == "*" {
		return nil, nil
	}
	tag := strings.TrimSpace(*ifMatch)
	version, err := strconv.ParseInt(strings.Trim(tag, `"`), 10, 64)
	if err != nil || len(tag) < 3 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return nil, refuse(http.StatusPreconditionFailed, "stale", "If-Match %s is no ETag that was given here: it is a version in quotes, such as %q", tag, `"3"`)
	}
	return &version, nil
}

// warnings names what was ignored; nil if nothing was.
func warnings(ctx context.Context, more ...string) *[]string {
	var out []string
	for _, key := range requestOf(ctx).unknown {
		out = append(out, fmt.Sprintf("%s is not known and was ignored", key))
	}
	out = append(out, more...)
	if len(out) == 0 {
		return nil
	}
	return &out
}

// unset reads a string that may be left out.
func unset(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// or reads a value that may be left out.
func or[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}

// known leaves out what is the zero value.
func known[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// isNotFound reports whether the domain does not know it.
func isNotFound(err error) bool {
	var p *problem.Error
	return errors.As(err, &p) && p.Kind == problem.NotFound
}
