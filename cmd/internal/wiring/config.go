package wiring

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Config is what every role of both binaries can be told. The names of the flags are kong's.
type Config struct {
	State       string        `help:"Folder for everything that is kept: the embedded PostgreSQL and broker, files, caches." default:"${state}" env:"FEATUREMILL_STATE" type:"path"`
	Database    string        `help:"PostgreSQL, as a URL or key=value. Empty: an embedded server in the state folder." env:"FEATUREMILL_DATABASE"`
	Kafka       []string      `help:"Kafka brokers, host:port. Empty: an embedded broker." env:"FEATUREMILL_KAFKA"`
	Store       string        `help:"Where files are kept: a folder, or s3://bucket?region=…. Empty: a folder in the state folder." env:"FEATUREMILL_STORE"`
	ImportRoots []string      `name:"import-root" help:"Folders below which files may be imported. None: any file that this user can read, where the API listens on this machine only." env:"FEATUREMILL_IMPORT_ROOTS" type:"path"`
	LeaseTime   time.Duration `hidden:"" help:"How long a worker's lease lives without a heartbeat." default:"30s" env:"FEATUREMILL_LEASE_TIME"`
	Wait        time.Duration `kong:"-"` // how long a start waits for a PostgreSQL that does not answer: what runs for ever may be started before it
	LogLevel    string        `help:"debug, info, warn or error." enum:"debug,info,warn,error" default:"info" env:"FEATUREMILL_LOG_LEVEL"`
}

// DefaultState is where the state is kept unless somebody says otherwise. The embedded PostgreSQL of
// root runs as another user, which cannot enter root's home.
func DefaultState() string {
	if dir := os.Getenv("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "featuremill")
	}
	if os.Geteuid() == 0 {
		return "/var/lib/featuremill"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), fmt.Sprintf("featuremill-%d", os.Getuid()))
	}
	return filepath.Join(home, ".local", "share", "featuremill")
}

func (c Config) store() string {
	if c.Store != "" {
		return c.Store
	}
	return filepath.Join(c.State, "files")
}

// Cache is a folder for what can be made again.
func (c Config) Cache() string { return filepath.Join(c.State, "cache") }
