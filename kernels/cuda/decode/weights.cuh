#pragma once
/// 16 bytes of weights as floats, and products of them with vectors in shared memory.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace rwkv::cuda::decode {

template <class T>
inline constexpr int kPackOf = 16 / static_cast<int>(sizeof(T));

template <class T>
struct Weights;
template <>
struct Weights<float> {
  static __device__ __forceinline__ void get(const uint4& w, float (&x)[4]) {
    x[0] = __uint_as_float(w.x);
    x[1] = __uint_as_float(w.y);
    x[2] = __uint_as_float(w.z);
    x[3] = __uint_as_float(w.w);
  }
  static __device__ __forceinline__ float to(float x) { return x; }
  static __device__ __forceinline__ float from(float x) { return x; }
};
template <>
struct Weights<__half> {
  static __device__ __forceinline__ void pair(uint32_t word, float& a, float& b) {
    const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&word));
    a = x.x;
    b = x.y;
  }
  static __device__ __forceinline__ void get(const uint4& w, float (&x)[8]) {
    pair(w.x, x[0], x[1]);
    pair(w.y, x[2], x[3]);
    pair(w.z, x[4], x[5]);
    pair(w.w, x[6], x[7]);
  }
  static __device__ __forceinline__ float to(__half x) { return __half2float(x); }
  static __device__ __forceinline__ __half from(float x) { return __float2half_rn(x); }
};
template <>
struct Weights<__nv_bfloat16> {
  static __device__ __forceinline__ void pair(uint32_t word, float& a, float& b) {
    a = __uint_as_float(word << 16);
    b = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ void get(const uint4& w, float (&x)[8]) {
    pair(w.x, x[0], x[1]);
    pair(w.y, x[2], x[3]);
    pair(w.z, x[4], x[5]);
    pair(w.w, x[6], x[7]);
  }
  static __device__ __forceinline__ float to(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __forceinline__ __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};

/// Where element e of a vector of `width` floats lies in shared memory: with 8 weights in 16 bytes,
/// the first fours of all packs and then the second fours, so that neighbouring lanes read
/// neighbouring 16 bytes.
template <class T>
__device__ __forceinline__ int place(int e, int width) {
  if constexpr (sizeof(T) == 4) return e;
  const int r = e & 7;
  return (r & 4 ? width >> 1 : 0) + (e >> 3) * 4 + (r & 3);
}

/// Two sums that one thread keeps apart, so that fewer additions wait for each other.
struct Sum {
  float a = 0, b = 0;
  __device__ __forceinline__ float all() const { return a + b; }
};

/// sum += pack q of a row times the same elements of the vector x.
template <class T>
__device__ __forceinline__ void multiply(const uint4& w, const float* x, int q, int width,
                                         Sum& sum) {
  float v[kPackOf<T>];
  Weights<T>::get(w, v);
  const float4 lo = *reinterpret_cast<const float4*>(x + 4 * q);
  sum.a = fmaf(v[0], lo.x, sum.a);
  sum.b = fmaf(v[1], lo.y, sum.b);
  sum.a = fmaf(v[2], lo.z, sum.a);
  sum.b = fmaf(v[3], lo.w, sum.b);
  if constexpr (sizeof(T) == 2) {
    const float4 hi = *reinterpret_cast<const float4*>(x + (width >> 1) + 4 * q);
    sum.a = fmaf(v[4], hi.x, sum.a);
    sum.b = fmaf(v[5], hi.y, sum.b);
    sum.a = fmaf(v[6], hi.z, sum.a);
    sum.b = fmaf(v[7], hi.w, sum.b);
  }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  return x;
}

}  // namespace rwkv::cuda::decode
