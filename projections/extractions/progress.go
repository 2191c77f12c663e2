package extractions

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/extraction"
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
	Kind        string     `json:"kind"`        // corpus, plan, segment
	Index       int        `json:"index"`       // the chunk or segment
	Requirement string     `json:"requirement"` // the compute profile that a worker must have; "" = any
	Owner       string     `json:"holder"`      // "" = nobody has taken it
	Attempts    int        `json:"attempts"`
	ExpiresAt   *time.Time `json:"expires_at"`
	Telemetry   Telemetry  `json:"-"`
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
	Open            []Work // what somebody works on, and the next that is there to be taken; in the order of kind and index
}

// mostLive and mostHeld bound what is read, however many extractions and workers there are.
const (
	mostLive = 10_000
	mostHeld = 1_000 // of one extraction
)

// openWork is what is open of an extraction j as JSON: the pieces that somebody works on, and the first one of each kind.
// Both are found by their keys, so an extraction with very many open segments costs no more than another.
var openWork = fmt.Sprintf(`(
	select json_agg(json_build_object('kind', w.kind, 'index', w.index, 'requirement', w.requirement, 'attempts', w.attempts, 'expires_at', w.expires_at,
		'holder', case when w.expires_at > clock_timestamp() then coalesce(w.owner, '') else '' end, 'progress', w.progress))
	from (values ('%s', j.corpus_id), ('%s', j.id), ('%s', j.id)) k (kind, subject), lateral (
		(select w.* from public.work w where w.kind = k.kind and w.subject = k.subject and w.owner is not null order by w.index limit %d)
		union all
		(select w.* from public.work w where w.kind = k.kind and w.subject = k.subject order by w.index limit 1)) w)`,
	facts.CorpusWork, facts.PlanWork, facts.SegmentWork, mostHeld)

// Progress returns where an extraction stands. It is telemetry: it is right at this moment only.
func (q *Queries) Progress(ctx context.Context, id string) (Progress, error) {
	e, err := q.Get(ctx, id)
	if err != nil {
		return Progress{}, err
	}
	all, err := q.ProgressOf(ctx, e)
	if err != nil {
		return Progress{}, err
	}
	return all[0], nil
}

// ProgressOf returns where each of these extractions stands, in their order, by one question to the database: by none where
// none of them runs.
func (q *Queries) ProgressOf(ctx context.Context, of ...Extraction) ([]Progress, error) {
	open := map[string][]byte{}
	var ids []string
	var corpora []*string
	for _, e := range of {
		if e.Active() {
			ids, corpora = append(ids, e.ID), append(corpora, e.CorpusID)
		}
	}
	if len(ids) > 0 {
		rows, err := q.pool.Query(ctx, `select j.id, `+openWork+` from unnest($1::text[], $2::text[]) j (id, corpus_id)`, ids, corpora)
		if err != nil {
			return nil, err
		}
		var id string
		var work []byte
		if _, err := pgx.ForEachRow(rows, []any{&id, &work}, func() error { open[id] = slices.Clone(work); return nil }); err != nil {
			return nil, err
		}
	}
	out := make([]Progress, len(of))
	there := q.newSeen()
	for i, e := range of {
		var err error
		if out[i], err = there.progress(ctx, e, open[e.ID]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Live returns where all extractions stand that do not rest, the newest 10,000 of them, by one question to the database.
func (q *Queries) Live(ctx context.Context) ([]Progress, error) {
	rows, err := q.pool.Query(ctx, selectExtraction(`case when j.status in ('queued', 'extracting') then `+openWork+` end as work`)+
		` where `+shown+` = any($1) order by j.created_at desc, j.id desc limit $2`, []string{string(extraction.Queued), string(extraction.Extracting), Finalizing}, mostLive)
	if err != nil {
		return nil, err
	}
	type running struct {
		Extraction
		Work []byte `db:"work"`
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[running])
	if err != nil {
		return nil, err
	}
	out := make([]Progress, len(all))
	there := q.newSeen()
	for i, e := range all {
		if out[i], err = there.progress(ctx, e.Extraction, e.Work); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// seen is which workers are there at one moment: each requirement is asked for once.
type seen struct {
	workers Workers
	there   map[string]bool
}

func (q *Queries) newSeen() *seen { return &seen{workers: q.workers, there: map[string]bool{}} }

// progress is where an extraction with this open work stands.
func (v *seen) progress(ctx context.Context, e Extraction, work []byte) (Progress, error) {
	p := Progress{Extraction: e, TokensDone: e.Tokens, Share: e.RecordedShare()}
	if !e.Active() || len(work) == 0 {
		return p, nil
	}
	var open []struct {
		Work
		Progress json.RawMessage `json:"progress"`
	}
	if err := json.Unmarshal(work, &open); err != nil {
		return p, fmt.Errorf("the open work of extraction %s: %w", e.ID, err)
	}
	for _, w := range open {
		if w.Owner != "" && json.Unmarshal(w.Progress, &w.Telemetry) != nil {
			w.Telemetry = Telemetry{} // not told yet, or by another program
		}
		p.Open = append(p.Open, w.Work)
	}
	slices.SortFunc(p.Open, func(a, b Work) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Index, b.Index)) })
	p.Open = slices.CompactFunc(p.Open, func(a, b Work) bool { return a.Kind == b.Kind && a.Index == b.Index }) // the first one may be held
	if e.SegmentsRecorded >= e.SegmentsPlanned && !e.NeedsPlan {
		return p, nil // the tables are a moment behind the log's work
	}
	p.add()
	return p, v.explainWaiting(ctx, &p)
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
func (v *seen) explainWaiting(ctx context.Context, p *Progress) error {
	if p.Workers > 0 || len(p.Open) == 0 {
		return nil
	}
	next := p.Open[0]
	if v.workers != nil {
		there, known := v.there[next.Requirement]
		if !known {
			var err error
			if there, err = v.workers(ctx, next.Requirement); err != nil {
				return err
			}
			v.there[next.Requirement] = there
		}
		if there {
			return nil // it is about to be taken
		}
	}
	p.Waiting = "waiting for a worker"
	if next.Requirement != "" {
		p.Waiting += ": " + next.Requirement
	}
	return nil
}
