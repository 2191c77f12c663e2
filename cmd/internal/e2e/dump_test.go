package e2e

import (
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// result is what an extraction came to, without anything that depends on when, where and how often it
// was computed.
type result struct {
	Dump     string   // of the tables
	Contents []string // digests of the segments' rows, in order
}

// dumps list a generation's rows in canonical order, floats as their bits. Without ids, generations,
// times, devices and attempts, which may differ from run to run.
var dumps = []string{
	`select format('feature %s firings %s density %s [%s %s] frequency %s documents %s max %s mean %s std %s sinks %s interpretability %s token %s %s of %s',
  latent, firings, encode(float8send(density), 'hex'), encode(float8send(density_low), 'hex'), encode(float8send(density_high), 'hex'),
  encode(float8send(activation_frequency), 'hex'), firing_documents, encode(float4send(max_activation), 'hex'), encode(float8send(mean_activation), 'hex'),
  encode(float8send(std_activation), 'hex'), encode(float8send(sink_share), 'hex'), encode(float8send(interpretability_score), 'hex'),
  top_token, encode(float8send(top_token_share), 'hex'), distinct_tokens)
from features where generation = $1 order by latent`,
	`select format('distribution %s quantiles %s log %s %s linear %s shares %s', latent,
  (select string_agg(encode(float4send(v), 'hex'), ' ' order by n) from unnest(quantiles) with ordinality q (v, n)), log_bins, log_counts, linear_counts,
  (select string_agg(encode(float8send(v), 'hex'), ' ' order by n) from unnest(interval_shares) with ordinality q (v, n)))
from feature_distributions where generation = $1 order by latent`,
	`select format('token %s %s: %s count %s share %s rate %s mean %s', latent, rank, token, count,
  encode(float8send(share), 'hex'), encode(float8send(rate), 'hex'), encode(float8send(mean), 'hex'))
from feature_tokens where generation = $1 order by latent, rank`,
	`select format('example %s %s %s interval %s max %s row %s sequence %s at %s window %s %s collapsed %s ids %s values %s', latent, kind, rank, interval_index,
  encode(float4send(max_activation), 'hex'), sample_index, a.sequence, prime_offset, window_start, window_end, collapsed,
  s.token_ids[window_start + 1 : window_end],
  (select string_agg(coalesce(encode(float4send(v), 'hex'), '-'), ' ' order by n) from unnest(activations) with ordinality q (v, n)))
from feature_activations a left join corpus_sequences s on s.corpus_id = $2 and s.sequence = a.sequence
where generation = $1 order by latent, kind, rank`,
}

// result reads what an extraction that has ended and is folded came to.
func (s *stack) result(id string) result {
	s.t.Helper()
	state, _, ok := s.load(id)
	require.True(s.t, ok)
	var r result
	for i := range state.Segments() {
		artifact, _ := state.Recorded.Get(i)
		r.Contents = append(r.Contents, artifact.ContentSHA256)
	}
	var generation int64
	var corpus, statistics string
	err := s.pool.QueryRow(s.t.Context(), `select f.generation, e.corpus_id, (f.statistics::jsonb - 'segments')::text
from feature_folds f join feature_extractions e using (extraction_id) where extraction_id = $1`, id).Scan(&generation, &corpus, &statistics)
	require.NoError(s.t, err)
	var b strings.Builder
	for _, sql := range dumps {
		args := []any{generation, corpus}
		if !strings.Contains(sql, "$2") {
			args = args[:1]
		}
		rows, err := s.pool.Query(s.t.Context(), sql, args...)
		require.NoError(s.t, err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(s.t, err)
		require.NotEmpty(s.t, lines)
		for _, l := range lines {
			b.WriteString(l)
			b.WriteByte('\n')
		}
	}
	r.Dump = b.String() + "statistics " + statistics + "\n"
	return r
}
