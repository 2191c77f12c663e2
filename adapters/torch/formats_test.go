package torch

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// formatParity is a cell of README's table of formats: the worst relative error of a token, over the
// cases of one format and architecture.
type formatParity struct {
	Format       string  `json:"format"`
	Architecture string  `json:"architecture"`
	Cases        int     `json:"cases"`
	Acts         float64 `json:"acts"`
	Decode       float64 `json:"decode"`
	Recon        float64 `json:"recon"`
	Reference    string  `json:"reference"`
}

const (
	formatCases      = "../checkpoint/testdata/formats"
	formatParityFile = "testdata/parity_formats.json"
)

// describe is an SAE's architecture in words.
func describe(s *checkpoint.SAE) string {
	c := s.Config
	out := c.Architecture
	if c.RescaleActsByDecoderNorm {
		out += " × decoder norm"
	}
	if s.WSkip != nil {
		out += " skip"
	}
	if c.Transcoder {
		out += " transcoder"
	}
	if c.Reshape == "hook_z" {
		out += ", hook_z"
	}
	return out
}

// Every case of checkpoint/testdata/formats: a checkpoint as its publisher lays it out, and what the
// reference makes of x. With FEATUREMILL_WRITE_PARITY=1 the worst errors go to parity_formats.json,
// which README's table is made from.
func TestEveryFormatAgreesWithItsReference(t *testing.T) {
	folders, err := filepath.Glob(formatCases + "/*/*")
	require.NoError(t, err)
	require.NotEmpty(t, folders)
	cells := map[string]*formatParity{}
	for _, folder := range folders {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() {
			require.DirExists(t, strings.TrimSuffix(folder, ".expected.safetensors"), "%s is expected of no case", folder)
			continue
		}
		format, name := filepath.Base(filepath.Dir(folder)), filepath.Base(folder)
		t.Run(format+"/"+name, func(t *testing.T) {
			g := openGolden(t, folder+".expected.safetensors")
			meta := g.f.Metadata()
			require.NotEmpty(t, meta["reference"])
			var facts checkpoint.SAEFacts
			if meta["options"] != "" {
				require.NoError(t, json.Unmarshal([]byte(meta["options"]), &facts))
			}
			source, err := checkpoint.OpenSAE(filepath.Join(folder, meta["path"]), checkpoint.WithFacts(facts))
			require.NoError(t, err)
			t.Cleanup(func() { _ = source.Close() })
			require.Equal(t, format, source.Config.Format)
			a := loadSAE(t, source)
			key := format + " " + describe(source)
			if cells[key] == nil {
				cells[key] = &formatParity{Format: format, Architecture: describe(source)}
			}
			cell := cells[key]
			cell.Cases++
			if who := meta["reference"]; !strings.Contains(cell.Reference, who) {
				cell.Reference = strings.TrimPrefix(cell.Reference+"; "+who, "; ")
			}
			for _, e := range encoders(a) {
				a.encoder = e
				found := differences(t, a, g)
				t.Logf("%T: %v", e, found)
				for what, worst := range map[string]*float64{"acts": &cell.Acts, "decode": &cell.Decode, "recon": &cell.Recon} {
					require.LessOrEqual(t, found[what], parity, "%s, %T", what, e)
					*worst = max(*worst, found[what])
				}
			}
		})
	}
	var found, recorded []formatParity
	for _, c := range cells {
		found = append(found, *c)
	}
	slices.SortFunc(found, func(a, b formatParity) int {
		return strings.Compare(a.Format+" "+a.Architecture, b.Format+" "+b.Architecture)
	})
	if t.Failed() {
		return
	}
	if os.Getenv("FEATUREMILL_WRITE_PARITY") != "" {
		writeJSON(t, formatParityFile, found)
	}
	readJSON(t, formatParityFile, &recorded)
	names := func(cells []formatParity) (out []string) {
		for _, c := range cells {
			out = append(out, fmt.Sprintf("%s, %s: %d by %s", c.Format, c.Architecture, c.Cases, c.Reference))
		}
		return out
	}
	require.Equal(t, names(found), names(recorded), "make the table anew: FEATUREMILL_WRITE_PARITY=1 go test ./adapters/torch/")
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	text, err := json.MarshalIndent(v, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(text, '\n'), 0o644)) //nolint:gosec // a file of the repository
}

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, into))
}
