package postings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Source is what can be merged: a Reader.
type Source interface {
	Metadata() Metadata
	Count(from, to uint32) int64
	Scan(ctx context.Context, from, to uint32, visit func(latent, sequence []uint32, offset []uint16, activation []float32) error) error
}

// mergeRows is how many rows Merge holds in memory at once, unless one latent alone has more.
const mergeRows = 2 << 20

// Merge writes the rows of several artifacts or run files of one extraction as one run file. The sources
// are taken in the order of their sequences, which must not overlap; merging in steps gives the same bytes
// as merging all at once.
func Merge(ctx context.Context, w io.Writer, sources ...Source) (Summary, error) {
	sources = slices.Clone(sources)
	slices.SortStableFunc(sources, func(a, b Source) int {
		return cmp.Compare(a.Metadata().FirstSequence, b.Metadata().FirstSequence)
	})
	meta, err := mergedMetadata(sources)
	if err != nil {
		return Summary{}, fmt.Errorf("merge postings: %w", err)
	}
	out, err := newWriter(w, meta)
	if err != nil {
		return Summary{}, err
	}
	var rows Columns
	for from := uint32(0); from < uint32(meta.Latents); {
		to := mergeRange(sources, from, uint32(meta.Latents))
		rows.Reset()
		for _, s := range sources {
			err := s.Scan(ctx, from, to, func(latent, sequence []uint32, offset []uint16, activation []float32) error {
				rows.appendAll(latent, sequence, offset, activation)
				return nil
			})
			if err != nil {
				return Summary{}, fmt.Errorf("merge postings: %w", err)
			}
		}
		rows.Sort(0)
		if err := out.append(&rows); err != nil {
			return Summary{}, err
		}
		from = to
	}
	return out.close()
}

// mergeRange finds the end of a latent range that starts at from and has about mergeRows rows, by the footers.
func mergeRange(sources []Source, from, latents uint32) uint32 {
	fits := func(to uint32) bool {
		var n int64
		for _, s := range sources {
			n += s.Count(from, to)
		}
		return n <= mergeRows
	}
	if fits(latents) {
		return latents
	}
	low, high := from+1, latents // low is taken whatever its size, high does not fit
	for high-low > 1 {
		if middle := low + (high-low)/2; fits(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

func mergedMetadata(sources []Source) (Metadata, error) {
	if len(sources) == 0 {
		return Metadata{}, errors.New("nothing to merge")
	}
	meta := sources[0].Metadata()
	meta.Sinks = slices.Clone(meta.Sinks)
	for _, s := range sources[1:] {
		m := s.Metadata()
		end := meta.FirstSequence + meta.Sequences
		switch {
		case m.Extraction != meta.Extraction:
			return Metadata{}, fmt.Errorf("segment %d is of extraction %q, segment %d of %q", m.Segment, m.Extraction, meta.Segment, meta.Extraction)
		case m.Latents != meta.Latents:
			return Metadata{}, fmt.Errorf("segment %d has %d latents, segment %d has %d", m.Segment, m.Latents, meta.Segment, meta.Latents)
		case m.FirstSequence < end:
			return Metadata{}, fmt.Errorf("segment %d starts at sequence %d, before the end of the one before it (%d)", m.Segment, m.FirstSequence, end)
		}
		meta.Segment = min(meta.Segment, m.Segment)
		meta.Sequences = m.FirstSequence + m.Sequences - meta.FirstSequence
		meta.Tokens += m.Tokens
		meta.Sinks = append(meta.Sinks, m.Sinks...)
	}
	return meta, nil
}
