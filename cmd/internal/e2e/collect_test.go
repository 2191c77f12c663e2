package e2e

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
)

func TestALostArtifactIsComputedAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	project := s.serve("projector")
	s.extractor()
	id := s.begin(config())
	s.awaitStatus(id, extraction.StatusCompleted)
	s.awaitFolded(id)
	require.Zero(t, project.Stop())
	keys, err := s.artifacts(id)
	require.NoError(t, err)
	require.NoError(t, s.store.Delete(t.Context(), keys[2]))
	require.NoError(t, s.store.Put(t.Context(), keys[5], bytes.NewReader([]byte("rot"))))
	require.NoError(t, s.store.Put(t.Context(), "extractions/"+id+"/99-of-nobody.parquet", bytes.NewReader([]byte("rest"))))

	out, code := s.verify()
	require.NotZero(t, code)
	require.Contains(t, out, keys[2])
	path, extractor := programs(t)
	out, code = run(t, path, s.args("artifacts", "check", id)...)
	require.NotZero(t, code)
	require.Contains(t, out, "not in the store")
	require.Contains(t, out, "its bytes have sha256")
	out, code = run(t, path, s.args("artifacts", "repair", id, "--extractor", extractor, "--threads", "2")...)
	require.NotZero(t, code, "another profile")
	require.Contains(t, out, "only the same profile gives the same numbers")
	out, code = run(t, path, s.args("artifacts", "repair", id, "--extractor", extractor, "--threads", "1")...)
	require.Zero(t, code, out)
	require.Contains(t, out, "2 artifacts were computed again")
	s.requireSame(id)

	out, code = run(t, path, s.args("store", "sweep", "--grace", "1ns", "--dry-run")...)
	require.Zero(t, code, out)
	require.Contains(t, out, "99-of-nobody.parquet")
	out, code = run(t, path, s.args("store", "sweep", "--grace", "1ns")...)
	require.Zero(t, code, out)
	left, err := s.artifacts(id)
	require.NoError(t, err)
	require.Equal(t, keys, left)
	s.requireSame(id)
}
