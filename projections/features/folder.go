package features

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/features/fold"
	"github.com/featuremill/featuremill/projections/generations"
	"github.com/featuremill/featuremill/projections/projector"
)

// Readers opens what a fold reads. What they return may be an io.Closer.
type Readers interface {
	Artifact(ctx context.Context, extractionID string, segment int, fileSHA256 string) (fold.Artifact, error)
	Corpus(ctx context.Context, corpusID string, chunks []Chunk) (fold.Corpus, error)
	Vocabulary(ctx context.Context, sha256 string) (fold.Vocabulary, error)
	// Merge writes neighbouring artifacts as one temporary file.
	Merge(ctx context.Context, run []fold.Artifact) (fold.Artifact, error)
}

// Chunk is a stored part of a corpus.
type Chunk struct {
	Index  int
	SHA256 string
}

// FolderConfig says how a Folder works. Pool and Readers are required.
type FolderConfig struct {
	Pool    *pgxpool.Pool
	Readers Readers
	Share   float64       // of a running extraction's time that refreshes may take [0.05]
	Workers int           // 0 = one for each core
	Retain  time.Duration // how long a generation stays that is not shown any more [generations.DefaultRetain]
	Version int           // of the fold [fold.Version]; tests have others
}

// Folder makes an extraction show what is recorded of it. Who folds when is decided by leases, not here; whatever runs
// at the same time, an extraction never goes back to an older fold.
type Folder struct {
	cfg    FolderConfig
	schema string
	store  *generations.Store
}

// NewFolder returns a folder.
func NewFolder(cfg FolderConfig) *Folder {
	if cfg.Share <= 0 {
		cfg.Share = 0.05
	}
	if cfg.Version == 0 {
		cfg.Version = fold.Version
	}
	return &Folder{cfg: cfg, schema: projector.Schema(Projection{}), store: generations.New(cfg.Pool, cfg.Retain)}
}

// job is an extraction as a fold sees it.
type job struct {
	id            string
	wanted        int64
	terminal      bool
	deleted       bool
	since         time.Time
	running       time.Duration // by the database's clock
	sourceKey     string
	trainingID    *string
	externalSAEID *string
	latents       int
	corpusID      *string
	mask          extraction.Mask
	config        extraction.Config
}

// Result says what a fold did.
type Result struct {
	Through  int64 // version of the extraction's stream that the tables show
	Key      string
	Terminal bool // it was the fold of a run that has ended
	Segments int
	Latents  int
	Seconds  float64
	Later    time.Duration // above 0: nothing was to be done yet; it may be after so long
	Gone     bool          // the extraction is deleted, or not known
}

// ReadError says that an artifact, the corpus or the vocabulary cannot be read.
type ReadError struct {
	What string
	Err  error
}

func (e *ReadError) Error() string { return e.What + ": " + e.Err.Error() }
func (e *ReadError) Unwrap() error { return e.Err }

// in runs a transaction whose tables are the projection's.
func (f *Folder) in(ctx context.Context, do func(pgx.Tx) error) error {
	return generations.Away(pgx.BeginFunc(ctx, f.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local search_path to "+pgx.Identifier{f.schema}.Sanitize()); err != nil {
			return err
		}
		return do(tx)
	}))
}

func (f *Folder) job(ctx context.Context, id string) (*job, error) {
	j := &job{id: id}
	err := f.in(ctx, func(tx pgx.Tx) error {
		var mask, config []byte
		var running float64
		err := tx.QueryRow(ctx, `select wanted_version, terminal, deleted, running_since, extract(epoch from clock_timestamp() - running_since), source_key, training_id, external_sae_id, latents, corpus_id, mask, config
from extractions where extraction_id = $1`, id).
			Scan(&j.wanted, &j.terminal, &j.deleted, &j.since, &running, &j.sourceKey, &j.trainingID, &j.externalSAEID, &j.latents, &j.corpusID, &mask, &config)
		if err != nil {
			return err
		}
		j.running = time.Duration(running * float64(time.Second))
		return errors.Join(json.Unmarshal(mask, &j.mask), json.Unmarshal(config, &j.config))
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return j, err
}

// Fold makes an extraction show what is recorded of it: of one that runs, when folding has taken less than its share of
// the run's time. With anew it folds also what is folded already. The projection must know what the caller knows of
// the extraction. beat is called again and again, and its error ends the fold.
func (f *Folder) Fold(ctx context.Context, id string, anew bool, beat func() error) (Result, error) {
	j, err := f.job(ctx, id)
	if err != nil || j == nil || j.deleted {
		return Result{Gone: err == nil}, err
	}
	current, _, err := f.store.Current(ctx, id)
	if err != nil {
		return Result{}, err
	}
	if !current.Since.Equal(j.since) {
		current.Since, current.Seconds = j.since, 0
	}
	if !j.terminal {
		if due := time.Duration((current.Seconds+1)/f.cfg.Share*float64(time.Second)) - j.running; due > 0 {
			return Result{Later: due}, nil
		}
		if j.wanted <= current.Folded {
			return Result{Later: time.Duration(1 / f.cfg.Share * float64(time.Second))}, nil
		}
	}
	r, err := f.read(ctx, j)
	if err != nil {
		return Result{}, err
	}
	started := time.Now()
	next := generations.Current{Extraction: id, Folded: j.wanted, Terminal: j.terminal, FoldVersion: f.cfg.Version, Since: current.Since, Seconds: current.Seconds}
	out := Result{Through: j.wanted, Terminal: j.terminal, Segments: len(r.segments), Latents: j.latents}
	if len(r.segments) > 0 {
		out.Key = f.key(j, r)
		loading, err := f.make(ctx, j, r, out.Key, anew, beat, &next)
		if err != nil {
			return Result{}, err
		}
		if loading != nil {
			defer func() { _ = loading.Close(context.WithoutCancel(ctx)) }()
		}
	}
	out.Seconds = time.Since(started).Seconds()
	next.Seconds += out.Seconds
	if err := beat(); err != nil { // what has taken minutes is not shown for somebody who has lost the work meanwhile
		return Result{}, err
	}
	if _, err := f.store.Switch(ctx, next); err != nil {
		return Result{}, err
	}
	return out, nil
}

// make finds or loads the generation of what is recorded.
func (f *Folder) make(ctx context.Context, j *job, r recorded, key string, anew bool, beat func() error, next *generations.Current) (*generations.Loading, error) {
	if !anew {
		found, ok, err := f.store.Find(ctx, j.id, key)
		if err != nil {
			return nil, err
		}
		if ok {
			current, _, err := f.store.Current(ctx, j.id)
			if err == nil && current.Generation != nil && *current.Generation == found {
				next.Generation, next.Statistics = &found, current.Statistics
				return nil, nil
			} else if err != nil {
				return nil, err
			}
		}
	}
	in, closeAll, err := f.open(ctx, j, r, beat)
	if err != nil {
		return nil, err
	}
	in.Beat = beat
	loading, err := f.store.Load(ctx, f.sourceOf(j, r, key), in)
	if err := errors.Join(err, closeAll()); err != nil {
		if loading != nil {
			err = errors.Join(err, loading.Close(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	next.Generation, next.Statistics = &loading.Generation, &Statistics{Summary: loading.Summary, Segments: len(r.segments)}
	return loading, nil
}

func (f *Folder) sourceOf(j *job, r recorded, key string) generations.Source {
	of := generations.Source{Extraction: j.id, Key: key, CorpusID: *j.corpusID, VocabularySHA: r.vocabulary}
	if j.trainingID != nil {
		of.TrainingID = *j.trainingID
	}
	if j.externalSAEID != nil {
		of.ExternalSAEID = *j.externalSAEID
	}
	return of
}

// key is the digest of everything that a generation depends on.
func (f *Folder) key(j *job, r recorded) string {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode(struct { // writing to a hash cannot fail, and these types can be written
		Version    int
		Terminal   bool
		Segments   []segment
		Corpus     string
		Chunks     []Chunk
		Vocabulary string
		Latents    int
		Mask       extraction.Mask
		Config     extraction.Config
	}{f.cfg.Version, j.terminal, r.segments, *j.corpusID, r.chunks, r.vocabulary, j.latents, j.mask, j.config})
	return hex.EncodeToString(h.Sum(nil))
}

// recorded is what an extraction's fold reads.
type recorded struct {
	segments   []segment
	chunks     []Chunk
	vocabulary string // sha256
}

type segment struct {
	Index, FirstSequence, Sequences int
	FileSHA256                      string
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

func (f *Folder) open(ctx context.Context, j *job, r recorded, beat func() error) (in fold.Input, closeAll func() error, err error) {
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
	for _, s := range r.segments {
		a := &artifact{open: func(ctx context.Context) (fold.Artifact, error) {
			a, err := f.cfg.Readers.Artifact(ctx, j.id, s.Index, s.FileSHA256)
			if err != nil {
				return nil, &ReadError{What: fmt.Sprintf("artifact of segment %d", s.Index), Err: err}
			}
			return a, nil
		}}
		if err := a.look(ctx, len(r.segments) <= mostOpen); err != nil {
			return fail(err)
		}
		open = append(open, a)
		if err := beat(); err != nil {
			return fail(err)
		}
		in.Artifacts = append(in.Artifacts, a)
	}
	if in.Corpus, err = f.cfg.Readers.Corpus(ctx, *j.corpusID, r.chunks); err != nil {
		return fail(&ReadError{What: "corpus", Err: err})
	}
	open = append(open, in.Corpus)
	if in.Vocabulary, err = f.cfg.Readers.Vocabulary(ctx, r.vocabulary); err != nil {
		return fail(&ReadError{What: "vocabulary", Err: err})
	}
	open = append(open, in.Vocabulary)
	in.Latents, in.Merge, in.Options = j.latents, f.merge, f.options(j, in.Vocabulary)
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

// Position returns how far the projection's tables are: what was recorded through it can be folded.
func (f *Folder) Position(ctx context.Context) (position int64, err error) {
	err = f.cfg.Pool.QueryRow(ctx, `select position from projections.projection_checkpoints where projection = $1 and version = $2 and not rebuild`, Projection{}.Name(), Projection{}.Version()).Scan(&position)
	return position, generations.Away(err)
}

// Outdated returns ended extractions that show the fold of an older version, or nothing although nobody says why: at most so many.
func (f *Folder) Outdated(ctx context.Context, most int) (ids []string, err error) {
	err = f.in(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `select e.extraction_id from extractions e left join generations.current c using (extraction_id)
where e.terminal and not e.deleted and not exists (select from fold_failures f where f.extraction_id = e.extraction_id and f.through >= e.wanted_version)
    and (c.extraction_id is null or c.folded_version < e.wanted_version or c.fold_version < $1
        or c.generation is not null and not exists (select from generations.generations g where g.generation = c.generation and g.state = 'ready'))
order by e.requested limit $2`, f.cfg.Version, most)
		ids, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return ids, err
}

// Collect drops the tables of what is not shown any more, those of deleted extractions too, and returns how many
// generations it has dropped.
func (f *Folder) Collect(ctx context.Context) (dropped int, err error) {
	shown, err := f.store.Shown(ctx)
	if err != nil {
		return 0, err
	}
	// That somebody has deleted an extraction must be said by a row: one that is missing may not have come yet.
	var deleted []string
	err = f.in(ctx, func(tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, `select extraction_id from extractions where deleted and extraction_id = any($1)`, shown)
		deleted, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return 0, err
	}
	if len(deleted) > 0 {
		if err := f.store.Retire(ctx, deleted); err != nil {
			return 0, err
		}
	}
	dropped, mine, err := f.store.Collect(ctx)
	if err != nil || !mine {
		return dropped, err
	}
	return dropped, f.forget(ctx)
}

// forget deletes the sequences of corpora, and the vocabularies, of which every extraction is deleted. It does nothing
// while a row is missing of an extraction that shows something: then it is not known yet what is needed.
func (f *Folder) forget(ctx context.Context) error {
	return f.in(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local statement_timeout = 0`); err != nil {
			return err
		}
		var known bool
		err := tx.QueryRow(ctx, `select not exists (select from generations.current c where not exists (select from extractions e where e.extraction_id = c.extraction_id and (e.corpus_id is not null or e.deleted)))`).Scan(&known)
		if err != nil || !known {
			return err
		}
		// One step through the key for each corpus, however many sequences it has.
		_, err = tx.Exec(ctx, `with recursive there (id) as (
    (select corpus_id from generations.corpus_sequences order by corpus_id limit 1)
    union all select (select s.corpus_id from generations.corpus_sequences s where s.corpus_id > t.id order by s.corpus_id limit 1) from there t where t.id is not null
)
delete from generations.corpus_sequences where corpus_id = any(array(select id from there where id is not null
    and not exists (select from extractions e where e.corpus_id = there.id and not e.deleted)))`)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `with recursive there (id) as (
    (select vocabulary_sha256 from generations.vocabulary order by vocabulary_sha256 limit 1)
    union all select (select v.vocabulary_sha256 from generations.vocabulary v where v.vocabulary_sha256 > t.id order by v.vocabulary_sha256 limit 1) from there t where t.id is not null
)
delete from generations.vocabulary where vocabulary_sha256 = any(array(select id from there where id is not null
    and not exists (select from corpora c join extractions e using (corpus_id) where c.vocabulary_sha256 = there.id and not e.deleted)))`)
		return err
	})
}

// RunToEnd folds all ended extractions that are behind, and collects. It asks for no lease: it is for those who are alone.
func (f *Folder) RunToEnd(ctx context.Context) error {
	for {
		ids, err := f.Outdated(ctx, 100)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			_, err := f.Collect(ctx)
			return err
		}
		for _, id := range ids {
			if _, err := f.Fold(ctx, id, false, func() error { return nil }); err != nil {
				return fmt.Errorf("fold %s: %w", id, err)
			}
		}
	}
}
