// Package problem is how the domain refuses: a stable code for programs, a sentence for people that
// says what was wrong and what would be right, and the facts to act on. One table in adapters/httpapi
// maps kinds to status codes. Everything may import this package.
package problem

import (
	"errors"
	"fmt"
)

// Kind is what sort of refusal it is.
type Kind string

// The kinds of refusal.
const (
	Invalid     Kind = "invalid"     // the request cannot be right, whenever it is sent
	NotFound    Kind = "not_found"   // what it names is not there
	Conflict    Kind = "conflict"    // it could be right at another time
	Unavailable Kind = "unavailable" // something it needs does not answer; try again
	Stale       Kind = "stale"       // it was based on an older version
	Forbidden   Kind = "forbidden"   // another system does not let this program, or this token, have it
)

// Field is one thing that is wrong with a request.
type Field struct {
	Name   string `json:"name"`
	Detail string `json:"detail"`
}

// Error is a refusal.
type Error struct {
	Kind   Kind
	Code   string         // stable, snake_case
	Detail string         // a sentence or two for people
	Fields []Field        // for Invalid: every field that is wrong
	Facts  map[string]any // machine-readable facts, such as active_extraction_id
	Err    error
}

func (e *Error) Error() string {
	if e.Err != nil && e.Detail == "" {
		return e.Err.Error()
	}
	return e.Detail
}

func (e *Error) Unwrap() error { return e.Err }

// With adds a fact.
func (e *Error) With(key string, value any) *Error {
	if e.Facts == nil {
		e.Facts = map[string]any{}
	}
	e.Facts[key] = value
	return e
}

// New returns a refusal.
func New(kind Kind, code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Code: code, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// InvalidFields returns a refusal that names every field that is wrong.
func InvalidFields(code string, fields ...Field) *Error {
	e := &Error{Kind: Invalid, Code: code, Fields: fields}
	for i, f := range fields {
		if i > 0 {
			e.Detail += "; "
		}
		e.Detail += f.Name + ": " + f.Detail
	}
	return e
}

// Is reports whether err is a refusal with this code.
func Is(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
