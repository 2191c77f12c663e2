package eventlog

import (
	"errors"
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
)

// ErrUnavailable says that the store could not be reached or did not answer in time; trying again is right.
var ErrUnavailable = errors.New("the event log is not available")

// ConflictError says that a stream is not at the expected version.
type ConflictError struct {
	Stream           string
	Expected, Actual int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("stream %s is at version %d, not %d", e.Stream, e.Actual, e.Expected)
}

// ReservedError says that something is in use.
type ReservedError struct {
	Key    string
	Holder string // the extraction that holds it
}

func (e *ReservedError) Error() string { return fmt.Sprintf("%s is in use by %s", e.Key, e.Holder) }

// FencedError says that a lease was lost: the work was given to another worker, or is done, or was called off.
type FencedError struct{ Fence Fence }

func (e *FencedError) Error() string {
	return fmt.Sprintf("%s no longer holds the lease of %s (fence %d)", e.Fence.Owner, e.Fence.Work, e.Fence.Fence)
}

// IdempotencyError says that an idempotency key cannot be used for this request.
type IdempotencyError struct {
	Key     string
	Running bool // the first request with this key has not been answered yet; otherwise it had another body
}

func (e *IdempotencyError) Error() string {
	if e.Running {
		return fmt.Sprintf("the request with Idempotency-Key %q is still running", e.Key)
	}
	return fmt.Sprintf("Idempotency-Key %q was used for another request", e.Key)
}

// MaxEventBytes bounds data and metadata of one event together.
const MaxEventBytes = 256 << 10

// TooLargeError says that an event is larger than MaxEventBytes.
type TooLargeError struct {
	ID    event.ID
	Type  string
	Bytes int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("event %s (%s) has %d bytes; at most %d are allowed", e.ID, e.Type, e.Bytes, MaxEventBytes)
}

// UnstorableError says that a fact holds what no table can hold.
type UnstorableError struct {
	Type  string
	Field string // where, as in facts.files[2].name
	What  string // the character U+0000 …
}

func (e *UnstorableError) Error() string {
	return fmt.Sprintf("%s would hold %s in %s, which cannot be kept: mend the file, or whatever it comes from", e.Type, e.What, e.Field)
}
