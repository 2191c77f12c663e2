package extractions

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/facts"
)

// Workers reports whether a live worker meets a requirement. nil = nobody knows: then work that
// nobody has taken counts as waiting.
type Workers func(ctx context.Context, requirement string) (bool, error)

// Telemetry is what a worker tells of a piece of work that it does. It is stored in the log's table
// work with the heartbeat, and is gone with the work.
type Telemetry struct {
	Stage           string  `json:"stage"`
	TokensDone      int64   `json:"tokens_done"`
	TokensTotal     int64   `json:"tokens_total"`
	TokensPerSecond float64 `json:"tokens_per_second"`
	Batch           int     `json:"current_batch"`
	Batches         int     `json:"total_batches"`
	BytesDone       int64   `json:"bytes_done"`
	BytesTotal      int64   `json:"bytes_total"`
}

// Work is one open piece of work of an extraction.
type Work struct {
	Kind        string // plan, segment
	Index       int    // the segment
	Requirement string // the compute profile that a worker must have; "" = any
	Owner       string // "" = nobody has taken it
	Attempts    int
	ExpiresAt   *time.Time
	Telemetry   Telemetry
}

// Progress is where an extraction stands at this moment: what is recorded, and what workers say.
type Progress struct {
	Extraction      Extraction
	Share           float64  // 0 to 1; computing only, folding comes after
	TokensDone      int64    // recorded, and in segments that are being computed
	TokensPerSecond *float64 // of all workers together; nil while none says so
	ETASeconds      *float64 // until the last segment is recorded; nil while unknown
	Stage           string   // loading, self-test, tokenising, extracting, …; "" while nobody works
	Segment         *int     // the lowest that is being computed
	Batch, Batches  int      // of that segment
	BytesDone       int64    // that are here of what is fetched from the store; 0 while nothing is
	BytesTotal      int64
	Workers         int    // that work on it
	Waiting         string // "waiting for a worker: {profile}"; "" while somebody works or nothing is to be done
	Open            []Work // in the order of kind and index
}

// maxOpen bounds what is read of an extraction with very many open segments: all that somebody works
// on come first.
const maxOpen = 1000

// Progress returns where an extraction stands. It is telemetry: it is right at this moment only.
func (q *Queries) Progress(ctx context.Context, id string) (Progress, error) {
	e, err := q.Get(ctx, id)
	if err != nil {
		return Progress{}, err
	}
	p := Progress{Extraction: e, TokensDone: e.Tokens, Share: e.RecordedShare()}
	if !e.Active() {
		return p, nil
	}
	if p.Open, err = q.open(ctx, id, e.CorpusID); err != nil {
		return Progress{}, err
	}
	if e.SegmentsRecorded >= e.SegmentsPlanned && !e.NeedsPlan {
		return p, nil // the tables are a moment behind the log's work
	}
	p.add()
	return p, q.explainWaiting(ctx, &p)
}

func (q *Queries) open(ctx context.Context, id string, corpusID *string) ([]Work, error) {
	rows, err := q.pool.Query(ctx, `select kind, index, requirement, case when expires_at > clock_timestamp() then coalesce(owner, '') else '' end as holder, attempts, expires_at, progress
		from public.work where subject = $1 or (kind = $2 and subject = $3)
		order by (owner is not null) desc, kind, index limit $4`, id, facts.CorpusWork, corpusID, maxOpen)
	if err != nil {
		return nil, err
	}
	open, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Work, error) {
		var w Work
		var detail []byte
		if err := row.Scan(&w.Kind, &w.Index, &w.Requirement, &w.Owner, &w.Attempts, &w.ExpiresAt, &detail); err != nil {
			return w, err
		}
		if w.Owner != "" && json.Unmarshal(detail, &w.Telemetry) != nil {
			w.Telemetry = Telemetry{} // not told yet, or by another program
		}
		return w, nil
	})
	slices.SortStableFunc(open, func(a, b Work) int {
		if a.Kind != b.Kind {
			if a.Kind < b.Kind {
				return -1
			}
			return 1
		}
		return a.Index - b.Index
	})
	return open, err
}

// add sums up what the workers say.
func (p *Progress) add() {
	owners := map[string]bool{}
	var speed float64
	for _, w := range p.Open {
		if w.Owner == "" {
			continue
		}
		owners[w.Owner] = true
		if p.Stage == "" || w.Kind == facts.SegmentWork && p.Segment == nil {
			p.Stage = w.Telemetry.Stage
			p.BytesDone, p.BytesTotal = w.Telemetry.BytesDone, w.Telemetry.BytesTotal
		}
		if w.Kind != facts.SegmentWork {
			continue
		}
		if p.Segment == nil {
			index := w.Index
			p.Segment, p.Batch, p.Batches = &index, w.Telemetry.Batch, w.Telemetry.Batches
		}
		p.TokensDone += max(0, w.Telemetry.TokensDone)
		speed += max(0, w.Telemetry.TokensPerSecond)
	}
	p.Workers = len(owners)
	planned := p.Extraction.TokensPlanned
	p.TokensDone = min(p.TokensDone, max(planned, p.Extraction.Tokens))
	p.Share = share(p.TokensDone, planned)
	if speed > 0 {
		p.TokensPerSecond = &speed
		if planned > 0 {
			eta := float64(planned-p.TokensDone) / speed
			p.ETASeconds = &eta
		}
	}
}

// explainWaiting says what kind of worker is missing, if nobody works.
func (q *Queries) explainWaiting(ctx context.Context, p *Progress) error {
	if p.Workers > 0 || len(p.Open) == 0 {
		return nil
	}
	next := p.Open[0]
	if q.workers != nil {
		there, err := q.workers(ctx, next.Requirement)
		if err != nil || there {
			return err // it is about to be taken
		}
	}
	p.Waiting = "waiting for a worker"
	if next.Requirement != "" {
		p.Waiting += ": " + next.Requirement
	}
	return nil
}
