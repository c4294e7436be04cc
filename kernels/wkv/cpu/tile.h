#pragma once
/// Register tiles for products of small matrices whose sizes are known when compiling. A tile of
/// rows x vectors stays in registers while several products are added to it.

#include "kernels/wkv/cpu/vec.h"

namespace rwkv::cpu {

inline constexpr int kTileRows = 4;

/// kRows x kVecs vectors of sums.
template <int kRows, int kVecs>
struct Tile {
  Vec sum[kRows][kVecs];

  RWKV_INLINE Tile() {
    for (auto& row : sum)
      for (Vec& x : row) x = Vec{};
  }

  /// sum[m] += sum over p < depth of left(m, p) * right(p, :), with
  /// left(m, p) at left[m * row_stride + p * depth_stride] and
  /// right(p, q) the vector at right[p * right_stride + q * kStep].
  template <int kStep = kLanes>
  RWKV_INLINE void add(const float* left, int64_t row_stride, int64_t depth_stride,
                       const float* right, int64_t right_stride, int depth) {
    for (int p = 0; p < depth; ++p) {
      Vec b[kVecs];
      for (int q = 0; q < kVecs; ++q) b[q] = load(right + p * right_stride + q * kStep);
      for (int m = 0; m < kRows; ++m) {
        const Vec x = splat(left[m * row_stride + p * depth_stride]);
        for (int q = 0; q < kVecs; ++q) sum[m][q] += x * b[q];
      }
    }
  }

  RWKV_INLINE void load_from(const float* src, int64_t stride) {
    for (int m = 0; m < kRows; ++m)
      for (int q = 0; q < kVecs; ++q) sum[m][q] = load(src + m * stride + q * kLanes);
  }
  RWKV_INLINE void store_to(float* dst, int64_t stride) const {
    for (int m = 0; m < kRows; ++m)
      for (int q = 0; q < kVecs; ++q) store(dst + m * stride + q * kLanes, sum[m][q]);
  }
};

}  // namespace rwkv::cpu
