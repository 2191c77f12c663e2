// The kernels' inner loops, for one range of rows. kernels.cpp includes this file once for each
// instruction set, inside a namespace of that name, so there is no include guard.

// exp to about 1 ulp for x ≤ 88, 0 below −87 (Cephes' polynomial; written so that it vectorises).
static inline float exp_fast(float x) {
  float bounded = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  float n = bounded * 1.44269504088896341f + 12582912.0f; // rounds to an integer in the low bits
  int32_t bits;
  memcpy(&bits, &n, 4);
  n -= 12582912.0f;
  float r = bounded - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  int32_t exponent = (bits - 0x4B400000 + 127) << 23;
  float scale;
  memcpy(&scale, &exponent, 4);
  float y = p * scale;
  return x < -87.0f ? 0.0f : y;
}

enum { LANES = 16 };

static inline float sum_lanes(const float *lane) {
  float a = 0;
  for (int i = 0; i < LANES / 2; i++)
    a += lane[i] + lane[i + LANES / 2];
  return a;
}

static inline float sum_of_squares(const float *x, int64_t n) {
  float lane[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; l++)
      lane[l] += x[i + l] * x[i + l];
  float sum = sum_lanes(lane);
  for (; i < n; i++)
    sum += x[i] * x[i];
  return sum;
}

static inline float sum_of(const float *x, int64_t n) {
  float lane[LANES] = {0};
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; l++)
      lane[l] += x[i + l];
  float sum = sum_lanes(lane);
  for (; i < n; i++)
    sum += x[i];
  return sum;
}

static void rms_norm(float *out, const float *x, const float *weight, int64_t from, int64_t to,
                     int64_t width, float eps) {
  for (int64_t r = from; r < to; r++) {
    const float *row = x + r * width;
    float *target = out + r * width;
    float scale = 1.0f / sqrtf(sum_of_squares(row, width) / width + eps);
    for (int64_t i = 0; i < width; i++)
      target[i] = weight[i] * (row[i] * scale);
  }
}

// The first `turn` dimensions of each head turn, in halves or, with `pairs`, neighbour with neighbour.
static void rope(float *x, int64_t stride, int64_t from, int64_t to, int64_t heads,
                 int64_t head_dim, int64_t turn, int pairs, const int32_t *positions,
                 const float *cos, const float *sin) {
  int64_t half = turn / 2;
  for (int64_t r = from; r < to; r++) {
    const float *c = cos + positions[r] * half, *s = sin + positions[r] * half;
    for (int64_t h = 0; h < heads; h++) {
      float *__restrict a = x + r * stride + h * head_dim, *__restrict b = a + half;
      if (pairs) {
        for (int64_t i = 0; i < half; i++) {
          float first = a[2 * i], second = a[2 * i + 1];
          a[2 * i] = first * c[i] - second * s[i];
          a[2 * i + 1] = second * c[i] + first * s[i];
        }
        continue;
      }
      for (int64_t i = 0; i < half; i++) {
        float first = a[i], second = b[i];
        a[i] = first * c[i] - second * s[i];
        b[i] = second * c[i] + first * s[i];
      }
    }
  }
}

// An RMS norm of each head by itself, in place.
static void head_norm(float *x, int64_t stride, const float *weight, int64_t from, int64_t to,
                      int64_t heads, int64_t head_dim, float eps) {
  for (int64_t r = from; r < to; r++)
    for (int64_t h = 0; h < heads; h++) {
      float *row = x + r * stride + h * head_dim;
      rms_norm(row, row, weight, 0, 1, head_dim, eps);
    }
}

// tanh to about 1e-7 of its value: a series near 0, where 1 - 2/(e²ˣ + 1) would lose the last digits.
static inline float tanh_fast(float x) {
  float q = x * x;
  float near = x * (1.0f + q * (-0.333333333f + q * (0.133333333f + q * (-0.0539682540f +
               q * (0.0218694885f - q * 0.00886323552f)))));
  float far = 1.0f - 2.0f / (exp_fast(2.0f * x) + 1.0f);
  return q < 0.09f ? near : far;
}

// Row r of scores may see its first `visible + r` columns, of those the last `window` (0: all); the
// others become 0. Scores are scaled, then bent to ±cap (0: not).
static void causal_softmax(float *scores, int64_t rows, int64_t columns, int64_t visible,
                           float scale, float cap, int64_t window) {
  for (int64_t r = 0; r < rows; r++) {
    float *row = scores + r * columns;
    int64_t n = visible + r;
    if (window > 0 && n > window) { // what lies before the window is cut off
      for (int64_t i = 0; i < n - window; i++)
        row[i] = 0;
      row += n - window;
      n = window;
    }
    float by = scale;
    if (cap > 0) {
      by = 1;
      for (int64_t i = 0; i < n; i++)
        row[i] = cap * tanh_fast(row[i] * scale / cap);
    }
    float lane[LANES];
    for (int l = 0; l < LANES; l++)
      lane[l] = -INFINITY;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
      for (int l = 0; l < LANES; l++)
        lane[l] = row[i + l] > lane[l] ? row[i + l] : lane[l];
    float top = lane[0];
    for (int l = 1; l < LANES; l++)
      top = lane[l] > top ? lane[l] : top;
    for (; i < n; i++)
      top = row[i] > top ? row[i] : top;
    float offset = top * by;
    for (i = 0; i < n; i++)
      row[i] = exp_fast(row[i] * by - offset);
    float inverse = 1.0f / sum_of(row, n);
    for (i = 0; i < n; i++)
      row[i] *= inverse;
    for (float *end = scores + (r + 1) * columns; row + i < end; i++)
      row[i] = 0;
  }
}

static void silu_gate(float *__restrict gate, const float *__restrict up, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; i++)
    gate[i] = gate[i] / (1.0f + exp_fast(-gate[i])) * up[i];
}

static void row_norms(float *norms, const float *x, int64_t from, int64_t to, int64_t width) {
  for (int64_t r = from; r < to; r++)
    norms[r] = sqrtf(sum_of_squares(x + r * width, width));
}

static void sae_input(float *out, float *stats, const float *x, const float *shift, int64_t from,
                      int64_t to, int64_t width, int mode) {
  for (int64_t r = from; r < to; r++) {
    const float *row = x + r * width;
    float *target = out + r * width;
    float factor = 1, mean = 0;
    if (mode == 1) {
      factor = sqrtf((float)width) / sqrtf(sum_of_squares(row, width));
      stats[2 * r] = factor;
      stats[2 * r + 1] = 0;
    } else if (mode == 2) { // torch.std: divided by n − 1
      mean = sum_of(row, width) / width;
      for (int64_t i = 0; i < width; i++)
        target[i] = row[i] - mean;
      float deviation = sqrtf(sum_of_squares(target, width) / (width - 1));
      factor = 1.0f / (deviation + 1e-5f);
      stats[2 * r] = deviation;
      stats[2 * r + 1] = mean;
    }
    if (shift)
      for (int64_t i = 0; i < width; i++)
        target[i] = (row[i] - mean) * factor - shift[i];
    else
      for (int64_t i = 0; i < width; i++)
        target[i] = (row[i] - mean) * factor;
  }
}

static void sae_output(float *y, const float *stats, int64_t from, int64_t to, int64_t width,
                       int mode) {
  for (int64_t r = from; r < to; r++) {
    float *row = y + r * width;
    float a = stats[2 * r], b = stats[2 * r + 1];
    if (mode == 1)
      for (int64_t i = 0; i < width; i++)
        row[i] = row[i] / a;
    else
      for (int64_t i = 0; i < width; i++)
        row[i] = row[i] * a + b;
  }
}

// A row's z, finished: 16 columns from j on.
#if defined(__AVX512F__)
static inline __m512 finished16(const float *z, const float *bias, const float *scale, int64_t j) {
  __m512 v = _mm512_add_ps(_mm512_loadu_ps(z + j), _mm512_loadu_ps(bias + j));
  return scale ? _mm512_mul_ps(v, _mm512_loadu_ps(scale + j)) : v;
}
#endif

// Values above the threshold and their latents, appended at n; returns the new n. Reading is never
// behind writing, so values may be z itself.
static inline int64_t above(float *values, uint32_t *latents, int64_t n, const float *z,
                            const float *bias, const float *scale, const float *threshold,
                            float floor, int64_t from, int64_t to) {
  int64_t j = from;
#if defined(__AVX512F__)
  const __m512i step = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; j + 16 <= to; j += 16) {
    __m512 v = finished16(z, bias, scale, j);
    __m512 t = threshold ? _mm512_loadu_ps(threshold + j) : _mm512_set1_ps(floor);
    __mmask16 mask = _mm512_cmp_ps_mask(v, t, _CMP_GT_OQ);
    if (mask) {
      _mm512_mask_compressstoreu_ps(values + n, mask, v);
      _mm512_mask_compressstoreu_epi32(latents + n, mask,
                                       _mm512_add_epi32(step, _mm512_set1_epi32((int)j)));
      n += __builtin_popcount(mask);
    }
  }
#else
  for (; j + 16 <= to; j += 16) {
    float v[16];
    int any = 0;
    for (int l = 0; l < 16; l++) {
      v[l] = z[j + l] + bias[j + l];
      if (scale)
        v[l] *= scale[j + l];
      any |= v[l] > (threshold ? threshold[j + l] : floor);
    }
    if (!any)
      continue;
    for (int l = 0; l < 16; l++)
      if (v[l] > (threshold ? threshold[j + l] : floor)) {
        values[n] = v[l];
        latents[n++] = (uint32_t)(j + l);
      }
  }
#endif
  for (; j < to; j++) {
    float v = z[j] + bias[j];
    if (scale)
      v *= scale[j];
    if (v > (threshold ? threshold[j] : floor)) {
      values[n] = v;
      latents[n++] = (uint32_t)j;
    }
  }
  return n;
}

// The k largest of n candidates, in their order; equal ones: the first. Returns the k-th value.
static float keep_largest(float *values, uint32_t *latents, float *scratch, int64_t n, int64_t k) {
  memcpy(scratch, values, n * sizeof(float));
  std::nth_element(scratch, scratch + (k - 1), scratch + n, std::greater<float>());
  float last = scratch[k - 1];
  int64_t larger = 0;
  for (int64_t i = 0; i < n; i++)
    larger += values[i] > last;
  int64_t equal = k - larger, kept = 0;
  for (int64_t i = 0; i < n && kept < k; i++) {
    bool keep = values[i] > last || (values[i] == last && equal-- > 0);
    if (keep) {
      values[kept] = values[i];
      latents[kept++] = latents[i];
    }
  }
  return last;
}

// A value that at least k of the row's reach: of the largest of each of some 4k groups of columns the
// k-th. Few more reach it, so that choosing among those who do is cheap. maxima: 8k + 16 words.
static inline float reached_by(const float *z, const float *bias, const float *scale, int64_t width,
                               int64_t k, float *maxima) {
  int64_t vectors = width / LANES, each = vectors * 4 / k;
  each = each < 1 ? 1 : each;
  int64_t n = vectors / each * LANES;
  if (n < k)
    return -INFINITY;
  for (int64_t g = 0; g < n; g += LANES) {
    float lane[LANES];
    for (int l = 0; l < LANES; l++)
      lane[l] = -INFINITY;
    int64_t from = g * each;
    for (int64_t j = from; j < from + each * LANES; j += LANES) {
      if (scale)
        for (int l = 0; l < LANES; l++) {
          float v = (z[j + l] + bias[j + l]) * scale[j + l];
          lane[l] = v > lane[l] ? v : lane[l];
        }
      else
        for (int l = 0; l < LANES; l++) {
          float v = z[j + l] + bias[j + l];
          lane[l] = v > lane[l] ? v : lane[l];
        }
    }
    memcpy(maxima + g, lane, sizeof lane);
  }
  std::nth_element(maxima, maxima + (k - 1), maxima + n, std::greater<float>());
  return maxima[k - 1];
}

// scratch: 3 * (2k + 512) + 8k + 16 words
static void fire(float *z, uint32_t *latents, int64_t capacity, int32_t *counts, const float *bias,
                 const float *scale, const float *threshold, int64_t from, int64_t to,
                 int64_t width, int64_t k, float *scratch) {
  const int64_t room = 2 * k + 256, block = 256;
  float *values = scratch, *copy = scratch + room + block;
  uint32_t *found = reinterpret_cast<uint32_t *>(copy + room + block);
  float *maxima = copy + 2 * (room + block);
  for (int64_t r = from; r < to; r++) {
    float *row = z + r * width;
    uint32_t *row_latents = latents + r * capacity;
    if (k == 0) {
      counts[r] =
          (int32_t)above(row, row_latents, 0, row, bias, scale, threshold, 0.0f, 0, width);
      continue;
    }
    // relu comes after the choice: what is not above 0 is never kept, so the floor is 0 at least.
    float least = reached_by(row, bias, scale, width, k, maxima);
    float floor = least > 0 ? nextafterf(least, 0.0f) : 0;
    int64_t n = 0;
    for (int64_t j = 0; j < width; j += block) {
      n = above(values, found, n, row, bias, scale, nullptr, floor, j,
                j + block < width ? j + block : width);
      if (n >= room) {
        floor = keep_largest(values, found, copy, n, k);
        n = k;
      }
    }
    if (n > k) {
      keep_largest(values, found, copy, n, k);
      n = k;
    }
    memcpy(row, values, n * sizeof(float));
    memcpy(row_latents, found, n * sizeof(uint32_t));
    counts[r] = (int32_t)n;
  }
}
