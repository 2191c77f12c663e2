package wiring

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// failpoints reads places where a test breaks this process, such as "batch=sleep:20ms,artifact=kill@3":
// what happens there is kill (SIGKILL, as by the kernel's memory killer), hang (for ever), or sleep; @n is
// the n-th time only, without it every time.
func failpoints(text string) (func(name string), error) {
	type action struct {
		do   func()
		only int64 // 0 = every time
		hits atomic.Int64
	}
	actions := map[string][]*action{}
	for _, one := range strings.Split(text, ",") {
		name, what, ok := strings.Cut(one, "=")
		what, nth, counted := strings.Cut(what, "@")
		verb, arg, _ := strings.Cut(what, ":")
		a := &action{}
		var err error
		if counted {
			a.only, err = strconv.ParseInt(nth, 10, 64)
		}
		switch verb {
		case "kill":
			a.do = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
		case "hang":
			a.do = func() { select {} }
		case "sleep":
			var d time.Duration
			if err == nil {
				d, err = time.ParseDuration(arg)
			}
			a.do = func() { time.Sleep(d) }
		default:
			ok = false
		}
		if !ok || err != nil {
			return nil, fmt.Errorf("failpoint %q: want name=kill, hang or sleep:DURATION, with @N for the N-th time only", one)
		}
		actions[name] = append(actions[name], a)
	}
	return func(name string) {
		for _, a := range actions[name] {
			if n := a.hits.Add(1); a.only == 0 || n == a.only {
				a.do()
			}
		}
	}, nil
}
