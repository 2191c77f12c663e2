package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

// ModelOf finds the one model that an SAE belongs to; "" = none, or several.
type ModelOf func(context.Context, sae.Facts) (id string, err error)

// Importer does downloads: it fetches what is registered from a hub, and imports it. It needs no libtorch.
type Importer struct {
	commands *command.Handler
	hub      *library.Hub
	tokens   *library.Tokens
	modelOf  ModelOf
	name     string
	quiet    time.Duration
}

// NewImporter returns an importer. The name stands in events.
func NewImporter(commands *command.Handler, hub *library.Hub, tokens *library.Tokens, modelOf ModelOf, name string) *Importer {
	return &Importer{commands: commands, hub: hub, tokens: tokens, modelOf: modelOf, name: name, quiet: quietImport}
}

// Jobs returns the jobs by the kind of work.
func (i *Importer) Jobs() map[string]Job { return map[string]Job{facts.DownloadWork: job(i.download)} }

func (i *Importer) call(work eventlog.Work) command.Call {
	return command.Call{Metadata: event.Metadata{Actor: "importer " + i.name, CorrelationID: work.Subject}}
}

// Fail records why a download ended. It is Config.OnFailure.
func (i *Importer) Fail(ctx context.Context, lease eventlog.Lease, f *Failure) error {
	i.tokens.Put(lease.Work.Subject, "")
	_, err := i.commands.FailDownload(ctx, i.call(lease.Work), lease.Held(), f.Code, f.Detail)
	return err
}

// Lost records that work was lost too often. It is Config.OnLost.
func (i *Importer) Lost(ctx context.Context, lost eventlog.Lost) error {
	return RecordLost(ctx, i.commands, i.call(lost.Work), lost)
}

// Download is what people see of a running download. It is stored with the heartbeat, and is gone with the work.
type Download struct {
	Stage          string   `json:"stage"` // resolving, downloading, importing
	File           string   `json:"file,omitempty"`
	BytesDone      int64    `json:"bytes_done"`
	BytesTotal     int64    `json:"bytes_total"`
	FilesDone      int      `json:"files_done"`
	FilesTotal     int      `json:"files_total"`
	BytesPerSecond float64  `json:"bytes_per_second,omitempty"`
	ETASeconds     *float64 `json:"eta_seconds,omitempty"`
}

// meter turns what the hub tells into what people see.
type meter struct {
	mu      sync.Mutex
	now     Download
	started time.Time // of the first byte that came over the wire
	from    int64     // that were here then
	moved   func()
}

func (m *meter) tell(p library.Progress) {
	m.moved()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.started.IsZero() {
		m.started, m.from = time.Now(), p.Bytes
	}
	m.now = Download{Stage: "downloading", File: p.File, BytesDone: p.Bytes, BytesTotal: p.TotalBytes, FilesDone: p.Files, FilesTotal: p.TotalFiles}
	if s := time.Since(m.started).Seconds(); s > 0.5 && p.Bytes > m.from {
		m.now.BytesPerSecond = float64(p.Bytes-m.from) / s
		eta := float64(p.TotalBytes-p.Bytes) / m.now.BytesPerSecond
		m.now.ETASeconds = &eta
	}
	if p.Files == p.TotalFiles {
		m.now.Stage, m.now.File, m.now.ETASeconds = "importing", "", nil
	}
}

func (m *meter) show() Download {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// beatEvery is how often a download reports. Checking the weights of a large model takes minutes in which nothing is told:
// so it reports, but not for ever: one in which nothing got on for quietImport is left to the watchdog.
const (
	beatEvery   = 300 * time.Millisecond
	quietImport = 30 * time.Minute
)

// download fetches and imports one thing.
func (i *Importer) download(ctx context.Context, task *Task) error {
	m := &meter{now: Download{Stage: "resolving"}}
	ctx, moved, stop := Report(ctx, task, i.quiet, func() any { return m.show() })
	m.moved = moved
	err := i.fetch(blob.WithMoving(ctx, moved), task, m)
	if ended := stop(); ended != nil && err != nil {
		return ended
	}
	return failedDownload(err)
}

// Report reports for a job that has nothing to tell for long, with what show returns: until nothing has moved for quiet,
// then the watchdog decides. Where the job is to end, it cancels the context; stop returns why.
func Report(ctx context.Context, task *Task, quiet time.Duration, show func() any) (reported context.Context, moved func(), stop func() error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var last atomic.Int64 // ticks
	moved = func() { last.Store(ticks()) }
	moved()
	var reporting sync.WaitGroup
	reporting.Go(func() {
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for {
			if time.Duration(ticks()-last.Load()) < quiet {
				if err := task.Batch(show()); err != nil {
					cancel(err)
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return ctx, moved, func() error {
		ended := context.Cause(ctx)
		cancel(nil)
		reporting.Wait()
		return ended
	}
}

func (i *Importer) fetch(ctx context.Context, task *Task, m *meter) error {
	subject := task.Lease.Work.Subject
	kind, id, _ := strings.Cut(subject, "-")
	token := i.tokens.Get(subject)
	call := i.call(task.Lease.Work)
	var record func() error
	switch kind {
	case "model":
		s, _, err := command.Load[model.State](ctx, i.commands, subject)
		if err != nil || s.Download == nil {
			return errors.Join(err, missingRequest(s.Download == nil, subject))
		}
		f, err := i.hub.FetchModel(ctx, token, *s.Download, m.tell)
		if err != nil {
			return err
		}
		record = func() error { _, err := i.commands.RecordModel(ctx, call, task.Lease, id, f); return err }
	case "sae":
		s, _, err := command.Load[sae.State](ctx, i.commands, subject)
		if err != nil || s.Download == nil {
			return errors.Join(err, missingRequest(s.Download == nil, subject))
		}
		f, err := i.hub.FetchSAE(ctx, token, *s.Download, m.tell)
		if err != nil {
			return err
		}
		modelID := s.Download.ModelID
		if modelID == "" {
			if modelID, err = i.modelOf(ctx, f); err != nil {
				return err
			}
		}
		record = func() error { _, err := i.commands.RecordSAE(ctx, call, task.Lease, id, f, modelID); return err }
	default:
		s, _, err := command.Load[dataset.State](ctx, i.commands, subject)
		if err != nil || s.Download == nil {
			return errors.Join(err, missingRequest(s.Download == nil, subject))
		}
		f, err := i.hub.FetchDataset(ctx, token, *s.Download, m.tell)
		if err != nil {
			return err
		}
		record = func() error { _, err := i.commands.RecordDataset(ctx, call, task.Lease, id, f); return err }
	}
	if err := UntilRecorded(ctx, task, record); err != nil {
		return err
	}
	i.tokens.Put(subject, "")
	return nil
}

func missingRequest(missing bool, subject string) error {
	if !missing {
		return nil
	}
	return fmt.Errorf("%s has work, but nobody asked for its download", subject)
}

// failedDownload says why a download cannot be done. Asking again is always possible.
func failedDownload(err error) error {
	var p *problem.Error
	var fenced *eventlog.FencedError
	switch {
	case err == nil, errors.Is(err, ErrLost), errors.Is(err, ErrStopping), errors.As(err, &fenced):
		return err
	case outage(err):
		return err
	case errors.As(err, &p):
		return &Failure{Code: p.Code, Detail: p.Error(), Resumable: true, Err: err}
	}
	return &Failure{Code: "download_failed", Detail: err.Error(), Resumable: true, Err: err}
}
