package extractions

import (
	"context"
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
)

// PutOff is open work of an extraction that did not come through at the first attempt.
type PutOff struct {
	Kind      string
	Index     int
	Attempts  int        // of which the process did not come back
	NotBefore *time.Time // nil = at once
	Causes    []eventlog.Cause
}

// mostPutOff bounds what one answer shows: in an outage every worker has a piece that waits.
const mostPutOff = 20

// PutOff returns what waits for another attempt, and why. It is telemetry: it is right at this moment only.
func (q *Queries) PutOff(ctx context.Context, e Extraction) ([]PutOff, error) {
	rows, err := q.pool.Query(ctx, `select kind, index, attempts, case when not_before > clock_timestamp() then not_before end, causes
		from public.work where (subject = $1 or (kind = $2 and subject = $3)) and causes <> '[]'
		order by not_before desc, kind, index limit $4`, e.ID, facts.CorpusWork, e.CorpusID, mostPutOff)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (PutOff, error) {
		var p PutOff
		var causes []byte
		if err := row.Scan(&p.Kind, &p.Index, &p.Attempts, &p.NotBefore, &causes); err != nil {
			return p, err
		}
		return p, json.Unmarshal(causes, &p.Causes)
	})
}
