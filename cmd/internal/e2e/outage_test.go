package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/extraction"
)

func TestAFoldThatCannotBeDoneSaysWhyAndIsAskedForAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.extractor()
	id := s.begin(config())
	s.awaitStatus(id, extraction.StatusCompleted)
	keys, err := s.artifacts(id)
	require.NoError(t, err)
	lost, err := s.store.Open(t.Context(), keys[4])
	require.NoError(t, err)
	kept, err := io.ReadAll(io.NewSectionReader(lost, 0, lost.Size()))
	require.NoError(t, err)
	require.NoError(t, lost.Close())
	require.NoError(t, s.store.Delete(t.Context(), keys[4]))
	s.serve("projector")
	var why *string
	s.await("a fold that is given up", func() bool {
		err := s.pool.QueryRow(t.Context(), `select fold_error from feature_folds where extraction_id = $1`, id).Scan(&why)
		return err == nil && why != nil
	})
	require.Contains(t, *why, "artifact of segment")
	require.Contains(t, *why, "not in the store")
	require.NoError(t, s.store.Put(t.Context(), keys[4], bytes.NewReader(kept)))
	_, err = s.commands.RequestFold(t.Context(), call(), id, "asked for")
	require.NoError(t, err)
	s.finish(id)
}

// small mounts a file system with little room where the store will be.
func small(t *testing.T, at string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(at, 0o755))
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", at).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no file system of its own can be mounted here: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", at).Run() })
}

func TestAFullDiskEndsNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{before: func(state string) { small(t, filepath.Join(state, "files")) }})
	s.serve("relay")
	s.serve("projector")
	filler := filepath.Join(s.state, "files", "filler")
	f, err := os.Create(filler)
	require.NoError(t, err)
	chunk := make([]byte, 64<<10)
	for {
		if _, err := f.Write(chunk); err != nil {
			require.ErrorContains(t, err, "no space left")
			break
		}
	}
	require.NoError(t, f.Close())
	s.extractor()
	id := s.begin(config())
	s.await("work that waits for room", func() bool {
		work, err := s.log.ListWork(t.Context(), "")
		require.NoError(t, err)
		for _, w := range work {
			if len(w.Causes) > 0 && strings.Contains(w.Causes[0].Detail, "make room") {
				return true
			}
		}
		return false
	})
	require.NoError(t, os.Remove(filler))
	s.finish(id)
	for _, r := range s.recorded(id) {
		require.Equal(t, 1, r.Attempt, "segment %d", r.Index)
	}
}

func TestNoStoreIsMadeAnewUnderALogThatNamesFiles(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	folder := filepath.Join(t.TempDir(), "not mounted")
	cfg := wiring.Config{State: t.TempDir(), Store: folder}
	for _, make := range []func(string) error{func(string) error { return nil }, func(p string) error { return os.Mkdir(p, 0o755) }} {
		require.NoError(t, make(folder))
		_, err := wiring.OpenStore(t.Context(), cfg, s.log)
		require.ErrorContains(t, err, "is empty, but the log names files")
	}
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.NoError(t, os.WriteFile(filepath.Join(folder, ".store"), nil, 0o600)) // as the error says
	store, err := wiring.OpenStore(t.Context(), cfg, s.log)
	require.NoError(t, err)
	require.NoError(t, store.Close())
}
