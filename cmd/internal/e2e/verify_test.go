package e2e

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/projector"
)

func TestVerifyFindsWhatWasChangedBehindTheLogsBack(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	project := s.serve("projector")
	s.extractor()
	id := s.begin(config())
	s.awaitStatus(id, extraction.StatusCompleted)
	s.awaitFolded(id)
	require.Zero(t, project.Stop())
	s.requireWhole()

	tables := projector.Schema(features.Projection{})
	for name, c := range map[string]struct{ plant, mend, found string }{
		"a row of a read model": {
			`update ` + tables + `.segments set sequences = sequences + 1 where index = 3`,
			`update ` + tables + `.segments set sequences = sequences - 1 where index = 3`, "segments"},
		"a number of a feature": {
			`update generations.features set firings = firings + 1 where latent = 5`,
			`update generations.features set firings = firings - 1 where latent = 5`, "features"},
		"an event": {
			`update events set data = replace(data::text, '"tokens":', '"tokens": ')::json where type = 'SegmentRecorded' and data::text like '%"index":2,%'`,
			`update events set data = replace(data::text, '"tokens": ', '"tokens":')::json where type = 'SegmentRecorded' and data::text like '%"index":2,%'`, "digest"},
		"a reservation": {
			`insert into reservations values ('source:sae_ghost', 'ext_ghost', false)`,
			`delete from reservations where holder = 'ext_ghost'`, "ghost"},
	} {
		s.asSuperuser(c.plant)
		out, code := s.verify()
		require.NotZero(t, code, "%s: %s", name, out)
		require.Contains(t, out, "FAULT", name)
		require.Contains(t, out, c.found, name)
		s.asSuperuser(c.mend)
	}
	s.requireWhole()
}

// asSuperuser runs one statement with the triggers off, as somebody with the keys of the server could.
func (s *stack) asSuperuser(sql string) {
	s.t.Helper()
	conn, err := s.pool.Acquire(s.t.Context())
	require.NoError(s.t, err)
	defer conn.Release()
	_, err = conn.Exec(s.t.Context(), `set session_replication_role = replica`)
	require.NoError(s.t, err)
	defer func() { _, _ = conn.Exec(context.WithoutCancel(s.t.Context()), `reset session_replication_role`) }()
	tag, err := conn.Exec(s.t.Context(), sql)
	require.NoError(s.t, err)
	require.EqualValues(s.t, 1, tag.RowsAffected(), sql)
}
