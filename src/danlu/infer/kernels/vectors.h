// Registers of floats, wide or narrow as the processor has them, and the few functions on them.
//
// In:  memory of fp32, bf16 and fp16 numbers.
// Out: fp32 registers; sums and exponentials of them.
// Left out: everything that knows what the numbers mean.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define LANES_ARE_16 1
#endif
#if LANES_ARE_16 || defined(__AVX2__)
#define DANLU_INTEGER 1  // else the compiler would have to spell sums of 16-bit products out
#endif

#if LANES_ARE_16
constexpr int LANES = 16;
#else
constexpr int LANES = 8;  // two registers where they are of four
#endif
template <class T, int N>
using Vector [[gnu::vector_size(sizeof(T) * N)]] = T;
using Floats = Vector<float, LANES>;
using Ints = Vector<int32_t, LANES>;

struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };

template <class V>
inline V read(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline Floats widen(const float* p) { return read<Floats>(p); }
inline Floats widen(const Fp16* p) {
#if LANES_ARE_16
  return (Floats)_mm512_cvtph_ps(read<__m256i>(p));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(read<__m128i>(p));
#else
  return __builtin_convertvector(read<Vector<_Float16, LANES>>(p), Floats);
#endif
}
// Lanes added pairwise, always in the same tree.
inline float total(Vector<float, 4> v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float total(Vector<float, 8> v) {
  return total(__builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7));
}
inline float total(Vector<float, 16> v) {
  return total(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}

// e^x to 2e-7 of itself: 2^n e^r with r within half of ln 2 (Cephes, expf), for x up to 88.
inline Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  Ints n = __builtin_convertvector(x * 1.44269504f + (x < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
  Floats whole = __builtin_convertvector(n, Floats);
  Floats r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * (Floats)((n + 127) << 23);
}

// What does not fill a register goes through one that is padded: the same arithmetic for every number.
template <class F>
inline void map(float* x, long count, F function) {
  for (long k = 0; k < count; k += LANES) {
    long here = std::min<long>(LANES, count - k);
    Floats v = {};
    std::memcpy(&v, x + k, here * sizeof(float));
    v = function(v);
    std::memcpy(x + k, &v, here * sizeof(float));
  }
}

// The largest magnitude, and never 0.
inline float largest(const float* x, long count) {
  Floats most = Floats{} + 1e-30f;
  long k = 0;
  for (; k + LANES <= count; k += LANES) {
    Floats v = read<Floats>(x + k), other = -v;
    v = v > other ? v : other;
    most = v > most ? v : most;
  }
  float all = most[0];
  for (int i = 1; i < LANES; ++i) all = std::max(all, most[i]);
  for (; k < count; ++k) all = std::max(all, std::fabs(x[k]));
  return all;
}

inline float dot(const float* a, const float* b, long count) {
  Floats sum = {};
  long k = 0;
  for (; k + LANES <= count; k += LANES) sum += read<Floats>(a + k) * read<Floats>(b + k);
  float rest = 0;
  for (; k < count; ++k) rest += a[k] * b[k];
  return total(sum) + rest;
}

// to = sum over ``count`` rows of x, ``stride`` apart, of by[row] * row; N registers of columns.
template <int N>
inline void mix(const float* by, const float* x, long stride, long count, float* to) {
  Floats sum[N] = {};
  for (long s = 0; s < count; ++s)
    for (int i = 0; i < N; ++i) sum[i] += by[s] * read<Floats>(x + s * stride + i * LANES);
  std::memcpy(to, sum, sizeof sum);
}

inline void mix(const float* by, const float* x, long stride, long count, float* to, long columns) {
  long k = 0;
  for (; k + 4 * LANES <= columns; k += 4 * LANES) mix<4>(by, x + k, stride, count, to + k);
  for (; k + LANES <= columns; k += LANES) mix<1>(by, x + k, stride, count, to + k);
  for (; k < columns; ++k) {
    to[k] = 0;
    for (long s = 0; s < count; ++s) to[k] += by[s] * x[s * stride + k];
  }
}

}  // namespace
