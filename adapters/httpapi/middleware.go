package httpapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"
)

// request is what middleware finds out about a request.
type request struct {
	trace       string // 32 hexadecimal digits
	traceparent string
	correlation string
	actor       string
	body        []byte
	unknown     []string // keys of the body that the specification does not have
}

type requestKey struct{}

// requestOf returns what is known of a request; of an unknown one nothing.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return &request{}
}

// traceParent is a W3C trace context: version, trace id, parent id, flags.
var traceParent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

// identify gives each request a trace of its own, or goes on with the sender's.
func (s *server) identify(c *gin.Context) {
	r := &request{correlation: word(c.GetHeader("X-Correlation-ID")), actor: word(c.GetHeader("Featuremill-Actor"))}
	span := make([]byte, 8)
	_, _ = rand.Read(span) // crypto/rand never fails on a supported system
	flags := "01"
	if m := traceParent.FindStringSubmatch(c.GetHeader("traceparent")); m != nil && strings.Trim(m[1], "0") != "" {
		r.trace, flags = m[1], c.GetHeader("traceparent")[53:]
	} else {
		id := make([]byte, 16)
		_, _ = rand.Read(id)
		r.trace = hex.EncodeToString(id)
	}
	r.traceparent = "00-" + r.trace + "-" + hex.EncodeToString(span) + "-" + flags
	if r.correlation == "" {
		r.correlation = r.trace
	}
	if r.actor == "" {
		r.actor = "user"
	}
	c.Request = c.Request.WithContext(context.WithValue(c.Request.Context(), requestKey{}, r))
	c.Header("X-Correlation-ID", r.correlation)
	c.Header("X-Content-Type-Options", "nosniff")
	c.Next()
}

// word keeps a header that becomes part of the log short and printable; "" if it is not.
func word(s string) string {
	if len(s) > 200 {
		return ""
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return ""
		}
	}
	return s
}

// observe counts the request and how long it took.
func (s *server) observe(c *gin.Context) {
	started := time.Now()
	c.Next()
	route := c.FullPath()
	if route == "" {
		route = "none"
	}
	s.metrics.requests.WithLabelValues(c.Request.Method, route, strconv.Itoa(c.Writer.Status())).Inc()
	s.metrics.seconds.WithLabelValues(c.Request.Method, route).Observe(time.Since(started).Seconds())
}

// survive turns a panic into an answer that tells nothing of the inside.
func (s *server) survive(c *gin.Context) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(v) //nolint:forbidigo // net/http's own way to break a connection off
		}
		s.metrics.panics.Inc()
		s.Logger.ErrorContext(c, "a handler panicked", "path", c.Request.URL.Path, "trace_id", requestOf(c).trace, "panic", v, "stack", string(debug.Stack()))
		s.fail(c, errors.New("panic"))
	}()
	c.Next()
}

const (
	maxBody  = 1 << 20
	bodyTime = 30 * time.Second // a body has to be here by then
)

// readBody reads the whole body, so that a malformed one is named where it breaks.
func (s *server) readBody(c *gin.Context) {
	if err := text(c); err != nil {
		s.fail(c, err)
		return
	}
	if c.Request.Body == nil || c.Request.Body == http.NoBody {
		return
	}
	rc := http.NewResponseController(c.Writer)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime)) // a recorder in a test has none
	body, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, maxBody))
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		s.fail(c, unreadBody(err))
		return
	}
	if len(body) > 0 {
		if kind, _, err := mime.ParseMediaType(c.ContentType()); c.ContentType() != "" && (err != nil || kind != "application/json") {
			s.fail(c, refuse(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body is said to be %s: send JSON, with Content-Type: application/json", c.ContentType()))
			return
		}
		if err := checkJSON(body); err != nil {
			s.fail(c, err)
			return
		}
		c.Request.Header.Set("Content-Type", "application/json")
	}
	requestOf(c).body = body
	rewind(c)
}

// rewind lets the next reader have the body.
func rewind(c *gin.Context) { c.Request.Body = io.NopCloser(bytes.NewReader(requestOf(c).body)) }

func unreadBody(err error) error {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return err
	}
	return refuse(http.StatusBadRequest, "body_unreadable", "the body did not come whole")
}

// text refuses what PostgreSQL could not keep: paths and queries that are not UTF-8, or hold a NUL.
func text(c *gin.Context) error {
	bad := func(s string) bool { return !utf8.ValidString(s) || strings.ContainsRune(s, 0) }
	if bad(c.Request.URL.Path) {
		return refuse(http.StatusBadRequest, "malformed_path", "the path is not UTF-8 text")
	}
	for key, values := range c.Request.URL.Query() {
		for _, v := range values {
			if bad(key) || bad(v) {
				return refuse(http.StatusBadRequest, "malformed_query", "a parameter of the query is not UTF-8 text")
			}
		}
	}
	return nil
}

// checkJSON says where a body stops being JSON.
func checkJSON(body []byte) error {
	at := func(offset int) (line, column int) {
		before := body[:min(max(offset-1, 0), len(body))]
		return 1 + bytes.Count(before, []byte("\n")), 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	}
	if !utf8.Valid(body) {
		valid := 0
		for rest := body; ; {
			r, size := utf8.DecodeRune(rest)
			if r == utf8.RuneError && size <= 1 {
				break
			}
			valid, rest = valid+size, rest[size:]
		}
		line, column := at(valid + 1)
		return malformed(line, column, valid, "a byte that is not UTF-8")
	}
	var v any
	err := json.Unmarshal(body, &v)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line, column := at(int(syntax.Offset))
		return malformed(line, column, max(int(syntax.Offset)-1, 0), syntax.Error())
	case err != nil: // such as a number that no float64 holds
		return refuse(http.StatusBadRequest, "malformed_json", "the body cannot be read as JSON: %v", err)
	case hasNUL(v):
		return refuse(http.StatusUnprocessableEntity, "invalid_request", `a text in the body holds the character U+0000, which cannot be kept`)
	}
	return nil
}

func malformed(line, column, offset int, what string) error {
	r := refuse(http.StatusBadRequest, "malformed_json", "the body is not JSON: %s, at line %d, column %d (byte %d)", what, line, column, offset)
	_ = r.problem.With("line", line).With("column", column).With("offset", offset)
	return r
}

func hasNUL(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.ContainsRune(v, 0)
	case []any:
		for _, e := range v {
			if hasNUL(e) {
				return true
			}
		}
	case map[string]any:
		for k, e := range v {
			if hasNUL(k) || hasNUL(e) {
				return true
			}
		}
	}
	return false
}
