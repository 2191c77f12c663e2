package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// process is a program of ours in a process group of its own, which ends with the test.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when it has ended
}

// output keeps what a process says, for when the test fails.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a program in the background. env is added to the test's.
func start(t testing.TB, name, path string, args, env []string) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: exec.Command(path, args...), out: &output{}, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = childAttributes()
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the kernel ends the child when this thread ends
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // what it means is in ProcessState
			close(p.done)
		}
	}()
	require.NoError(t, <-started)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("QUIT") != "" {
			p.signal(syscall.SIGQUIT)
			select {
			case <-p.done:
			case <-time.After(3 * time.Second):
			}
		}
		p.Kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, tail(p.out.String(), 400))
		}
	})
	return p
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Kill sends SIGKILL to the process and whatever it started, and waits until it is gone.
func (p *process) Kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	<-p.done
}

// Stop sends SIGTERM, waits, and returns the exit code. Nobody may keep a person, or a machine that goes down, waiting for long.
func (p *process) Stop() int {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	return p.Wait(15 * time.Second)
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	select {
	case <-p.done:
		return
	default:
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, s); err != nil {
		require.ErrorIs(p.t, err, syscall.ESRCH)
	}
}

// Wait waits for the process to end by itself. The code is -1 if a signal ended it.
func (p *process) Wait(most time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(most):
		require.FailNow(p.t, p.name+" did not end", "%s", tail(p.out.String(), 40))
	}
	return p.cmd.ProcessState.ExitCode()
}

// Ended reports whether the process has ended.
func (p *process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// run runs a program to its end and returns what it said, and its exit code.
func run(t testing.TB, path string, args ...string) (string, int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	require.NoError(t, err)
	return string(out), 0
}

// contains reports whether a process has said something.
func contains(p *process, text string) bool { return strings.Contains(p.out.String(), text) }
