package command_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/domain/training"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

type bundle struct {
	*command.Handler
	log *postgres.Log
}

var call = command.Call{Metadata: event.Metadata{Actor: "test"}}

// setup has a model of 12 layers and width 16, a dataset, an SAE that fits, and one that does not.
func setup(t *testing.T) *bundle {
	t.Helper()
	return setupOn(t, pgtest.New(t), facts.Effects)
}

func setupOn(t *testing.T, dsn string, effects eventlog.Effects) *bundle {
	t.Helper()
	registry, err := facts.Registry()
	require.NoError(t, err)
	log, err := postgres.Open(t.Context(), dsn, postgres.Config{Registry: registry, Effects: effects})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	b := &bundle{command.NewHandler(log, registry, time.Now), log}
	_, err = b.ImportModel(t.Context(), call, model.Import{ID: "m", Name: "org/model", Facts: model.Facts{Layers: 12, DModel: 16}})
	require.NoError(t, err)
	_, err = b.ImportDataset(t.Context(), call, dataset.Import{ID: "d", Name: "text", Facts: dataset.Facts{Rows: 10}})
	require.NoError(t, err)
	_, err = b.ImportSAE(t.Context(), call, sae.Import{ID: "sae_a", Name: "a", ModelID: "m", Facts: fits()})
	require.NoError(t, err)
	return b
}

func fits() sae.Facts {
	return sae.Facts{Architecture: "topk", DIn: 16, DSAE: 64, DOut: 16, K: 4, Hook: "blocks.3.hook_resid_post", Layer: 3}
}

func start(saeID string) command.StartExtractionFromSAE {
	return command.StartExtractionFromSAE{SAEID: saeID, DatasetID: "d", Config: extraction.DefaultConfig()}
}

func refusal(t *testing.T, err error, code string) *problem.Error {
	t.Helper()
	var p *problem.Error
	require.ErrorAs(t, err, &p)
	require.Equal(t, code, p.Code, p.Detail)
	return p
}

func TestOfAHundredStartsOnOneSourceExactlyOneWins(t *testing.T) {
	t.Parallel()
	b := setup(t)
	results := make([]error, 100)
	ids := make([]string, 100)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			res, err := b.StartExtractionFromSAE(t.Context(), call, start("sae_a"))
			results[i], ids[i] = err, res.ID
		})
	}
	wg.Wait()
	winner := ""
	for i, err := range results {
		if err == nil {
			require.Empty(t, winner, "a second start won")
			winner = ids[i]
		}
	}
	require.NotEmpty(t, winner)
	for _, err := range results {
		if err != nil {
			require.Equal(t, winner, refusal(t, err, "source_busy").Facts["active_extraction_id"])
		}
	}
}

func TestADeleteAndAStartNeverBothSucceed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 10 {
		id := fmt.Sprintf("sae_race%d", i)
		_, err := b.ImportSAE(t.Context(), call, sae.Import{ID: id, Name: id, ModelID: "m", Facts: fits()})
		require.NoError(t, err)
		var started, deleted error
		var wg sync.WaitGroup
		wg.Go(func() { _, started = b.StartExtractionFromSAE(t.Context(), call, start(id)) })
		wg.Go(func() { _, deleted = b.DeleteSAE(t.Context(), call, id) })
		wg.Wait()
		require.True(t, (started == nil) != (deleted == nil), "start: %v, delete: %v", started, deleted)
	}
}

func TestWhatAnExtractionUsesCannotBeDeletedUntilItEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res, err := b.StartExtractionFromSAE(t.Context(), call, start("sae_a"))
	require.NoError(t, err)
	for _, remove := range []func() (command.Result, error){
		func() (command.Result, error) { return b.DeleteModel(t.Context(), call, "m") },
		func() (command.Result, error) { return b.DeleteSAE(t.Context(), call, "sae_a") },
		func() (command.Result, error) { return b.DeleteDataset(t.Context(), call, "d") },
	} {
		_, err := remove()
		require.Equal(t, res.ID, refusal(t, err, "in_use").Facts["active_extraction_id"])
	}
	_, err = b.CancelExtraction(t.Context(), call, res.ID, "")
	require.NoError(t, err)
	_, err = b.DeleteDataset(t.Context(), call, "d")
	require.NoError(t, err)
	_, err = b.ResumeExtraction(t.Context(), call, res.ID)
	refusal(t, err, "dataset_not_found")
}

func TestAStartIsRefusedWithWhatWouldBeRight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	wide := fits()
	wide.DIn = 32
	_, err := b.ImportSAE(t.Context(), call, sae.Import{ID: "sae_wide", Name: "wide", ModelID: "m", Facts: wide})
	require.Contains(t, refusal(t, err, "sae_does_not_fit_model").Detail, "32 values")
	deep := fits()
	deep.Layer, deep.Hook = 12, "blocks.12.hook_resid_post"
	_, err = b.ImportSAE(t.Context(), call, sae.Import{ID: "sae_deep", Name: "deep", ModelID: "m", Facts: deep})
	require.Contains(t, refusal(t, err, "sae_does_not_fit_model").Detail, "layers 0 to 11")
	loose := fits()
	loose.ModelName = "org/other"
	_, err = b.ImportSAE(t.Context(), call, sae.Import{ID: "sae_loose", Name: "loose", Facts: loose})
	require.NoError(t, err)
	_, err = b.StartExtractionFromSAE(t.Context(), call, start("sae_loose"))
	require.Contains(t, refusal(t, err, "model_unknown").Detail, "org/other")
	signed := fits()
	signed.Signed, signed.Architecture = true, "abstopk"
	_, err = b.ImportSAE(t.Context(), call, sae.Import{ID: "sae_signed", Name: "signed", ModelID: "m", Facts: signed})
	require.NoError(t, err)
	_, err = b.StartExtractionFromSAE(t.Context(), call, start("sae_signed"))
	refusal(t, err, "signed_sae")
	_, err = b.StartExtractionFromSAE(t.Context(), call, start("sae_none"))
	refusal(t, err, "sae_not_found")
	c := start("sae_a")
	c.DatasetID = "none"
	_, err = b.StartExtractionFromSAE(t.Context(), call, c)
	refusal(t, err, "dataset_not_found")
	c = start("sae_a")
	c.Config.TopKExamples = 1
	_, err = b.StartExtractionFromSAE(t.Context(), call, c)
	refusal(t, err, "invalid_request")
}

func TestATrainingIsASourceOnlyIfItHasOneSAE(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.ImportTraining(t.Context(), call, training.Import{ID: "one", ModelID: "m", SAEs: []training.SAE{{Path: "layer_3", Facts: fits()}}})
	require.NoError(t, err)
	res, err := b.StartExtractionFromTraining(t.Context(), call, command.StartExtractionFromTraining{TrainingID: "one", DatasetID: "d", Config: extraction.DefaultConfig()})
	require.NoError(t, err)
	require.Contains(t, res.ID, "ext_one_")
	_, err = b.ImportTraining(t.Context(), call, training.Import{ID: "two", ModelID: "m", SAEs: []training.SAE{{Path: "a", Facts: fits()}, {Path: "b", Facts: fits()}}})
	require.NoError(t, err)
	_, err = b.StartExtractionFromTraining(t.Context(), call, command.StartExtractionFromTraining{TrainingID: "two", DatasetID: "d", Config: extraction.DefaultConfig(), Imported: map[string]string{"b": "sae_b"}})
	p := refusal(t, err, "training_has_several_saes")
	require.Contains(t, p.Detail, "sae_b")
	require.Len(t, p.Facts["choices"], 2)
}

func TestARequestThatIsSentTwiceHappensOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	keyed := command.Call{Idempotency: &eventlog.Idempotency{Key: "k", Fingerprint: sha256.Sum256([]byte("body")), Status: 202}}
	first, err := b.StartExtractionFromSAE(t.Context(), keyed, start("sae_a"))
	require.NoError(t, err)
	again, err := b.StartExtractionFromSAE(t.Context(), keyed, start("sae_a"))
	require.NoError(t, err)
	require.True(t, again.Replayed)
	require.Equal(t, first.ID, again.ID)
	require.Equal(t, first.Position, again.Position)
	other := command.Call{Idempotency: &eventlog.Idempotency{Key: "k", Fingerprint: sha256.Sum256([]byte("other"))}}
	_, err = b.StartExtractionFromSAE(t.Context(), other, start("sae_a"))
	refusal(t, err, "idempotency_key_reused")
}

func TestAWorkerThatLostItsLeaseRecordsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res, err := b.StartExtractionFromSAE(t.Context(), call, start("sae_a"))
	require.NoError(t, err)
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.PlanWork}})
	require.NoError(t, err)
	stale := *lease
	stale.Fence--
	_, err = b.RecordSelfTest(t.Context(), call, stale, res.ID, extraction.SelfTest{})
	var fenced *eventlog.FencedError
	require.ErrorAs(t, err, &fenced)
	_, err = b.RecordSelfTest(t.Context(), call, *lease, res.ID, extraction.SelfTest{})
	require.NoError(t, err)
	plan := extraction.Planned{CorpusID: "c", BatchSize: 1, Profile: extraction.ComputeProfile{Device: "cpu"}, Part: extraction.Part{Sequences: 2, SequencesPerSegment: 1}}
	_, err = b.PlanExtraction(t.Context(), call, *lease, res.ID, plan)
	require.NoError(t, err)
	none, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.SegmentWork}, Capabilities: []string{"another profile"}})
	require.NoError(t, err)
	require.Nil(t, none, "only a worker whose profile fits may claim")
	for range 2 {
		lease, err = b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.SegmentWork}, Capabilities: []string{plan.Profile.Requirement()}})
		require.NoError(t, err)
		_, err = b.RecordSegment(t.Context(), call, *lease, res.ID, extraction.SegmentRecorded{Index: lease.Work.Index, FirstSequence: lease.Work.Index, Sequences: 1, Artifact: extraction.Artifact{ContentSHA256: fmt.Sprint(lease.Work.Index)}})
		require.NoError(t, err)
	}
	_, err = b.RecordSegment(t.Context(), call, *lease, res.ID, extraction.SegmentRecorded{Index: 1, FirstSequence: 1, Sequences: 1, Artifact: extraction.Artifact{ContentSHA256: "1"}})
	require.NoError(t, err, "the same result again is a redelivery")
	_, err = b.RecordSegment(t.Context(), call, *lease, res.ID, extraction.SegmentRecorded{Index: 1, FirstSequence: 1, Sequences: 1, Artifact: extraction.Artifact{ContentSHA256: "other"}})
	var mismatch *extraction.SegmentMismatchError
	require.ErrorAs(t, err, &mismatch)
	s, _, err := command.Load[extraction.State](t.Context(), b.Handler, extraction.Stream(res.ID))
	require.NoError(t, err)
	require.Equal(t, extraction.StatusCompleted, s.Status)
	report, err := b.log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
	require.Zero(t, report.Reservations)
	require.EqualValues(t, 2, report.Work, "the self-test of the SAE, which nobody has made, and the fold")
}

func TestACorpusIsAskedForOnceAndBuiltInOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	want := corpus.Requested{ID: "c", Sequences: 10}
	for range 2 {
		_, err := b.RequestCorpus(t.Context(), call, want)
		require.NoError(t, err)
	}
	for i := range 2 {
		lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.CorpusWork}})
		require.NoError(t, err)
		require.Equal(t, i, lease.Work.Index)
		_, err = b.RecordCorpusChunk(t.Context(), call, *lease, corpus.RecordChunk{Chunk: corpus.ChunkBuilt{Chunk: i, Sequences: 6, SHA256: fmt.Sprint(i)}, VocabularySHA256: "v"})
		require.NoError(t, err)
	}
	s, version, err := command.Load[corpus.State](t.Context(), b.Handler, corpus.Stream("c"))
	require.NoError(t, err)
	require.True(t, s.Has(12))
	require.False(t, s.Has(13))
	require.EqualValues(t, 4, version)
	none, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.CorpusWork}})
	require.NoError(t, err)
	require.Nil(t, none)
	want.Sequences = 13
	_, err = b.RequestCorpus(t.Context(), call, want)
	require.NoError(t, err)
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.CorpusWork}})
	require.NoError(t, err)
	require.Equal(t, 2, lease.Work.Index, "the chunks that are there stay")
}

func TestALabelIsHistory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	src, err := source.FromSAE("sae_a")
	require.NoError(t, err)
	latent := feature.Latent{Source: src, Index: 7}
	name, star := "banks", true
	_, err = b.LabelFeature(t.Context(), call, feature.Label{Latent: latent, Name: &name, Starred: &star, By: feature.User})
	require.NoError(t, err)
	other := "rivers"
	_, err = b.LabelFeature(t.Context(), call, feature.Label{Latent: latent, Name: &other, By: feature.LLM})
	require.NoError(t, err)
	same, err := b.LabelFeature(t.Context(), call, feature.Label{Latent: latent, Name: &other, By: feature.LLM})
	require.NoError(t, err)
	require.Zero(t, same.Position, "nothing changed")
	events, err := b.log.ReadStream(t.Context(), feature.Stream(src, 7), 0)
	require.NoError(t, err)
	require.Len(t, events, 3)
	long := string(make([]byte, 501))
	_, err = b.LabelFeature(t.Context(), call, feature.Label{Latent: latent, Name: &long})
	refusal(t, err, "invalid_request")
	require.False(t, errors.Is(err, eventlog.ErrUnavailable))
}
