package command_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/generation"
)

// A fold that began before the request has read what was there before it.
func TestAFoldThatIsAskedForWhileOneRunsIsDone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	started, err := b.StartExtractionFromSAE(t.Context(), call, start("sae_a"))
	require.NoError(t, err)
	_, err = b.CancelExtraction(t.Context(), call, started.ID, "")
	require.NoError(t, err)
	claim := func() *eventlog.Lease {
		lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "w", Kinds: []string{facts.FoldWork}})
		require.NoError(t, err)
		require.NotNil(t, lease)
		return lease
	}
	running := claim()
	_, err = b.RequestFold(t.Context(), call, started.ID, "the file was put back")
	require.NoError(t, err)
	var fenced *eventlog.FencedError
	_, err = b.FailFold(t.Context(), call, running.Held(), "artifact_missing", "")
	require.ErrorAs(t, err, &fenced)
	_, err = b.RecordFold(t.Context(), call, *claim(), generation.Folded{Through: 3})
	require.NoError(t, err)
	s, _, err := command.Load[generation.State](t.Context(), b.Handler, generation.Stream(started.ID))
	require.NoError(t, err)
	require.Nil(t, s.Failure)
	require.False(t, s.Wanted)
	report, err := b.log.Verify(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, report.Faults)
}
