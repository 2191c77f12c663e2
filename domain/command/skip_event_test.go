package command_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/facts"
)

func TestAnEventIsLeftOutOnceWithAReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	skip := command.SkipEvent{Projection: "library", Position: 2, Reason: "written by a bug"}
	done, err := b.SkipEvent(t.Context(), call, skip)
	require.NoError(t, err)
	again, err := b.SkipEvent(t.Context(), call, skip)
	require.NoError(t, err)
	require.Zero(t, again.Position, "nothing changes the second time")
	skip.Projection = "features"
	_, err = b.SkipEvent(t.Context(), call, skip)
	require.NoError(t, err)

	registry, err := facts.Registry()
	require.NoError(t, err)
	recorded, err := b.log.ReadStream(t.Context(), facts.OperationsStream, 0)
	require.NoError(t, err)
	require.Len(t, recorded, 2)
	require.Equal(t, done.Position, recorded[0].Position)
	second, err := b.log.ReadAll(t.Context(), 1, 1)
	require.NoError(t, err)
	data, err := registry.Decode(recorded[0])
	require.NoError(t, err)
	require.Equal(t, facts.EventSkipped{Projection: "library", EventID: second[0].ID, Reason: "written by a bug", Actor: "test"}, data)

	_, err = b.SkipEvent(t.Context(), call, command.SkipEvent{Position: 2})
	require.Len(t, refusal(t, err, "invalid_request").Fields, 2)
	_, err = b.SkipEvent(t.Context(), call, command.SkipEvent{Projection: "library", Position: 999, Reason: "r"})
	refusal(t, err, "unknown_event")
	_, err = b.SkipEvent(t.Context(), call, command.SkipEvent{Projection: "library", Position: done.Position, Reason: "r"})
	refusal(t, err, "not_skippable")
}
