package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/library"
)

// encodeExtraction shows an extraction as it stands now: while it runs, with what its workers tell.
func (s *server) encodeExtraction(ctx context.Context, e extractions.Extraction) (api.Extraction, error) {
	all, err := s.encodeExtractions(ctx, e)
	if err != nil {
		return api.Extraction{}, err
	}
	return all[0], nil
}

// encodeExtractions shows several: one question tells how all of them stand.
func (s *server) encodeExtractions(ctx context.Context, list ...extractions.Extraction) ([]api.Extraction, error) {
	all, err := s.Extractions.ProgressOf(ctx, list...)
	if err != nil {
		return nil, err
	}
	out := make([]api.Extraction, len(all))
	for i, p := range all {
		if out[i], err = s.encodeProgress(ctx, p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *server) encodeProgress(ctx context.Context, p extractions.Progress) (api.Extraction, error) {
	e := p.Extraction
	out, err := encodeRow(e)
	if err != nil {
		return out, err
	}
	if e.Active() {
		addProgress(&out, p)
	}
	if e.Generation != nil {
		out.Statistics, err = s.statistics(ctx, e)
	}
	return out, err
}

func encodeRow(e extractions.Extraction) (api.Extraction, error) {
	c, err := e.ReadConfig()
	if err != nil {
		return api.Extraction{}, fmt.Errorf("extraction %s: config: %w", e.ID, err)
	}
	if c.EvaluationSamples < e.EvaluationSamples {
		c.EvaluationSamples = e.EvaluationSamples // as extended
	}
	config, err := json.Marshal(c)
	if err != nil {
		return api.Extraction{}, err
	}
	out := api.Extraction{
		ID: e.ID, TrainingID: e.TrainingID, ExternalSaeID: e.ExternalSAEID, SourceType: api.ExtractionSourceType(e.SourceType()), SaeName: e.SAEName, SaePath: e.SAEPath,
		ModelID: e.ModelID, ModelName: e.ModelName, DatasetID: e.DatasetID, DatasetName: e.DatasetName, LayerIndex: e.LayerIndex, Hook: e.Hook, HookType: library.HookType(e.Hook),
		Status: api.ExtractionStatus(e.Status), Progress: e.RecordedShare(), Config: config, TotalFeatures: known(e.Latents),
		ErrorCode: e.ErrorCode, ErrorMessage: e.ErrorMessage, ErrorSegment: e.ErrorSegment, Resumable: e.ErrorResumable, CancelReason: e.CancelReason,
		BatchID: e.BatchID, BatchPosition: e.BatchPosition, BatchTotal: e.BatchTotal,
		CreatedAt: e.CreatedAt.UTC(), UpdatedAt: e.UpdatedAt.UTC(), StartedAt: e.StartedAt, CompletedAt: e.CompletedAt,
		FilterSpecial: c.FilterSpecial, FilterSingleChar: c.FilterSingleChar, FilterPunctuation: c.FilterPunctuation, FilterNumbers: c.FilterNumbers,
		FilterFragments: c.FilterFragments, FilterStopWords: c.FilterStopWords, ContextPrefixTokens: c.ContextPrefixTokens, ContextSuffixTokens: c.ContextSuffixTokens, AutoNlp: c.AutoNLP,
		CorpusID: e.CorpusID, BatchSize: e.BatchSize, SegmentsPlanned: e.SegmentsPlanned, SegmentsRecorded: e.SegmentsRecorded,
		Sequences: &e.SequencesRecorded, SequencesPlanned: known(e.SequencesPlanned), Tokens: e.Tokens, TokensPlanned: known(e.TokensPlanned), TokensDone: &e.Tokens,
		SamplesProcessed: &e.SequencesRecorded, TotalSamples: known(e.SequencesPlanned),
		Postings: &e.Postings, ArtifactBytes: &e.ArtifactBytes, ComputeSeconds: &e.ComputeSeconds, Mismatches: &e.Mismatches, FoldedAt: e.FoldedAt,
	}
	switch e.Status {
	case string(extraction.StatusCompleted), extractions.Finalizing:
		out.Progress = 1
	case string(extraction.StatusCancelled):
		resumable := true
		out.Resumable = &resumable
	}
	if e.Features != nil && e.Generation != nil {
		n := int(*e.Features)
		out.FeaturesExtracted = &n
	}
	if len(e.SelfTest) > 0 {
		out.SelfTest, out.SelfTestForced = &e.SelfTest, &e.SelfTestForced
	}
	if len(e.ComputeProfile) > 0 {
		out.ComputeProfile = &e.ComputeProfile
	}
	return out, nil
}

func addProgress(out *api.Extraction, p extractions.Progress) {
	out.Progress, out.TokensDone, out.TokensPerSecond, out.EtaSeconds = p.Share, &p.TokensDone, p.TokensPerSecond, p.ETASeconds
	out.Stage, out.Segment, out.Waiting, out.Workers = known(p.Stage), p.Segment, known(p.Waiting), &p.Workers
	if p.BytesDone > 0 {
		out.BytesDone, out.BytesTotal = &p.BytesDone, &p.BytesTotal
	}
	if p.Batches > 0 {
		out.CurrentBatch, out.TotalBatches = &p.Batch, &p.Batches
	}
	if planned := p.Extraction.SequencesPlanned; planned > 0 && p.Extraction.TokensPlanned > 0 {
		done := int(p.Share * float64(planned))
		out.SamplesProcessed = &done
	}
}

func addPutOff(out *api.Extraction, waiting []extractions.PutOff) {
	if len(waiting) == 0 {
		return
	}
	list := make([]api.PutOff, len(waiting))
	for i, w := range waiting {
		causes := make([]api.Cause, len(w.Causes))
		for j, c := range w.Causes {
			causes[j] = api.Cause{At: c.At.UTC(), Owner: c.Owner, Attempt: c.Attempt, Outcome: api.CauseOutcome(c.Outcome), Detail: c.Detail}
		}
		list[i] = api.PutOff{Kind: w.Kind, Index: w.Index, Attempts: w.Attempts, NotBefore: w.NotBefore, Causes: causes}
	}
	out.PutOff = &list
}

// rowOf is what the tables will show of an extraction that they do not show yet.
func rowOf(state extraction.State, now time.Time) (extractions.Extraction, error) {
	r := state.Request
	config, err := json.Marshal(r.Config)
	sequences, tokens := state.Planned()
	e := extractions.Extraction{
		ID: r.ID, TrainingID: known(r.Source.TrainingID()), ExternalSAEID: known(r.Source.SAEID()), SAEPath: known(r.SAEPath), ModelID: r.ModelID, DatasetID: r.DatasetID,
		Hook: r.Hook, LayerIndex: r.Layer, Latents: r.Latents, Status: string(state.Status), Config: config, EvaluationSamples: state.Wanted, NeedsPlan: state.NeedsPlan,
		CorpusID: known(state.CorpusID), SegmentsPlanned: state.Segments(), SegmentsRecorded: state.Recorded.Len(), SequencesPlanned: sequences, TokensPlanned: tokens,
		Tokens: state.Tokens, Postings: state.Postings, CreatedAt: now, UpdatedAt: now,
	}
	if b := r.Batch; b != nil {
		e.BatchID, e.BatchPosition, e.BatchTotal = &b.ID, &b.Position, &b.Total
	}
	if t := state.SelfTest; t != nil && err == nil {
		e.SelfTest, err = json.Marshal(t.SelfTest)
		e.SelfTestForced = t.Forced
	}
	if f := state.Failure; f != nil {
		e.ErrorCode, e.ErrorMessage, e.ErrorSegment, e.ErrorResumable = &f.Code, &f.Detail, f.Segment, &f.Resumable
	}
	return e, err
}

// shownStatistics are those of what lists show. They never change for a generation.
type shownStatistics struct {
	total, interpretable int
	frequency            float64
}

const maxShown = 10_000

type shownCache struct {
	mu sync.Mutex
	of map[int64]shownStatistics // by generation
}

func (c *shownCache) get(generation int64) (shownStatistics, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.of[generation]
	return s, ok
}

func (c *shownCache) put(generation int64, s shownStatistics) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil || len(c.of) >= maxShown {
		c.of = map[int64]shownStatistics{}
	}
	c.of[generation] = s
}

// statistics are the numbers of the whole extraction; nil where the fold has just been replaced.
func (s *server) statistics(ctx context.Context, e extractions.Extraction) (*api.ExtractionStatistics, error) {
	var all features.Statistics
	if err := json.Unmarshal(e.Statistics, &all); err != nil {
		return nil, fmt.Errorf("extraction %s: statistics: %w", e.ID, err)
	}
	c, err := e.ReadConfig()
	if err != nil {
		return nil, err
	}
	shown, ok := s.shown.get(*e.Generation)
	if !ok {
		g, err := s.Features.Of(ctx, e.ID)
		if errors.Is(err, features.ErrNotFolded) || err == nil && g.Generation != *e.Generation {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		page, err := s.Features.List(ctx, g, features.ListOptions{MinFrequency: threshold(c)})
		if err != nil {
			return nil, err
		}
		shown = shownStatistics{total: page.Total, frequency: page.MeanFrequency, interpretable: int(math.Round(page.InterpretablePercent * float64(page.Total) / 100))}
		s.shown.put(g.Generation, shown)
	}
	out := &api.ExtractionStatistics{
		TotalNeurons: all.Latents, LiveNeurons: all.Alive, DeadNeuronsFiltered: all.Dead, TotalFeatures: shown.total, InterpretableCount: shown.interpretable,
		AvgActivationFrequency: shown.frequency, MinActivationFrequencyThreshold: c.MinActivationFrequency,
		Sequences: all.Sequences, Tokens: &all.Tokens, CountedTokens: all.CountedTokens, SinkTokens: &all.SinkTokens, Documents: all.Documents, Firings: all.Firings, MeanL0: all.MeanL0,
	}
	density, l0 := make([]api.DensityBin, len(all.LogDensity)), make([]api.L0Bin, len(all.L0))
	for i, b := range all.LogDensity {
		density[i] = api.DensityBin{Bin: b.Bin, Latents: b.Latents}
	}
	for i, b := range all.L0 {
		l0[i] = api.L0Bin{L0: b.L0, Tokens: b.Tokens}
	}
	out.LogDensity, out.L0 = &density, &l0
	var test extraction.SelfTest
	if len(e.SelfTest) > 0 && json.Unmarshal(e.SelfTest, &test) == nil {
		out.Fvu = test.FVU
	}
	return out, nil
}

// threshold is the frequency below which lists hide a latent, unless somebody asks for it.
func threshold(c extraction.Config) *float64 {
	if c.MinActivationFrequency <= 0 {
		return nil
	}
	return &c.MinActivationFrequency
}
