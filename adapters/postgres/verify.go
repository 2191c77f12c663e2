package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// verifyPage is how many events are read at once.
const verifyPage = 2000

// Report says what Verify has looked at and everything that it found wrong.
type Report struct {
	Events, Streams    int
	Archived           int // events whose data was forgotten
	Reservations, Work int
	Head               int64
	Hash               [32]byte // of the last event: written down elsewhere, it proves later that nothing was cut off
	SideTablesCompared bool     // false where archived or unreadable events leave open what reservations and work should be
	Faults             []Fault
}

// OK says that nothing is wrong.
func (r Report) OK() bool { return len(r.Faults) == 0 }

// Fault is one thing that is wrong.
type Fault struct {
	Check    string // chain, position, stream version, digest, time, type, effects, archive, reservation, work, idempotency key, checkpoint
	Position int64  // 0 where no event is to blame
	Stream   string
	Detail   string
}

func (f Fault) String() string {
	switch {
	case f.Position > 0:
		return fmt.Sprintf("%s: event %d of %s: %s", f.Check, f.Position, f.Stream, f.Detail)
	default:
		return fmt.Sprintf("%s: %s", f.Check, f.Detail)
	}
}

// Verify recomputes everything that can be recomputed from the log: the hash chain, gapless positions
// and stream versions, digests, and reservations and work as the fold of the log's effects. It reads
// one snapshot, so appends may go on. progress may be nil; it is called now and then.
func (l *Log) Verify(ctx context.Context, progress func(position, head int64)) (Report, error) {
	v := &verification{registry: l.cfg.Registry, effects: l.cfg.Effects, versions: map[string]int64{}, named: map[event.ID]bool{}, side: newSideTables()}
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		var head int64
		if err := tx.QueryRow(ctx, `select coalesce(max(position), 0) from events`).Scan(&head); err != nil {
			return err
		}
		for {
			page, err := queryEvents(ctx, tx, `where position > $1 order by position limit $2`, v.last.Position, verifyPage)
			if err != nil {
				return err
			}
			for _, r := range page {
				v.event(r)
			}
			if progress != nil {
				progress(v.last.Position, head)
			}
			if len(page) < verifyPage {
				break
			}
		}
		v.archives()
		return v.tables(ctx, tx)
	})
	if err != nil {
		return v.report, fmt.Errorf("verify the log: %w", unavailable(err))
	}
	return v.report, nil
}

type verification struct {
	registry *event.Registry
	effects  eventlog.Effects
	report   Report

	last      event.Recorded
	versions  map[string]int64
	forgotten []event.Recorded  // without data
	named     map[event.ID]bool // by an EventsArchived
	side      sideTables
	unfolded  bool // some events' effects are not known
}

func (v *verification) fault(r event.Recorded, check, format string, args ...any) {
	v.report.Faults = append(v.report.Faults, Fault{Check: check, Position: r.Position, Stream: r.Stream, Detail: fmt.Sprintf(format, args...)})
}

// event checks one event against the one before it. Each is compared with what is stored of its
// neighbour, so that one tampered event is one or two faults and not a fault of all that follow.
func (v *verification) event(r event.Recorded) {
	if r.Position != v.last.Position+1 {
		v.fault(r, "position", "positions %d to %d are missing", v.last.Position+1, r.Position-1)
	}
	if r.PrevHash != v.last.Hash {
		v.fault(r, "chain", "it follows an event with hash %x, but the one before it has %x", r.PrevHash[:8], v.last.Hash[:8])
	}
	if sha := r.ChainHash(); sha != r.Hash {
		v.fault(r, "chain", "its hash is %x, but what is stored gives %x", r.Hash[:8], sha[:8])
	}
	if r.RecordedAt.Before(v.last.RecordedAt) {
		v.fault(r, "time", "it was recorded at %s, before the event before it", r.RecordedAt.Format(time.RFC3339Nano))
	}
	if want := v.versions[r.Stream] + 1; r.Version != want {
		v.fault(r, "stream version", "it is version %d where %d is due", r.Version, want)
	}
	v.versions[r.Stream] = r.Version
	v.last = r
	v.report.Events++
	v.report.Head, v.report.Hash, v.report.Streams = r.Position, r.Hash, len(v.versions)
	if r.Data == nil {
		v.forgotten = append(v.forgotten, r)
		v.unfolded = true
		return
	}
	if sha := sum(r.Data); sha != r.DataSHA256 {
		v.fault(r, "digest", "its data has the digest %x, but %x is recorded", sha[:8], r.DataSHA256[:8])
	}
	data, err := v.registry.Decode(r)
	if err != nil {
		v.fault(r, "type", "%v", err)
		v.unfolded = true
		return
	}
	if archived, ok := data.(eventlog.EventsArchived); ok {
		for _, id := range archived.Events {
			v.named[id] = true
		}
	}
	if v.effects != nil {
		effects, err := v.effects(r.Stream, data)
		if err != nil {
			v.fault(r, "effects", "what it does to reservations and work cannot be told: %v", err)
			v.unfolded = true
			return
		}
		v.side.apply(effects)
	}
}

// archives checks that whatever lost its data was archived by an event that says so.
func (v *verification) archives() {
	v.report.Archived = len(v.forgotten)
	for _, r := range v.forgotten {
		if !v.named[r.ID] {
			v.fault(r, "archive", "its data is gone, but no event says that it was archived")
		}
	}
}

// tables compares what stands beside the log with what the log says.
func (v *verification) tables(ctx context.Context, tx pgx.Tx) error {
	stored, err := readSideTables(ctx, tx)
	if err != nil {
		return err
	}
	v.report.Reservations, v.report.Work = len(stored.reservations), len(stored.work)
	v.report.SideTablesCompared = v.effects != nil && !v.unfolded
	if v.report.SideTablesCompared {
		v.report.Faults = append(v.report.Faults, v.side.differences(stored)...)
	}
	rows, err := tx.Query(ctx, `
select 'idempotency key', format('the request with key %s ended at position %s, which the log does not have', key, position) from idempotency_keys where position > $1
union all
select 'checkpoint', format('%s has read up to position %s, which the log does not have', name, position) from relay_checkpoint where position > $1
order by 1, 2`, v.report.Head)
	if err != nil {
		return err
	}
	faults, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Fault, err error) {
		err = row.Scan(&f.Check, &f.Detail)
		return f, err
	})
	v.report.Faults = append(v.report.Faults, faults...)
	return err
}

// sideTables are reservations and work as plain Go values.
type sideTables struct {
	reservations map[reservation]bool // shared?
	work         map[eventlog.Work]string
}

type reservation struct{ key, holder string }

func newSideTables() sideTables {
	return sideTables{reservations: map[reservation]bool{}, work: map[eventlog.Work]string{}}
}

// apply is the reference of apply_effects for what was accepted.
func (s sideTables) apply(effects []eventlog.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case eventlog.Reserve:
			s.reservations[reservation{e.Key, e.Holder}] = e.Shared
		case eventlog.Release:
			for r := range s.reservations {
				if r.holder == e.Holder {
					delete(s.reservations, r)
				}
			}
		case eventlog.OpenWork:
			for work := e.Work; work.Index == e.Work.Index || work.Index < e.Until; work.Index++ {
				if _, open := s.work[work]; !open {
					s.work[work] = e.Requirement
				}
			}
		case eventlog.CloseWork:
			delete(s.work, e.Work)
		case eventlog.CloseAllWork:
			for w := range s.work {
				if w.Subject == e.Subject {
					delete(s.work, w)
				}
			}
		}
	}
}

// differences lists, in a fixed order, where the stored tables are not what the log says.
func (s sideTables) differences(stored sideTables) []Fault {
	var faults []Fault
	add := func(check, format string, args ...any) {
		faults = append(faults, Fault{Check: check, Detail: fmt.Sprintf(format, args...)})
	}
	for r, shared := range s.reservations {
		if is, ok := stored.reservations[r]; !ok {
			add("reservation", "%s should be reserved for %s, and is not", r.key, r.holder)
		} else if is != shared {
			add("reservation", "%s is reserved for %s, but shared is %t instead of %t", r.key, r.holder, is, shared)
		}
	}
	for r := range stored.reservations {
		if _, ok := s.reservations[r]; !ok {
			add("reservation", "%s is reserved for %s, but no event says so", r.key, r.holder)
		}
	}
	for w, requirement := range s.work {
		if is, ok := stored.work[w]; !ok {
			add("work", "%s should be open, and is not", w)
		} else if is != requirement {
			add("work", "%s requires %q instead of %q", w, is, requirement)
		}
	}
	for w := range stored.work {
		if _, ok := s.work[w]; !ok {
			add("work", "%s is open, but no event says so", w)
		}
	}
	slices.SortFunc(faults, func(a, b Fault) int { return cmp.Or(cmp.Compare(a.Check, b.Check), cmp.Compare(a.Detail, b.Detail)) })
	return faults
}

func readSideTables(ctx context.Context, tx pgx.Tx) (sideTables, error) {
	s := newSideTables()
	var r reservation
	var shared bool
	rows, err := tx.Query(ctx, `select key, holder, shared from reservations`)
	if err != nil {
		return s, err
	}
	if _, err := pgx.ForEachRow(rows, []any{&r.key, &r.holder, &shared}, func() error {
		s.reservations[r] = shared
		return nil
	}); err != nil {
		return s, err
	}
	var w eventlog.Work
	var requirement string
	if rows, err = tx.Query(ctx, `select kind, subject, index, requirement from work`); err != nil {
		return s, err
	}
	_, err = pgx.ForEachRow(rows, []any{&w.Kind, &w.Subject, &w.Index, &requirement}, func() error {
		s.work[w] = requirement
		return nil
	})
	return s, err
}
