package features_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// counted is a memory that knows how many artifacts and run files are open.
type counted struct {
	*memory
	open, most int
}

func (c *counted) opened(a fold.Artifact) fold.Artifact {
	c.open++
	c.most = max(c.most, c.open)
	return &openArtifact{a, c}
}

type openArtifact struct {
	fold.Artifact
	c *counted
}

func (a *openArtifact) Close() error {
	a.c.open--
	return nil
}

func (c *counted) Artifact(ctx context.Context, id string, index int, sha string) (fold.Artifact, error) {
	a, err := c.memory.Artifact(ctx, id, index, sha)
	return c.opened(a), err
}

func (c *counted) Merge(_ context.Context, run []fold.Artifact) (fold.Artifact, error) {
	return c.opened(merged{first: run[0], last: run[len(run)-1]}), nil
}

// merged stands for neighbours: what fires depends on sequence and offset alone.
type merged struct{ first, last fold.Artifact }

func (m merged) Span() (int, int) {
	first, _ := m.first.Span()
	last, n := m.last.Span()
	return first, last + n - first
}
func (m merged) Latents() int                  { return latents }
func (m merged) EachSink(func(uint32, uint16)) {}
func (m merged) Scan(ctx context.Context, from, to uint32, visit func(l, s []uint32, o []uint16, a []float32) error) error {
	first, n := m.Span()
	for l := from; l < to; l++ {
		for s := first; s < first+n; s += perSegment {
			if err := (rows{first: s}).Scan(ctx, l, l+1, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestAFoldOfManySegmentsKeepsFewFilesOpen(t *testing.T) {
	t.Parallel()
	const segments = 700
	b := newBundle(t)
	b.memory = newMemory(segments * perSegment)
	b.corpus(t)
	readers := &counted{memory: b.memory}
	folder := features.NewFolder(features.FolderConfig{Pool: b.log.Pool(), Readers: readers, Workers: 1})
	id := b.start(t)
	var data []event.Data
	for i := range segments {
		data = append(data, segment(i))
	}
	b.record(t, extraction.Stream(id), append(data, extraction.Completed{Segments: segments})...)
	require.NoError(t, folder.RunToEnd(t.Context()))
	g, err := b.queries.Of(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, segments, g.Statistics.Segments)
	require.Equal(t, segments*perSegment, g.Statistics.Sequences)
	require.Greater(t, readers.most, 16)
	require.LessOrEqual(t, readers.most, 64)
	require.Zero(t, readers.open, "all are closed at the end")
}
