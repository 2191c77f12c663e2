package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// archiveAttempts bounds the races with other archivers.
const archiveAttempts = 5

// Archive forgets the data of events for good and appends the fact that says so, in one transaction.
// Digests stay, so the chain can still be verified. The registry must know eventlog.EventsArchived.
func (l *Log) Archive(ctx context.Context, ids []event.ID, reason string, m event.Metadata) (eventlog.Appended, error) {
	if len(ids) == 0 {
		return eventlog.Appended{}, errors.New("archive: no events are named")
	}
	known, err := l.query(ctx, `where event_id = any($1::uuid[])`, idStrings(ids))
	if err != nil {
		return eventlog.Appended{}, fmt.Errorf("archive: %w", unavailable(err))
	}
	found := map[event.ID]bool{}
	for _, k := range known {
		found[k.ID] = true
		if k.Type == (eventlog.EventsArchived{}).EventType() {
			return eventlog.Appended{}, fmt.Errorf("archive: event %s says what was archived and has to stay", k.ID)
		}
	}
	for _, id := range ids {
		if !found[id] {
			return eventlog.Appended{}, fmt.Errorf("archive: there is no event %s", id)
		}
	}
	fact := event.Proposed{ID: event.NewID(l.cfg.Now()), Data: eventlog.EventsArchived{Events: ids, Reason: reason}, Metadata: m}
	for attempt := 1; ; attempt++ {
		var version int64
		err := l.pool.QueryRow(ctx, `select coalesce(max(stream_version), 0) from events where stream_id = $1`, eventlog.ArchiveStream).Scan(&version)
		if err != nil {
			return eventlog.Appended{}, fmt.Errorf("archive: %w", unavailable(err))
		}
		done, err := l.append(ctx, eventlog.Request{Streams: []eventlog.StreamAppend{{
			Stream: eventlog.ArchiveStream, Expected: version, Events: []event.Proposed{fact},
		}}}, ids)
		var conflict *eventlog.ConflictError
		if errors.As(err, &conflict) && attempt < archiveAttempts {
			continue
		}
		return done, err
	}
}

func idStrings(ids []event.ID) []string {
	s := make([]string, len(ids))
	for i, id := range ids {
		s[i] = id.String()
	}
	return s
}
