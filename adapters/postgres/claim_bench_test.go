package postgres_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/domain/eventlog"
)

// BenchmarkClaim claims and gives back among 250,000 open rows of a table that was analysed while it was empty, as on a
// server that has been up for a while: p50 and p95 of a claim in milliseconds, by one claimer and by 16, with and
// without a subject that is preferred.
func BenchmarkClaim(b *testing.B) {
	const rows, each = 250_000, 200
	for b.Loop() {
		log := open(b)
		for _, sql := range []string{
			`insert into work (kind, subject, index) values ('x', 'x', 0)`, `delete from work`, `analyze work`,
			fmt.Sprintf(`insert into work (kind, subject, index, requirement) select 'segment', 's' || i %% 5, i, case when i %% 2 = 0 then 'cpu' else 'cuda' end from generate_series(1, %d) i`, rows),
		} {
			_, err := log.Pool().Exec(b.Context(), sql)
			require.NoError(b, err)
		}
		for _, claimers := range []int{1, 16} {
			for _, prefer := range [][]string{nil, {"s3"}} {
				var mu sync.Mutex
				var took []float64
				var all errgroup.Group
				for i := range claimers {
					all.Go(func() error {
						claim := eventlog.Claim{Owner: fmt.Sprint("w-", i), Kinds: []string{"plan", "corpus", "segment"}, Prefer: prefer, Capabilities: []string{"cpu"}}
						for range each / claimers {
							began := time.Now()
							lease, err := log.Claim(b.Context(), claim)
							ms := float64(time.Since(began)) / 1e6
							if err != nil {
								return err
							}
							if err := log.ReleaseLease(b.Context(), *lease); err != nil {
								return err
							}
							mu.Lock()
							took = append(took, ms)
							mu.Unlock()
						}
						return nil
					})
				}
				require.NoError(b, all.Wait())
				slices.Sort(took)
				name := fmt.Sprintf("%d-claimers", claimers)
				if prefer != nil {
					name += "-preferring"
				}
				b.ReportMetric(took[len(took)/2], name+"-p50-ms")
				b.ReportMetric(took[len(took)*95/100], name+"-p95-ms")
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}
