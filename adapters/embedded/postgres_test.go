package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// quick turns off what makes a server durable against a loss of power. A kill -9 loses nothing
// either way (with synchronous_commit off it would).
var quick = map[string]string{"fsync": "off", "full_page_writes": "off"}

func stateDir(t *testing.T) string {
	t.Helper()
	dir, err := TempDir()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

func startQuick(t *testing.T, dir string) *Postgres {
	t.Helper()
	p, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir, Settings: quick})
	if errors.Is(err, ErrNoPostgres) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Kill() })
	return p
}

func connect(t *testing.T, p *Postgres) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), p.DSN())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func count(t *testing.T, p *Postgres) int {
	t.Helper()
	var n int
	require.NoError(t, connect(t, p).QueryRow(t.Context(), "SELECT count(*) FROM facts").Scan(&n))
	return n
}

func insert(t *testing.T, p *Postgres, n int) {
	t.Helper()
	_, err := connect(t, p).Exec(t.Context(), fmt.Sprintf("CREATE TABLE IF NOT EXISTS facts(n int); INSERT INTO facts SELECT generate_series(1, %d)", n))
	require.NoError(t, err)
}

func stop(t *testing.T, p *Postgres) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, p.Stop(ctx))
}

func TestPostgresKeepsItsDataAcrossStopAndKill(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)

	p := startQuick(t, dir)
	insert(t, p, 10)
	stop(t, p)
	require.NoError(t, p.Wait(), "a stopped server has not failed")
	require.Empty(t, serversIn(p.data))

	p = startQuick(t, dir)
	insert(t, p, 5)
	require.NoError(t, p.Kill())
	require.Empty(t, serversIn(p.data), "no child outlives the killed server")

	begin := time.Now()
	p = startQuick(t, dir)
	t.Logf("start after a crash: %v", time.Since(begin))
	require.Equal(t, 15, count(t, p))
	stop(t, p)
	stop(t, p) // a second time is harmless

	begin = time.Now()
	p = startQuick(t, dir)
	t.Logf("warm start: %v", time.Since(begin))
	stop(t, p)
}

func TestPostgresListensOnlyOnASocketThatOthersCannotReach(t *testing.T) {
	t.Parallel()
	p := startQuick(t, stateDir(t))
	info, err := os.Stat(p.socket)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	var addresses, user, database string
	row := connect(t, p).QueryRow(t.Context(), "SELECT current_setting('listen_addresses'), current_user, current_database()")
	require.NoError(t, row.Scan(&addresses, &user, &database))
	require.Empty(t, addresses)
	require.Equal(t, databaseName, user)
	require.Equal(t, databaseName, database)
}

func TestPostgresReportsAServerThatDiesByItself(t *testing.T) {
	t.Parallel()
	p := startQuick(t, stateDir(t))
	require.NoError(t, syscall.Kill(p.PID(), syscall.SIGQUIT))
	<-p.Done()
	require.ErrorContains(t, p.Wait(), "immediate shutdown")
}

func TestPostgresFolderBelongsToOneProcess(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startQuick(t, dir)
	_, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir, Settings: quick})
	var locked *LockedError
	require.ErrorAs(t, err, &locked)
	require.Equal(t, os.Getpid(), locked.PID)
	stop(t, p)
	stop(t, startQuick(t, dir))
}

func TestPostgresSocketMovesWhenItsPathIsTooLong(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(stateDir(t), strings.Repeat("long-", 24))
	p := startQuick(t, dir)
	require.NotContains(t, p.socket, "long-")
	insert(t, p, 1)
	first := p.socket
	stop(t, p)
	require.NoDirExists(t, first)

	left := filepath.Join(os.TempDir(), socketPrefix+"left-by-a-killed-run")
	require.NoError(t, os.MkdirAll(left, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, socketRecord), []byte(left), 0o600))
	stop(t, startQuick(t, dir))
	require.NoDirExists(t, left)
	require.NoFileExists(t, filepath.Join(dir, socketRecord))
}

func TestPostgresEndsAServerThatAnEarlierRunLeft(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	orphan := startQuick(t, dir)
	insert(t, orphan, 3)
	require.NoError(t, orphan.lock.Close()) // as if its process had gone without taking it along
	p := startQuick(t, dir)
	<-orphan.Done()
	require.Equal(t, 3, count(t, p))
	stop(t, p)
}

func TestPostgresStartsOverAfterAHalfMadeDataFolder(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data.tmp", "base"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "data.tmp", "PG_VERSION"), []byte("18\n"), 0o600))
	p := startQuick(t, dir)
	insert(t, p, 1)
	require.NoDirExists(t, filepath.Join(dir, "data.tmp"))
	stop(t, p)
}

func TestPostgresIgnoresAStalePidFileOfALivingStranger(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	p := startQuick(t, dir)
	stop(t, p)
	stale := fmt.Sprintf("%d\n%s\n1\n5432\n/nowhere\n\n  1 1\nready\n", os.Getppid(), p.data)
	require.NoError(t, os.WriteFile(filepath.Join(p.data, "postmaster.pid"), []byte(stale), 0o600))
	stop(t, startQuick(t, dir))
}

func TestPostgresRefusals(t *testing.T) {
	t.Parallel()
	t.Run("a folder that the server's user cannot enter is named", func(t *testing.T) {
		t.Parallel()
		if os.Geteuid() != 0 {
			t.Skip("only root drops its rights")
		}
		shut := t.TempDir() // its parent has mode 0700
		_, err := StartPostgres(t.Context(), PostgresConfig{Dir: shut})
		var unreachable *UnreachableError
		require.ErrorAs(t, err, &unreachable)
		require.Equal(t, filepath.Dir(shut), unreachable.Folder)
		require.ErrorContains(t, err, "chmod o+x")
	})
	t.Run("a folder without programs is named", func(t *testing.T) {
		t.Parallel()
		_, err := StartPostgres(t.Context(), PostgresConfig{Dir: stateDir(t), Binaries: "/nonexistent"})
		require.ErrorContains(t, err, "PostgreSQL in /nonexistent")
	})
	t.Run("a setting that the server does not know comes back in its own words", func(t *testing.T) {
		t.Parallel()
		dir := stateDir(t)
		stop(t, startQuick(t, dir))
		_, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir, Settings: map[string]string{"no_such_setting": "1"}})
		require.ErrorContains(t, err, `configuration parameter "no_such_setting"`)
		stop(t, startQuick(t, dir)) // the lock was given back
	})
	t.Run("data of another major version is named", func(t *testing.T) {
		t.Parallel()
		dir := stateDir(t)
		p := startQuick(t, dir)
		stop(t, p)
		require.NoError(t, os.WriteFile(filepath.Join(p.data, "PG_VERSION"), []byte("12\n"), 0o600))
		_, err := StartPostgres(t.Context(), PostgresConfig{Dir: dir})
		require.ErrorContains(t, err, "was written by PostgreSQL 12")
	})
	t.Run("no folder", func(t *testing.T) {
		t.Parallel()
		_, err := StartPostgres(t.Context(), PostgresConfig{})
		require.Error(t, err)
	})
	t.Run("a cancelled start leaves nothing behind", func(t *testing.T) {
		t.Parallel()
		dir := stateDir(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := StartPostgres(ctx, PostgresConfig{Dir: dir, Settings: quick})
		require.ErrorIs(t, err, context.Canceled)
		stop(t, startQuick(t, dir))
	})
}

// runPostgresChild plays the program that is killed: it starts a server, writes rows one by one, and
// prints the number of each row that the server has acknowledged.
func runPostgresChild(dir string) {
	ctx := context.Background()
	fail := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	p, err := StartPostgres(ctx, PostgresConfig{Dir: dir})
	fail(err)
	conn, err := pgx.Connect(ctx, p.DSN())
	fail(err)
	_, err = conn.Exec(ctx, "CREATE TABLE IF NOT EXISTS facts(n int)")
	fail(err)
	fmt.Println("pid", p.PID())
	for n := 1; ; n++ {
		_, err = conn.Exec(ctx, "INSERT INTO facts VALUES ($1)", n)
		fail(err)
		fmt.Println("row", n)
	}
}

func TestPostgresLeavesNoOrphanAndLosesNothingWhenItsParentIsKilled(t *testing.T) {
	t.Parallel()
	dir := stateDir(t)
	stop(t, startQuick(t, dir)) // initdb without its syncs: the children are what is tested
	acknowledged := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"=postgres", childEnv+"_DIR="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		server, rows := 0, 0
		for lines.Scan() {
			word, number, _ := strings.Cut(lines.Text(), " ")
			n, err := strconv.Atoi(number)
			require.NoErrorf(t, err, "the child said %q", lines.Text())
			if word == "pid" {
				server = n
				continue
			}
			if rows = n; rows == 20+round {
				require.NoError(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait()
		acknowledged += rows
		require.Eventually(t, func() bool { return len(serversIn(filepath.Join(dir, "data"))) == 0 }, 20*time.Second, 10*time.Millisecond,
			"the server of the killed process goes away by itself")
		require.NotContains(t, serversIn(filepath.Join(dir, "data")), server)
	}
	p := startQuick(t, dir)
	require.GreaterOrEqual(t, count(t, p), acknowledged)
	require.LessOrEqual(t, count(t, p), acknowledged+3, "at most one row a round was written but not acknowledged")
	stop(t, p)
}

// BenchmarkWarmStart is one start and stop of a durable server that has data.
func BenchmarkWarmStart(b *testing.B) {
	dir, err := TempDir()
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, os.RemoveAll(dir)) })
	start := func() time.Duration {
		began := time.Now()
		p, err := StartPostgres(b.Context(), PostgresConfig{Dir: dir})
		require.NoError(b, err)
		took := time.Since(began)
		require.NoError(b, p.Stop(b.Context()))
		return took
	}
	cold := start()
	var warm time.Duration
	for b.Loop() {
		warm += start()
	}
	b.ReportMetric(cold.Seconds(), "cold-s")
	b.ReportMetric(warm.Seconds()/float64(b.N), "warm-s")
}
