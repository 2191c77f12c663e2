package features

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Example is a prime token in its window. Tokens, IDs and Activations are parallel.
type Example struct {
	Kind          string // top, interval, non_firing
	Rank          int
	Interval      int // 0 … 4, or −1
	MaxActivation float32
	SampleIndex   int64 // row of the dataset
	Sequence      int
	Position      int // of the window's first token in the sequence
	Prime         int // index of the prime token in the window
	Collapsed     int // how many documents' strongest examples look the same, this one included
	IDs           []int32
	Tokens        []string // pieces: Ġ, ▁ and ## are kept
	Activations   []float32
}

var kindNames = []string{"top", "interval", "non_firing"}

// Kinds returns the kinds of examples.
func Kinds() []string { return kindNames }

// Distribution is how a latent's firings are distributed.
type Distribution struct {
	Quantiles      []float32 // at 1 5 10 25 50 75 90 95 99 %
	LogBins        []int32   // float32 bits >> 21
	LogCounts      []int64
	LinearCounts   []int64 // 50 bins on (0, max]
	IntervalShares []float64
}

// TokenRow is a token that a latent fires on.
type TokenRow struct {
	ID      int32
	Piece   string
	Special bool
	Count   int64
	Share   float64 // of the latent's firings
	Rate    float64 // of the token's counted occurrences
	Mean    float64
}

// ErrNoLatent says that the SAE has no such latent.
var ErrNoLatent = errors.New("no such latent")

// Feature returns a latent of a generation.
func (q *Queries) Feature(ctx context.Context, g Generation, latent int) (Feature, error) {
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return Feature{}, err
	}
	rows, err := q.pool.Query(ctx, `select `+featureColumns+` from `+g.table("features")+` f
left join feature_labels l on l.source_key = $2 and l.latent = f.latent
where f.generation = $1 and f.latent = $3`, g.Generation, g.Source.Key(), latent)
	if err != nil {
		return Feature{}, replaced(err)
	}
	f, err := pgx.CollectExactlyOneRow(rows, scanFeature(words))
	if errors.Is(err, pgx.ErrNoRows) {
		return f, fmt.Errorf("%w: %d; the SAE has latents 0 to %d", ErrNoLatent, latent, g.Latents-1)
	}
	return f, replaced(err)
}

// Distribution returns how a latent's firings are distributed; a dead latent has an empty one.
func (q *Queries) Distribution(ctx context.Context, g Generation, latent int) (d Distribution, err error) {
	err = q.pool.QueryRow(ctx, `select quantiles, log_bins, log_counts, linear_counts, interval_shares from `+g.table("feature_distributions")+` where generation = $1 and latent = $2`, g.Generation, latent).
		Scan(&d.Quantiles, &d.LogBins, &d.LogCounts, &d.LinearCounts, &d.IntervalShares)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, nil
	}
	return d, replaced(err)
}

// Tokens returns the tokens that a latent fires on, most frequent first.
func (q *Queries) Tokens(ctx context.Context, g Generation, latent, limit int) ([]TokenRow, error) {
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return nil, err
	}
	rows, err := q.pool.Query(ctx, `select token, count, share, rate, mean from `+g.table("feature_tokens")+` where generation = $1 and latent = $2 order by rank limit $3`, g.Generation, latent, limit)
	if err != nil {
		return nil, replaced(err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (t TokenRow, err error) {
		err = row.Scan(&t.ID, &t.Count, &t.Share, &t.Rate, &t.Mean)
		t.Piece, t.Special = words.Piece(t.ID), words.Special(t.ID)
		return t, err
	})
}

// FiringOn returns the latents that fire on a token, given as its piece or as text: by share × rate,
// where they fire on it five times or more.
func (q *Queries) FiringOn(ctx context.Context, g Generation, token string, limit int) ([]Feature, error) {
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return nil, err
	}
	rows, err := q.pool.Query(ctx, `
with best as (select t.latent, max(t.share * t.rate) as score from `+g.table("feature_tokens")+` t
         where t.generation = $1 and t.token = any($3) and t.count >= 5
         group by t.latent order by score desc, t.latent limit $4)
select `+featureColumns+` from best join `+g.table("features")+` f on f.generation = $1 and f.latent = best.latent
left join feature_labels l on l.source_key = $2 and l.latent = f.latent
order by best.score desc, f.latent`, g.Generation, g.Source.Key(), words.spelt(token, "Ġ"+token, "▁"+token), limit)
	if err != nil {
		return nil, replaced(err)
	}
	return pgx.CollectRows(rows, scanFeature(words))
}

const exampleColumns = `a.latent, a.kind, a.rank, a.interval_index, a.max_activation, a.sample_index, a.sequence, a.window_start, a.prime_offset - a.window_start, a.collapsed,
s.token_ids[a.window_start + 1 : a.window_end], a.activations`

func scanExample(v *vocabulary) pgx.RowToFunc[located] {
	return func(row pgx.CollectableRow) (e located, err error) {
		var kind int16
		var activations []*float32
		err = row.Scan(&e.latent, &kind, &e.Rank, &e.Interval, &e.MaxActivation, &e.SampleIndex, &e.Sequence, &e.Position, &e.Prime, &e.Collapsed, &e.IDs, &activations)
		if int(kind) < len(kindNames) {
			e.Kind = kindNames[kind]
		}
		e.Tokens = v.pieces(e.IDs)
		e.Activations = make([]float32, len(activations))
		for i, a := range activations {
			if a != nil {
				e.Activations[i] = *a
			}
		}
		return e, err
	}
}

type located struct {
	Example
	latent int
}

// Examples returns a latent's examples of the given kinds (none = all), strongest top examples first.
func (q *Queries) Examples(ctx context.Context, g Generation, latent, limit int, kinds ...string) ([]Example, error) {
	wanted := []int16{}
	for i, name := range kindNames {
		for _, k := range kinds {
			if k == name {
				wanted = append(wanted, int16(i))
			}
		}
	}
	if len(kinds) == 0 {
		wanted = []int16{0, 1, 2}
	}
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return nil, err
	}
	rows, err := q.pool.Query(ctx, `select `+exampleColumns+` from (select * from `+g.table("feature_activations")+` where generation = $1 and latent = $3 and kind = any($4) order by kind, rank limit $5) a
join corpus_sequences s on s.corpus_id = $2 and s.sequence = a.sequence order by a.kind, a.rank`, g.Generation, g.CorpusID, latent, wanted, limit)
	if err != nil {
		return nil, replaced(err)
	}
	found, err := pgx.CollectRows(rows, scanExample(words))
	out := make([]Example, len(found))
	for i, e := range found {
		out[i] = e.Example
	}
	return out, err
}

// strongest adds to each feature its strongest example, if it has one.
func (q *Queries) strongest(ctx context.Context, g Generation, features []Feature) error {
	latents := make([]int32, len(features))
	at := map[int]int{}
	for i, f := range features {
		latents[i], at[f.Latent] = int32(f.Latent), i
	}
	words, err := q.vocabulary(ctx, g)
	if err != nil {
		return err
	}
	rows, err := q.pool.Query(ctx, `select `+exampleColumns+` from `+g.table("feature_activations")+` a
join corpus_sequences s on s.corpus_id = $2 and s.sequence = a.sequence where a.generation = $1 and a.kind = 0 and a.rank = 0 and a.latent = any($3)`, g.Generation, g.CorpusID, latents)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, scanExample(words))
	for _, e := range found {
		features[at[e.latent]].Example = &e.Example
	}
	return err
}
