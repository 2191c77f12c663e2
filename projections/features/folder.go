package features

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/features/fold"
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
	Owner   string // names this process and no other
	Logger  *slog.Logger
	Poll    time.Duration   // how often to look for work without being woken [500 ms]
	Wake    <-chan struct{} // something may be wanted
	Lease   time.Duration   // how long a fold lives without a heartbeat [30 s]
	Share   float64         // of a running extraction's time that refreshes may take [0.05]
	Workers int             // 0 = one for each core
	Now     func() time.Time
}

// Folder folds what is wanted, one extraction at a time. Any number may run: folds are leased.
type Folder struct {
	cfg    FolderConfig
	schema string
}

// NewFolder returns a folder for version 1 of the projection.
func NewFolder(cfg FolderConfig) *Folder {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Poll <= 0 {
		cfg.Poll = 500 * time.Millisecond
	}
	if cfg.Lease <= 0 {
		cfg.Lease = 30 * time.Second
	}
	if cfg.Share <= 0 {
		cfg.Share = 0.05
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Folder{cfg: cfg, schema: projector.Schema(Projection{})}
}

// Run folds until ctx ends.
func (f *Folder) Run(ctx context.Context) error {
	tick := time.NewTicker(f.cfg.Poll)
	defer tick.Stop()
	for ctx.Err() == nil {
		did, err := f.RunOnce(ctx)
		if err != nil && ctx.Err() == nil {
			f.cfg.Logger.Error("fold", "error", err)
		}
		if did && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-f.cfg.Wake:
		}
	}
	return nil
}

// RunToEnd folds until nothing is wanted. Refreshes of running extractions are left out.
func (f *Folder) RunToEnd(ctx context.Context) error {
	for {
		if did, err := f.RunOnce(ctx); err != nil || !did {
			return err
		}
	}
}

type job struct {
	id            string
	fence         int64
	wanted        int64
	terminal      bool
	sourceKey     string
	trainingID    *string
	externalSAEID *string
	latents       int
	corpusID      *string
	mask          extraction.Mask
	config        extraction.Config
}

const maxFoldAttempts = 5

// claim takes the oldest fold that is due: of an extraction that has ended, at once; of one that runs,
// when folding has taken less than its share of the time.
func (f *Folder) claim(ctx context.Context, tx pgx.Tx) (*job, error) {
	var j job
	var mask, config []byte
	// Nobody is left to say what became of a fold whose process ended every time, so it is said here.
	_, err := tx.Exec(ctx, `update folds set owner = null, expires_at = null, fold_error = coalesce(fold_error,
format('the fold was tried %s times and its process ended each time: it was killed, or ran out of memory', attempts))
where attempts >= $1 and wanted_version > folded_version and owner is not null and expires_at < clock_timestamp()`, maxFoldAttempts)
	if err != nil {
		return nil, err
	}
	err = tx.QueryRow(ctx, `
update folds w set owner = $1, fence = nextval('fold_fence'), expires_at = clock_timestamp() + $2 * interval '1 second', attempts = attempts + 1
from (
    select f.extraction_id from folds f
    where f.wanted_version > f.folded_version
      and (f.owner is null or f.expires_at < clock_timestamp())
      and f.attempts < $4 and (f.retry_at is null or f.retry_at < clock_timestamp())
      and (f.terminal or f.fold_seconds + 1 < $3 * extract(epoch from clock_timestamp() - f.running_since))
    order by f.terminal desc, f.wanted_version limit 1 for update skip locked
) due, extractions e
where w.extraction_id = due.extraction_id and e.extraction_id = w.extraction_id and not e.deleted
returning w.extraction_id, w.fence, w.wanted_version, w.terminal, e.source_key, e.training_id, e.external_sae_id, e.latents, e.corpus_id, e.mask, e.config`,
		f.cfg.Owner, f.cfg.Lease.Seconds(), f.cfg.Share, maxFoldAttempts).
		Scan(&j.id, &j.fence, &j.wanted, &j.terminal, &j.sourceKey, &j.trainingID, &j.externalSAEID, &j.latents, &j.corpusID, &mask, &config)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &j, errors.Join(json.Unmarshal(mask, &j.mask), json.Unmarshal(config, &j.config))
}

// in runs a transaction whose tables are the projection's.
func (f *Folder) in(ctx context.Context, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, f.cfg.Pool, func(tx pgx.Tx) error {
		// The pool's connections give a statement five seconds, which is right for appends; a load takes longer.
		if _, err := tx.Exec(ctx, "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; set local search_path to "+pgx.Identifier{f.schema}.Sanitize()); err != nil {
			return err
		}
		return do(tx)
	})
}

// errFenced says that another folder took over, or that the fold is no longer wanted.
var errFenced = errors.New("the fold's lease was lost")

// RunOnce folds one extraction, if one is due, and reports whether it did.
func (f *Folder) RunOnce(ctx context.Context) (did bool, err error) {
	var j *job
	if err := f.in(ctx, func(tx pgx.Tx) (err error) { j, err = f.claim(ctx, tx); return err }); err != nil {
		return false, fmt.Errorf("claim a fold: %w", err)
	}
	if j == nil {
		return false, f.sweep(ctx)
	}
	started := f.cfg.Now()
	work, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { f.keep(work, j, cancel) })
	err = f.fold(work, j)
	if cause := context.Cause(work); cause != nil && err != nil {
		err = cause
	}
	cancel(nil)
	wg.Wait()
	seconds := f.cfg.Now().Sub(started).Seconds()
	switch {
	case err == nil:
		f.cfg.Logger.Info("folded", "extraction", j.id, "version", j.wanted, "seconds", seconds, "terminal", j.terminal)
	case errors.Is(err, errFenced):
		return true, nil
	case ctx.Err() != nil:
		err = errors.Join(ctx.Err(), f.giveBack(context.WithoutCancel(ctx), j, "", 0))
		return true, err
	default:
		err = errors.Join(fmt.Errorf("fold %s: %w", j.id, err), f.giveBack(ctx, j, err.Error(), seconds))
	}
	return true, errors.Join(err, f.sweep(ctx))
}

// keep renews the lease until ctx ends, and cancels the fold when the lease is lost.
func (f *Folder) keep(ctx context.Context, j *job, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(f.cfg.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := f.in(ctx, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `update folds set expires_at = clock_timestamp() + $3 * interval '1 second' where extraction_id = $1 and fence = $2 and owner is not null`, j.id, j.fence, f.cfg.Lease.Seconds())
			if err == nil && tag.RowsAffected() == 0 {
				err = errFenced
			}
			return err
		})
		if errors.Is(err, errFenced) {
			cancel(errFenced)
			return
		}
	}
}

// giveBack frees the lease; detail, if any, becomes the extraction's fold error, tried again later.
func (f *Folder) giveBack(ctx context.Context, j *job, detail string, seconds float64) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return f.in(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `update folds set owner = null, expires_at = null, fold_error = nullif($3, ''), fold_seconds = fold_seconds + $4,
attempts = case when $3 = '' then greatest(attempts - 1, 0) else attempts end,
retry_at = case when $3 = '' then null else clock_timestamp() + attempts * interval '2 seconds' end
where extraction_id = $1 and fence = $2`, j.id, j.fence, detail, seconds)
		return err
	})
}
