#pragma once
/// Packs of elements: 16-byte loads and stores of f32 and bf16 as floats, and gradient stores.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/core/dtype.h"

namespace rwkv::cuda {

/// Elements of one 16-byte access.
template <class T>
inline constexpr int kPack = 16 / static_cast<int>(sizeof(T));

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(BF16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ inline void from_float(float& to, float x) {
  to = x;
}
__device__ inline void from_float(BF16& to, float x) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
/// Two floats as bf16 in one word, the first in the low half.
__device__ inline uint32_t pair_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// x[0 .. N) = p[0 .. N); p is aligned to min(16, N * sizeof(T)) bytes.
template <int N>
__device__ __forceinline__ void load(const float* __restrict__ p, float (&x)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 q = *reinterpret_cast<const float4*>(p + i);
      x[i] = q.x, x[i + 1] = q.y, x[i + 2] = q.z, x[i + 3] = q.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = p[i];
  }
}
__device__ __forceinline__ void unpack(uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
template <int N>
__device__ __forceinline__ void load(const BF16* __restrict__ p, float (&x)[N]) {
  if constexpr (N % 8 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 8) {
      const uint4 q = *reinterpret_cast<const uint4*>(p + i);
      unpack(q.x, x[i], x[i + 1]);
      unpack(q.y, x[i + 2], x[i + 3]);
      unpack(q.z, x[i + 4], x[i + 5]);
      unpack(q.w, x[i + 6], x[i + 7]);
    }
  } else if constexpr (N == 4) {
    const uint2 q = *reinterpret_cast<const uint2*>(p);
    unpack(q.x, x[0], x[1]);
    unpack(q.y, x[2], x[3]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = to_float(p[i]);
  }
}

template <int N>
__device__ __forceinline__ void store(float* p, const float (&x)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4)
      *reinterpret_cast<float4*>(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = x[i];
  }
}
template <int N>
__device__ __forceinline__ void store(BF16* p, const float (&x)[N]) {
  if constexpr (N % 8 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 8)
      *reinterpret_cast<uint4*>(p + i) =
          make_uint4(pair_bf16(x[i], x[i + 1]), pair_bf16(x[i + 2], x[i + 3]),
                     pair_bf16(x[i + 4], x[i + 5]), pair_bf16(x[i + 6], x[i + 7]));
  } else if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(p) = make_uint2(pair_bf16(x[0], x[1]), pair_bf16(x[2], x[3]));
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) from_float(p[i], x[i]);
  }
}

/// N elements as they lie in memory: for loads that are issued long before their use.
template <class T, int N>
struct Raw {
  static_assert(sizeof(T) * N == 16 || sizeof(T) * N == 8 || N == 1);
  using Word = std::conditional_t<sizeof(T) * N == 16, uint4,
                                  std::conditional_t<sizeof(T) * N == 8, uint2, T>>;
  Word word;
  __device__ __forceinline__ void fetch(const T* p) { word = *reinterpret_cast<const Word*>(p); }
  __device__ __forceinline__ void clear() { word = Word{}; }
  __device__ __forceinline__ void get(float (&x)[N]) const {
    if constexpr (N == 1) {
      x[0] = to_float(word);
    } else if constexpr (sizeof(T) == 4) {
      x[0] = __uint_as_float(word.x);
      x[1] = __uint_as_float(word.y);
      if constexpr (N == 4) {
        x[2] = __uint_as_float(word.z);
        x[3] = __uint_as_float(word.w);
      }
    } else {
      unpack(word.x, x[0], x[1]);
      unpack(word.y, x[2], x[3]);
      if constexpr (N == 8) {
        unpack(word.z, x[4], x[5]);
        unpack(word.w, x[6], x[7]);
      }
    }
  }
};

/// Where one gradient goes, and how. The pointer is null for kSkip.
template <class T>
struct Grad {
  T* p = nullptr;
  Accum mode = Accum::kSkip;
};

template <int N, class T>
__device__ __forceinline__ void emit(const Grad<T>& grad, int64_t offset, const float (&x)[N]) {
  if (grad.mode == Accum::kSkip) return;
  if (grad.mode == Accum::kWrite) {
    store<N>(grad.p + offset, x);
    return;
  }
  float sum[N];
  load<N>(grad.p + offset, sum);
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i] += x[i];
  store<N>(grad.p + offset, sum);
}

}  // namespace rwkv::cuda
