package embedded

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// childAttributes make the child end with us: SIGQUIT is PostgreSQL's immediate shutdown, and the
// kernel sends it when the thread that started the child is gone. The group of its own keeps a
// terminal's Ctrl-C away from the child, so that we decide when it stops.
func childAttributes(a account) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: a.credential(), Setpgid: true, Pdeathsig: syscall.SIGQUIT}
}

// serversIn returns the postgres processes whose working directory is dir: the postmaster first, then
// its children, which may outlive it for a moment.
func serversIn(dir string) []int {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd") // fails for a bad pattern only
	var leaders, others []int
	for _, link := range links {
		// Reading the link of somebody else's process is refused: then it is not ours either.
		if cwd, err := os.Readlink(link); err != nil || strings.TrimSuffix(cwd, " (deleted)") != dir {
			continue
		}
		proc := filepath.Dir(link)
		stat, err := os.ReadFile(filepath.Join(proc, "stat"))
		if err != nil {
			continue
		}
		name, rest, ok := strings.Cut(string(stat), ") ")
		if !ok || !strings.HasSuffix(name, "(postgres") || strings.HasPrefix(rest, "Z") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			continue
		}
		// A postmaster that was started by hand, or by us, runs with a command line; its children
		// replace theirs with "postgres: checkpointer" and the like.
		if line, _ := os.ReadFile(filepath.Join(proc, "cmdline")); strings.HasPrefix(string(line), "postgres: ") {
			others = append(others, pid)
		} else {
			leaders = append(leaders, pid)
		}
	}
	return append(leaders, others...)
}
