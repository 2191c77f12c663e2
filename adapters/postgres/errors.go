package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// The SQLSTATE codes that append_events raises. Their facts are JSON in DETAIL.
const (
	codeConflict    = "FM001"
	codeReserved    = "FM002"
	codeFenced      = "FM003"
	codeIdempotency = "FM004"
)

// refusal turns an error of append_events into the port's error.
func refusal(err error, r eventlog.Request) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return unavailable(err)
	}
	var facts struct {
		Stream           string
		Expected, Actual int64
		Key, Holder      string
		Running          bool
	}
	if strings.HasPrefix(pg.Code, "FM") && pg.Detail != "" {
		if jsonErr := json.Unmarshal([]byte(pg.Detail), &facts); jsonErr != nil {
			return fmt.Errorf("%w, whose facts cannot be read: %w", err, jsonErr)
		}
	}
	switch {
	case pg.Code == codeConflict:
		return &eventlog.ConflictError{Stream: facts.Stream, Expected: facts.Expected, Actual: facts.Actual}
	case pg.Code == codeReserved:
		return &eventlog.ReservedError{Key: facts.Key, Holder: facts.Holder}
	case pg.Code == codeFenced && r.Fence != nil:
		return &eventlog.FencedError{Fence: *r.Fence}
	case pg.Code == codeIdempotency && r.Idempotency != nil:
		return &eventlog.IdempotencyError{Key: r.Idempotency.Key, Running: facts.Running}
	}
	return unavailable(err)
}

// storable is a text as PostgreSQL can hold it.
func storable(text string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", "␀"), "\uFFFD")
}

// unavailable wraps what may pass when it is tried again in eventlog.ErrUnavailable, and leaves the rest alone.
func unavailable(err error) error {
	if err == nil || errors.Is(err, eventlog.ErrUnavailable) {
		return err
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && !passing(pg.Code) {
		return err
	}
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) || errors.Is(err, context.Canceled) {
		return err
	}
	// What is no answer of the server's is a connection that failed, or a deadline.
	return fmt.Errorf("%w: %w", eventlog.ErrUnavailable, err)
}

// passing says whether a SQLSTATE is the server's state and not the statement's fault.
func passing(code string) bool {
	switch code {
	case "40001", "40P01", // serialisation failure, deadlock
		"55P03",          // lock_timeout
		"25P03", "25P04": // idle_in_transaction, transaction timeout
		return true
	}
	for _, class := range []string{"08", "53", "57", "58"} { // connection, resources, operator, system
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}

// outcomeUnknown says whether an append may have been committed although its answer is an error:
// the connection broke, or the server ended it.
func outcomeUnknown(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "57P") || pg.Code == "40001" || pg.Code == "40P01"
	}
	return true
}
