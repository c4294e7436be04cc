#pragma once
/// What all kernels of products do with sums, and in which order: results must be the same bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "kernels/cuda/common/gemm_tile.cuh"
#include "kernels/cuda/decode/products.h"

namespace rwkv::cuda::decode {

/// First step of a piece.
__device__ __forceinline__ int piece_start(int steps, int piece, int pieces) {
  return steps * piece / pieces;
}

template <class T>
__device__ __forceinline__ uint32_t pack_pair(float a, float b) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 p = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&p);
  } else {
    const __nv_bfloat162 p = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&p);
  }
}
__device__ __forceinline__ float4 plus(const float4& a, const float4& b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/// `scale`: 2 for tanh, 1 for the sigmoid; not used by others.
__device__ __forceinline__ void activate_value(ProductAct act, float& x, float scale) {
  if (act == ProductAct::kSquaredRelu) {
    x = tile::squared_relu(x);
  } else {
    const float s = __fdividef(1.0f, 1.0f + __expf(-scale * x));
    x = scale * s - (scale - 1.0f);  // tanh x = 2 sigmoid(2 x) - 1
  }
}
template <int kValues>
__device__ __forceinline__ void activate_values(ProductAct act, float (&d)[kValues]) {
  if (act == ProductAct::kNone) return;
  if (act == ProductAct::kSquaredRelu) {
#pragma unroll
    for (int e = 0; e < kValues; ++e) activate_value(ProductAct::kSquaredRelu, d[e], 1.0f);
  } else {
    const float scale = act == ProductAct::kTanh ? 2.0f : 1.0f;
#pragma unroll
    for (int e = 0; e < kValues; ++e) activate_value(ProductAct::kSigmoid, d[e], scale);
  }
}

}  // namespace rwkv::cuda::decode
