package eventlog

import (
	"context"
	"encoding/json"
	"time"
)

// Lease is the right to do one piece of work until it expires.
type Lease struct {
	Work      Work
	Owner     string
	Fence     int64
	Attempt   int // 1 for the first claim
	ExpiresAt time.Time
}

// Held returns the fence that proves the lease in an append.
func (l Lease) Held() *Fence { return &Fence{Work: l.Work, Owner: l.Owner, Fence: l.Fence} }

// Claim says what a worker would do.
type Claim struct {
	Owner        string   // names this process and no other
	Kinds        []string // plan, corpus, segment …
	Last         []string // those of the kinds that are taken only when there is nothing else
	Prefer       []string // subjects that are taken before older work, such as the one whose model is loaded
	Subjects     []string // nil = any subject
	Capabilities []string // requirements that this worker meets; work without a requirement always fits
}

// Progress is what a heartbeat tells. It is telemetry, not history.
type Progress struct {
	Batches   int64           // grows with every batch, or whatever else shows that work gets on; a lease whose counter stands still counts as lost
	BatchTime time.Duration   // of the latest batch; 0 = not known yet
	Detail    json.RawMessage // for people: tokens a second, current sequence …; nil = none
}

// WorkStatus is a work row as it stands.
type WorkStatus struct {
	Work        Work
	Requirement string
	Owner       string // "" = nobody holds it
	Attempts    int    // claims that were not given back
	ExpiresAt   time.Time
	Progress    Progress
}

// Lost is work whose lease was lost so often that it is not given out again: what it belongs to has to fail.
type Lost struct {
	Work     Work
	Attempts int
}

// Leases gives out the work that is open.
//
// Claim returns nil when nothing fits. Heartbeat returns *FencedError when the lease was lost: given
// to another worker, done, or called off. Every method may return an error that wraps ErrUnavailable.
type Leases interface {
	Claim(context.Context, Claim) (*Lease, error)
	Heartbeat(context.Context, Lease, Progress) (expires time.Time, err error)
	ReleaseLease(context.Context, Lease) error // gives it back undone, without counting an attempt
	Reap(context.Context) ([]Lost, error)      // frees what expired or stands still
	ListWork(ctx context.Context, subject string) ([]WorkStatus, error)
}
