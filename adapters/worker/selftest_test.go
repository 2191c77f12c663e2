package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

// letters is a tokenizer with a token a letter.
type letters struct{ Tokenizer }

func (letters) EncodeBatch(_ context.Context, texts []string) ([]corpus.Encoding, error) {
	out := make([]corpus.Encoding, len(texts))
	for i, text := range texts {
		for _, c := range text {
			out[i].IDs = append(out[i].IDs, c)
		}
	}
	return out, nil
}

func TestTheSampleIsCutIntoSequencesOfItsDocuments(t *testing.T) {
	t.Parallel()
	for _, length := range []int{4, 128, 1 << 16} {
		sequences, err := sampled(t.Context(), letters{}, length)
		require.NoError(t, err)
		total := 0
		for _, s := range sequences {
			require.LessOrEqual(t, len(s), length)
			require.GreaterOrEqual(t, len(s), min(length, minSequence))
			require.NotContains(t, s, '\n')
			total += len(s)
		}
		require.InDelta(t, len(sample), total, 7*minSequence)
	}
	whole, err := sampled(t.Context(), letters{}, 1<<16)
	require.NoError(t, err)
	require.Len(t, whole, 7, "a sequence a document")
	require.Greater(t, len(sample), 6*selfTestTokens, "enough for tokenizers of 6 letters a token")
}

// idle is an engine that computes nothing.
type idle struct{ Engine }

func (idle) Profile() extraction.ComputeProfile { return extraction.ComputeProfile{Device: "cpu"} }

func TestASelfTestMakesWayForAnExtraction(t *testing.T) {
	t.Parallel()
	registry, err := facts.Registry()
	require.NoError(t, err)
	log, err := postgres.Open(t.Context(), pgtest.New(t), postgres.Config{Registry: registry, Effects: facts.Effects})
	require.NoError(t, err)
	t.Cleanup(log.Close)
	commands := command.NewHandler(log, registry, time.Now)
	_, err = commands.ImportModel(t.Context(), command.Call{}, model.Import{ID: "m", Name: "m", Facts: model.Facts{Layers: 12, DModel: 16}})
	require.NoError(t, err)
	_, err = commands.ImportDataset(t.Context(), command.Call{}, dataset.Import{ID: "d", Name: "text", Facts: dataset.Facts{Rows: 10}})
	require.NoError(t, err)
	_, err = commands.ImportSAE(t.Context(), command.Call{}, sae.Import{ID: "sae_a", Name: "a", ModelID: "m", Facts: sae.Facts{Architecture: "topk", DIn: 16, DSAE: 64, DOut: 16, K: 4, Hook: "blocks.3.hook_resid_post", Layer: 3}})
	require.NoError(t, err)
	w := New(commands, log, nil, nil, idle{}, "w")
	claim := eventlog.Claim{Owner: "w", Kinds: []string{facts.PlanWork, facts.SelfTestWork}, Last: []string{facts.SelfTestWork}}
	test, err := log.Claim(t.Context(), claim)
	require.NoError(t, err)
	require.Equal(t, facts.SelfTestWork, test.Work.Kind)
	yield := w.yielding(t.Context(), &Task{Lease: *test}, 0)
	require.NoError(t, yield(), "there is nothing else to do")

	_, err = commands.StartExtractionFromSAE(t.Context(), command.Call{}, command.StartExtractionFromSAE{SAEID: "sae_a", DatasetID: "d", Config: extraction.DefaultConfig()})
	require.NoError(t, err)
	require.NoError(t, w.yielding(t.Context(), &Task{Lease: *test}, time.Hour)(), "it has just looked")
	require.ErrorIs(t, yield(), ErrStopping)
	require.NoError(t, log.ReleaseLease(t.Context(), *test), "as the loop does")
	plan, err := log.Claim(t.Context(), claim)
	require.NoError(t, err)
	require.Equal(t, facts.PlanWork, plan.Work.Kind)
	require.Equal(t, 1, plan.Attempt, "looking is no attempt")
}

func TestWhatASelfTestEndedWithIsRecordedUnlessItIsToGoOn(t *testing.T) {
	t.Parallel()
	for _, err := range []error{ErrStopping, ErrLost, context.Canceled, eventlog.ErrUnavailable} {
		require.Equal(t, err, failedTest(err))
	}
	for want, err := range map[string]error{
		"no_bos":           &Failure{Code: "no_bos"},
		"model_not_found":  problem.New(problem.NotFound, "model_not_found", "there is no model m"),
		"self_test_failed": errors.New("hook_odd is not known"),
	} {
		var f *Failure
		require.ErrorAs(t, failedTest(err), &f)
		require.Equal(t, want, f.Code)
	}
}
