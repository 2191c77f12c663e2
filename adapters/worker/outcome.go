package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/problem"
)

// Failure says that the work cannot be done, by anyone or by this worker.
type Failure struct {
	Code      string
	Detail    string
	Resumable bool
	Err       error
}

func (f *Failure) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %s: %v", f.Code, f.Detail, f.Err)
	}
	return f.Code + ": " + f.Detail
}

func (f *Failure) Unwrap() error { return f.Err }

// Later says that the work went well, and is to go on after a while.
type Later struct{ After time.Duration }

func (l Later) Error() string { return fmt.Sprintf("it goes on in %s", l.After) }

// ErrStopping says that the process was asked to stop: the lease is given back.
var ErrStopping = errors.New("the worker is stopping")

// ErrLost says that the lease is no longer held: the work was called off, or given to another worker.
var ErrLost = errors.New("the lease was lost")

// Pauses between attempts: 1 s, 2 s, 4 s … up to a minute.
const (
	firstPause   = time.Second
	longestPause = time.Minute
	mostFailures = 3 // of a kind that nobody knows, until the work is given up
)

func pause(before int) time.Duration {
	if before > 6 {
		return longestPause
	}
	return min(firstPause<<before, longestPause)
}

// outage reports whether an error is the state of the log, the store, the hub or the disk, and not the work's fault: it
// is tried again for as long as that lasts.
func outage(err error) bool {
	return errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, blob.ErrUnavailable) ||
		problem.Is(err, "hub_unavailable") || problem.Is(err, "hub_rate_limited") || diskFull(err)
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || problem.Is(err, "hub_disk_full")
}

// over reports whether an append was refused because what the work belongs to has ended, or somebody else has the work.
func over(err error) bool {
	var fenced *eventlog.FencedError
	return errors.As(err, &fenced) || problem.Is(err, "wrong_status") || problem.Is(err, "extraction_not_found")
}

// stopped reports whether work ended because it was called off, not because it failed.
func stopped(err error) bool {
	return errors.Is(err, ErrStopping) || errors.Is(err, ErrLost) || errors.Is(err, context.Canceled)
}

// putOff says when work that ended with an error is tried again; nil = it was tried often enough.
func putOff(lease eventlog.Lease, err error) *eventlog.Pause {
	p := eventlog.Pause{After: pause(lease.Pauses), Cause: err.Error(), Failure: !outage(err)}
	switch {
	case p.Failure && lease.Failures+1 >= mostFailures:
		return nil
	case diskFull(err):
		p.Cause = "the disk is full: make room, and it goes on by itself: " + p.Cause
	}
	return &p
}

// told says, for people, how the latest attempts were lost.
func told(causes []eventlog.Cause) string {
	lost := slices.DeleteFunc(slices.Clone(causes), func(c eventlog.Cause) bool { return c.Outcome != "lost" })
	var out []string
	for _, c := range lost[max(0, len(lost)-3):] {
		out = append(out, fmt.Sprintf("%s (attempt %d, %s): %s", c.Owner, c.Attempt, c.At.Format(time.RFC3339), c.Detail))
	}
	return strings.Join(out, "; ")
}
