package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
)

func TestAFailedPutLeavesNothingUnderTheKey(t *testing.T) {
	t.Parallel()
	s, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	cut := io.MultiReader(bytes.NewReader(make([]byte, 100)), failing{})
	require.ErrorIs(t, s.Put(t.Context(), "a/b", cut), errCut)
	_, err = s.Open(t.Context(), "a/b")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.Empty(t, keys(t, s, ""))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, s.Put(ended, "a/b", bytes.NewReader([]byte("x"))), context.Canceled)
}

func TestAKeyCannotLeaveTheFolder(t *testing.T) {
	t.Parallel()
	s, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	for _, key := range []string{"", ".", "../x", "/x", "a//b", "a/../../x", "x.partial"} {
		require.Error(t, s.Put(t.Context(), key, bytes.NewReader(nil)), key)
	}
}

func TestAFileIsKnownByItsDigestAndStoredOnce(t *testing.T) {
	t.Parallel()
	s, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("weights"), 0o600))
	for range 2 {
		size, digest, err := blob.PutFile(t.Context(), s, path)
		require.NoError(t, err)
		require.EqualValues(t, 7, size)
		sum := sha256.Sum256([]byte("weights"))
		require.Equal(t, hex.EncodeToString(sum[:]), digest)
		local, err := s.Local(t.Context(), blob.FileKey(digest), digest)
		require.NoError(t, err)
		got, err := os.ReadFile(local)
		require.NoError(t, err)
		require.Equal(t, "weights", string(got))
	}
	stored := keys(t, s, "files/")
	require.Len(t, stored, 1)
	require.NoError(t, s.Delete(t.Context(), stored[0]))
	require.NoError(t, s.Delete(t.Context(), stored[0]), "deleting twice is no error")
}

var errCut = errors.New("connection cut")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errCut }
