package features_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
)

func TestAFoldWhoseProcessAlwaysEndsIsGivenUpAndSaysSo(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.corpus(t)
	id := b.start(t)
	b.record(t, extraction.Stream(id), segment(0), extraction.Completed{Segments: 1})
	_, err := b.log.Pool().Exec(t.Context(), `update features_v1.folds set owner = 'gone', attempts = 5, expires_at = clock_timestamp() - interval '1 second'`)
	require.NoError(t, err)
	require.NoError(t, b.folder.RunToEnd(t.Context()))
	var detail string
	require.NoError(t, b.log.Pool().QueryRow(t.Context(), `select fold_error from feature_folds where extraction_id = $1`, id).Scan(&detail))
	require.Contains(t, detail, "tried 5 times")
}
