package features

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/featuremill/featuremill/projections/features/fold"
)

// mostOpen is how many artifacts a fold keeps open. Of more, each is opened when it is read, and what is left
// after merging is kept open instead.
const mostOpen = 64

// artifact is a segment's artifact that is open only while it is read, unless it is kept.
type artifact struct {
	open func(context.Context) (fold.Artifact, error)
	kept fold.Artifact

	first, sequences, latents int
	failed                    error // of EachSink, which has none
}

// look reads what must be known of an artifact before it is read.
func (a *artifact) look(ctx context.Context, keep bool) error {
	opened, err := a.open(ctx)
	if err != nil {
		return err
	}
	a.first, a.sequences = opened.Span()
	a.latents = opened.Latents()
	if keep {
		a.kept = opened
		return nil
	}
	return closed(opened)
}

func closed(a fold.Artifact) error {
	if c, ok := a.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// with opens the artifact for as long as it is read.
func (a *artifact) with(ctx context.Context, read func(fold.Artifact) error) error {
	if a.kept != nil {
		return read(a.kept)
	}
	opened, err := a.open(ctx)
	if err != nil {
		return err
	}
	return errors.Join(read(opened), closed(opened))
}

func (a *artifact) Span() (first, sequences int) { return a.first, a.sequences }
func (a *artifact) Latents() int                 { return a.latents }

// Scan implements fold.Artifact.
func (a *artifact) Scan(ctx context.Context, from, to uint32, visit func(latent, sequence []uint32, offset []uint16, activation []float32) error) error {
	if a.failed != nil {
		return a.failed
	}
	return a.with(ctx, func(opened fold.Artifact) error { return opened.Scan(ctx, from, to, visit) })
}

// EachSink implements fold.Artifact. It is called before Scan, which says what went wrong.
func (a *artifact) EachSink(visit func(sequence uint32, offset uint16)) {
	a.failed = a.with(context.Background(), func(opened fold.Artifact) error {
		opened.EachSink(visit)
		return nil
	})
}

// Close closes what was kept.
func (a *artifact) Close() error {
	if a.kept == nil {
		return nil
	}
	return closed(a.kept)
}

// merge merges artifacts that are open only meanwhile.
func (f *Folder) merge(ctx context.Context, run []fold.Artifact) (merged fold.Artifact, err error) {
	opened := make([]fold.Artifact, len(run))
	defer func() {
		for i, a := range run {
			if lazy, ok := a.(*artifact); ok && lazy.kept == nil && opened[i] != nil {
				err = errors.Join(err, closed(opened[i]))
			}
		}
	}()
	for i, a := range run {
		lazy, ok := a.(*artifact)
		switch {
		case !ok:
			opened[i] = a
		case lazy.kept != nil:
			opened[i] = lazy.kept
		default:
			if opened[i], err = lazy.open(ctx); err != nil {
				return nil, fmt.Errorf("open %d artifacts to merge them: %w", len(run), err)
			}
		}
	}
	return f.cfg.Readers.Merge(ctx, opened)
}
