// Package layout holds the test that proves README's rule of the layout: who may import whom.
package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/featuremill/featuremill/"

type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
	CgoFiles   []string
}

// packages lists this module's packages with what they import, tests left out.
func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,CgoFiles", module+"...")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=1")
	out, err := cmd.Output()
	require.NoError(t, err)
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all = append(all, p)
	}
}

func standard(path string) bool { return !strings.Contains(strings.Split(path, "/")[0], ".") }

func ours(path, dir string) bool {
	return path == module+dir || strings.HasPrefix(path, module+dir+"/")
}

// builtOn names the adapters that may import another adapter, and which.
var builtOn = map[string][]string{
	"adapters/torch":     {"adapters/checkpoint", "adapters/postings"},
	"adapters/tokenizer": {"adapters/checkpoint"},
	"adapters/library":   {"adapters/blob", "adapters/checkpoint", "adapters/corpus", "adapters/hub", "adapters/tokenizer"},
	"adapters/worker":    {"adapters/blob", "adapters/corpus", "adapters/library", "adapters/postings"},
	"adapters/collect":   {"adapters/blob"},
	"adapters/kafka":     {"adapters/embedded"}, // kafkatest starts the embedded broker
	"adapters/relay":     {"adapters/kafka"},
	"adapters/postgres":  {"adapters/embedded"}, // pgtest starts the embedded server
	"adapters/httpapi":   {"adapters/blob", "adapters/library", "projections"},
}

func TestThePackagesImportOnlyWhatTheLayoutAllows(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		dir := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			switch {
			case standard(imp) || imp == "C":
			case ours(p.ImportPath, "domain"):
				require.True(t, ours(imp, "domain"), "%s imports %s: the domain imports the standard library and the domain", dir, imp)
			case ours(p.ImportPath, "projections"):
				ok := ours(imp, "domain") || ours(imp, "projections") || strings.HasPrefix(imp, "github.com/jackc/pgx/v5") || strings.HasPrefix(imp, "golang.org/x/sync") || strings.HasSuffix(dir, "test")
				require.True(t, ok, "%s imports %s: projections import the domain and pgx; readers are handed to them", dir, imp)
			case ours(p.ImportPath, "adapters"):
				require.False(t, strings.HasPrefix(imp, "go.uber.org/fx") || strings.HasPrefix(imp, "github.com/alecthomas/kong"), "%s imports %s: only cmd wires", dir, imp)
				if strings.HasPrefix(imp, module) && !ours(imp, "domain") && !ours(imp, "schema") {
					own := adapter(dir)
					ok := ours(imp, own) || slices.ContainsFunc(builtOn[own], func(on string) bool { return ours(imp, on) })
					require.True(t, ok, "%s imports %s: adapters are built on each other only as builtOn says", dir, imp)
				}
			}
		}
	}
}

func adapter(dir string) string {
	parts := strings.SplitN(dir, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func TestOnlyTorchAndTheTokenizerUseCgo(t *testing.T) {
	t.Parallel()
	for _, p := range packages(t) {
		if len(p.CgoFiles) > 0 {
			dir := strings.TrimPrefix(p.ImportPath, module)
			ok := ours(p.ImportPath, "adapters/torch") || dir == "adapters/tokenizer" || dir == "cmd/extractor"
			require.True(t, ok, "%s uses cgo", dir)
		}
	}
}

func TestTheBackendNeedsNoCgo(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("go", "build", "-o", t.TempDir(), module+"cmd/featuremill")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
