// Products of a few rows of fp32 activations with weights as they are stored.
//
// In:  activations; weights in fp32, bf16, fp16 or int8 with a scale per row.
// Out: out = x weight^T (* scale) (+ bias) (+ out), in memory that the caller owns.
// Left out: activations of any other kind; blocking for thousands of rows, which a matrix library does better.
//
// A product of few rows is bound by reading weights, so they are read once, in their own width, and widened in
// registers. Every output is one chain of sums in one order, whatever tile, thread or number of rows it is part of:
// a row's result does not depend on its neighbours, to the last bit.
#pragma once

#include "vectors.h"

namespace {

constexpr long LINE = 64;   // bytes that are read from memory together
constexpr long STRIP = 12;  // rows of weights that stay in the first cache while rows of x go by; each tile's divide it
constexpr long PIECE = 192;  // and that one thread takes at a time, at most: a slow one must not hold anybody up
constexpr long LEAST = 24;   // and at least: whole tiles of every kind
constexpr long ROWS = 32;   // rows of x that stay in the second cache


// Keep a value in a register, and sums in their order: compilers fold a load into every instruction that needs it, which
// makes it as many loads, and put off additions (a Zen 3, 8 rows: 40 against 66 GFLOP/s in bf16, 59 against 95 in int8).
template <class V>
inline V hold(V v) {
#if defined(__AVX__)
  asm("" : "+v"(v));
#endif
  return v;
}

// A kind of product: how a row of x is laid out, and how both sides of part ``j`` of a line of weights are read.

template <class W>
struct Plain {
  using X = float;
  using Weight = W;
  using Sum = Floats;
  static constexpr int WIDTH = LANES;
  static constexpr int COLUMNS[] = {8, 6, 4, 3, 2, 2};  // of a tile of 1, 2, 3, 4 rows, so that 16 registers suffice
  static Floats left(const X* p, int j) { return read<Floats>(p + j * WIDTH); }
  static Floats right(const W* p, int j) { return widen(p + j * WIDTH); }
  static void add(Sum& sum, Floats x, Floats w) { sum = hold(sum + x * w); }
  static float finish(Sum sum) { return total(sum); }
  static float lay(const float* x, long depth, X* to) {
    std::copy_n(x, depth, to);
    return 1;
  }
};

// Two neighbours lie in one 32-bit word: a shift widens one and a mask the other, so x has evens and odds apart.
struct Halves : Plain<Bf16> {
  static constexpr int COLUMNS[] = {8, 4, 3, 2, 2, 2};  // the mask takes a register
  static Floats right(const Bf16* p, int j) {
    auto words = read<Vector<uint32_t, LANES>>(p + j / 2 * 2 * LANES);
    return (Floats)(j % 2 ? words & 0xffff0000u : words << 16);
  }
  static float lay(const float* x, long depth, X* to) {
    long whole = depth / (2 * LANES) * (2 * LANES);
    for (long k = 0; k < whole; k += 2 * LANES)
      for (int i = 0; i < LANES; ++i) {
        to[k + i] = x[k + 2 * i];
        to[k + LANES + i] = x[k + 2 * i + 1];
      }
    for (long k = whole; k < depth; ++k) to[whole + k % 2 * LANES + (k - whole) / 2] = x[k];
    return 1;
  }
};

#if DANLU_INTEGER
// Activations in 16 bits, sums in 32: twice the products of an fp32 instruction.
struct Integer {
  using X = int16_t;
  using Weight = int8_t;
  using Sum = Ints;
  static constexpr int WIDTH = 2 * LANES;
  static constexpr int COLUMNS[] = {8, 4, 3, 2, 2, 2};  // a product waits in a register to be added
  using Pairs = Vector<int16_t, WIDTH>;
  static Pairs left(const X* p, int j) { return read<Pairs>(p + j * WIDTH); }
  static Pairs right(const int8_t* p, int j) {
#if LANES_ARE_16
    return (Pairs)_mm512_cvtepi8_epi16(read<__m256i>(p + j * WIDTH));
#else
    return (Pairs)_mm256_cvtepi8_epi16(read<__m128i>(p + j * WIDTH));
#endif
  }
  static void add(Sum& sum, Pairs x, Pairs w) {
#if LANES_ARE_16
    sum = hold(sum + (Ints)_mm512_madd_epi16((__m512i)x, (__m512i)w));
#else
    sum = hold(sum + (Ints)_mm256_madd_epi16((__m256i)x, (__m256i)w));
#endif
  }
  static float finish(Sum sum) { return total(__builtin_convertvector(sum, Floats)); }
  // Rounds as finely as lets no sum of products leave 32 bits; returns the step.
  static float lay(const float* x, long depth, X* to) {
    long terms = (depth + LINE - 1) / LINE * LINE / LANES;
    float limit = std::min<long>(32767, std::numeric_limits<int32_t>::max() / (127 * terms));
    float most = largest(x, depth), by = limit / most;
    long k = 0;
    for (; k + LANES <= depth; k += LANES) {
      Floats v = read<Floats>(x + k) * by;
      auto rounded = __builtin_convertvector(v + (v < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Ints);
      auto narrow = __builtin_convertvector(rounded, Vector<X, LANES>);
      std::memcpy(to + k, &narrow, sizeof narrow);
    }
    for (; k < depth; ++k) to[k] = (X)(x[k] * by + (x[k] < 0 ? -0.5f : 0.5f));
    return most / limit;
  }
};
#endif

template <class Kind>
constexpr int SPAN = LINE / sizeof(typename Kind::Weight);  // weights of one line

// MR rows of x times NR rows of w, whole lines. ``next`` is what will be read soon: the processor guesses that too late,
// as every row is a stream of its own (8 rows of x, 56 MB of bf16 weights on a Zen 3: 29 against 42 GFLOP/s).
template <class Kind, int MR, int NR>
[[gnu::noinline]] void tile(const typename Kind::X* x, long padded, const typename Kind::Weight* w, long stride,
                            long depth, const typename Kind::Weight* next, float (&out)[MR][NR]) {
  typename Kind::Sum sums[MR][NR] = {};
  for (long k = 0; k < depth; k += SPAN<Kind>) {
    if (next)
#pragma GCC unroll 8
      for (int n = 0; n < NR; ++n) __builtin_prefetch(next + n * stride + k, 0, 2);
#pragma GCC unroll 6
    for (int j = 0; j < SPAN<Kind> / Kind::WIDTH; ++j) {
      // The side that is fewer stays in registers.
      if constexpr (MR < NR) {
        decltype(Kind::left(x, j)) left[MR];
#pragma GCC unroll 6
        for (int m = 0; m < MR; ++m) left[m] = hold(Kind::left(x + m * padded + k, j));
#pragma GCC unroll 8
        for (int n = 0; n < NR; ++n) {
          auto right = hold(Kind::right(w + n * stride + k, j));
#pragma GCC unroll 6
          for (int m = 0; m < MR; ++m) Kind::add(sums[m][n], left[m], right);
        }
      } else {
        decltype(Kind::right(w, j)) right[NR];
#pragma GCC unroll 8
        for (int n = 0; n < NR; ++n) right[n] = hold(Kind::right(w + n * stride + k, j));
#pragma GCC unroll 6
        for (int m = 0; m < MR; ++m) {
          auto left = hold(Kind::left(x + m * padded + k, j));
#pragma GCC unroll 8
          for (int n = 0; n < NR; ++n) Kind::add(sums[m][n], left, right[n]);
        }
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < NR; ++n) out[m][n] = Kind::finish(sums[m][n]);
}

enum Width : long { FP32, BF16, FP16, INT8 };

// A matrix that rows are multiplied with.
struct Product {
  const void* weight;  // (outputs, depth)
  const float* scale;  // (outputs,) of int8 weights, or null
  const float* bias;   // (outputs,) or null
  float* out;          // (rows, outputs)
  long outputs;        // 8 or more
  Width width;
  long adds;           // whether the result is added to what is in ``out``
};

// Some outputs of one row, from what was found and its unit.
inline void write(const float* found, float unit, const Product& p, float* out, long from, long to) {
  const float *scale = p.scale, *bias = p.bias;
  const bool adds = p.adds;
  for (long n = from; n < to; ++n) {
    float y = found[n - from] * unit;
    if (scale) y *= scale[n];
    if (bias) y += bias[n];
    out[n] = adds ? out[n] + y : y;
  }
}

template <class Kind>
struct Task {
  using Weight = typename Kind::Weight;
  long rows, depth, whole, padded;
  std::vector<typename Kind::X> x;  // (rows, padded)
  std::vector<float> unit;          // (rows,) what a result is in units of

  Task(const float* from, long rows, long depth)
      : rows(rows), depth(depth), whole(depth / SPAN<Kind> * SPAN<Kind>),
        padded(whole == depth ? depth : whole + SPAN<Kind>), x(rows * padded), unit(rows) {
    for (long m = 0; m < rows; ++m) unit[m] = Kind::lay(from + m * depth, depth, &x[m * padded]);
  }

  template <int MR, int NR>
  void products(long row, const Weight* w, bool fetch, float (&found)[MR][NR]) const {
    tile<Kind, MR, NR>(&x[row * padded], padded, w, depth, whole, fetch ? w + STRIP * depth : nullptr, found);
    if (whole == depth) return;
    Weight rest[NR][SPAN<Kind>] = {};  // the end of every row, and zeros
    for (int n = 0; n < NR; ++n) std::copy_n(w + n * depth + whole, depth - whole, rest[n]);
    float more[MR][NR];
    tile<Kind, MR, NR>(&x[row * padded + whole], padded, rest[0], SPAN<Kind>, SPAN<Kind>, nullptr, more);
    for (int m = 0; m < MR; ++m)
      for (int n = 0; n < NR; ++n) found[m][n] += more[m][n];
  }

  // Outputs from..to of MR rows. The last tile begins early enough to be whole, and writes what is missing.
  template <int MR>
  void columns(const Product& p, long row, long from, long to, bool fetch) const {
    constexpr int NR = Kind::COLUMNS[MR - 1];
    auto* weight = static_cast<const Weight*>(p.weight);
    for (long column = from; column < to; column += NR) {
      float found[MR][NR];
      long first = std::min(column, p.outputs - NR);
      products<MR, NR>(row, weight + first * depth, fetch, found);
      for (int m = 0; m < MR; ++m)
        write(found[m] + (column - first), unit[row + m], p, p.out + (row + m) * p.outputs, column,
              std::min(column + NR, to));
    }
  }

  // Outputs from..to of all rows, in tiles whose sums stay in registers.
  void run(const Product& p, long from, long to) const {
    if (rows == 1) return columns<1>(p, 0, from, to, true);
    for (long chunk = 0; chunk < rows; chunk += ROWS)
      for (long n = from; n < to; n += STRIP) strip(p, chunk, std::min(chunk + ROWS, rows), n, std::min(n + STRIP, to));
  }

  void strip(const Product& p, long row, long end, long from, long to) const {
    for (long tiles = (end - row + 5) / 6; row < end; --tiles) {
      bool fetch = row == 0;  // once for all rows
      long size = (end - row + tiles - 1) / tiles;
      if (size == 6) columns<6>(p, row, from, to, fetch);
      if (size == 5) columns<5>(p, row, from, to, fetch);
      if (size == 4) columns<4>(p, row, from, to, fetch);
      if (size == 3) columns<3>(p, row, from, to, fetch);
      if (size == 2) columns<2>(p, row, from, to, fetch);
      if (size == 1) columns<1>(p, row, from, to, fetch);
      row += size;
    }
  }
};

// Outputs of a piece: some eight pieces a thread, so that nobody waits for the last of three.
inline long piece_of(const Product* products, long count, int threads) {
  long outputs = 0;
  for (long i = 0; i < count; ++i) outputs += products[i].outputs;
  return std::clamp(outputs / (8 * threads) / LEAST * LEAST, LEAST, PIECE);
}

// Share the outputs of all products among threads.
template <class Kind>
void multiply(const float* x, long rows, long depth, const Product* products, long count, int threads) {
  const Task<Kind> task(x, rows, depth);
  const long size = piece_of(products, count, threads);
  long pieces = 0;
  for (long i = 0; i < count; ++i) pieces += (products[i].outputs + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (long piece = 0; piece < pieces; ++piece) {
    const Product* p = products;
    long at = piece;
    for (long here; at >= (here = (p->outputs + size - 1) / size); ++p) at -= here;
    task.run(*p, at * size, std::min((at + 1) * size, p->outputs));
  }
}

// All products of the same rows; whether there are kernels for their weights. Neighbours of one width share a pass.
bool multiply(const float* x, long rows, long depth, const Product* products, long count, int threads) {
  for (long n; count; products += n, count -= n) {
    for (n = 1; n < count && products[n].width == products[0].width;) ++n;
    switch (products->width) {
      case FP32: multiply<Plain<float>>(x, rows, depth, products, n, threads); break;
      case BF16: multiply<Halves>(x, rows, depth, products, n, threads); break;
      case FP16: multiply<Plain<Fp16>>(x, rows, depth, products, n, threads); break;
#if DANLU_INTEGER
      case INT8: multiply<Integer>(x, rows, depth, products, n, threads); break;
#endif
      default: return false;
    }
  }
  return true;
}

}  // namespace
