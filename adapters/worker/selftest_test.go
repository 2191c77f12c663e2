package worker

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/problem"
)

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
