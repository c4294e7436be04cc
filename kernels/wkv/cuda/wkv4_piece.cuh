#pragma once
/// A thread's few tokens by cumulative sums of exponentially weighted values (spec rwkv4 6), with
/// an anchor of their own. With i the index in the piece and c the anchor, E_i = 2^(k_i + i rate -
/// c). source: spec rwkv4 6; kernels/wkv/cpu/wkv4_cumsum.cpp explains the scales

#include "kernels/wkv/cuda/wkv4_common.cuh"

namespace rwkv::cuda::wkv4 {

inline constexpr float kLargestSpan = 80 * kLog2E;

template <int kOwn>
struct Piece {
  float e[kOwn] = {};
  float anchor = 0, low = 0, bonus = 0;
  bool fits = false;  ///< its own exponents fit; a single token needs no sums

  __device__ __forceinline__ Piece(const float (&k)[kOwn], int n, float d, float u) {
    const float up = fmaxf(u + d, 0.0f), down = fminf(u + d, 0.0f);
    float high = -3e38f;
    low = 3e38f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (i >= n) break;
      const float x = k[i] - static_cast<float>(i) * d;
      low = fminf(low, x + down);
      high = fmaxf(high, x + up);
    }
    fits = n > 1 && high - low <= kLargestSpan;
    if (!fits) return;
    anchor = 0.5f * (low + high);
    bonus = pow2(u + d);
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (i < n) e[i] = pow2(k[i] - static_cast<float>(i) * d - anchor);
  }
  /// Together with the state ahead of it, too, whose sums may be large beside its scale.
  __device__ __forceinline__ bool takes(const Past& past, float d) const {
    return fits && past.scale.at(d) + d + log_size(past) - low <= kLargestSpan;
  }
  /// Weight of the state ahead of the piece.
  __device__ __forceinline__ float start(const Past& past, float d) const {
    return pow2(past.scale.at(d) + d - anchor);
  }
  /// The piece alone, seen from its end; b in [1, 2).
  __device__ __forceinline__ Past fold(const float (&v)[kOwn], int n, float d) const {
    float sum_v = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {  // beyond n the weights are 0
      sum_v += e[i] * v[i];
      sum += e[i];
    }
    const int power = ilogbf(sum);
    return {scalbnf(sum_v, -power),
            scalbnf(sum, -power),
            {anchor + static_cast<float>(n - 1) * d + static_cast<float>(power)}};
  }
  /// Finds y and divides h (its gradients) by the denominators; returns the smallest sum that
  /// anything later was divided by.
  __device__ __forceinline__ float divide(const float (&v)[kOwn], float (&y)[kOwn],
                                          float (&h)[kOwn], int n, const Past& past,
                                          float d) const {
    const float weight = start(past, d);
    float sum_v = past.a * weight, sum = past.b * weight, smallest = 3e38f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (i >= n) break;
      const float own = bonus * e[i], denominator = sum + own;
      smallest = fminf(smallest, denominator);
      const float inverse = reciprocal(denominator);
      y[i] = (sum_v + own * v[i]) * inverse;
      h[i] *= inverse;
      sum_v += e[i] * v[i];
      sum += e[i];
    }
    return fminf(smallest, sum);
  }
  /// The piece alone, seen from its begin.
  __device__ __forceinline__ Future fold_back(const float (&h)[kOwn], const float (&y)[kOwn], int n,
                                              float d, float smallest) const {
    float x = 0, z = 0, xd = 0, zd = 0;
#pragma unroll
    for (int i = kOwn - 1; i >= 0; --i) {
      if (i >= n) continue;
      xd += x;
      zd += z;
      x += h[i];
      z -= h[i] * y[i];
    }
    const int power = ilogbf(smallest);
    return {scalbnf(x, power),
            scalbnf(z, power),
            scalbnf(xd, power),
            scalbnf(zd, power),
            {d - anchor - static_cast<float>(power)}};
  }
};

}  // namespace rwkv::cuda::wkv4
