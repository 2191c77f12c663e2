package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

const (
	// postgresVersion is what postgres.sh fetches.
	postgresVersion = "18.6.0"
	// oldestPostgres is the oldest major version that Featuremill's schema runs on.
	oldestPostgres = 15
	// PostgresEnv names a folder that holds postgres and initdb; it goes before every other place.
	PostgresEnv = "FEATUREMILL_POSTGRES_BIN"
)

// ErrNoPostgres says that no PostgreSQL programs were found.
var ErrNoPostgres = errors.New("no PostgreSQL found")

// PostgresCache returns the folder that postgres.sh fills. Root has a cache of its own in a public
// place, because PostgreSQL does not run as root and others cannot enter root's home.
func PostgresCache() (string, error) {
	root := "/var/cache"
	if os.Geteuid() != 0 {
		var err error
		if root, err = os.UserCacheDir(); err != nil {
			return "", fmt.Errorf("the cache folder: %w", err)
		}
	}
	return filepath.Join(root, "featuremill", "postgres", postgresVersion), nil
}

// programs are the two that a server needs.
type programs struct {
	postgres, initdb string
	major            int
}

// findPrograms looks at the configured folder alone if there is one; else at the cache, else at what
// is installed, newest first.
func findPrograms(ctx context.Context, configured string) (programs, error) {
	if configured == "" {
		configured = os.Getenv(PostgresEnv)
	}
	if configured != "" {
		p, err := programsIn(ctx, configured)
		if err != nil {
			return programs{}, fmt.Errorf("PostgreSQL in %s: %w", configured, err)
		}
		return p, nil
	}
	var tried []error
	for _, dir := range candidates() {
		p, err := programsIn(ctx, dir)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			tried = append(tried, fmt.Errorf("%s: %w", dir, err))
		}
	}
	return programs{}, errors.Join(append([]error{fmt.Errorf(
		"%w: run adapters/embedded/postgres.sh once, or install PostgreSQL %d or newer, or set %s to the folder of its programs",
		ErrNoPostgres, oldestPostgres, PostgresEnv)}, tried...)...)
}

func candidates() []string {
	var dirs []string
	if cache, err := PostgresCache(); err == nil {
		dirs = append(dirs, filepath.Join(cache, "bin"))
	}
	var installed []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/local/opt/postgresql@*/bin"} {
		found, _ := filepath.Glob(pattern) // fails for a bad pattern only
		installed = append(installed, found...)
	}
	slices.SortStableFunc(installed, func(a, b string) int { return majorInPath(b) - majorInPath(a) })
	dirs = append(dirs, installed...)
	if p, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(p))
	}
	return append(dirs, "/usr/local/pgsql/bin", "/usr/bin")
}

var digits = regexp.MustCompile(`\d+`)

func majorInPath(path string) int {
	n, _ := strconv.Atoi(digits.FindString(path))
	return n
}

func programsIn(ctx context.Context, dir string) (programs, error) {
	p := programs{}
	for name, into := range map[string]*string{"postgres": &p.postgres, "initdb": &p.initdb} {
		// A link from elsewhere must lead to the folder beside which lib and share lie.
		path, err := filepath.EvalSymlinks(filepath.Join(dir, name))
		if err != nil {
			return p, err
		}
		*into = path
	}
	out, err := exec.CommandContext(ctx, p.postgres, "--version").Output()
	if err != nil {
		return p, fmt.Errorf("%s --version: %w", p.postgres, err)
	}
	m := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindSubmatch(out)
	if m == nil {
		return p, fmt.Errorf("%s --version said %q", p.postgres, out)
	}
	if p.major, _ = strconv.Atoi(string(m[1])); p.major < oldestPostgres {
		return p, fmt.Errorf("version %d is too old, %d or newer is needed", p.major, oldestPostgres)
	}
	return p, nil
}
