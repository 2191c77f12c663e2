package httpapi

import (
	"fmt"
	"math"
	"time"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
)

func encodeFeature(g features.Generation, f features.Feature) api.Feature {
	out := api.Feature{
		ID: g.ID(f.Latent), TrainingID: known(g.Source.TrainingID()), ExternalSaeID: known(g.Source.SAEID()), ExtractionJobID: g.Extraction, NeuronIndex: f.Latent,
		Name: f.Name, Category: known(f.Category), Description: known(f.Description), Notes: known(f.Notes), LabelSource: api.FeatureLabelSource(f.NameSource), IsFavorite: f.Starred,
		Density: f.Density, ActivationFrequency: f.ActivationFrequency, Firings: f.Firings, FiringDocuments: f.FiringDocuments, MaxActivation: f.MaxActivation,
		MeanActivation: &f.MeanActivation, StdActivation: &f.StdActivation, SinkShare: &f.SinkShare, InterpretabilityScore: f.InterpretabilityScore, DistinctTokens: &f.DistinctTokens,
		CreatedAt: g.FoldedAt.UTC(), UpdatedAt: latest(g.FoldedAt, f.LabelledAt).UTC(),
	}
	if f.Name == "" {
		out.Name, out.LabelSource = fmt.Sprintf("feature_%d", f.Latent), "auto"
	} else if f.NameSource == "" {
		out.LabelSource = "user"
	}
	if f.DensityLow != nil && f.DensityHigh != nil {
		out.DensityInterval = &[]float64{*f.DensityLow, *f.DensityHigh}
	}
	if f.Firings > 0 {
		out.TopToken, out.TopTokenShare = &f.TopToken, &f.TopTokenShare
	}
	if f.Example != nil {
		e := encodeExample(*f.Example)
		out.ExampleContext = &e
	}
	return out
}

func latest(a time.Time, b *time.Time) time.Time {
	if b != nil && b.After(a) {
		return *b
	}
	return a
}

func encodeDetail(g features.Generation, f features.Feature, d features.Distribution, tokens []features.TokenRow) api.FeatureDetail {
	b := encodeFeature(g, f)
	out := api.FeatureDetail{
		ID: b.ID, TrainingID: b.TrainingID, ExternalSaeID: b.ExternalSaeID, ExtractionJobID: b.ExtractionJobID, NeuronIndex: b.NeuronIndex, Name: b.Name, Category: b.Category,
		Description: b.Description, Notes: b.Notes, LabelSource: api.FeatureDetailLabelSource(b.LabelSource), IsFavorite: b.IsFavorite, Density: b.Density, DensityInterval: b.DensityInterval,
		ActivationFrequency: b.ActivationFrequency, Firings: b.Firings, FiringDocuments: b.FiringDocuments, MaxActivation: b.MaxActivation, MeanActivation: b.MeanActivation,
		StdActivation: b.StdActivation, SinkShare: b.SinkShare, InterpretabilityScore: b.InterpretabilityScore, TopToken: b.TopToken, TopTokenShare: b.TopTokenShare,
		DistinctTokens: b.DistinctTokens, CreatedAt: b.CreatedAt, UpdatedAt: b.UpdatedAt,

		ActiveSamples: int64(math.Round(f.ActivationFrequency * float64(g.Statistics.Sequences))), Generation: g.Generation,
		Quantiles: []api.Quantile{}, LogHistogram: []api.Bin{}, LinearHistogram: []int64{}, IntervalShares: []float64{}, Tokens: []api.FeatureToken{},
	}
	for i, q := range d.Quantiles {
		if i < len(fold.QuantilePercents) {
			out.Quantiles = append(out.Quantiles, api.Quantile{P: fold.QuantilePercents[i], Value: q})
		}
	}
	for i, bin := range d.LogBins {
		if i < len(d.LogCounts) {
			out.LogHistogram = append(out.LogHistogram, api.Bin{From: float64(edge(bin)), To: float64(edge(bin + 1)), Count: d.LogCounts[i]})
		}
	}
	out.LinearHistogram = append(out.LinearHistogram, d.LinearCounts...)
	out.IntervalShares = append(out.IntervalShares, d.IntervalShares...)
	for _, t := range tokens {
		out.Tokens = append(out.Tokens, api.FeatureToken{Token: t.Piece, TokenID: int(t.ID), Special: known(t.Special), Count: t.Count, Share: t.Share, Rate: t.Rate, Mean: t.Mean})
	}
	return out
}

// edge is where a bin of float32 bits >> 21 begins; the last one ends at the largest float32.
func edge(bin int32) float32 {
	v := math.Float32frombits(uint32(bin) << 21)
	if math.IsInf(float64(v), 0) || math.IsNaN(float64(v)) {
		return math.MaxFloat32
	}
	return v
}

func encodeExample(e features.Example) api.Example {
	n := min(len(e.Tokens), len(e.Activations), len(e.IDs))
	prime := min(max(e.Prime, 0), max(n-1, 0))
	out := api.Example{
		Kind: api.ExampleKind(e.Kind), Rank: e.Rank, Tokens: e.Tokens[:n:n], TokenIds: e.IDs[:n:n], Activations: e.Activations[:n:n], TokenPositions: make([]int, n),
		MaxActivation: e.MaxActivation, SampleIndex: e.SampleIndex, Sequence: &e.Sequence, PrimeActivationIndex: prime, Collapsed: e.Collapsed,
		PrefixTokens: []string{}, SuffixTokens: []string{},
	}
	if n > 0 {
		out.PrefixTokens, out.PrimeToken, out.SuffixTokens = e.Tokens[:prime:prime], e.Tokens[prime], e.Tokens[prime+1:n:n]
	}
	for i := range out.TokenPositions {
		out.TokenPositions[i] = e.Position + i
	}
	if e.Interval >= 0 {
		out.Interval = &e.Interval
	}
	return out
}

// filters are those that a token analysis applies; none where it applies none.
func filters(p api.AnalyseTokensParams) fold.Filters {
	if !or(p.ApplyFilters, true) {
		return fold.Filters{}
	}
	return fold.Filters{
		Special: or(p.FilterSpecial, true), SingleChar: or(p.FilterSingleChar, true), Punctuation: or(p.FilterPunctuation, true),
		Numbers: or(p.FilterNumbers, true), Fragments: or(p.FilterFragments, true), StopWords: or(p.FilterStopWords, false),
	}
}

// vocabulary is the tokens of one latent, as a vocabulary that fold can judge.
type vocabulary []features.TokenRow

func (v vocabulary) Len() int              { return len(v) }
func (v vocabulary) Piece(id int32) string { return v[id].Piece }
func (v vocabulary) Special(id int32) bool { return v[id].Special }

// analyse counts over all firings; filters hide rows and never change a count. A token that several
// filters would hide is counted under the first.
func analyse(f features.Feature, tokens []features.TokenRow, on fold.Filters) api.TokenAnalysis {
	out := api.TokenAnalysis{Tokens: []api.AnalysedToken{}}
	s := &out.Summary
	s.TotalExamples, s.OriginalTokenCount = f.Firings, len(tokens)
	for i, junk := range fold.Junk(vocabulary(tokens)) {
		t := tokens[i]
		s.TotalTokenOccurrences += t.Count
		switch {
		case on.Special && junk.Special:
			s.FilterStats.Special++
		case on.SingleChar && junk.SingleChar:
			s.FilterStats.SingleChar++
		case on.Punctuation && junk.Punctuation:
			s.FilterStats.Punctuation++
		case on.Numbers && junk.Numbers:
			s.FilterStats.Numbers++
		case on.Fragments && junk.Fragments:
			s.FilterStats.Fragments++
		case on.StopWords && junk.StopWords:
			s.FilterStats.StopWords++
		default:
			s.FilteredTokenOccurrences += t.Count
			out.Tokens = append(out.Tokens, api.AnalysedToken{
				Rank: len(out.Tokens) + 1, Token: t.Piece, TokenID: int(t.ID), Count: t.Count, Percentage: 100 * t.Share, Share: t.Share, Rate: t.Rate, Mean: t.Mean,
			})
		}
	}
	s.FilteredTokenCount = len(out.Tokens)
	s.JunkRemoved = s.OriginalTokenCount - s.FilteredTokenCount
	if s.FilteredTokenOccurrences > 0 {
		s.DiversityPercent = 100 * float64(s.FilteredTokenCount) / float64(s.FilteredTokenOccurrences)
	}
	return out
}
