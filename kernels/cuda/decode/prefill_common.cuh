#pragma once
/// What the kernels of prompts share: eight numbers at a time, sums of a head.

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/prefill_kernels.h"
#include "kernels/cuda/decode/weights.cuh"

namespace rwkv::cuda::decode {

template <class T>
struct alignas(16) Eight {
  T x[8];
};
template <class T>
__device__ __forceinline__ void get8(const T* p, float (&x)[8]) {
  Weights<T>::get(*reinterpret_cast<const uint4*>(p), x);
}
__device__ __forceinline__ void get8(const float* p, float (&x)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
template <class T>
__device__ __forceinline__ void put8(T* p, const float (&x)[8]) {
  Eight<T> y;
#pragma unroll
  for (int i = 0; i < 8; ++i) y.x[i] = Weights<T>::from(x[i]);
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&y);
}
__device__ __forceinline__ void put8(float* p, const float (&x)[8]) {
  reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
  reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ float logistic_of(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

__device__ __forceinline__ float activated(PromptAct act, float x) {
  if (act == PromptAct::kTanh) return tanhf(x);
  return act == PromptAct::kSigmoid ? logistic_of(x) : x;
}

/// Sum over the 8 lanes of a head.
__device__ __forceinline__ float head_sum(float x) {
#pragma unroll
  for (int o = 4; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

/// Calls fn(__half()) or fn(__nv_bfloat16()).
template <class Fn>
void by_half(DType type, const Fn& fn) {
  RWKV_ASSERT(type == DType::kF16 || type == DType::kBF16, "prefill in ", dtype_name(type));
  if (type == DType::kF16)
    fn(__half());
  else
    fn(__nv_bfloat16());
}

}  // namespace rwkv::cuda::decode
