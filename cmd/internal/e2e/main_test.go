package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/kafka/kafkatest"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(programsEnd{pgtest.Main(m)}, kafkatest.Leaks()) }

// programsEnd runs the tests and removes the programs that were built for them.
type programsEnd struct{ goleak.TestingM }

func (p programsEnd) Run() int {
	_ = os.Setenv("AWS_ACCESS_KEY_ID", "any") // of object stores that ask for none
	_ = os.Setenv("AWS_SECRET_ACCESS_KEY", "any")
	code := p.TestingM.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	return code
}

var built struct {
	once        sync.Once
	dir         string // to remove
	featuremill string
	extractor   string
	out         []byte
	err         error
}

// build compiles what make build compiles, with the same flags, so that Go's cache serves both.
const build = `set -euo pipefail
CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/featuremill" ./cmd/featuremill
lines=$(adapters/torch/libtorch.sh env)
eval "$lines"
tokens=$(adapters/tokenizer/build.sh env)
export CGO_LDFLAGS="$CGO_LDFLAGS $(sed -n 's/^CGO_LDFLAGS=//p' <<<"$tokens")"
go build -ldflags '-s -w' -o "$1/extractor" ./cmd/extractor`

// programs returns the paths of both programs. It skips the test only where there is no libtorch to build with.
func programs(t testing.TB) (featuremill, extractor string) {
	t.Helper()
	built.once.Do(func() {
		dir := os.Getenv("FEATUREMILL_TEST_BINARIES")
		if dir == "" {
			if dir, built.err = os.MkdirTemp("", "featuremill-e2e-"); built.err != nil {
				return
			}
			built.dir = dir
			cmd := exec.Command("bash", "-c", build, "build", dir)
			cmd.Dir = root
			if built.out, built.err = cmd.CombinedOutput(); built.err != nil {
				return
			}
		}
		built.featuremill, built.extractor = filepath.Join(dir, "featuremill"), filepath.Join(dir, "extractor")
	})
	if built.err != nil {
		if out, err := exec.Command(filepath.Join(root, "adapters/torch/libtorch.sh"), "env").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "SKIPPED: no end-to-end test without libtorch (make libtorch): %s", out)
			t.Skip("libtorch is missing")
		}
	}
	require.NoError(t, built.err, "%s", built.out)
	return built.featuremill, built.extractor
}

// root is the repository's.
const root = "../../.."
