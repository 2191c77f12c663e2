package extractions_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/projections/extractions"
)

// asked keeps the queries that go over a pool.
type asked struct {
	mu      sync.Mutex
	queries []pgx.TraceQueryStartData
}

func (a *asked) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.queries = append(a.queries, q)
	return ctx
}

func (a *asked) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// take returns the queries since the last time.
func (a *asked) take() []pgx.TraceQueryStartData {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := a.queries
	a.queries = nil
	return out
}

// watched are queries on a pool of their own.
func (b *bundle) watched(t *testing.T) (*extractions.Queries, *asked) {
	t.Helper()
	seen := &asked{}
	config := b.pool.Config()
	config.ConnConfig.Tracer = seen
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, pool.Ping(t.Context()))
	seen.take()
	return extractions.NewQueries(pool, nil), seen
}

// crowd records so many extractions, each with this plan, in few appends.
func (b *bundle) crowd(t *testing.T, extractionsThatRun int, p extraction.Planned) {
	t.Helper()
	const together = 100
	for first := 0; first < extractionsThatRun; first += together {
		var r eventlog.Request
		for i := first; i < min(first+together, extractionsThatRun); i++ {
			id := fmt.Sprintf("crowd%d", i)
			s := eventlog.StreamAppend{Stream: extraction.Stream(id)}
			for _, d := range []event.Data{requested(fromSAE(t, fmt.Sprintf("sae_crowd%d", i)), id), extraction.SelfTested{SelfTest: selfTest()}, p} {
				s.Events = append(s.Events, event.Proposed{ID: event.NewID(time.Now()), Data: d})
			}
			r.Streams = append(r.Streams, s)
		}
		_, err := b.log.Append(t.Context(), r)
		require.NoError(t, err)
	}
	b.project(t)
}

func TestHowAThousandExtractionsStandIsOneQuery(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	const n = 1000
	b.crowd(t, n, part(extraction.State{}, 3))
	q, seen := b.watched(t)
	first, second := b.claim(t, "w1", facts.SegmentWork), b.claim(t, "w1", facts.SegmentWork)
	b.tell(t, first, `{"stage":"extracting","tokens_done":640,"tokens_per_second":100,"current_batch":1,"total_batches":2}`)
	b.tell(t, second, `"another program's"`)

	all, err := q.Live(t.Context())
	require.NoError(t, err)
	require.Len(t, seen.take(), 1)
	require.Len(t, all, n)
	works, waits := 0, 0
	for _, p := range all {
		one, err := b.queries.Progress(t.Context(), p.Extraction.ID)
		require.NoError(t, err)
		require.Equal(t, one, p, "what the extraction says when it is asked alone")
		if p.Workers > 0 {
			works++
		}
		if p.Waiting == "waiting for a worker: "+profile().Requirement() {
			waits++
		}
	}
	require.Positive(t, works)
	require.Equal(t, n, works+waits)

	page, err := q.List(t.Context(), extractions.Listing{Limit: n})
	require.NoError(t, err)
	seen.take()
	list, err := q.ProgressOf(t.Context(), page.Items...)
	require.NoError(t, err)
	require.Len(t, seen.take(), 1)
	require.Equal(t, all, list)

	b.record(t, extraction.Stream("rests"), requested(fromSAE(t, "sae_rests"), "rests"), extraction.Cancelled{})
	b.project(t)
	e, err := q.Get(t.Context(), "rests")
	require.NoError(t, err)
	seen.take()
	_, err = q.ProgressOf(t.Context(), e)
	require.NoError(t, err)
	require.Empty(t, seen.take(), "nobody is asked how what rests stands")
}

// However many segments are open, and whatever the statistics say, only the held ones and the next are read.
func TestTheOpenSegmentsOfALargeRunAreNotRead(t *testing.T) {
	t.Parallel()
	b := newBundle(t, facts.Effects)
	_, err := b.pool.Exec(t.Context(), `analyze work`)
	require.NoError(t, err)
	whole := part(extraction.State{}, 1)
	whole.Part.Sequences, whole.Part.SequencesPerSegment = extraction.MaxSegments, 1
	b.crowd(t, 2, whole)
	for range 3 {
		b.claim(t, "w1", facts.SegmentWork)
	}
	q, seen := b.watched(t)
	for _, statistics := range []string{"of an empty table", "of a full one"} {
		all, err := q.Live(t.Context())
		require.NoError(t, err)
		require.Len(t, all, 2)
		open := 0
		for _, p := range all {
			open += len(p.Open)
		}
		require.LessOrEqual(t, open, 3+2)
		asked := seen.take()
		require.Len(t, asked, 1)
		var plan []byte
		require.NoError(t, b.pool.QueryRow(t.Context(), `explain (analyze, format json) `+asked[0].SQL, asked[0].Args...).Scan(&plan))
		var nodes any
		require.NoError(t, json.Unmarshal(plan, &nodes))
		read := rowsRead(nodes, "work")
		require.Positive(t, read)
		require.Less(t, read, 100.0, "statistics %s: %s", statistics, plan)
		_, err = b.pool.Exec(t.Context(), `analyze work`)
		require.NoError(t, err)
	}
}

// rowsRead adds up what a plan has read of a table.
func rowsRead(node any, table string) (sum float64) {
	switch n := node.(type) {
	case []any:
		for _, child := range n {
			sum += rowsRead(child, table)
		}
	case map[string]any:
		if n["Relation Name"] == table {
			number := func(key string) float64 { v, _ := n[key].(float64); return v }
			sum += (number("Actual Rows") + number("Rows Removed by Filter") + number("Rows Removed by Index Recheck")) * number("Actual Loops")
		}
		for key, child := range n {
			if strings.HasPrefix(key, "Plan") {
				sum += rowsRead(child, table)
			}
		}
	}
	return sum
}
