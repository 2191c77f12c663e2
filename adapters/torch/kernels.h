// Fused float32 kernels for the CPU: what libtorch does in several passes over memory, done in one.
// They share libtorch's OpenMP threads. Matrices are row-major; strides and sizes are in elements.
#ifndef FEATUREMILL_TORCH_KERNELS_H
#define FEATUREMILL_TORCH_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// "avx512", "avx2" or "baseline": which build of the kernels this CPU runs.
const char *fm_kernels_isa(void);
// For tests: run another build, if the CPU can; returns 0 if it cannot.
int fm_kernels_use(const char *isa);

// Page-aligned scratch memory, zeroed by the system when first touched.
void *fm_map(int64_t bytes);
void fm_unmap(void *address, int64_t bytes);

// out[i] = table[ids[i]]
void fm_gather_rows(float *out, const float *table, const int32_t *ids, int64_t rows, int64_t width,
                    int threads);

// out = weight * x / sqrt(mean(x²) + eps)
void fm_rms_norm(float *out, const float *x, const float *weight, int64_t rows, int64_t width,
                 float eps, int threads);

// Rotates the first `turn` dimensions of `heads` heads of head_dim at the start of each row, in place;
// pairs are (i, i + turn/2), or with `pairs` (2i, 2i + 1). cos, sin: [positions, turn/2].
void fm_rope(float *x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, int64_t turn,
             int pairs, const int32_t *positions, const float *cos, const float *sin, int threads);

// An RMS norm of each head at the start of each row, in place.
void fm_head_norm(float *x, int64_t stride, const float *weight, int64_t rows, int64_t heads,
                  int64_t head_dim, float eps, int threads);

// Causal softmax attention inside each sequence (rows starts[s] … starts[s] + lengths[s] − 1).
// q, k, v: columns of one matrix with row stride `stride`; out: [rows, heads * head_dim].
// Scores are multiplied by scale, then bent by cap * tanh(score / cap) unless cap is 0. A query sees
// the last `window` tokens, itself included; 0: all. Returns 0, or 1 if there was no memory.
int fm_attention(float *out, const float *q, const float *k, const float *v, int64_t stride,
                 const int64_t *starts, const int64_t *lengths, int64_t sequences, int64_t heads,
                 int64_t kv_heads, int64_t head_dim, float scale, float cap, int64_t window,
                 int threads);

// gate = silu(gate) * up
void fm_silu_gate(float *gate, const float *up, int64_t rows, int64_t width, int threads);

// norms[i] = ‖x[i]‖₂
void fm_row_norms(float *norms, const float *x, int64_t rows, int64_t width, int threads);

// The SAE's input: normalised (0 none, 1 constant norm, 2 layer norm), then minus `shift` unless
// NULL. stats[2i], stats[2i+1]: the factor and 0, or standard deviation and mean: what undoes it.
void fm_sae_input(float *out, float *stats, const float *x, const float *shift, int64_t rows,
                  int64_t width, int mode, int threads);
// Undoes the normalisation of reconstructions, in place.
void fm_sae_output(float *y, const float *stats, int64_t rows, int64_t width, int mode, int threads);

// What fires in z: [rows, width], a row being z + bias, times scale unless NULL. k > 0 keeps the k
// largest that are above 0, equal ones lowest latent first; k = 0 keeps all above threshold (0 where
// NULL). Row i's values come to the front of z's row i, its latents, ascending, to
// latents[i * capacity], how many to counts[i]. capacity ≥ k, or ≥ width for k = 0.
// Returns 0, or 1 if there was no memory.
int fm_fire(float *z, uint32_t *latents, int64_t capacity, int32_t *counts, const float *bias,
            const float *scale, const float *threshold, int64_t rows, int64_t width, int64_t k,
            int threads);

// dense[i] = zeros with the row's values at their latents.
void fm_scatter_rows(float *dense, const float *values, int64_t stride, const uint32_t *latents,
                     int64_t capacity, const int32_t *counts, int64_t rows, int64_t width,
                     int threads);

#ifdef __cplusplus
}
#endif
#endif
