#include "native.h"

#include <dlfcn.h>
#include <alloca.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <exception>
#include <memory>
#include <string>
#include <thread>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

static char *copy(const std::string &text) { return strdup(text.c_str()); }

template <typename F> static char *guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error &e) {
    return copy(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return copy(e.what());
  } catch (...) {
    return copy("unknown C++ exception");
  }
}

// OpenMP's idle threads spin for milliseconds, and on a machine that has other work to do they take
// it half its time (measured: the same batch with 9.0 or 4.5 CPU seconds); a wake-up costs
// microseconds, a few dozen times a batch. The policy is read from the environment before main, by
// the library's constructor. This runs earlier still, and starts the program again with the policy
// set, unless the environment says anything about it. A program without /proc goes on as it is.
static void wait_passively(int, char **argv, char **envp) {
  int n = 0;
  for (; envp[n]; n++)
    if (!strncmp(envp[n], "OMP_WAIT_POLICY=", 16) || !strncmp(envp[n], "GOMP_SPINCOUNT=", 15))
      return;
  char **longer = static_cast<char **>(alloca((n + 2) * sizeof(char *)));
  memcpy(longer, envp, n * sizeof(char *));
  static char policy[] = "OMP_WAIT_POLICY=passive";
  longer[n] = policy;
  longer[n + 1] = nullptr;
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length > 0) { // by its own name, which ps shows
    path[length] = 0;
    execve(path, argv, longer);
  }
  execve("/proc/self/exe", argv, longer);
}
__attribute__((section(".preinit_array"), used)) static void (*const before_libraries)(int, char **, char **) =
    wait_passively;

// Looked up, not linked: a libtorch that was built without MKL has none of them.
template <typename F> static F symbol(const char *name) {
  return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}

extern "C" {

// MKL refuses its AVX-512 (and AVX2) kernels on CPUs that Intel did not make: half the speed on AMD.
// It asks this function, which the linker lets a program replace.
static std::atomic<int> asked_for_maker{0};
__attribute__((visibility("default"))) int mkl_serv_intel_cpu_true(void) {
  asked_for_maker.store(1, std::memory_order_relaxed);
  return 1;
}
int fm_mkl_switch_used(void) { return asked_for_maker.load(std::memory_order_relaxed); }

int fm_mkl_set_branch(int branch) {
  auto set = symbol<int (*)(int)>("mkl_serv_cbwr_set");
  return set ? set(branch) : 1000;
}

int fm_mkl_branch(void) {
  auto get = symbol<int (*)(int)>("mkl_serv_cbwr_get");
  return get ? get(1 /* MKL_CBWR_BRANCH */) : 0;
}

void fm_set_threads(int threads) { at::set_num_threads(threads); }
int fm_threads(void) { return at::get_num_threads(); }

// Freed tensors of some MB go back to the system instead of staying in the heap: glibc raises its
// threshold each time such a block is freed, unless it is set.
void fm_keep_allocator_flat(void) {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 8 << 20);
}

char *fm_load_library(const char *name) {
  if (dlopen(name, RTLD_NOW | RTLD_GLOBAL))
    return nullptr;
  return copy(dlerror());
}

char *fm_gpu_name(int device) {
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (!driver)
    return copy("");
  auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
  auto get = reinterpret_cast<int (*)(int *, int)>(dlsym(driver, "cuDeviceGet"));
  auto name = reinterpret_cast<int (*)(char *, int, int)>(dlsym(driver, "cuDeviceGetName"));
  char text[256] = "";
  int handle = 0;
  if (!init || !get || !name || init(0) || get(&handle, device) || name(text, sizeof text, handle))
    return copy("");
  return copy(text);
}

char *fm_libtorch_version(void) { return copy(TORCH_VERSION); }
char *fm_cpu_capability(void) { return copy(at::get_cpu_capability()); }

// "Intel(R) oneAPI Math Kernel Library Version 2022.2-Product Build 20220804 for ...", or nothing.
char *fm_mkl_version(void) { return copy(at::hasMKL() ? at::get_mkl_version() : ""); }

char *fm_from_blob(void *data, const int64_t *shape, const int64_t *strides, int dims, int dtype,
                   void **out) {
  return guarded([&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype));
    *out = new at::Tensor(
        at::from_blob(data, at::IntArrayRef(shape, dims), at::IntArrayRef(strides, dims), options));
  });
}

// c10's guards reach CUDA through what libtorch_cuda registers when it is loaded: nothing here links to it.
struct Side {
  c10::impl::VirtualGuardImpl guard;
  c10::Device device;
  c10::Stream side, main;
  Side(c10::Device d) : guard(d.type()), device(d), side(guard.getStreamFromGlobalPool(d)), main(guard.getStream(d)) {}
};

char *fm_side_open(int device, void **out) {
  return guarded([&] { *out = new Side(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))); });
}
void fm_side_close(void *side) { delete static_cast<Side *>(side); }

char *fm_side_mark(void *side, void **event) {
  return guarded([&] {
    auto s = static_cast<Side *>(side);
    auto e = std::make_unique<c10::Event>(s->device.type());
    e->record(s->guard.getStream(s->device));
    *event = e.release();
  });
}

char *fm_side_enter(void *side, void *event) {
  return guarded([&] {
    auto s = static_cast<Side *>(side);
    static_cast<c10::Event *>(event)->block(s->side);
    s->main = s->guard.exchangeStream(s->side);
  });
}

char *fm_side_leave(void *side) {
  return guarded([&] {
    auto s = static_cast<Side *>(side);
    s->guard.exchangeStream(s->main);
  });
}

char *fm_event_wait(void *event) {
  return guarded([&] {
    while (!static_cast<c10::Event *>(event)->query())
      std::this_thread::yield();
  });
}
void fm_event_free(void *event) { delete static_cast<c10::Event *>(event); }

char *fm_host_memory(int64_t bytes, int locked, void **tensor, void **data) {
  return guarded([&] {
    auto t = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(locked != 0));
    *data = t.data_ptr();
    *tensor = new at::Tensor(std::move(t));
  });
}

char *fm_copy_to_host(void *tensor, void *data) {
  return guarded([&] {
    auto &t = *static_cast<at::Tensor *>(tensor);
    at::from_blob(data, t.sizes(), t.options().device(at::kCPU)).copy_(t, /*non_blocking=*/true);
  });
}

// gotch passes an undefined mask, which libtorch refuses; with a real mask the fused kernels are
// out of reach.
char *fm_causal_attention(void *q, void *k, void *v, void **out) {
  return guarded([&] {
    *out = new at::Tensor(at::scaled_dot_product_attention(
        *static_cast<at::Tensor *>(q), *static_cast<at::Tensor *>(k),
        *static_cast<at::Tensor *>(v), {}, 0.0, /*is_causal=*/true));
  });
}

} // extern "C"
