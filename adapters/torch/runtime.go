package torch

// #cgo CXXFLAGS: -std=c++17 -O3
// #cgo LDFLAGS: -ltorch -ltorch_cpu -lc10 -ldl
// #include <stdlib.h>
// #include "native.h"
// #include "kernels.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/featuremill/featuremill/domain/extraction"
)

// Options say what a runtime computes with.
type Options struct {
	Device  string // "cpu" (also "") or "cuda:N"
	DType   string // of a model's weights and forward pass: "float32" (also ""), "bfloat16" or "float16"; SAEs are float32
	Threads int    // of one operation on the CPU; 0 = all cores that the process may use
}

// DTypeError is a dtype that nothing is computed in, or not here.
type DTypeError struct{ DType, Reason string }

func (e *DTypeError) Error() string { return fmt.Sprintf("dtype %q: %s", e.DType, e.Reason) }

// DeviceError says that a device cannot be had, and why.
type DeviceError struct{ Device, Reason string }

func (e *DeviceError) Error() string { return fmt.Sprintf("device %q: %s", e.Device, e.Reason) }

// ErrClosed is returned by everything that is used after Close.
var ErrClosed = errors.New("the libtorch runtime is closed")

// Runtime owns the one OS thread on which libtorch works. OpenMP keeps a pool of threads for each
// OS thread that starts parallel work, and libtorch's error text is thread-local: work from many
// threads would multiply the first and lose the second.
type Runtime struct {
	profile extraction.ComputeProfile
	device  device
	dtype   int32 // of models
	side    *sideStream
	work    chan func()
	stop    chan struct{}
	done    chan struct{}
	once    sync.Once
}

// Start sets up libtorch: threads, MKL's branch, the allocator. The settings are the process's, so
// one runtime a process is the rule. Close it to end its thread.
func Start(o Options) (*Runtime, error) {
	d, err := parseDevice(o.Device)
	if err != nil {
		return nil, err
	}
	if o.DType == "" {
		o.DType = "float32"
	}
	dtype, ok := map[string]int32{"float32": float32Type, "bfloat16": bfloat16Type, "float16": float16Type}[o.DType]
	if !ok {
		return nil, &DTypeError{DType: o.DType, Reason: "not known; it is float32, bfloat16 or float16"}
	}
	if o.Threads < 0 {
		return nil, fmt.Errorf("threads: %d, want 1 or more (0 = all cores)", o.Threads)
	}
	if o.Threads == 0 {
		o.Threads = runtime.NumCPU()
	}
	r := &Runtime{device: d, dtype: dtype, work: make(chan func()), stop: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error)
	go r.loop(o, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return r, nil
}

// Profile is the compute profile in force: two runtimes with equal profiles give equal bits.
func (r *Runtime) Profile() extraction.ComputeProfile { return r.profile }

// Close waits for the work in hand and ends the thread. Models and SAEs must be closed before.
func (r *Runtime) Close() error {
	r.once.Do(func() { close(r.stop) })
	<-r.done
	return nil
}

func (r *Runtime) loop(o Options, started chan<- error) {
	runtime.LockOSThread() // never unlocked: the OS thread ends with the goroutine
	defer close(r.done)
	err := r.setUp(o)
	defer func() { r.side.close() }()
	started <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-r.work:
			f()
		case <-r.stop:
			return
		}
	}
}

func (r *Runtime) setUp(o Options) error {
	C.fm_keep_allocator_flat()
	// Before any other call into MKL: later it would refuse the change.
	for _, branch := range []C.int{C.FM_CBWR_AVX512, C.FM_CBWR_AVX2} {
		if C.fm_mkl_set_branch(branch) == 0 {
			break
		}
	}
	C.fm_set_threads(C.int(o.Threads))
	lib.AtGradSetEnabled(0)
	if err := r.device.open(); err != nil {
		return err
	}
	var err error
	if r.side, err = openSideStream(r.device); err != nil {
		return err
	}
	if err := r.tryDType(o.DType); err != nil {
		return err
	}
	r.profile = extraction.ComputeProfile{
		Device:   r.device.description(),
		DType:    o.DType,
		Threads:  int(C.fm_threads()),
		ISA:      C.GoString(C.fm_kernels_isa()),
		Libtorch: goString(C.fm_libtorch_version()),
	}
	// "2022.2 AVX512": the version, and the branch that is in force, which MKL itself says.
	if version := mklVersion(goString(C.fm_mkl_version())); version != "" {
		r.profile.MKL = version + " " + branchName(int(C.fm_mkl_branch()))
	}
	return nil
}

// tryDType multiplies two matrices of one number: libtorch 2.1 cannot in float16 on a CPU.
func (r *Runtime) tryDType(name string) error {
	if r.dtype == float32Type {
		return nil
	}
	s := &scope{ctx: context.Background(), device: r.device}
	defer s.free()
	one := s.converted(s.zeros(1, 1), r.dtype, false)
	if s.mm(one, one); s.err != nil {
		return &DTypeError{DType: name, Reason: fmt.Sprintf("this libtorch, %s, does not compute in it on %s: %v", goString(C.fm_libtorch_version()), r.device, s.err)}
	}
	return nil
}

// do runs f on the runtime's thread, in a scope that is freed when f returns.
func (r *Runtime) do(ctx context.Context, f func(*scope) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := make(chan error, 1)
	job := func() {
		s := &scope{ctx: ctx, device: r.device}
		defer s.free()
		err := f(s)
		if err == nil {
			err = s.err
		}
		result <- err
	}
	select {
	case r.work <- job:
		return <-result
	case <-ctx.Done():
		return ctx.Err()
	case <-r.done:
		return ErrClosed
	}
}

// device is gotch's number: −1 for the CPU, n for cuda:n.
type device int

const cpu device = -1

func parseDevice(name string) (device, error) {
	if name == "" || name == "cpu" {
		return cpu, nil
	}
	number, isCUDA := strings.CutPrefix(name, "cuda:")
	if name == "cuda" {
		number, isCUDA = "0", true
	}
	n, err := strconv.Atoi(number)
	if !isCUDA || err != nil || n < 0 {
		return 0, &DeviceError{Device: name, Reason: "not known; it is cpu or cuda:N"}
	}
	return device(n), nil
}

func (d device) String() string {
	if d == cpu {
		return "cpu"
	}
	return fmt.Sprintf("cuda:%d", int(d))
}

// description is the GPU's name, or "cpu": the same number on two machines may be two GPUs.
func (d device) description() string {
	if d != cpu {
		if name := goString(C.fm_gpu_name(C.int(d))); name != "" {
			return name
		}
	}
	return d.String()
}

// open loads CUDA's part of libtorch only when it is asked for, so that one binary runs with and
// without a GPU.
func (d device) open() error {
	if d == cpu {
		return nil
	}
	for _, name := range []string{"libc10_cuda.so", "libtorch_cuda.so"} {
		text := C.CString(name)
		message := C.fm_load_library(text)
		C.free(unsafe.Pointer(text))
		if message != nil {
			return &DeviceError{Device: d.String(), Reason: "this libtorch has no CUDA part: " + goString(message)}
		}
	}
	if n := int(lib.AtcCudaDeviceCount()); n <= int(d) {
		return &DeviceError{Device: d.String(), Reason: fmt.Sprintf("%d CUDA devices are visible", n)}
	}
	return nil
}

// goString takes over a C string that the callee allocated.
func goString(text *C.char) string {
	if text == nil {
		return ""
	}
	defer C.free(unsafe.Pointer(text))
	return C.GoString(text)
}

func mklVersion(text string) string {
	if found := regexp.MustCompile(`Version ([0-9][0-9.]*)`).FindStringSubmatch(text); found != nil {
		return found[1]
	}
	return text
}

// branchName follows mkl_cbwr.h.
func branchName(branch int) string {
	names := map[int]string{1: "OFF", 2: "AUTO", 3: "COMPATIBLE", 9: "AVX", 10: "AVX2", 11: "AVX512_MIC", 12: "AVX512", 13: "AVX512_MIC_E1", 14: "AVX512_E1"}
	if name, ok := names[branch]; ok {
		return name
	}
	return strconv.Itoa(branch)
}

// mklSwitchUsed says whether MKL asked this program, not itself, who made the CPU.
func mklSwitchUsed() bool { return C.fm_mkl_switch_used() != 0 }
