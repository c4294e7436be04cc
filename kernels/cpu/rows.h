#pragma once
/// Shared pieces of the row-wise f32 kernels: vectorisable sums, gradient stores, and parameter
/// gradients that are sums over rows. All of it is independent of the number of threads.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/core/dtype.h"
#include "kernels/core/parallel.h"
#include "kernels/core/tensor.h"

namespace rwkv::cpu {

/// Channels that elementwise kernels handle at a time: their temporaries stay in the L1 cache.
inline constexpr int64_t kBlock = 256;

/// sum of f(0) .. f(n-1) in 16 interleaved partial sums, combined as a tree: vectorises without
/// permission to reorder, and rounds better than one running sum.
template <class F>
inline float lane_sum(int64_t n, const F& f) {
  constexpr int kLanes = 16;
  float acc[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int l = 0; l < kLanes; ++l) acc[l] += f(i + l);
  for (int l = 0; i < n; ++i, ++l) acc[l] += f(i);
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int l = 0; l < w; ++l) acc[l] += acc[l + w];
  return acc[0];
}

/// dst = src, dst += src or nothing.
inline void emit(float* __restrict dst, const float* __restrict src, int64_t n, Accum mode) {
  if (mode == Accum::kWrite) {
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
  } else if (mode == Accum::kAdd) {
    for (int64_t i = 0; i < n; ++i) dst[i] += src[i];
  }
}

/// Rows per chunk of the row-parallel kernels: at most 256 chunks, so that the partial sums of
/// parameter gradients stay small, and at least 8 rows, so that a chunk is worth a thread.
inline int64_t row_grain(int64_t rows) {
  return std::max<int64_t>(8, (rows + 255) / 256);
}
inline int64_t row_chunks(int64_t rows) {
  return (rows + row_grain(rows) - 1) / row_grain(rows);
}
/// Workspace for one partial row of `width` sums per chunk.
inline size_t partial_bytes(int64_t rows, int64_t width) {
  return static_cast<size_t>(row_chunks(rows) * width) * sizeof(float);
}

/// dst[c] (=, +=) sum over chunks of partials[chunk * stride + c], in chunk order, in double.
void reduce_partials(const float* partials, int64_t chunks, int64_t stride, int64_t n, float* dst,
                     Accum mode);

/// dst[c] (=, +=) sum over rows of x[row * n + c]. `partials`: partial_bytes(rows, n).
void column_sums(const float* x, int64_t rows, int64_t n, float* partials, float* dst, Accum mode);

/// Calls fn(begin, end) over [0, n) in pieces that suit elementwise work.
template <class Fn>
void parallel_elements(int64_t n, const Fn& fn) {
  parallel_for(n, 16384, fn);
}

/// A pointer into a view that may be null.
inline float* at(const TensorView& v, int64_t offset) {
  return v ? v.f32() + offset : nullptr;
}

}  // namespace rwkv::cpu
