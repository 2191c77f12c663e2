package features

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// partitioned lists the tables of a generation, and the indexes that a loaded partition gets. A sort's index
// holds what its page needs, so that a page deep in the list is read from the index alone.
var partitioned = []struct {
	name    string
	indexes []string
}{
	{"features", []string{
		"create unique index on %[1]s (latent) include (generation, firings)",
		"create index on %[1]s (density desc, latent) include (generation, firings)",
		"create index on %[1]s (activation_frequency desc, latent) include (generation, firings)",
		"create index on %[1]s (max_activation desc, latent) include (generation, firings)",
		"create index on %[1]s (mean_activation desc, latent) include (generation, firings)",
		"create index on %[1]s (sink_share desc, latent) include (generation, firings)",
		"create index on %[1]s (top_token_share desc, latent) include (generation, firings)",
		"create index on %[1]s (firing_documents desc, latent) include (generation, firings)",
		"create index on %[1]s (interpretability_score desc, latent) include (generation, firings)",
	}},
	{"feature_distributions", []string{"create unique index on %[1]s (latent)"}},
	{"feature_tokens", []string{"create unique index on %[1]s (latent, rank)", "create index on %[1]s (token) include (generation, latent, count, share, rate) where count >= 5"}},
	{"feature_activations", []string{"create unique index on %[1]s (latent, kind, rank)"}},
	{"token_features", []string{"create unique index on %[1]s (token)"}},
}

func partition(table string, generation int64) string {
	return fmt.Sprintf("%s_g%d", table, generation)
}

// Statistics are the numbers of a whole extraction, as the fold found them.
type Statistics struct {
	fold.Summary
	Segments int `json:"segments"`
}

// recorded is what an extraction's fold reads.
type recorded struct {
	segments   []segment
	chunks     []Chunk
	vocabulary string // sha256
}

// read returns what is recorded through the wanted version; without a segment there is nothing to fold.
func (f *Folder) read(ctx context.Context, j *job) (r recorded, err error) {
	var vocabulary *string
	err = f.in(ctx, func(tx pgx.Tx) (err error) {
		rows, _ := tx.Query(ctx, `select index, first_sequence, sequences, file_sha256 from segments where extraction_id = $1 and version <= $2 order by index`, j.id, j.wanted)
		if r.segments, err = pgx.CollectRows(rows, pgx.RowToStructByPos[segment]); err != nil || len(r.segments) == 0 {
			return err
		}
		if j.corpusID == nil {
			return errors.New("segments are recorded, but no corpus is planned")
		}
		rows, _ = tx.Query(ctx, `select chunk, sha256 from corpus_chunks where corpus_id = $1 order by chunk`, *j.corpusID)
		if r.chunks, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Chunk]); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `select vocabulary_sha256 from corpora where corpus_id = $1`, *j.corpusID).Scan(&vocabulary)
	})
	if err == nil && len(r.segments) > 0 {
		if vocabulary == nil {
			return r, fmt.Errorf("corpus %s is not ready", *j.corpusID)
		}
		r.vocabulary = *vocabulary
	}
	return r, err
}

// fold makes a new generation of an extraction's tables and makes it current.
func (f *Folder) fold(ctx context.Context, j *job) error {
	r, err := f.read(ctx, j)
	if err != nil {
		return err
	}
	if len(r.segments) == 0 { // it ended before its first segment
		return f.in(ctx, func(tx pgx.Tx) error { return f.finish(ctx, tx, j, nil, nil) })
	}
	var generation int64
	err = f.in(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `update generations set state = 'old' where extraction_id = $1 and state = 'loading'`, j.id); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `insert into generations values (nextval('generation'), $1, 'loading') returning generation`, j.id).Scan(&generation)
	})
	if err != nil {
		return err
	}
	in, closeAll, err := f.open(ctx, j, r.segments, r.chunks, r.vocabulary)
	if err != nil {
		return err
	}
	statistics, err := f.load(ctx, j, in, generation, r.vocabulary)
	if err := errors.Join(err, closeAll()); err != nil {
		return err
	}
	statistics.Segments = len(r.segments)
	return f.in(ctx, func(tx pgx.Tx) error { return f.finish(ctx, tx, j, &generation, statistics) })
}

type segment struct {
	Index, FirstSequence, Sequences int
	FileSHA256                      string
}

func (f *Folder) open(ctx context.Context, j *job, segments []segment, chunks []Chunk, vocabularySHA256 string) (in fold.Input, closeAll func() error, err error) {
	var open []any
	closeAll = func() error {
		var errs []error
		for _, o := range open {
			if c, ok := o.(io.Closer); ok {
				errs = append(errs, c.Close())
			}
		}
		return errors.Join(errs...)
	}
	fail := func(err error) (fold.Input, func() error, error) { return in, nil, errors.Join(err, closeAll()) }
	for _, s := range segments {
		a, err := f.cfg.Readers.Artifact(ctx, j.id, s.Index, s.FileSHA256)
		if err != nil {
			return fail(fmt.Errorf("artifact of segment %d: %w", s.Index, err))
		}
		open = append(open, a)
		in.Artifacts = append(in.Artifacts, a)
	}
	if in.Corpus, err = f.cfg.Readers.Corpus(ctx, *j.corpusID, chunks); err != nil {
		return fail(fmt.Errorf("corpus: %w", err))
	}
	open = append(open, in.Corpus)
	if in.Vocabulary, err = f.cfg.Readers.Vocabulary(ctx, vocabularySHA256); err != nil {
		return fail(fmt.Errorf("vocabulary: %w", err))
	}
	open = append(open, in.Vocabulary)
	in.Latents, in.Merge, in.Options = j.latents, f.cfg.Readers.Merge, f.options(j, in.Vocabulary)
	return in, closeAll, nil
}

func (f *Folder) options(j *job, v fold.Vocabulary) fold.Options {
	c := j.config
	o := fold.DefaultOptions()
	o.SkipFirst, o.TopExamples, o.ExamplesPerInterval, o.NonFiring = c.SkipFirst, c.TopKExamples, c.ExamplesPerInterval, c.NonFiring
	o.Prefix, o.Suffix, o.Seed = c.ContextPrefixTokens, c.ContextSuffixTokens, uint64(c.Seed)
	o.Filters = fold.Filters{Special: c.FilterSpecial, SingleChar: c.FilterSingleChar, Punctuation: c.FilterPunctuation, Numbers: c.FilterNumbers, Fragments: c.FilterFragments, StopWords: c.FilterStopWords}
	o.ExcludeTokens = slices.Concat(c.ExcludeTokenIDs, j.mask.TokenIDs)
	if j.mask.SpecialTokens {
		for id := range int32(v.Len()) {
			if v.Special(id) {
				o.ExcludeTokens = append(o.ExcludeTokens, id)
			}
		}
	}
	if s := j.mask.Seqpos; s != nil {
		o.Seqpos = &fold.Seqpos{Start: s.Start, Stop: s.Stop, Step: 1}
		if s.Step != nil {
			o.Seqpos.Step = *s.Step
		}
	}
	o.Preview, o.Workers = !j.terminal, f.cfg.Workers
	return o
}

// load folds into new tables that no reader sees yet.
func (f *Folder) load(ctx context.Context, j *job, in fold.Input, generation int64, vocabularySHA256 string) (*Statistics, error) {
	loads, ctx := errgroup.WithContext(ctx)
	streams := make([]*rows, len(partitioned))
	for i, t := range partitioned {
		r, w := io.Pipe()
		streams[i] = newRows(w)
		loads.Go(func() error {
			err := f.copyInto(ctx, t.name, partition(t.name, generation), generation, t.indexes, r)
			r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
			return err
		})
	}
	used := map[int]struct{}{}
	searched := map[int32][]int{}
	summary, err := fold.Run(ctx, in, func(l *fold.Latent) error {
		writeLatent(streams, generation, j, l)
		for _, e := range l.Examples {
			used[e.Sequence] = struct{}{}
		}
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
	if loadErr := loads.Wait(); loadErr != nil {
		return nil, loadErr // what broke the pipe says more than the broken pipe
	}
	if err != nil {
		return nil, err
	}
	if err := f.keepVocabulary(context.WithoutCancel(ctx), vocabularySHA256, in.Vocabulary); err != nil {
		return nil, err
	}
	if err := f.keepSequences(context.WithoutCancel(ctx), *j.corpusID, in.Corpus, used); err != nil {
		return nil, err
	}
	return &Statistics{Summary: summary}, nil
}

// copyInto makes a table and loads it in one transaction: so its rows can be frozen at once, which lets
// queries read from indexes alone, and with wal_level = minimal nothing is written twice.
func (f *Folder) copyInto(ctx context.Context, parent, table string, generation int64, indexes []string, r io.Reader) error {
	return f.in(ctx, func(tx pgx.Tx) error {
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
		_, err := tx.Exec(ctx, "analyze "+table)
		return err
	})
}

var kinds = map[fold.Kind]int{fold.Top: 0, fold.IntervalSample: 1, fold.NonFiring: 2}

// writeLatent writes the rows of one latent, in the order of partitioned.
func writeLatent(streams []*rows, generation int64, j *job, l *fold.Latent) {
	training, external := "", ""
	if j.trainingID != nil {
		training = *j.trainingID
	}
	if j.externalSAEID != nil {
		external = *j.externalSAEID
	}
	r := streams[0]
	r.start(18)
	r.int8(generation)
	r.int4(l.Index)
	r.text(training)
	r.text(external)
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

func (f *Folder) keepVocabulary(ctx context.Context, sha256 string, v fold.Vocabulary) error {
	return f.in(ctx, func(tx pgx.Tx) error {
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
func (f *Folder) keepSequences(ctx context.Context, corpusID string, c fold.Corpus, used map[int]struct{}) error {
	if len(used) == 0 {
		return nil
	}
	wanted := make([]int32, 0, len(used))
	for s := range used {
		wanted = append(wanted, int32(s))
	}
	slices.Sort(wanted)
	return f.in(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `select w from unnest($2::int[]) w where not exists (select from corpus_sequences where corpus_id = $1 and sequence = w) order by w`, corpusID, wanted)
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

// finish makes a generation current, in one short transaction, if the lease is still held. Without a
// generation it only notes that there is nothing to fold.
func (f *Folder) finish(ctx context.Context, tx pgx.Tx, j *job, generation *int64, s *Statistics) error {
	var statistics []byte
	alive := 0
	if s != nil {
		var err error
		if statistics, err = json.Marshal(s); err != nil {
			return err
		}
		alive = s.Alive
	}
	tag, err := tx.Exec(ctx, `update folds set folded_version = $3, generation = coalesce($4, generation), statistics = coalesce($5, statistics), features = case when $4::bigint is null then features else $6 end,
folded_at = clock_timestamp(), fold_seconds = fold_seconds + extract(epoch from clock_timestamp() - expires_at + $7 * interval '1 second'), fold_error = null, owner = null, expires_at = null, attempts = 0, retry_at = null
where extraction_id = $1 and fence = $2 and owner is not null`, j.id, j.fence, j.wanted, generation, statistics, alive, f.cfg.Lease.Seconds())
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return errFenced
	}
	if generation == nil {
		return nil
	}
	for _, t := range partitioned {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`alter table %s attach partition %s for values in (%d)`, t.name, partition(t.name, *generation), *generation)); err != nil {
			return err
		}
	}
	_, err = tx.Exec(ctx, `update generations set state = case when generation = $2 then 'current' else 'old' end where extraction_id = $1 and state in ('loading', 'current')`, j.id, *generation)
	return err
}

// sweep drops the tables of generations that nobody reads any more.
func (f *Folder) sweep(ctx context.Context) error {
	var old []int64
	err := f.in(ctx, func(tx pgx.Tx) (err error) {
		rows, _ := tx.Query(ctx, `select generation from generations where state = 'old' order by generation`)
		old, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	if err != nil || len(old) == 0 {
		return err
	}
	return f.cfg.Pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		if _, err := c.Exec(ctx, `set statement_timeout = 0`); err != nil { // detaching waits for readers
			return err
		}
		defer func() { _, _ = c.Exec(context.WithoutCancel(ctx), `reset statement_timeout`) }()
		var locked bool
		if err := c.QueryRow(ctx, `select pg_try_advisory_lock(hashtextextended($1 || ' sweep', 7))`, f.schema).Scan(&locked); err != nil || !locked {
			return err
		}
		defer func() {
			_, _ = c.Exec(context.WithoutCancel(ctx), `select pg_advisory_unlock(hashtextextended($1 || ' sweep', 7))`, f.schema)
		}()
		for _, g := range old {
			for _, t := range partitioned {
				parent, table := pgx.Identifier{f.schema, t.name}.Sanitize(), pgx.Identifier{f.schema, partition(t.name, g)}.Sanitize()
				var attached bool
				err := c.QueryRow(ctx, `select exists (select from pg_inherits where inhrelid = to_regclass($1) and inhparent = to_regclass($2))`, table, parent).Scan(&attached)
				if err != nil {
					return err
				}
				if attached {
					if _, err := c.Exec(ctx, fmt.Sprintf("alter table %s detach partition %s concurrently", parent, table)); err != nil {
						return err
					}
				}
				if _, err := c.Exec(ctx, "drop table if exists "+table); err != nil {
					return err
				}
			}
			if _, err := c.Exec(ctx, fmt.Sprintf("delete from %s where generation = $1", pgx.Identifier{f.schema, "generations"}.Sanitize()), g); err != nil {
				return err
			}
		}
		return nil
	})
}
