// What gotch's generated functions do not reach: at::from_blob, causal attention without a mask,
// the number of threads, and MKL's switches. Functions that can fail return NULL, or a message that
// the caller frees.
#ifndef FEATUREMILL_TORCH_NATIVE_H
#define FEATUREMILL_TORCH_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Handles are pointers to at::Tensor, as gotch's are.
char *fm_from_blob(void *data, const int64_t *shape, const int64_t *strides, int dims, int dtype,
                   void **out);
char *fm_causal_attention(void *q, void *k, void *v, void **out);

// A second stream of a GPU. An event is recorded on whichever stream is current; entering the side
// stream makes it wait for an event and current, leaving goes back. Events belong to the caller.
char *fm_side_open(int device, void **out);
void fm_side_close(void *side);
char *fm_side_mark(void *side, void **event);
char *fm_side_enter(void *side, void *event);
char *fm_side_leave(void *side);
char *fm_event_wait(void *event);
void fm_event_free(void *event);
// Memory of the host that a GPU copies to by itself (page-locked), or ordinary memory; the tensor owns it.
char *fm_host_memory(int64_t bytes, int locked, void **tensor, void **data);
// Copies a tensor's elements to `data`, without waiting for it where `data` is page-locked.
char *fm_copy_to_host(void *tensor, void *data);

void fm_set_threads(int threads);
int fm_threads(void);
void fm_keep_allocator_flat(void);

char *fm_load_library(const char *name);
// The driver's name of a GPU, "" where there is none.
char *fm_gpu_name(int device);
char *fm_libtorch_version(void);
char *fm_mkl_version(void);
char *fm_cpu_capability(void);

// MKL's conditional numerical reproducibility: branch numbers are those of mkl_cbwr.h.
// fm_mkl_set_branch returns MKL's status (0 = accepted), or 1000 where MKL is not inside.
enum { FM_CBWR_AVX2 = 10, FM_CBWR_AVX512 = 12 };
int fm_mkl_set_branch(int branch);
int fm_mkl_branch(void);
// Whether MKL asked for the CPU's maker and was told Intel by this program.
int fm_mkl_switch_used(void);

#ifdef __cplusplus
}
#endif
#endif
