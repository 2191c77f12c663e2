package layout

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
)

const root = "../../.."

// compose loads docker-compose.yml: the loader checks it against the JSON Schema of the compose
// specification, resolves its references, and fails where services, volumes or conditions do not fit.
func compose(t *testing.T, environment types.Mapping) (*types.Project, error) {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, "docker-compose.yml"))
	require.NoError(t, err)
	return loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: filepath.Dir(path), ConfigFiles: []types.ConfigFile{{Filename: path}}, Environment: environment,
	}, func(o *loader.Options) { o.Profiles = []string{"*"} })
}

func TestTheComposeFileFollowsTheSpecification(t *testing.T) {
	t.Parallel()
	project, err := compose(t, types.Mapping{"FEATUREMILL_TOKEN": "secret"})
	require.NoError(t, err)
	for _, service := range []string{"api", "relay", "projector", "extractor", "extractor-gpu", "postgres", "kafka", "store", "bucket"} {
		require.Contains(t, project.ServiceNames(), service)
	}
	for name, s := range project.Services {
		if s.Build != nil {
			require.FileExists(t, filepath.Join(s.Build.Context, s.Build.Dockerfile), name)
		} else {
			require.Regexp(t, `:[^:]+$`, s.Image, "%s: an image is pinned", name)
			require.NotContains(t, s.Image, ":latest", name)
		}
	}
	require.Len(t, project.Services["extractor-gpu"].Deploy.Resources.Reservations.Devices, 1)
}

func TestTheComposeFileAsksForAToken(t *testing.T) {
	t.Parallel()
	_, err := compose(t, nil)
	require.ErrorContains(t, err, "FEATUREMILL_TOKEN")
}

var environmentTag = regexp.MustCompile(`env:"(FEATUREMILL_[A-Z_]+)"`)

func TestTheComposeFileSetsOnlyWhatTheProgramsRead(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, pattern := range []string{"cmd/internal/wiring/*.go", "cmd/featuremill/*.go", "cmd/extractor/*.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		for _, file := range files {
			source, err := os.ReadFile(file)
			require.NoError(t, err)
			for _, m := range environmentTag.FindAllStringSubmatch(string(source), -1) {
				known[m[1]] = true
			}
		}
	}
	project, err := compose(t, types.Mapping{"FEATUREMILL_TOKEN": "secret"})
	require.NoError(t, err)
	for name, s := range project.Services {
		for variable := range s.Environment {
			if strings.HasPrefix(variable, "FEATUREMILL_") {
				require.True(t, known[variable], "%s sets %s, which no flag reads", name, variable)
			}
		}
	}
}

// Opening the address sends nothing: it shows that the address is one that the store understands.
func TestTheComposeFileNamesAStoreThatOpens(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "user")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	project, err := compose(t, types.Mapping{"FEATUREMILL_TOKEN": "secret"})
	require.NoError(t, err)
	address := *project.Services["extractor"].Environment["FEATUREMILL_STORE"]
	parsed, err := url.Parse(address)
	require.NoError(t, err)
	require.Contains(t, strings.Join(project.Services["bucket"].Command, " "), "store/"+parsed.Host, "the bucket is made")
	store, err := blob.Open(t.Context(), address, t.TempDir())
	require.NoError(t, err)
	require.NoError(t, store.Close())
}
