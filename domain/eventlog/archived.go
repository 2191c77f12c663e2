package eventlog

import "github.com/featuremill/featuremill/domain/event"

// ArchiveStream is the stream of the facts that say what was archived.
const ArchiveStream = "log-archive"

// EventsArchived is the fact that the data of these events was forgotten. Their digests stay, so the
// chain can still be verified.
type EventsArchived struct {
	Events []event.ID `json:"events"`
	Reason string     `json:"reason"`
}

// EventType names the fact.
func (EventsArchived) EventType() string { return "EventsArchived" }

// Register adds the facts of the log itself.
func Register(r *event.Registry) error { return event.Register[EventsArchived](r, 1, nil) }
