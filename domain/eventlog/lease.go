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
	Attempt   int           // 1 for the first claim; a claim that was given back is not counted
	Pauses    int           // times that the work was put off in a row before this claim
	Failures  int           // of those, the ones that were nobody's outage
	Life      time.Duration // from one heartbeat to the end of the lease
	ExpiresAt time.Time     // by the log's clock
	Causes    []Cause       // what became of the attempts before
}

// Held returns the fence that proves the lease in an append.
func (l Lease) Held() *Fence { return &Fence{Work: l.Work, Owner: l.Owner, Fence: l.Fence} }

// Cause says what became of one attempt.
type Cause struct {
	At      time.Time `json:"at"`
	Owner   string    `json:"owner"`
	Attempt int       `json:"attempt"`
	Outcome string    `json:"outcome"` // lost, cut off (its process came back), put off
	Detail  string    `json:"detail"`
}

// Claim says what a worker would do.
type Claim struct {
	Owner        string   // names this process and no other
	Kinds        []string // plan, corpus, segment …
	Last         []string // those of the kinds that are taken only when there is nothing else
	Prefer       []string // subjects that are taken before older work, such as the one whose model is loaded
	Subjects     []string // nil = any subject
	Capabilities []string // requirements that this worker meets; work without a requirement always fits
}

// Pause puts work off that its worker holds.
type Pause struct {
	After   time.Duration // it is not given out earlier
	Cause   string        // why, for people; "" = it went well, and is to go on later: earlier pauses are forgotten
	Failure bool          // the cause is nobody's outage: such work ends after a few of them
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
	Pauses      int
	Failures    int
	ExpiresAt   time.Time
	NotBefore   time.Time // zero = at once
	Causes      []Cause   // the latest last
	Progress    Progress
}

// Lost is work whose process did not come back so often that it is not given out again: what it belongs to has to fail.
type Lost struct {
	Work     Work
	Attempts int
	Fence    int64
	Causes   []Cause
}

// Held returns the fence that proves, in an append, that nobody has been given the work since.
func (l Lost) Held() *Fence { return &Fence{Work: l.Work, Fence: l.Fence} }

// Leases gives out the work that is open.
//
// Claim returns nil when nothing fits. Heartbeat returns *FencedError when the lease was lost: given
// to another worker, done, or called off. Every method may return an error that wraps ErrUnavailable.
//
// An attempt is used up by a claim whose process did not come back. A process is known by more than time:
// while it attends, its end is noticed within two seconds. One that was cut off until its lease had run out, and then
// is heard of again, has used up none, and has its lease still if nobody else was given the work.
type Leases interface {
	// Attend keeps a session for a worker until ctx ends, and opens it again when it breaks. attended is called each
	// time that there is one; claims that are made from then on are known to belong to it.
	Attend(ctx context.Context, owner string, attended func())
	Claim(context.Context, Claim) (*Lease, error)
	Heartbeat(context.Context, Lease, Progress) (expires time.Time, err error)
	ReleaseLease(context.Context, Lease) error     // gives it back undone, without counting an attempt
	PutOff(context.Context, Lease, Pause) error    // gives it back to be done later, without counting an attempt
	Reap(context.Context) ([]Lost, error)          // frees what was lost
	RetryWork(context.Context, Work) (bool, error) // gives it out at once, whatever became of earlier attempts; false = it is held, or not open
	// ListWork returns the open work of a subject, by kind and index; of "", of all subjects, what is held or was tried before.
	ListWork(ctx context.Context, subject string) ([]WorkStatus, error)
}
