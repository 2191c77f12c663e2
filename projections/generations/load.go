package generations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// seedLoading is the seed of the advisory locks that say that a generation is being loaded: they end with the process.
const seedLoading = 9

// Source is what a generation belongs to.
type Source struct {
	Extraction    string
	Key           string
	TrainingID    string // of these two, one is set
	ExternalSAEID string
	CorpusID      string
	VocabularySHA string // sha256
}

// Loading is a generation that nobody sees yet. Close must be called: until then it is not collected.
type Loading struct {
	Generation int64
	Summary    fold.Summary
	lock       *pgx.Conn
}

// Close lets go of a generation: one that was not shown until then is collected.
func (l *Loading) Close(ctx context.Context) error { return l.lock.Close(ctx) }

// Load folds the input into tables that no reader sees yet.
func (s *Store) Load(ctx context.Context, of Source, in fold.Input) (*Loading, error) {
	l, err := s.begin(ctx, of)
	if err != nil {
		return nil, err
	}
	if l.Summary, err = s.load(ctx, of, in, l.Generation); err == nil {
		err = s.keep(context.WithoutCancel(ctx), of, in, l)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(context.WithoutCancel(ctx)))
	}
	return l, nil
}

// begin takes the lock of a new generation before anybody can see that there is one.
func (s *Store) begin(ctx context.Context, of Source) (*Loading, error) {
	cfg := s.pool.Config().ConnConfig
	cfg.RuntimeParams["application_name"] = "featuremill fold"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, Away(err)
	}
	l := &Loading{lock: conn}
	err = conn.QueryRow(ctx, `select nextval('generations.number')`).Scan(&l.Generation)
	if err == nil {
		_, err = conn.Exec(ctx, `select pg_advisory_lock(hashtextextended($1::text, $2))`, fmt.Sprint(l.Generation), seedLoading)
	}
	if err == nil {
		_, err = conn.Exec(ctx, `insert into generations.generations (generation, extraction_id, key, state) values ($1, $2, $3, 'loading')`, l.Generation, of.Extraction, of.Key)
	}
	if err != nil {
		return nil, errors.Join(Away(err), conn.Close(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func (s *Store) load(ctx context.Context, of Source, in fold.Input, generation int64) (fold.Summary, error) {
	loads, ctx := errgroup.WithContext(ctx)
	streams := make([]*rows, len(tables))
	for i, t := range tables {
		r, w := io.Pipe()
		streams[i] = newRows(w)
		loads.Go(func() error {
			err := s.copyInto(ctx, parent(t.name), Table(t.name, generation), generation, t.indexes, r)
			r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
			return err
		})
	}
	searched := map[int32][]int{}
	summary, err := fold.Run(ctx, in, func(l *fold.Latent) error {
		writeLatent(streams, generation, of, l)
		for _, t := range l.Tokens[:min(len(l.Tokens), searchedTokens)] {
			searched[t.ID] = append(searched[t.ID], l.Index)
		}
		for _, s := range streams {
			if s.err != nil {
				return s.err
			}
		}
		return ctx.Err()
	})
	writeSearched(streams[4], generation, searched)
	for _, s := range streams {
		err = errors.Join(err, s.close(err))
	}
	if loadErr := loads.Wait(); loadErr != nil && (err == nil || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, context.Canceled)) {
		return summary, loadErr // what broke a pipe says more than the broken pipe, or than who was called off for it
	}
	return summary, err
}

// copyInto makes a table and loads it in one transaction: so its rows can be frozen at once, which lets
// queries read from indexes alone, and with wal_level = minimal nothing is written twice.
func (s *Store) copyInto(ctx context.Context, parent, table string, generation int64, indexes []string, r io.Reader) error {
	return s.in(ctx, func(tx pgx.Tx) error {
		// Whoever collects it meanwhile, because its loader's connection broke, waits for this transaction or is seen by it.
		var loading bool
		err := tx.QueryRow(ctx, `select true from generations where generation = $1 and state = 'loading' for share`, generation).Scan(&loading)
		if errors.Is(err, pgx.ErrNoRows) {
			return dropped(generation)
		}
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, fmt.Sprintf(`create table %s (like %s including constraints, constraint is_generation check (generation = %d))`, table, parent, generation)); err != nil {
			return err
		}
		if _, err := tx.Conn().PgConn().CopyFrom(ctx, r, fmt.Sprintf("copy %s from stdin (format binary, freeze)", table)); err != nil {
			return fmt.Errorf("load %s: %w", table, err)
		}
		for _, index := range indexes {
			if _, err := tx.Exec(ctx, fmt.Sprintf(index, table)); err != nil {
				return fmt.Errorf("index %s: %w", table, err)
			}
		}
		_, err = tx.Exec(ctx, "analyze "+table)
		return err
	})
}

// keep copies what examples need beside the generation: the vocabulary, and the sequences that they point to.
func (s *Store) keep(ctx context.Context, of Source, in fold.Input, l *Loading) error {
	if err := s.keepVocabulary(ctx, of.VocabularySHA, in.Vocabulary); err != nil {
		return err
	}
	return s.keepSequences(ctx, of.CorpusID, in.Corpus, l.Generation)
}

var kinds = map[fold.Kind]int{fold.Top: 0, fold.IntervalSample: 1, fold.NonFiring: 2}

// writeLatent writes the rows of one latent, in the order of tables.
func writeLatent(streams []*rows, generation int64, of Source, l *fold.Latent) {
	r := streams[0]
	r.start(18)
	r.int8(generation)
	r.int4(l.Index)
	r.text(of.TrainingID)
	r.text(of.ExternalSAEID)
	r.int8(l.Firings)
	r.float8(l.Density)
	if l.Interval == nil {
		r.null()
		r.null()
	} else {
		r.float8(l.Interval.Low)
		r.float8(l.Interval.High)
	}
	r.float8(l.ActivationFrequency)
	r.int8(l.FiringDocuments)
	r.float4(l.Max)
	r.float8(l.Mean)
	r.float8(l.Std)
	r.float8(l.SinkShare)
	r.float8(l.InterpretabilityScore)
	if len(l.Tokens) == 0 {
		r.null()
		r.float8(0)
	} else {
		r.int4(int(l.Tokens[0].ID))
		r.float8(l.Tokens[0].Share)
	}
	r.int4(l.DistinctTokens)
	if l.Dead() {
		return
	}

	r = streams[1]
	r.start(7)
	r.int8(generation)
	r.int4(l.Index)
	done := r.array(oidFloat4, len(l.Quantiles), false)
	for _, q := range l.Quantiles {
		r.float4(q)
	}
	done()
	done = r.array(oidInt4, len(l.LogHistogram), false)
	for _, b := range l.LogHistogram {
		r.int4(int(b.Bin))
	}
	done()
	done = r.array(oidInt8, len(l.LogHistogram), false)
	for _, b := range l.LogHistogram {
		r.int8(b.Count)
	}
	done()
	done = r.array(oidInt8, len(l.LinearHistogram), false)
	for _, n := range l.LinearHistogram {
		r.int8(n)
	}
	done()
	done = r.array(oidFloat8, len(l.IntervalShares), false)
	for _, s := range l.IntervalShares {
		r.float8(s)
	}
	done()

	r = streams[2]
	for rank, t := range l.Tokens {
		r.start(8)
		r.int8(generation)
		r.int4(l.Index)
		r.int4(rank)
		r.int4(int(t.ID))
		r.int8(t.Count)
		r.float8(t.Share)
		r.float8(t.Rate)
		r.float8(t.Mean)
	}

	r = streams[3]
	for _, e := range l.Examples {
		r.start(13)
		r.int8(generation)
		r.int4(l.Index)
		r.int2(kinds[e.Kind])
		r.int2(e.Rank)
		r.int2(e.Interval)
		r.float4(e.Activation)
		r.int8(e.Row)
		r.int4(e.Sequence)
		r.int4(e.Offset)
		r.int4(e.Start)
		r.int4(e.End)
		r.int4(e.Collapsed)
		r.activations(e.Activations)
	}
}

// searchedTokens is how many of a latent's tokens a search by text looks at: those that it fires on most. With
// all of them nearly every latent would be found by nearly every common word.
const searchedTokens = 10

func writeSearched(r *rows, generation int64, searched map[int32][]int) {
	for _, token := range slices.Sorted(maps.Keys(searched)) {
		r.start(3)
		r.int8(generation)
		r.int4(int(token))
		done := r.array(oidInt4, len(searched[token]), false)
		for _, latent := range searched[token] {
			r.int4(latent)
		}
		done()
	}
}

func (s *Store) keepVocabulary(ctx context.Context, sha256 string, v fold.Vocabulary) error {
	return s.in(ctx, func(tx pgx.Tx) error {
		var there bool
		if err := tx.QueryRow(ctx, `select exists (select from vocabulary where vocabulary_sha256 = $1)`, sha256).Scan(&there); err != nil || there {
			return err
		}
		ids, pieces, special := make([]int32, v.Len()), make([]string, v.Len()), make([]bool, v.Len())
		for id := range int32(v.Len()) {
			ids[id], pieces[id], special[id] = id, sqlText(v.Piece(id)), v.Special(id)
		}
		_, err := tx.Exec(ctx, `insert into vocabulary select $1, * from unnest($2::int[], $3::text[], $4::bool[]) on conflict do nothing`, sha256, ids, pieces, special)
		return err
	})
}

// keepSequences copies the sequences that examples point to. They never change, so what is there stays.
func (s *Store) keepSequences(ctx context.Context, corpusID string, c fold.Corpus, generation int64) error {
	return s.in(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, fmt.Sprintf(`select w from (select distinct sequence as w from %s) used where not exists (select from corpus_sequences where corpus_id = $1 and sequence = w) order by w`,
			Table("feature_activations", generation)), corpusID)
		missing, err := pgx.CollectRows(rows, pgx.RowTo[int32])
		if err != nil || len(missing) == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, `create temporary table new_sequences (like corpus_sequences) on commit drop`); err != nil {
			return err
		}
		i := 0
		_, err = tx.CopyFrom(ctx, pgx.Identifier{"new_sequences"}, []string{"corpus_id", "sequence", "token_ids"}, pgx.CopyFromFunc(func() ([]any, error) {
			if i == len(missing) {
				return nil, nil
			}
			var s corpus.Sequence
			s, err := c.Sequence(int(missing[i]))
			i++
			return []any{corpusID, missing[i-1], s.Tokens}, err
		}))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `insert into corpus_sequences select * from new_sequences on conflict do nothing`); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `analyze corpus_sequences`) // until it is known how large it is, examples are joined slowly
		return err
	})
}
