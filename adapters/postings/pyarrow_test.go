package postings_test

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// python returns a Python with pyarrow: $FEATUREMILL_PYTHON, else python3.
func python(t *testing.T) string {
	t.Helper()
	name := os.Getenv("FEATUREMILL_PYTHON")
	if name == "" {
		name = "python3"
	}
	if err := exec.Command(name, "-c", "import pyarrow.parquet").Run(); err != nil {
		t.Skipf("%s has no pyarrow (%v): set FEATUREMILL_PYTHON to a Python that has it", name, err)
	}
	return name
}

func TestPyarrowReadsAnArtifactAsItIs(t *testing.T) {
	t.Parallel()
	py := python(t)
	c, m := sample(9, 300, 64, 128, 60, 400_000)
	file, summary := write(t, c, m)
	path := filepath.Join(t.TempDir(), "artifact.parquet")
	require.NoError(t, os.WriteFile(path, file, 0o600))
	out, err := exec.Command(py, "testdata/read_artifact.py", path).Output()
	require.NoError(t, err)
	var got struct {
		Columns     [][2]string
		Rows        int64
		Content     string
		Metadata    map[string]string
		Groups      [][3]int64
		Compression []string
		Encodings   [][]string
		Sorting     [][2]any
	}
	require.NoError(t, json.Unmarshal(out, &got))
	require.Equal(t, [][2]string{{"latent", "uint32"}, {"sequence", "uint32"}, {"offset", "uint16"}, {"activation", "float"}}, got.Columns)
	require.Equal(t, summary.Rows, got.Rows)
	require.Equal(t, hex.EncodeToString(summary.Content[:]), got.Content)
	require.Equal(t, "64", got.Metadata["featuremill.first_sequence"])
	require.Equal(t, "300", got.Metadata["featuremill.latents"])
	require.Equal(t, []string{"ZSTD"}, got.Compression)
	require.Equal(t, [][]string{{"DELTA_BINARY_PACKED"}, {"DELTA_BINARY_PACKED"}, {"DELTA_BINARY_PACKED"}, {"BYTE_STREAM_SPLIT"}}, got.Encodings)
	require.Len(t, got.Sorting, 3)
	require.Greater(t, len(got.Groups), 1)
	for i := range got.Groups[1:] {
		require.Greater(t, got.Groups[i+1][1], got.Groups[i][2], "row groups are cut between latents")
	}
}
