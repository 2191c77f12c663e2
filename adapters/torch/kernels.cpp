#include "kernels.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <functional>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace baseline {
#include "kernels_rows.h"
}
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FM_MANY_BUILDS 1
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "kernels_rows.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
namespace avx512 {
#include "kernels_rows.h"
}
#pragma GCC pop_options
#endif

namespace {

struct Build {
  const char *name;
  decltype(&baseline::rms_norm) rms_norm;
  decltype(&baseline::rope) rope;
  decltype(&baseline::head_norm) head_norm;
  decltype(&baseline::causal_softmax) causal_softmax;
  decltype(&baseline::silu_gate) silu_gate;
  decltype(&baseline::row_norms) row_norms;
  decltype(&baseline::sae_input) sae_input;
  decltype(&baseline::sae_output) sae_output;
  decltype(&baseline::fire) fire;
};

#define FM_BUILD(isa)                                                                              \
  {                                                                                                \
    #isa, isa::rms_norm, isa::rope, isa::head_norm, isa::causal_softmax, isa::silu_gate,           \
        isa::row_norms, isa::sae_input, isa::sae_output, isa::fire                                                 \
  }

const Build builds[] = {
#ifdef FM_MANY_BUILDS
    FM_BUILD(avx512), FM_BUILD(avx2),
#endif
    FM_BUILD(baseline)};

bool can_run(const Build &b) {
#ifdef FM_MANY_BUILDS
  if (!strcmp(b.name, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (!strcmp(b.name, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

const Build *best() {
  for (const Build &b : builds)
    if (can_run(b))
      return &b;
  return nullptr; // not reached: the baseline always runs
}

std::atomic<const Build *> chosen{nullptr};

const Build &build() {
  const Build *b = chosen.load(std::memory_order_acquire);
  if (!b)
    chosen.store(b = best(), std::memory_order_release);
  return *b;
}

// libtorch's OpenMP runtime, found by name: linking one would bring a second pool of threads that
// spins against the first. Without it the kernels run on the calling thread.
using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
Parallel openmp() {
  static Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// f(from, to) over [0, n) in pieces of `grain`. Which thread takes a piece never shows in results.
template <typename F> void parallel(int64_t n, int64_t grain, int threads, F f) {
  if (threads <= 1 || n <= grain || !openmp()) {
    if (n > 0)
      f(int64_t{0}, n);
    return;
  }
  struct Job {
    F *f;
    int64_t n, grain;
    std::atomic<int64_t> next;
  } job{&f, n, grain, {0}};
  openmp()(
      [](void *data) {
        Job *job = static_cast<Job *>(data);
        for (;;) {
          int64_t from = job->next.fetch_add(job->grain, std::memory_order_relaxed);
          if (from >= job->n)
            return;
          (*job->f)(from, std::min(from + job->grain, job->n));
        }
      },
      &job, threads, 0);
}

using Sgemm = void (*)(const char *, const char *, const int *, const int *, const int *,
                       const float *, const float *, const int *, const float *, const int *,
                       const float *, float *, const int *);

// c[m, n] = a[m, k] · b, where b is [n, k] (transposed) or [k, n]. Through the BLAS inside libtorch,
// which multiplies column-major matrices: the transposed product.
void multiply(Sgemm sgemm, float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
              int64_t ldb, bool b_transposed, int64_t m, int64_t n, int64_t k) {
  if (sgemm) {
    const float one = 1, zero = 0;
    int im = (int)m, in = (int)n, ik = (int)k, ia = (int)lda, ib = (int)ldb, ic = (int)ldc;
    sgemm(b_transposed ? "T" : "N", "N", &in, &im, &ik, &one, b, &ib, a, &ia, &zero, c, &ic);
    return;
  }
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = 0;
      for (int64_t l = 0; l < k; l++)
        sum += a[i * lda + l] * (b_transposed ? b[j * ldb + l] : b[l * ldb + j]);
      c[i * ldc + j] = sum;
    }
}

const int64_t row_grain = 32;

} // namespace

extern "C" {

const char *fm_kernels_isa(void) { return build().name; }

int fm_kernels_use(const char *isa) {
  for (const Build &b : builds)
    if (!strcmp(b.name, isa) && can_run(b)) {
      chosen.store(&b, std::memory_order_release);
      return 1;
    }
  return 0;
}

void *fm_map(int64_t bytes) {
  void *address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED)
    return nullptr;
  madvise(address, bytes, MADV_HUGEPAGE);
  return address;
}

void fm_unmap(void *address, int64_t bytes) { munmap(address, bytes); }

void fm_gather_rows(float *out, const float *table, const int32_t *ids, int64_t rows, int64_t width,
                    int threads) {
  parallel(rows, row_grain, threads, [=](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; r++)
      memcpy(out + r * width, table + (int64_t)ids[r] * width, width * sizeof(float));
  });
}

void fm_rms_norm(float *out, const float *x, const float *weight, int64_t rows, int64_t width,
                 float eps, int threads) {
  auto f = build().rms_norm;
  parallel(rows, row_grain, threads,
           [=](int64_t from, int64_t to) { f(out, x, weight, from, to, width, eps); });
}

void fm_rope(float *x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim,
             int64_t turn, int pairs, const int32_t *positions, const float *cos, const float *sin,
             int threads) {
  auto f = build().rope;
  parallel(rows, row_grain, threads, [=](int64_t from, int64_t to) {
    f(x, stride, from, to, heads, head_dim, turn, pairs, positions, cos, sin);
  });
}

void fm_head_norm(float *x, int64_t stride, const float *weight, int64_t rows, int64_t heads,
                  int64_t head_dim, float eps, int threads) {
  auto f = build().head_norm;
  parallel(rows, row_grain, threads, [=](int64_t from, int64_t to) {
    f(x, stride, weight, from, to, heads, head_dim, eps);
  });
}

int fm_attention(float *out, const float *q, const float *k, const float *v, int64_t stride,
                 const int64_t *starts, const int64_t *lengths, int64_t sequences, int64_t heads,
                 int64_t kv_heads, int64_t head_dim, float scale, float cap, int64_t window,
                 int threads) {
  static Sgemm sgemm = reinterpret_cast<Sgemm>(dlsym(RTLD_DEFAULT, "sgemm_"));
  auto softmax = build().causal_softmax;
  const int64_t block = 64; // rows of queries at a time: columns after the block are never computed
  struct Task {
    int64_t sequence, head, first;
  };
  int64_t longest = 0, total = 0;
  for (int64_t s = 0; s < sequences; s++) {
    longest = std::max(longest, lengths[s]);
    total += (lengths[s] + block - 1) / block * heads;
  }
  Task *tasks = static_cast<Task *>(malloc(std::max<int64_t>(total, 1) * sizeof(Task)));
  if (!tasks)
    return 1;
  int64_t n = 0;
  for (int64_t s = 0; s < sequences; s++)
    for (int64_t h = 0; h < heads; h++)
      for (int64_t first = 0; first < lengths[s]; first += block)
        tasks[n++] = Task{s, h, first};

  std::atomic<int> failed{0};
  const int64_t group = heads / kv_heads, out_stride = heads * head_dim;
  parallel(total, 8, threads, [&](int64_t from, int64_t to) {
    float *scores = static_cast<float *>(malloc(block * longest * sizeof(float)));
    if (!scores) {
      failed.store(1);
      return;
    }
    for (int64_t t = from; t < to; t++) {
      const Task &task = tasks[t];
      int64_t start = starts[task.sequence], first = task.first;
      // Columns after the block, or before the window of its first row, are never computed.
      int64_t rows = std::min(block, lengths[task.sequence] - first);
      int64_t before = window > 0 ? std::max<int64_t>(0, first + 1 - window) : 0;
      int64_t columns = first + rows - before;
      const float *qh = q + (start + first) * stride + task.head * head_dim;
      const float *kh = k + (start + before) * stride + task.head / group * head_dim;
      const float *vh = v + (start + before) * stride + task.head / group * head_dim;
      float *oh = out + (start + first) * out_stride + task.head * head_dim;
      multiply(sgemm, scores, columns, qh, stride, kh, stride, true, rows, columns, head_dim);
      softmax(scores, rows, columns, first + 1 - before, scale, cap, window);
      multiply(sgemm, oh, out_stride, scores, columns, vh, stride, false, rows, head_dim, columns);
    }
    free(scores);
  });
  free(tasks);
  return failed.load();
}

void fm_silu_gate(float *gate, const float *up, int64_t rows, int64_t width, int threads) {
  auto f = build().silu_gate;
  parallel(rows * width, 1 << 14, threads,
           [=](int64_t from, int64_t to) { f(gate, up, from, to); });
}

void fm_row_norms(float *norms, const float *x, int64_t rows, int64_t width, int threads) {
  auto f = build().row_norms;
  parallel(rows, row_grain, threads,
           [=](int64_t from, int64_t to) { f(norms, x, from, to, width); });
}

void fm_sae_input(float *out, float *stats, const float *x, const float *shift, int64_t rows,
                  int64_t width, int mode, int threads) {
  auto f = build().sae_input;
  parallel(rows, row_grain, threads, [=](int64_t from, int64_t to) {
    f(out, stats, x, shift, from, to, width, mode);
  });
}

void fm_sae_output(float *y, const float *stats, int64_t rows, int64_t width, int mode,
                   int threads) {
  if (mode == 0)
    return;
  auto f = build().sae_output;
  parallel(rows, row_grain, threads,
           [=](int64_t from, int64_t to) { f(y, stats, from, to, width, mode); });
}

int fm_fire(float *z, uint32_t *latents, int64_t capacity, int32_t *counts, const float *bias,
            const float *scale, const float *threshold, int64_t rows, int64_t width, int64_t k,
            int threads) {
  auto f = build().fire;
  std::atomic<int> failed{0};
  parallel(rows, row_grain, threads, [&](int64_t from, int64_t to) {
    float *scratch = static_cast<float *>(malloc((3 * (2 * k + 512) + 8 * k + 16) * sizeof(float)));
    if (!scratch) {
      failed.store(1);
      return;
    }
    f(z, latents, capacity, counts, bias, scale, threshold, from, to, width, k, scratch);
    free(scratch);
  });
  return failed.load();
}

void fm_scatter_rows(float *dense, const float *values, int64_t stride, const uint32_t *latents,
                     int64_t capacity, const int32_t *counts, int64_t rows, int64_t width,
                     int threads) {
  parallel(rows, row_grain, threads, [=](int64_t from, int64_t to) {
    for (int64_t r = from; r < to; r++) {
      float *row = dense + r * width;
      memset(row, 0, width * sizeof(float));
      for (int32_t i = 0; i < counts[r]; i++)
        row[latents[r * capacity + i]] = values[r * stride + i];
    }
  });
}

} // extern "C"
