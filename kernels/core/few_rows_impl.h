#pragma once
// The kernels of few_rows.h over a vector type V, included by one file per instruction set, which
// is compiled for it: everything here has internal linkage and calls nothing from outside, so that
// no function compiled for a newer processor is shared with code that runs on older ones.
//
// V::kLanes, V::kRegisters, V::Reg; zero, set, load, store, multiply_add, sum; widen(pointer) for
// f32, bf16 (uint16_t) and int8 gives kLanes weights as f32.
//
// A core waits for memory most of the time: hardware prefetching alone reaches 12 (int8) to 15 GB/s
// (f32) on an AVX-512 core, prefetching 1 to 4 KiB ahead of every row 17 (docs/generation.md).

#include <cstring>

#include "kernels/core/few_rows.h"

namespace rwkv {
namespace {

inline constexpr int64_t kCacheLine = 64;

template <class T>
inline float weight(T x) {
  return static_cast<float>(x);
}
template <>
inline float weight(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
inline const T* weights_of(const FewRowsCall& p, int64_t row) {
  return reinterpret_cast<const T*>(p.b + row * p.row_bytes);
}

/// The factor of a row with `cols` weights.
template <class T>
inline float factor(const T*, int64_t) {
  return 1;
}
template <>
inline float factor(const int8_t* row, int64_t cols) {
  float scale;
  std::memcpy(&scale, row + cols, sizeof scale);
  return scale;
}

/// R rows of B from row j on, against M rows of A.
template <class V, class T, int M, int R>
inline void dot_block(const FewRowsCall& p, int64_t j) {
  constexpr int64_t kStep = 2 * V::kLanes;
  // Measured: one row ahead for f32 rows of 768, about four for narrower types.
  constexpr int64_t kAhead = sizeof(T) == 4 ? 1024 : 4096;
  constexpr int64_t kPerLine = kCacheLine / static_cast<int64_t>(sizeof(T));
  const T* b[R];
  for (int r = 0; r < R; ++r) b[r] = weights_of<T>(p, j + r);
  typename V::Reg acc[M][R][2];
  for (int i = 0; i < M; ++i)
    for (int r = 0; r < R; ++r) acc[i][r][0] = acc[i][r][1] = V::zero();
  int64_t x = 0;
  for (; x + kStep <= p.k; x += kStep) {
    if (kPerLine <= kStep || x % kPerLine == 0) {
      for (int r = 0; r < R; ++r)
        for (int64_t line = 0; line < kStep; line += kPerLine)
          __builtin_prefetch(reinterpret_cast<const char*>(b[r] + x + line) + kAhead);
    }
    for (int r = 0; r < R; ++r) {
      const typename V::Reg low = V::widen(b[r] + x), high = V::widen(b[r] + x + V::kLanes);
      for (int i = 0; i < M; ++i) {
        const float* a = p.a + i * p.lda + x;
        acc[i][r][0] = V::multiply_add(V::load(a), low, acc[i][r][0]);
        acc[i][r][1] = V::multiply_add(V::load(a + V::kLanes), high, acc[i][r][1]);
      }
    }
  }
  for (int i = 0; i < M; ++i)
    for (int r = 0; r < R; ++r) {
      float rest = 0;
      for (int64_t y = x; y < p.k; ++y) rest += p.a[i * p.lda + y] * weight(b[r][y]);
      float* c = p.c + i * p.ldc + j + r;
      const float product = factor(b[r], p.k) * (V::sum(acc[i][r][0], acc[i][r][1]) + rest);
      *c = p.add ? *c + product : product;
    }
}

template <class V, class T, int M>
void dots(const FewRowsCall& p, int64_t begin, int64_t end) {
  constexpr int kBlock = V::kRegisters >= 32 || M <= 2 ? 2 : 1;
  int64_t j = begin;
  for (; j + kBlock <= end; j += kBlock) dot_block<V, T, M, kBlock>(p, j);
  for (; j < end; ++j) dot_block<V, T, M, 1>(p, j);
}

/// Rows of B that are looked at together.
inline constexpr int64_t kRowsAtOnce = 1024;

/// Indices of rows [from, from + count) of B whose factors are not all zero (a NaN is not zero).
template <int M>
inline int64_t rows_needed(const FewRowsCall& p, int64_t from, int64_t count, int32_t* rows) {
  int64_t found = 0;
  for (int64_t x = from; x < from + count; ++x) {
    bool needed = false;
    for (int i = 0; i < M; ++i) needed |= p.a[i * p.lda + x] != 0;
    rows[found] = static_cast<int32_t>(x - from);
    found += needed;
  }
  return found;
}

/// W vectors of columns from column j on.
template <class V, class T, int M, int W>
inline void update_block(const FewRowsCall& p, int64_t j) {
  constexpr int64_t kBytes = W * V::kLanes * static_cast<int64_t>(sizeof(T));
  constexpr int64_t kAhead = (4096 + kBytes - 1) / kBytes;
  typename V::Reg acc[M][W];
  for (int i = 0; i < M; ++i)
    for (int w = 0; w < W; ++w) acc[i][w] = V::zero();
  int32_t rows[kRowsAtOnce];
  for (int64_t from = 0; from < p.k; from += kRowsAtOnce) {
    const int64_t left = p.k - from, count = left < kRowsAtOnce ? left : kRowsAtOnce;
    const int64_t found = rows_needed<M>(p, from, count, rows);
    for (int64_t y = 0; y < found; ++y) {
      const int64_t later = y + kAhead < found ? y + kAhead : found - 1;
      const char* ahead = reinterpret_cast<const char*>(weights_of<T>(p, from + rows[later]) + j);
      for (int64_t line = 0; line < kBytes; line += kCacheLine) __builtin_prefetch(ahead + line);
      const int64_t x = from + rows[y];
      const T* b = weights_of<T>(p, x);
      const float scale = factor(b, p.n);
      typename V::Reg a[M];
      for (int i = 0; i < M; ++i) a[i] = V::set(p.a[i * p.lda + x] * scale);
      for (int w = 0; w < W; ++w) {
        const typename V::Reg v = V::widen(b + j + w * V::kLanes);
        for (int i = 0; i < M; ++i) acc[i][w] = V::multiply_add(a[i], v, acc[i][w]);
      }
    }
  }
  for (int i = 0; i < M; ++i)
    for (int w = 0; w < W; ++w) {
      float* c = p.c + i * p.ldc + j + w * V::kLanes;
      V::store(c, p.add ? V::add(V::load(c), acc[i][w]) : acc[i][w]);
    }
}

/// Blocks of W vectors while they fit, then narrower ones; returns the first column not done.
template <class V, class T, int M, int W>
inline int64_t update_blocks(const FewRowsCall& p, int64_t j, int64_t end) {
  for (; j + W * V::kLanes <= end; j += W * V::kLanes) update_block<V, T, M, W>(p, j);
  if constexpr (W > 1) j = update_blocks<V, T, M, (W > 8 ? W / 3 : W / 2)>(p, j, end);
  return j;
}

template <class V, class T, int M>
void updates(const FewRowsCall& p, int64_t begin, int64_t end) {
  // The widest blocks leave registers for the factors and for one vector of weights.
  constexpr int kWide = V::kRegisters >= 32 ? (M == 1 ? 24 : M == 2 ? 12 : 6) : (M == 1 ? 8 : 2);
  int64_t j = update_blocks<V, T, M, kWide>(p, begin, end);
  for (; j < end; ++j)
    for (int i = 0; i < M; ++i) {
      float sum = 0;
      for (int64_t x = 0; x < p.k; ++x) {
        const T* b = weights_of<T>(p, x);
        const float a = p.a[i * p.lda + x] * factor(b, p.n);
        if (a != 0) sum += a * weight(b[j]);
      }
      float* c = p.c + i * p.ldc + j;
      *c = p.add ? *c + sum : sum;
    }
}

template <class V, class T, bool kTrans>
inline void by_rows(const FewRowsCall& p, int64_t begin, int64_t end) {
  switch (p.m) {
    case 1:
      return kTrans ? dots<V, T, 1>(p, begin, end) : updates<V, T, 1>(p, begin, end);
    case 2:
      return kTrans ? dots<V, T, 2>(p, begin, end) : updates<V, T, 2>(p, begin, end);
    case 3:
      return kTrans ? dots<V, T, 3>(p, begin, end) : updates<V, T, 3>(p, begin, end);
    default:
      return kTrans ? dots<V, T, 4>(p, begin, end) : updates<V, T, 4>(p, begin, end);
  }
}

template <class V, bool kTrans>
void any(const FewRowsCall& p, int64_t begin, int64_t end) {
  switch (p.b_dtype) {
    case DType::kBF16:
      return by_rows<V, uint16_t, kTrans>(p, begin, end);
    case DType::kI8:
      return by_rows<V, int8_t, kTrans>(p, begin, end);
    default:
      return by_rows<V, float, kTrans>(p, begin, end);
  }
}

}  // namespace
}  // namespace rwkv
