package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

func TestAPassComesBackFromItsFileOrNotAtAll(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "taps")
	taps, err := openTaps(folder, 100)
	require.NoError(t, err)
	x, key, got := []float32{1, -2, 0.1}, [32]byte{1}, make([]float32, 3)
	require.False(t, taps.Load(key, got))
	taps.Store(key, x)
	require.True(t, taps.Load(key, got))
	require.Equal(t, x, got)
	require.False(t, taps.Load(key, make([]float32, 2)), "another shape")
	require.False(t, taps.Load([32]byte{2}, got))

	data, err := os.ReadFile(taps.path(key))
	require.NoError(t, err)
	data[9] ^= 1
	require.NoError(t, os.WriteFile(taps.path(key), data, 0o600))
	require.False(t, taps.Load(key, got), "a flipped bit")
	taps.Store(key, x)

	taps.Store([32]byte{3}, make([]float32, 30))
	require.False(t, taps.Load([32]byte{3}, make([]float32, 30)), "beyond the limit nothing is kept")

	again, err := openTaps(folder, 100)
	require.NoError(t, err)
	require.EqualValues(t, 16, again.used)
	require.True(t, again.Load(key, got), "another worker finds it")
	old := time.Now().Add(-2 * tapAge)
	require.NoError(t, os.Chtimes(taps.path(key), old, old))
	again, err = openTaps(folder, 100)
	require.NoError(t, err)
	require.False(t, again.Load(key, got), "what no batch asks for any more goes")
	files, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestWorkersMayCleanTheSameFolderTogether(t *testing.T) {
	t.Parallel()
	folder, old := t.TempDir(), time.Now().Add(-2*tapAge)
	for i := range 2000 {
		path := filepath.Join(folder, fmt.Sprint(i))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Chtimes(path, old, old))
	}
	var workers errgroup.Group
	for range 8 {
		workers.Go(func() error { _, err := openTaps(folder, 100); return err })
	}
	require.NoError(t, workers.Wait())
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left)
}
