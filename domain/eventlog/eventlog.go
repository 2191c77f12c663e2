package eventlog

import (
	"context"
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
)

// StreamAppend is what to append to one stream.
type StreamAppend struct {
	Stream   string
	Expected int64 // the version that the stream must have; 0 = it must not exist
	Events   []event.Proposed
}

// StreamVersion names a stream and the version that it must still have.
type StreamVersion struct {
	Stream  string
	Version int64
}

// Idempotency makes a request that is sent twice happen once.
type Idempotency struct {
	Key         string
	Fingerprint [32]byte // digest of the request's method, path and body
	Status      int      // the answer's status, kept for the second request
	Resource    string   // the id of what was made
}

// Fence proves that the sender holds the lease of a work row. Where it is set, the append succeeds
// only while that row still carries this owner and fence.
type Fence struct {
	Work  Work
	Owner string // "" = nobody may hold it
	Fence int64
}

// Request is one append: all of it happens, or nothing.
type Request struct {
	Streams     []StreamAppend
	Unchanged   []StreamVersion // streams that must not have changed, such as the SAE that an extraction starts from
	Idempotency *Idempotency
	Fence       *Fence
}

// Appended says where the events went.
type Appended struct {
	Position int64 // of the last event
	Events   []event.Recorded
	Replayed bool // the events were there already: an earlier attempt had been committed
}

// Log is the authority on what happened.
//
// Append returns *ConflictError, *ReservedError, *FencedError, *IdempotencyError, *TooLargeError or
// an error that wraps ErrUnavailable. Reads return an error that wraps ErrUnavailable.
type Log interface {
	Append(context.Context, Request) (Appended, error)
	ReadStream(ctx context.Context, stream string, after int64) ([]event.Recorded, error)       // versions > after, in order
	ReadAll(ctx context.Context, after int64, limit int) ([]event.Recorded, error)              // positions > after, in order, at most limit
	Head(ctx context.Context) (position int64, hash [32]byte, err error)                        // the last event; 0 and zeros when empty
	FindIdempotent(ctx context.Context, key string) (*Idempotency, int64 /* position */, error) // nil when the key is unknown
	Streams
}

// Work names one thing that is to be done.
type Work struct {
	Kind    string // plan, corpus, segment
	Subject string // the extraction or the corpus
	Index   int    // the segment or chunk; 0 where there is one only
}

func (w Work) String() string { return fmt.Sprintf("%s %s/%d", w.Kind, w.Subject, w.Index) }

// Effect is one change to a side table.
type Effect interface{ effect() }

// Reserve takes Key for Holder. An exclusive key admits one holder; a shared one as many as come,
// but no exclusive one beside them.
type Reserve struct {
	Key    string
	Holder string
	Shared bool
}

// Release gives back everything that Holder holds.
type Release struct{ Holder string }

// OpenWork adds a work row, or one for each index up to Until; one that is there already stays as it is.
type OpenWork struct {
	Work        Work
	Until       int    // the index after the last; 0 = there is one row only
	Requirement string // the compute profile that a worker must have; "" = any worker will do
}

// CloseWork removes a work row.
type CloseWork struct{ Work Work }

// CloseAllWork removes every work row of a subject.
type CloseAllWork struct{ Subject string }

// RefuseIfReserved fails the append when anyone holds Key: what is deleted must not be in use.
type RefuseIfReserved struct{ Key string }

func (Reserve) effect()          {}
func (Release) effect()          {}
func (OpenWork) effect()         {}
func (CloseWork) effect()        {}
func (CloseAllWork) effect()     {}
func (RefuseIfReserved) effect() {}

// Effects says what an event of a stream does to the side tables. It is pure. An event whose effects it
// cannot tell is not appended: nothing may be active that nobody has reserved.
type Effects func(stream string, data event.Data) ([]Effect, error)
