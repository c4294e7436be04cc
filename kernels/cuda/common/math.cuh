#pragma once
/// Reductions over lanes and the logistic function.

#include <cuda_runtime.h>

#include "kernels/core/dtype.h"

namespace rwkv::cuda {

/// Sum over aligned groups of `lanes` neighbouring lanes (a power of two); every lane gets it.
__device__ __forceinline__ float lane_sum(float x, int lanes = 32) {
  for (int o = lanes >> 1; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}
__device__ __forceinline__ float lane_max(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
  return x;
}

/// e^x. With bf16 operands the fast form, whose relative error of about |x| 2^-23 is far below
/// their rounding.
template <class T>
__device__ __forceinline__ float exp_as(float x) {
  if constexpr (sizeof(T) == 2)
    return __expf(x);
  else
    return expf(x);
}

/// The logistic function with 1 - sigmoid and its derivative, each to full relative precision (the
/// difference 1 - sigmoid(x) would have none left for large x).
struct Logistic {
  float value, complement, slope;
};
template <class T>
__device__ __forceinline__ Logistic logistic(float x) {
  const float e = exp_as<T>(-fabsf(x));
  const float inv = sizeof(T) == 2 ? __fdividef(1.0f, 1.0f + e) : 1.0f / (1.0f + e);
  const float small = e * inv;
  return {x < 0.0f ? small : inv, x < 0.0f ? inv : small, small * inv};
}

}  // namespace rwkv::cuda
