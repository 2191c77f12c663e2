package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/projections/features"
)

// statuses is the one table from what the domain refuses to what HTTP calls it.
var statuses = map[problem.Kind]int{
	problem.Invalid:     http.StatusUnprocessableEntity,
	problem.NotFound:    http.StatusNotFound,
	problem.Conflict:    http.StatusConflict,
	problem.Unavailable: http.StatusServiceUnavailable,
	problem.Stale:       http.StatusPreconditionFailed,
	problem.Forbidden:   http.StatusForbidden,
}

// refusal is a problem that only HTTP knows.
type refusal struct {
	status  int
	problem *problem.Error
}

func (r *refusal) Error() string { return r.problem.Error() }
func (r *refusal) Unwrap() error { return r.problem }

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status, problem.New(problem.Invalid, code, format, args...)}
}

func errNoRoute(c *gin.Context) error {
	return refuse(http.StatusNotFound, "unknown_path", "there is nothing at %s %s", c.Request.Method, c.Request.URL.Path)
}

func errNoMethod(c *gin.Context) error {
	return refuse(http.StatusMethodNotAllowed, "unknown_method", "%s cannot be used at %s; there is %s", c.Request.Method, c.Request.URL.Path, c.Writer.Header().Get("Allow"))
}

// errUnreadable is a request that passed the specification and still cannot be decoded, such as an integer beyond 64 bits.
func errUnreadable(err error) error {
	var unfit *json.UnmarshalTypeError
	if errors.As(err, &unfit) {
		return problem.InvalidFields("invalid_request", problem.Field{Name: unfit.Field, Detail: fmt.Sprintf("%s is out of range", unfit.Value)})
	}
	return refuse(http.StatusBadRequest, "unreadable_request", "the request cannot be read: %v", err)
}

// explain turns any error into a status and a refusal. Nothing internal is told: that goes to the log.
func explain(err error) (int, *problem.Error) {
	var own *refusal
	var p *problem.Error
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &own):
		return own.status, own.problem
	case errors.As(err, &p):
		if status, ok := statuses[p.Kind]; ok {
			return status, p
		}
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge, problem.New(problem.Invalid, "body_too_large", "the body is larger than %d bytes", large.Limit)
	case errors.Is(err, features.ErrReplaced):
		return http.StatusServiceUnavailable, problem.New(problem.Unavailable, "replaced", "these numbers have just been replaced by newer ones; ask again")
	case errors.Is(err, blob.ErrUnavailable):
		return http.StatusServiceUnavailable, problem.New(problem.Unavailable, "store_unavailable", "the store of files does not answer; try again in a moment")
	case unavailable(err):
		return http.StatusServiceUnavailable, problem.New(problem.Unavailable, "unavailable", "the database does not answer; try again in a moment")
	}
	var tooLarge *eventlog.TooLargeError
	if errors.As(err, &tooLarge) {
		return http.StatusUnprocessableEntity, problem.New(problem.Invalid, "too_large", "this is too much for one fact: %d bytes, at most %d are kept", tooLarge.Bytes, eventlog.MaxEventBytes)
	}
	return http.StatusInternalServerError, problem.New("internal", "internal", "something went wrong in the server; its log has more under this trace_id")
}

// unavailable reports whether trying again is right: the database is away, or overloaded.
func unavailable(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		for _, class := range []string{"08", "53", "57", "58"} { // connection, resources, operator, system
			if strings.HasPrefix(pg.Code, class) {
				return true
			}
		}
		return pg.Code == "40001" || pg.Code == "40P01" || pg.Code == "55P03"
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, puddle.ErrClosedPool) || errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err)
}

// fail answers with a problem, unless an answer has begun.
func (s *server) fail(c *gin.Context, err error) {
	defer c.Abort()
	status, p := explain(err)
	switch {
	case c.Request.Context().Err() != nil:
		// Whoever asked has gone; 499 is what the log shows.
		c.Status(499)
		return
	case status >= http.StatusInternalServerError:
		s.Logger.ErrorContext(c, "request failed", "method", c.Request.Method, "path", c.Request.URL.Path, "status", status, "trace_id", requestOf(c).trace, "error", err)
	}
	if c.Writer.Written() {
		return
	}
	out := api.Problem{
		Type: "/problems/" + p.Code, Title: title(p.Code), Status: status, Detail: p.Error(), Message: p.Error(), Code: p.Code, TraceID: requestOf(c).trace,
		AdditionalProperties: map[string]any{},
	}
	for key, fact := range p.Facts {
		switch key {
		case "active_extraction_id":
			if holder, ok := fact.(string); ok {
				out.ActiveExtractionID = &holder
			}
		case "type", "title", "status", "detail", "message", "code", "trace_id", "errors": // members of every problem
			out.AdditionalProperties["current_"+key] = fact
		default:
			out.AdditionalProperties[key] = fact
		}
	}
	if len(p.Fields) > 0 {
		fields := make([]api.FieldProblem, len(p.Fields))
		for i, f := range p.Fields {
			fields[i] = api.FieldProblem{Name: f.Name, Detail: f.Detail}
		}
		out.Errors = &fields
	}
	if status == http.StatusServiceUnavailable {
		c.Header("Retry-After", "2")
	}
	if status == http.StatusUnauthorized {
		c.Header("WWW-Authenticate", `Bearer realm="featuremill"`)
	}
	body, err := out.MarshalJSON()
	if err != nil {
		body = fmt.Appendf(nil, `{"code":%q,"detail":"the answer cannot be written"}`, p.Code)
	}
	c.Header("Cache-Control", "no-store")
	c.Data(status, "application/problem+json", body)
}

// title is a code in words.
func title(code string) string {
	words := strings.ReplaceAll(code, "_", " ")
	if words == "" {
		return "Problem"
	}
	return strings.ToUpper(words[:1]) + words[1:]
}
