package kafkatest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/embedded"
)

// Environment of the choice that Start makes.
const (
	Env        = "FEATUREMILL_TEST_KAFKA"
	EnvVersion = "FEATUREMILL_TEST_KAFKA_VERSION"

	envServe     = "FEATUREMILL_TEST_KAFKA_SERVE"
	envServeAddr = "FEATUREMILL_TEST_KAFKA_SERVE_ADDR"

	stopTimeout = 20 * time.Second
)

// Broker is a broker under test. It is stopped and its data removed at the end of the test.
type Broker struct {
	Name  string
	t     testing.TB
	addrs []string
	begin func(t testing.TB) // starts it on its data and its address, and waits until it answers
	end   func()             // as hard as it can be ended; fine when it is down
}

// Addrs returns host:port pairs for clients; they stay the same over Kill and Restart.
func (b *Broker) Addrs() []string { return b.addrs }

// Kill ends the broker at once and returns when it is gone.
func (b *Broker) Kill() { b.end() }

// Restart starts a killed broker again and returns when it answers.
func (b *Broker) Restart() {
	b.t.Helper()
	b.begin(b.t)
}

// Start starts the broker that the environment chooses: the embedded one inside this process unless
// FEATUREMILL_TEST_KAFKA=apache.
func Start(t testing.TB) *Broker {
	t.Helper()
	switch os.Getenv(Env) {
	case "apache":
		return StartApache(t)
	case "", "kfake":
		return StartKfake(t)
	}
	require.FailNow(t, Env+" must be empty, kfake or apache")
	return nil
}

// StartKfake starts the embedded broker inside this process. Its Kill cuts all connections, but lets
// it write what it has in memory.
func StartKfake(t testing.TB) *Broker {
	t.Helper()
	cfg := embedded.BrokerConfig{Dir: t.TempDir()}
	var running *embedded.Broker
	b := &Broker{Name: "kfake", t: t}
	b.begin = func(t testing.TB) {
		t.Helper()
		var err error
		running, err = embedded.StartBroker(context.Background(), cfg)
		require.NoError(t, err)
		b.addrs = running.Addrs()
		cfg.Addr = b.addrs[0]
	}
	b.end = func() { running.Stop() }
	b.begin(t)
	t.Cleanup(b.end)
	return b
}

// ServeChild turns this process into a broker if StartKfakeProcess started it; otherwise it returns.
// Call it first in TestMain.
func ServeChild() {
	dir := os.Getenv(envServe)
	if dir == "" {
		return
	}
	b, err := embedded.StartBroker(context.Background(), embedded.BrokerConfig{Dir: dir, Addr: os.Getenv(envServeAddr)})
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(b.Addrs()[0])
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends
	os.Exit(0)
}

// StartKfakeProcess starts the embedded broker as a process of its own, so that Kill is a real
// SIGKILL. The test's TestMain must call ServeChild.
func StartKfakeProcess(t testing.TB) *Broker {
	t.Helper()
	dir := t.TempDir()
	var child *process
	b := &Broker{Name: "kfake", t: t}
	b.begin = func(t testing.TB) {
		t.Helper()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), envServe+"="+dir)
		if len(b.addrs) > 0 {
			cmd.Env = append(cmd.Env, envServeAddr+"="+b.addrs[0])
		}
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		t.Cleanup(func() { _ = stdin.Close() })
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		child, err = startProcess(cmd)
		require.NoError(t, err)
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err, "the broker's process ended")
		require.NotContains(t, line, "error:")
		b.addrs = []string{strings.TrimSpace(line)}
	}
	b.end = func() { child.kill() }
	b.begin(t)
	t.Cleanup(b.end)
	return b
}

// Leaks is for goleak in the TestMain of packages that subscribe: sarama's metrics start one ticker
// that stays for the life of the program.
func Leaks() goleak.Option {
	return goleak.IgnoreTopFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick")
}

// process is a child that ends with us.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.SysProcAttr = childAttributes()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the kernel ends the child when this thread ends
		err := cmd.Start()
		started <- err
		if err == nil {
			_, _ = cmd.Process.Wait() // not cmd.Wait: it would close the pipe that is being read
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) kill() {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return
	}
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
}
