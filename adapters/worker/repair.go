package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/extraction"
)

// LostArtifact is a recorded artifact that the store does not have as it was recorded.
type LostArtifact struct {
	Segment  int
	Artifact extraction.Artifact
	Why      string
}

// LostArtifacts reads every recorded artifact of an extraction and compares its digest.
func LostArtifacts(ctx context.Context, store blob.Store, commands *command.Handler, id string) ([]LostArtifact, error) {
	state, _, err := command.Load[extraction.State](ctx, commands, extraction.Stream(id))
	if err != nil {
		return nil, err
	}
	if state.Status == extraction.Absent || state.Status == extraction.StatusDeleted {
		return nil, extraction.NotFound(id)
	}
	var lost []LostArtifact
	for index, a := range state.Recorded.All() {
		why, err := amiss(ctx, store, ArtifactKey(id, index, a.FileSHA256), a)
		if err != nil {
			return nil, err
		}
		if why != "" {
			lost = append(lost, LostArtifact{Segment: index, Artifact: a, Why: why})
		}
	}
	slices.SortFunc(lost, func(a, b LostArtifact) int { return a.Segment - b.Segment })
	return lost, nil
}

// amiss says what is wrong with a stored artifact; "" = nothing.
func amiss(ctx context.Context, store blob.Store, key string, want extraction.Artifact) (string, error) {
	b, err := store.Open(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return "it is not in the store", nil
	}
	if err != nil {
		return "", err
	}
	digest := sha256.New()
	_, err = io.Copy(digest, io.NewSectionReader(b, 0, b.Size()))
	if err := errors.Join(err, b.Close()); err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	if got := hexDigest([32]byte(digest.Sum(nil))); got != want.FileSHA256 {
		return fmt.Sprintf("its bytes have sha256 %.12s…, not %.12s…", got, want.FileSHA256), nil
	}
	return "", nil
}

// RepairError says why a lost artifact stays lost.
type RepairError struct {
	Segment int
	Reason  string
}

func (e *RepairError) Error() string { return fmt.Sprintf("segment %d: %s", e.Segment, e.Reason) }

// Repair computes the lost artifacts of an extraction again, and stores those that are what was recorded. told is called
// before each segment.
func (w *Worker) Repair(ctx context.Context, id string, told func(lost LostArtifact, n, of int)) (int, error) {
	lost, err := LostArtifacts(ctx, w.store, w.commands, id)
	if err != nil || len(lost) == 0 {
		return 0, err
	}
	in, err := w.inputs(ctx, id)
	if err != nil {
		return 0, err
	}
	if mine, planned := w.engine.Profile(), in.extraction.Profile; mine != planned {
		return 0, fmt.Errorf("extraction %s was computed with the profile %s; this worker has %s: only the same profile gives the same numbers", id, planned.Requirement(), mine.Requirement())
	}
	for i, l := range lost {
		told(l, i+1, len(lost))
		made, err := w.compute(ctx, in, l.Segment, func(telemetry) error { return ctx.Err() })
		if err != nil {
			return i, err
		}
		switch {
		case made.artifact.ContentSHA256 != l.Artifact.ContentSHA256:
			return i, &RepairError{l.Segment, fmt.Sprintf("its content is %.12s… now, and %.12s… was recorded: what it is computed from has changed, or this machine computes otherwise; nothing was stored", made.artifact.ContentSHA256, l.Artifact.ContentSHA256)}
		case made.artifact.FileSHA256 != l.Artifact.FileSHA256:
			return i, &RepairError{l.Segment, "its rows are those that were recorded, but this program writes them as other bytes: use the version that wrote it; nothing was stored"}
		}
		if err := w.store.Put(ctx, ArtifactKey(id, l.Segment, l.Artifact.FileSHA256), bytes.NewReader(made.file)); err != nil {
			return i, fmt.Errorf("store the artifact of segment %d: %w", l.Segment, err)
		}
	}
	return len(lost), nil
}
