package wiring

import (
	"os/exec"
	"runtime"
	"syscall"
)

// runBound runs a child that is asked to stop when this process dies, whatever kills it. The kernel
// ties that to the thread that started the child, so the thread waits with it.
func runBound(cmd *exec.Cmd, started func(pid int)) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if started != nil {
		started(cmd.Process.Pid)
	}
	return cmd.Wait()
}
