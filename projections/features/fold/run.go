package fold

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
)

const (
	mergeAbove = 64
	mergeRun   = 16

	// rangePostings bounds the postings that all workers together hold.
	rangePostings = 16 << 20
	// smallRange keeps the pages at the borders of a range, which are read twice, a small part of it.
	smallRange = 512 << 10
)

// Run folds the input and calls emit with every latent in ascending order, from one goroutine. A latent
// belongs to emit.
//
// Memory: about 24 bytes for each posting of the ranges in work (16 Mi in all, or the largest single latent for
// each worker), their examples, 13 bytes for each token of a corpus of up to 16 Mi tokens, and of any
// corpus two bits a token and some twenty bytes a sequence.
func Run(ctx context.Context, in Input, emit func(*Latent) error) (Summary, error) {
	o, err := in.Options.effective()
	if err != nil {
		return Summary{}, err
	}
	if in.Latents < 1 || in.Latents > 1<<24 {
		return Summary{}, fmt.Errorf("%w: %d latents", ErrInput, in.Latents)
	}
	l, err := newLedger(in, o)
	if err != nil {
		return Summary{}, err
	}
	f := &folder{options: o, latents: in.Latents, beat: in.heart(), ledger: l, blocks: newBlocks(l, in, o)}
	f.workers = o.Workers
	if f.workers == 0 {
		f.workers = runtime.GOMAXPROCS(0)
	}
	for i, a := range in.Artifacts {
		f.parts = append(f.parts, part{artifact: a, from: i, to: i + 1})
	}
	if f.census, err = f.takeCensus(ctx); err != nil {
		return Summary{}, err
	}
	closeRuns, err := f.merge(ctx, in.Merge)
	if err != nil {
		return Summary{}, errors.Join(err, closeRuns())
	}
	summary, err := f.fold(ctx, emit)
	if err := errors.Join(err, closeRuns()); err != nil {
		return Summary{}, err
	}
	return summary, nil
}

// part is what is read at once: an artifact, or several that were merged, with its spans from … to-1.
type part struct {
	artifact Artifact
	from, to int
}

type folder struct {
	options Options
	beat    func() error
	latents int
	workers int
	ledger  *ledger
	blocks  *blocks
	parts   []part
	census  census
}

// merge replaces the parts by run files where there are too many. The result closes them.
//
// It goes depth first: as soon as there are 16 run files of a level they become one of the next, and are closed. Of
// 65,536 artifacts no more than 16 and 15 run files of each of three levels are open at once.
func (f *folder) merge(ctx context.Context, merge func(context.Context, []Artifact) (Artifact, error)) (closeRuns func() error, err error) {
	m := &merger{merge: merge, beat: f.beat}
	if merge == nil || len(f.parts) <= mergeAbove {
		return m.close, nil
	}
	for from := 0; from < len(f.parts); from += mergeRun {
		run := f.parts[from:min(from+mergeRun, len(f.parts))]
		if len(run) == mergeRun {
			var p part
			if p, err = m.join(ctx, run); err == nil {
				err = m.add(ctx, 0, p)
			}
		} else {
			m.rest = append(m.rest, run...)
		}
		if err != nil {
			return m.close, err
		}
	}
	f.parts = m.parts()
	return m.close, nil
}

type merger struct {
	merge  func(context.Context, []Artifact) (Artifact, error)
	beat   func() error
	levels [][]part // of run files, fewer than mergeRun each, the earlier sequences on the higher levels
	rest   []part   // what is not merged
}

// join writes neighbours as one run file.
func (m *merger) join(ctx context.Context, run []part) (part, error) {
	artifacts := make([]Artifact, len(run))
	for i, p := range run {
		artifacts[i] = p.artifact
	}
	a, err := m.merge(ctx, artifacts)
	if err != nil {
		return part{}, fmt.Errorf("merge artifacts %d … %d: %w", run[0].from, run[len(run)-1].to-1, err)
	}
	return part{artifact: a, from: run[0].from, to: run[len(run)-1].to}, m.beat()
}

// add puts a run file on a level, and makes one of the next level where it is full.
func (m *merger) add(ctx context.Context, level int, p part) error {
	if level == len(m.levels) {
		m.levels = append(m.levels, nil)
	}
	m.levels[level] = append(m.levels[level], p)
	if len(m.levels[level]) < mergeRun {
		return nil
	}
	joined, err := m.join(ctx, m.levels[level])
	if joined.artifact != nil {
		err = errors.Join(err, closeParts(m.levels[level]))
		m.levels[level] = nil
		if added := m.add(ctx, level+1, joined); added != nil {
			err = errors.Join(err, added)
		}
	}
	return err
}

// parts are what is left, in the order of their sequences.
func (m *merger) parts() (out []part) {
	for i := range m.levels {
		out = append(out, m.levels[len(m.levels)-1-i]...)
	}
	return append(out, m.rest...)
}

func (m *merger) close() error {
	var errs []error
	for _, level := range m.levels {
		errs = append(errs, closeParts(level))
	}
	return errors.Join(errs...)
}

func closeParts(parts []part) error {
	var errs []error
	for _, p := range parts {
		if c, ok := p.artifact.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// latentRange is from … to-1.
type latentRange struct{ from, to int }

// ranges cuts the latents so that the postings of a range fit a worker's share.
func (f *folder) ranges() []latentRange {
	limit := int64(f.options.RangePostings)
	if limit == 0 {
		limit = min(max(f.census.total/int64(8*f.workers), smallRange), rangePostings/int64(f.workers))
		if !f.blocks.keep { // the corpus is read for each range
			limit = rangePostings / int64(f.workers)
		}
	}
	o := f.options
	most := max(1, rangeExamples/max(1, o.TopExamples+intervals*o.ExamplesPerInterval+o.NonFiring))
	var ranges []latentRange
	var held int64
	from := 0
	for i, n := range f.census.postings {
		if i > from && (held+n > limit || i-from >= most) {
			ranges = append(ranges, latentRange{from, i})
			from, held = i, 0
		}
		held += n
	}
	return append(ranges, latentRange{from, f.latents})
}

// rangeExamples bounds the examples of a range, which wait to be emitted: some 350 bytes each.
const rangeExamples = 64 << 10

// fold folds the ranges in parallel and emits them in order.
func (f *folder) fold(ctx context.Context, emit func(*Latent) error) (Summary, error) {
	ranges := f.ranges()
	results := make([]chan []*Latent, len(ranges))
	for i := range results {
		results[i] = make(chan []*Latent, 1)
	}
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan int)
	ahead := make(chan struct{}, f.workers+1) // ranges begun and not yet emitted
	group.Go(func() error {
		defer close(work)
		for i := range ranges {
			select {
			case ahead <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case work <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range min(f.workers, len(ranges)) {
		group.Go(func() error {
			w := newWorker(f)
			for i := range work {
				latents, err := w.foldRange(ctx, ranges[i])
				if err != nil {
					return err
				}
				results[i] <- latents
			}
			return nil
		})
	}
	summary := f.census.summary(f)
	group.Go(func() error {
		for _, result := range results {
			var latents []*Latent
			select {
			case latents = <-result:
			case <-ctx.Done():
				return ctx.Err()
			}
			for _, latent := range latents {
				summary.add(latent)
				if err := emit(latent); err != nil {
					return err
				}
			}
			<-ahead
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		return Summary{}, err
	}
	summary.finish()
	return summary, nil
}
