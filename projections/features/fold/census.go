package fold

import (
	"context"
	"fmt"
	"math"
	"sort"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"
)

// census is the first pass over the postings: how many each latent has, and how many latents fire on each
// counted token.
type census struct {
	total    int64
	postings []int64 // of each latent, counted or not
	l0       []int64 // counted tokens by the number of latents that fire on them
}

func (f *folder) takeCensus(ctx context.Context) (census, error) {
	c := census{postings: make([]int64, f.latents), l0: make([]int64, 1)}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(f.workers)
	for _, p := range f.parts {
		group.Go(func() error {
			own, err := f.countPart(ctx, p)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			for l, n := range own.postings {
				c.postings[l] += n
				c.total += n
			}
			for len(c.l0) < len(own.l0) {
				c.l0 = append(c.l0, 0)
			}
			for n, tokens := range own.l0 {
				c.l0[n] += tokens
			}
			return nil
		})
	}
	return c, group.Wait()
}

func (f *folder) countPart(ctx context.Context, p part) (census, error) {
	l, s := f.ledger, f.ledger.spans[p.from]
	c := census{postings: make([]int64, f.latents), l0: make([]int64, 1)}
	first := l.base[s.index]
	fires := make([]uint32, l.base[s.index+s.count]-first)
	err := p.artifact.Scan(ctx, 0, uint32(f.latents), func(latent, sequence []uint32, offset []uint16, _ []float32) error {
		if err := f.beat(); err != nil {
			return err
		}
		for i, n := range latent {
			at := int(sequence[i]) - s.first
			if at < 0 || at >= s.count || int(offset[i]) >= l.length(s.index+at) || int(n) >= f.latents {
				return fmt.Errorf("%w: artifact %d has a posting of latent %d at sequence %d, offset %d, where the corpus has no token",
					ErrInput, p.from, n, sequence[i], offset[i])
			}
			c.postings[n]++
			fires[l.base[s.index+at]+int64(offset[i])-first]++
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	for i, n := range fires {
		if !l.counted.has(first + int64(i)) {
			continue
		}
		for int(n) >= len(c.l0) {
			c.l0 = append(c.l0, 0)
		}
		c.l0[n]++
	}
	return c, nil
}

// summary has everything but what only the folded latents tell.
func (c census) summary(f *folder) Summary {
	l := f.ledger
	s := Summary{
		Latents:          f.latents,
		Sequences:        l.sequences(),
		Tokens:           l.tokens(),
		CountedTokens:    l.countedTokens,
		SinkTokens:       l.sinkTokens,
		Documents:        len(l.documents.rows),
		CountedDocuments: l.documents.filled,
		Postings:         c.total,
	}
	for n, tokens := range c.l0 {
		if tokens > 0 {
			s.L0 = append(s.L0, L0Bin{L0: n, Tokens: tokens})
		}
	}
	return s
}

const lowestDensityBin = -120

// densityBorders are 10^(k/10) for k = lowestDensityBin … 0, each the nearest float64.
func densityBorders() []float64 {
	decade := []string{"1", "1.2589254117941673", "1.5848931924611136", "1.9952623149688795", "2.5118864315095801", "3.1622776601683795", "3.9810717055349722", "5.0118723362727229", "6.3095734448019325", "7.9432823472428150"}
	borders := make([]float64, 1-lowestDensityBin)
	for i := range borders {
		k := i + lowestDensityBin
		power := int(math.Floor(float64(k) / 10))
		borders[i], _ = strconv.ParseFloat(decade[k-10*power]+"e"+strconv.Itoa(power), 64)
	}
	return borders
}

func (s *Summary) add(l *Latent) {
	if l.Dead() {
		s.Dead++
		return
	}
	s.Alive++
	s.Firings += l.Firings
	if s.LogDensity == nil {
		s.LogDensity = make([]DensityBin, 1-lowestDensityBin)
		for i := range s.LogDensity {
			s.LogDensity[i].Bin = i + lowestDensityBin
		}
		s.borders = densityBorders()
	}
	i := sort.SearchFloat64s(s.borders, l.Density)
	if i == len(s.borders) || s.borders[i] != l.Density {
		i--
	}
	s.LogDensity[max(i, 0)].Latents++
}

func (s *Summary) finish() {
	if s.CountedTokens > 0 {
		s.MeanL0 = float64(s.Firings) / float64(s.CountedTokens)
	}
	var bins []DensityBin
	for _, b := range s.LogDensity {
		if b.Latents > 0 {
			bins = append(bins, b)
		}
	}
	s.LogDensity, s.borders = bins, nil
}
