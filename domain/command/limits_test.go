package command_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
)

func TestAStartThatHasNoRoomIsRefusedWithTheNumberThatHas(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		facts sae.Facts
		ask   func(*extraction.Config)
		most  int
	}{
		"the SAE's context":                       {sae.Facts{ContextLength: 1024}, func(*extraction.Config) {}, extraction.MaxSegments * 32},
		"the request's context, in whole batches": {sae.Facts{}, func(c *extraction.Config) { c.ContextLength, c.BatchSize = 256, 50 }, extraction.MaxSegments * 100},
		"many active latents":                     {sae.Facts{K: 512}, func(c *extraction.Config) { c.ContextLength = 2048 }, extraction.MaxSegments * 8},
		"a published L0":                          {sae.Facts{PublishedL0: ptr(4096.0)}, func(c *extraction.Config) { c.ContextLength = 128 }, extraction.MaxSegments * 16},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			f := fits()
			f.ContextLength, f.K, f.PublishedL0 = test.facts.ContextLength, test.facts.K, test.facts.PublishedL0
			_, err := b.ImportSAE(t.Context(), call, sae.Import{ID: "sae_wide", Name: "wide", ModelID: "m", Facts: f})
			require.NoError(t, err)
			c := start("sae_wide")
			test.ask(&c.Config)
			c.Config.EvaluationSamples = test.most + 1
			_, err = b.StartExtractionFromSAE(t.Context(), call, c)
			p := refusal(t, err, "too_many_segments")
			require.Equal(t, problem.Invalid, p.Kind)
			require.Equal(t, "evaluation_samples", p.Fields[0].Name)
			require.Equal(t, test.most, p.Facts["max_evaluation_samples"])
			_, err = b.ConsiderExtraction(t.Context(), c)
			refusal(t, err, "too_many_segments")

			c.Config.EvaluationSamples = test.most
			_, err = b.ConsiderExtraction(t.Context(), c)
			require.NoError(t, err)
			_, err = b.StartExtractionFromSAE(t.Context(), call, c)
			require.NoError(t, err)
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestAnExtensionHasRoomForWhatThePlansLeave(t *testing.T) {
	t.Parallel()
	b := setupOn(t, pgtest.New(t), nil)
	started, err := b.StartExtractionFromSAE(t.Context(), call, start("sae_a"))
	require.NoError(t, err)
	// One segment is left; the self-test has measured more than k promised.
	done := extraction.MaxSegments - 1
	b.record(t, started.ID, 1, extraction.SelfTested{SelfTest: extraction.SelfTest{L0All: 4096}},
		extraction.Planned{CorpusID: "c", BatchSize: 4, Part: extraction.Part{Sequences: done, SequencesPerSegment: 1}}, extraction.Completed{})
	_, err = b.ExtendExtraction(t.Context(), call, started.ID, done+17)
	p := refusal(t, err, "too_many_segments")
	require.Equal(t, done+16, p.Facts["max_evaluation_samples"])
	_, err = b.ExtendExtraction(t.Context(), call, started.ID, done+16)
	require.NoError(t, err)
}

// record appends facts to an extraction that has this version.
func (b *bundle) record(t *testing.T, id string, version int64, data ...event.Data) {
	t.Helper()
	s := eventlog.StreamAppend{Stream: extraction.Stream(id), Expected: version}
	for _, d := range data {
		s.Events = append(s.Events, event.Proposed{ID: event.NewID(time.Now()), Data: d})
	}
	_, err := b.log.Append(t.Context(), eventlog.Request{Streams: []eventlog.StreamAppend{s}})
	require.NoError(t, err)
}

func TestWhateverIsMissingOfTheLargestRunIsResumed(t *testing.T) {
	t.Parallel()
	dsn, err := url.Parse(pgtest.New(t))
	require.NoError(t, err)
	settings := dsn.Query()
	settings.Set("statement_timeout", "60s") // opening 65,536 rows is not what is measured here, on whatever machine
	dsn.RawQuery = settings.Encode()
	b := setupOn(t, dsn.String(), facts.Effects)
	started, err := b.StartExtractionFromSAE(t.Context(), call, start("sae_a"))
	require.NoError(t, err)
	version := int64(1)
	b.record(t, started.ID, version, extraction.SelfTested{}, extraction.Planned{CorpusID: "c", BatchSize: 1, Part: extraction.Part{Sequences: extraction.MaxSegments, SequencesPerSegment: 1}})
	version += 2
	var some []event.Data
	for i := 2; i < extraction.MaxSegments; i += 3 { // two of three are missing: the longest text that there can be
		some = append(some, extraction.SegmentRecorded{Index: i, FirstSequence: i, Sequences: 1,
			Artifact: extraction.Artifact{ContentSHA256: strings.Repeat("c", 64), FileSHA256: strings.Repeat("f", 64)}})
		if len(some) == 500 || i+3 >= extraction.MaxSegments {
			b.record(t, started.ID, version, some...)
			version, some = version+int64(len(some)), nil
		}
	}
	_, err = b.CancelExtraction(t.Context(), call, started.ID, "")
	require.NoError(t, err)
	long := event.Metadata{Actor: strings.Repeat("a", 255), CorrelationID: strings.Repeat("c", 255), TraceParent: strings.Repeat("t", 55)}
	_, err = b.ResumeExtraction(t.Context(), command.Call{Metadata: long}, started.ID)
	require.NoError(t, err)
	var open int
	require.NoError(t, b.log.Pool().QueryRow(t.Context(), `select count(*) from work where kind = $1 and subject = $2`, facts.SegmentWork, started.ID).Scan(&open))
	require.Equal(t, extraction.MaxSegments-extraction.MaxSegments/3, open)
}

// counted counts the events that are read.
type counted struct {
	eventlog.Log
	read int
}

func (c *counted) ReadPage(ctx context.Context, stream string, after int64, limit int) ([]event.Recorded, error) {
	events, err := c.Log.ReadPage(ctx, stream, after, limit)
	c.read += len(events)
	return events, err
}

func TestOfAStreamThatWasFoldedOnlyWhatHasComeSinceIsRead(t *testing.T) {
	t.Parallel()
	registry, err := facts.Registry()
	require.NoError(t, err)
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	seen := &counted{Log: log}
	b := &bundle{command.NewHandler(seen, registry, time.Now), log}
	from, err := source.FromSAE("sae_a")
	require.NoError(t, err)
	const segments = 2500 // in three pages
	facts := []event.Data{extraction.Requested{ID: "x", Source: from, Config: extraction.DefaultConfig()},
		extraction.Planned{Part: extraction.Part{Sequences: segments + 1, SequencesPerSegment: 1}}}
	for i := range segments {
		facts = append(facts, extraction.SegmentRecorded{Index: i, FirstSequence: i, Sequences: 1})
	}
	for first := 0; first < len(facts); first += 500 {
		b.record(t, "x", int64(first), facts[first:min(first+500, len(facts))]...)
	}
	load := func() extraction.State {
		s, version, err := command.Load[extraction.State](t.Context(), b.Handler, extraction.Stream("x"))
		require.NoError(t, err)
		require.EqualValues(t, 2+s.Recorded.Len(), version)
		return s
	}
	old := load()
	require.Equal(t, segments, old.Recorded.Len())
	require.Equal(t, len(facts), seen.read)
	b.record(t, "x", int64(len(facts)), extraction.SegmentRecorded{Index: segments, FirstSequence: segments, Sequences: 1})
	require.Equal(t, segments+1, load().Recorded.Len())
	require.Equal(t, len(facts)+1, seen.read)
	require.Equal(t, segments, old.Recorded.Len(), "whoever holds an older state still has it")
}
