#pragma once
/// Device code that forward, step and backward of the binary16 WKV-7 share.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/wkv/cuda/wkv7_fp16.h"
#include "kernels/wkv/dither.h"
#include "kernels/wkv/row_exponent.h"

namespace rwkv::cuda::fp16 {

inline constexpr int kN = 64;          // head size
inline constexpr int kPairs = kN / 2;  // of a row
inline constexpr int kPacks = kN / 8;  // 16-byte packs of a row
inline constexpr int kInterval = 8;    // tokens from one saved state to the next
inline constexpr int kStatePacks = kN * kPacks;

/// 16 bytes: 8 binary16 numbers.
struct alignas(16) Pack {
  __half2 pair[4];
};

__device__ __forceinline__ Pack load_pack(const void* p) {
  Pack x;
  *reinterpret_cast<uint4*>(&x) = *static_cast<const uint4*>(p);
  return x;
}
__device__ __forceinline__ void store_pack(void* p, const Pack& x) {
  *static_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&x);
}

/// Four vector elements, as floats.
__device__ __forceinline__ float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ float4 load4(const __nv_bfloat16* p) {
  const uint2 x = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u),
          __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u)};
}
__device__ __forceinline__ float load1(const float* p) {
  return *p;
}
__device__ __forceinline__ float load1(const __nv_bfloat16* p) {
  return __bfloat162float(*p);
}
__device__ __forceinline__ void put(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void put(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

__device__ __forceinline__ float4 scaled(float4 x, float c) {
  return {x.x * c, x.y * c, x.z * c, x.w * c};
}

/// Four numbers rounded to binary16: 8 bytes.
struct alignas(8) Quad {
  __half2 pair[2];
};
__device__ __forceinline__ Quad to_quad(float4 x) {
  return {__floats2half2_rn(x.x, x.y), __floats2half2_rn(x.z, x.w)};
}

/// w' of a column; w_logit is rounded to binary16 first.
template <bool kDithered>
__device__ __forceinline__ float decay_of(float w_logit, uint32_t phase) {
  const float x = __half2float(__float2half_rn(w_logit));
  return kDithered ? dithered_decay(x, phase) : plain_decay(x);
}
/// Of four columns, `phase` that of the first.
template <bool kDithered>
__device__ __forceinline__ float4 decays_of(float4 x, uint32_t phase) {
  return {decay_of<kDithered>(x.x, phase), decay_of<kDithered>(x.y, phase + 1),
          decay_of<kDithered>(x.z, phase + 2), decay_of<kDithered>(x.w, phase + 3)};
}

/// The row of a state that a thread owns.
struct Row {
  __half2 s[kPairs];
};

/// e + o of a chain's two halves.
__device__ __forceinline__ __half joined(__half2 chain) {
  return __hadd_rn(__low2half(chain), __high2half(chain));
}

/// The chains of u or y: x in shared memory.
__device__ __forceinline__ __half dot(const Row& row, const __half* x) {
  __half2 sum = __float2half2_rn(0.0f);
#pragma unroll
  for (int q = 0; q < kPacks; ++q) {
    const Pack p = load_pack(x + 8 * q);
#pragma unroll
    for (int m = 0; m < 4; ++m) sum = __hfma2(p.pair[m], row.s[4 * q + m], sum);
  }
  return joined(sum);
}

/// One token; w holds w'. y: of this token, if kOutput. Returns u of the next token, whose `a` is
/// next_a, so that both chains run side by side.
template <bool kOutput>
__device__ __forceinline__ __half advance(Row& row, __half u, __half v, const __half* w,
                                          const __half* k, const __half* b, const __half* r,
                                          const __half* next_a, __half* y) {
  const __half2 uu = __half2half2(u), vv = __half2half2(v);
  __half2 out = __float2half2_rn(0.0f), next = out;
#pragma unroll
  for (int q = 0; q < kPacks; ++q) {
    const Pack pw = load_pack(w + 8 * q), pk = load_pack(k + 8 * q), pb = load_pack(b + 8 * q),
               pa = load_pack(next_a + 8 * q);
    Pack pr{};
    if (kOutput) pr = load_pack(r + 8 * q);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const __half2 old = row.s[4 * q + m];
      const __half2 now =
          __hfma2(old, pw.pair[m], __hfma2(pk.pair[m], vv, __hfma2(uu, pb.pair[m], old)));
      row.s[4 * q + m] = now;
      if (kOutput) out = __hfma2(pr.pair[m], now, out);
      next = __hfma2(pa.pair[m], now, next);
    }
  }
  if (kOutput) *y = joined(out);
  return joined(next);
}

/// v of a token for a row with exponent e: half(half(c v) 2^-e), `down` = 2^-e.
__device__ __forceinline__ __half row_value(__half scaled, float down) {
  return __float2half_rn(__half2float(scaled) * down);
}

/// Bits of max |X| of a row as float; a NaN is more than all numbers.
__device__ __forceinline__ uint32_t largest_of(const Row& row) {
  __half2 m[4] = {};
#pragma unroll
  for (int i = 0; i < kPairs; ++i) m[i % 4] = __hmax2_nan(m[i % 4], __habs2(row.s[i]));
  m[0] = __hmax2_nan(__hmax2_nan(m[0], m[1]), __hmax2_nan(m[2], m[3]));
  const __half most = __hmax_nan(__low2half(m[0]), __high2half(m[0]));
  return float_bits(__half2float(most)) & 0x7fffffffu;
}
__device__ __forceinline__ void scale_row(Row& row, int by) {
  const __half2 factor = __float2half2_rn(power_of_two(by));
#pragma unroll
  for (int i = 0; i < kPairs; ++i) row.s[i] = __hmul2_rn(row.s[i], factor);
}
/// What row_exponent.h says, at a position where it is due. Whether the row changed.
__device__ __forceinline__ bool follow(Row& row, int& exponent) {
  const int change = exponent_change(largest_of(row), exponent);
  if (change == 0) return false;
  exponent += change;
  scale_row(row, -change);
  return true;
}

/// Saved: (chunks + 1) states per head, [pack][row], so that threads that own rows touch
/// neighbours; the last is the final one. Then as many exponents, [row]. Then the counters.
__host__ __device__ inline int chunks_of(int tokens) {
  return (tokens + kInterval - 1) / kInterval;
}
inline size_t saved_states(const Wkv7Shape& s) {
  return static_cast<size_t>(s.batch) * s.heads * (chunks_of(s.tokens) + 1);
}
inline int8_t* saved_exponents(void* saved, const Wkv7Shape& s) {
  return reinterpret_cast<int8_t*>(static_cast<uint4*>(saved) + saved_states(s) * kStatePacks);
}
inline uint32_t* saved_counters(void* saved, const Wkv7Shape& s) {
  return reinterpret_cast<uint32_t*>(saved_exponents(saved, s) + saved_states(s) * kN);
}

}  // namespace rwkv::cuda::fp16
