package wiring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/generation"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// NewFolder folds with the store's artifacts.
func NewFolder(l *postgres.Log, store blob.Store) *features.Folder {
	return features.NewFolder(features.FolderConfig{Pool: l.Pool(), Readers: readers{store}})
}

// folds does the folds that are open work, drops what is not shown any more, and has tables folded again that an older
// program has made.
func folds(lc fx.Lifecycle, shut fx.Shutdowner, cfg Config, l *postgres.Log, commands *command.Handler, folder *features.Folder, log *slog.Logger) {
	log = log.With("part", "folder")
	f := &foldJob{log: l, commands: commands, folder: folder, name: process() + "-folder"}
	wake, stop := l.Listen()
	lc.Append(fx.StopHook(stop))
	loop := worker.NewLoop(l, worker.Config{
		Owner: f.name, Jobs: map[string]worker.Job{facts.FoldWork: f}, Wake: wake, Heartbeat: heartbeat(cfg), Logger: log,
		OnFailure: f.fail, OnLost: func(ctx context.Context, lost eventlog.Lost) error {
			return worker.RecordLost(ctx, commands, f.call(lost.Work), lost)
		},
	})
	background(lc, shut, log, "folder", loop.Run)
	background(lc, shut, log, "collector", func(ctx context.Context) error {
		return every(ctx, collectEvery, log, "drop what is not shown any more", func(ctx context.Context) error {
			dropped, err := folder.Collect(ctx)
			if dropped > 0 {
				log.Info("dropped tables that were not shown any more", "generations", dropped)
			}
			return err
		})
	})
	background(lc, shut, log, "outdated tables", func(ctx context.Context) error {
		return every(ctx, time.Minute, log, "look for outdated tables", f.renew)
	})
}

const (
	collectEvery = 10 * time.Second
	mostRenewed  = 20 // folds that are open at once because tables are outdated
	mostOutdated = 1000
	lagPause     = 20 * time.Millisecond
	longestLag   = 5 * time.Second
	quietFold    = 30 * time.Minute // the database loads, indexes, or waits for a lock, and says nothing meanwhile
)

// heartbeat is a third of a lease's life, or its default.
func heartbeat(cfg Config) time.Duration {
	if cfg.LeaseTime == 0 {
		return 0
	}
	return min(time.Second, cfg.LeaseTime/3)
}

// every does something again and again; what goes wrong is told and tried the next time.
func every(ctx context.Context, pause time.Duration, log *slog.Logger, what string, do func(context.Context) error) error {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		if err := do(ctx); err != nil && ctx.Err() == nil {
			log.Warn(what, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// foldJob folds an extraction whose fold is open work.
type foldJob struct {
	log      *postgres.Log
	commands *command.Handler
	folder   *features.Folder
	name     string
}

func (f *foldJob) call(work eventlog.Work) command.Call {
	return command.Call{Metadata: event.Metadata{Actor: "folder " + f.name, CorrelationID: work.Subject}}
}

// folding is what people see of a fold that runs.
type folding struct {
	Stage string `json:"stage"`
}

// Do implements worker.Job.
func (f *foldJob) Do(ctx context.Context, task *worker.Task) error {
	id := task.Lease.Work.Subject
	ctx, moved, stop := worker.Report(ctx, task, quietFold, func() any { return folding{Stage: "folding"} })
	err := f.fold(ctx, task, id, moved)
	if ended := stop(); ended != nil && err != nil {
		return ended
	}
	return err
}

func (f *foldJob) fold(ctx context.Context, task *worker.Task, id string, moved func()) error {
	beat := func() error {
		moved()
		return task.Batch(nil)
	}
	ctx = blob.WithProgress(ctx, func(int64, int64) error { return beat() })
	if err := f.caughtUp(ctx, beat); err != nil {
		return err
	}
	state, _, err := command.Load[generation.State](ctx, f.commands, generation.Stream(id))
	if err != nil {
		return err
	}
	done, err := f.folder.Fold(ctx, id, state.Wanted, beat)
	switch {
	case err != nil:
		return final(err)
	case done.Gone:
		return f.gone(ctx, id)
	case done.Later > 0:
		return worker.Later{After: done.Later}
	case !done.Terminal:
		return worker.Later{After: time.Second} // the share of the run's time says when
	}
	return worker.UntilRecorded(ctx, task, func() error {
		_, err := f.commands.RecordFold(ctx, f.call(task.Lease.Work), task.Lease,
			generation.Folded{Through: done.Through, Key: done.Key, FoldVersion: fold.Version, Segments: done.Segments, Latents: done.Latents, Seconds: done.Seconds})
		return err
	})
}

// gone is the answer where the read model has no row: right of what is deleted.
func (f *foldJob) gone(ctx context.Context, id string) error {
	of, _, err := command.Load[extraction.State](ctx, f.commands, extraction.Stream(id))
	if err != nil || of.Status == extraction.StatusDeleted || of.Status == extraction.Absent {
		return err
	}
	return fmt.Errorf("extraction %s is in the log, and not in the tables of projection features: see `featuremill projections` for the event of it that could not be applied", id)
}

// caughtUp waits until the read model knows what the log knows now.
func (f *foldJob) caughtUp(ctx context.Context, beat func() error) error {
	head, _, err := f.log.Head(ctx)
	if err != nil {
		return err
	}
	for began := time.Now(); ; {
		position, err := f.folder.Position(ctx)
		if err != nil || position >= head {
			return err
		}
		if time.Since(began) > longestLag {
			return worker.Later{After: time.Second}
		}
		if err := beat(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lagPause):
		}
	}
}

// final tells what trying again cannot mend.
func final(err error) error {
	var read *features.ReadError
	switch {
	case errors.As(err, &read) && errors.Is(err, fs.ErrNotExist):
		return &worker.Failure{Code: "artifact_missing", Detail: fmt.Sprintf("%s is not in the store: put it back, and ask for the fold again", read.What), Resumable: true, Err: err}
	case errors.Is(err, fold.ErrInput):
		return &worker.Failure{Code: "fold_input", Detail: err.Error(), Resumable: true, Err: err}
	}
	return err
}

func (f *foldJob) fail(ctx context.Context, lease eventlog.Lease, failure *worker.Failure) error {
	_, err := f.commands.FailFold(ctx, f.call(lease.Work), lease.Held(), failure.Code, failure.Detail)
	return err
}

// renew asks for folds of extractions whose tables an older program has made, or that have none although nothing says
// why. What is open already is not asked for again.
func (f *foldJob) renew(ctx context.Context) error {
	var later worker.Later
	if err := f.caughtUp(ctx, func() error { return nil }); errors.As(err, &later) {
		return nil // who is behind does not know yet what became of earlier folds
	} else if err != nil {
		return err
	}
	ids, err := f.folder.Outdated(ctx, mostOutdated)
	if err != nil {
		return err
	}
	asked := 0
	var refused []error // one that is refused holds up no other
	for _, id := range ids {
		if asked == mostRenewed {
			break
		}
		work, err := f.log.ListWork(ctx, id)
		if err != nil {
			return errors.Join(append(refused, err)...)
		}
		if slices.ContainsFunc(work, func(w eventlog.WorkStatus) bool { return w.Work.Kind == facts.FoldWork }) {
			asked++
			continue
		}
		if _, err := f.commands.RequestFold(ctx, f.call(eventlog.Work{Subject: id}), id, fmt.Sprintf("its tables are not those of version %d of the fold", fold.Version)); err != nil {
			refused = append(refused, fmt.Errorf("have %s folded again: %w", id, err))
			continue
		}
		asked++
	}
	return errors.Join(refused...)
}
