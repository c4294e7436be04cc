#pragma once
/// Device side of WKV-4: the stabilised recurrence forward and backward for one channel, and the
/// composition of runs of tokens (spec rwkv4 3, 4.2, 5.1). Logarithms are to base 2 here: decays,
/// keys, bonuses and scales are multiplied by log2 e once, and every exponential is the hardware's.

#include <cuda_bf16.h>

#include "kernels/wkv/cuda/wkv4_cuda.h"

namespace rwkv::cuda::wkv4 {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.69314718055994531f;
inline constexpr float kNoScale = -1e38f;  ///< a log scale below that of any token

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void put(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void put(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}
/// Writes gradient `which`, or adds it to what is there; null: nobody wants it.
template <class T>
__device__ __forceinline__ void put_gradient(T* to, int64_t at, float x, unsigned add, int which) {
  if (to == nullptr) return;
  if ((add >> which & 1u) != 0) x += widen(to[at]);
  put(to + at, x);
}
enum Gradient : int { kDk, kDv, kDa0, kDb0, kDp0, kDtau, kDu };

/// 2^x, off by at most 2 units in the last place; 0 for very negative x.
__device__ __forceinline__ float pow2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// 1 / x, off by at most 1 unit in the last place; 1 for 1.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The natural d = -exp(time_decay), finite.
__device__ __forceinline__ float decay_of(float tau) {
  const float rate = expf(tau);
  return rate > 1e30f ? -1e30f : -rate;
}

/// 2^(x - max) and 2^(y - max): one of the two is exactly 1.
struct Weights {
  float first, second;
  __device__ __forceinline__ Weights(float x, float y) {
    const float diff = x - y, e = pow2(-fabsf(diff));
    first = diff > 0 ? 1.0f : e;
    second = diff > 0 ? e : 1.0f;
  }
};

/// A log scale that changes by `step` per token and never falls below what it is raised to.
struct Scale {
  float p = kNoScale;
  __device__ __forceinline__ float at(float) const { return p; }
  __device__ __forceinline__ Weights raise(float step, float x) {
    const float older = p + step;
    p = fmaxf(older, x);
    return {older, x};
  }
};
/// The same as base + age * step: long runs collect no rounding errors.
struct LongScale {
  float base = kNoScale, age = 0;
  __device__ __forceinline__ float at(float step) const { return base + age * step; }
  __device__ __forceinline__ Weights raise(float step, float x) {
    const float older = base + (age + 1) * step;
    const bool newer = older < x;
    base = newer ? x : base;
    age = newer ? 0.0f : age + 1;
    return {older, x};
  }
};

/// Sums over past tokens, a 2^scale and b 2^scale, decayed up to the last of them.
template <class S>
struct PastOf {
  float a = 0, b = 0;
  S scale;
  __device__ __forceinline__ void push(float d, float k, float v) {
    const Weights w = scale.raise(d, k);
    a = w.first * a + w.second * v;
    b = w.first * b + w.second;
  }
  /// The run of these tokens alone. Exponentials of all of them at once: none waits for another.
  template <int kN>
  __device__ __forceinline__ static PastOf run(const float (&k)[kN], const float (&v)[kN],
                                               float d) {
    float top = kNoScale;
#pragma unroll
    for (int i = 0; i < kN; ++i) top = fmaxf(top, k[i] + static_cast<float>(kN - 1 - i) * d);
    PastOf all;
    all.scale = {top};
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float e = pow2(k[i] + static_cast<float>(kN - 1 - i) * d - top);
      all.a += e * v[i];
      all.b += e;
    }
    return all;
  }
  /// Puts a later run of `tokens` tokens behind this one.
  __device__ __forceinline__ void join(const PastOf& later, float tokens, float d) {
    const float mine = scale.at(d) + tokens * d, theirs = later.scale.at(d);
    const Weights w(mine, theirs);
    a = w.first * a + w.second * later.a;
    b = w.first * b + w.second * later.b;
    scale = {fmaxf(mine, theirs)};
  }
};
using Past = PastOf<Scale>;

/// Power of two in the larger of |a| and b, 0 below 2: what cumulative sums add to the scale.
template <class S>
__device__ __forceinline__ float log_size(const PastOf<S>& past) {
  const float size = fmaxf(fmaxf(past.b, fabsf(past.a)), 1.0f);
  return static_cast<float>((__float_as_int(size) >> 23) - 127);
}

/// Sums over future tokens (spec rwkv4 4.1), x 2^scale and z 2^scale, and their derivatives by the
/// number of steps.
template <class S>
struct FutureOf {
  float x = 0, z = 0, xd = 0, zd = 0;
  S scale;
  __device__ __forceinline__ void push(float d, float q, float h, float y) {
    const Weights w = scale.raise(d, -q);
    const float g = w.second * h;
    xd = w.first * (xd + x);
    zd = w.first * (zd + z);
    x = w.first * x + g;
    z = w.first * z - g * y;
  }
  /// The run of these tokens alone, as with PastOf.
  template <int kN>
  __device__ __forceinline__ static FutureOf run(const float (&q)[kN], const float (&h)[kN],
                                                 const float (&y)[kN], float d) {
    float top = kNoScale;
#pragma unroll
    for (int i = 0; i < kN; ++i) top = fmaxf(top, static_cast<float>(i) * d - q[i]);
    FutureOf all;
    all.scale = {top};
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float g = h[i] * pow2(static_cast<float>(i) * d - q[i] - top), gy = g * y[i];
      all.x += g;
      all.z -= gy;
      all.xd += static_cast<float>(i) * g;
      all.zd -= static_cast<float>(i) * gy;
    }
    return all;
  }
  /// Puts an earlier run of `tokens` tokens in front of this one.
  __device__ __forceinline__ void join(const FutureOf& earlier, float tokens, float d) {
    const float mine = scale.at(d) + tokens * d, theirs = earlier.scale.at(d);
    const Weights w(mine, theirs);
    xd = w.first * (xd + tokens * x) + w.second * earlier.xd;
    zd = w.first * (zd + tokens * z) + w.second * earlier.zd;
    x = w.first * x + w.second * earlier.x;
    z = w.first * z + w.second * earlier.z;
    scale = {fmaxf(mine, theirs)};
  }
};
using Future = FutureOf<Scale>;

/// Scales that are this far below another no longer count (2^-32 is below the rounding of f32).
inline constexpr float kFarBelow = 32;

/// One token read: y, and the denominator as 2^q / inverse.
struct Readout {
  float y, q, inverse;
  template <class S>
  __device__ __forceinline__ Readout(const PastOf<S>& past, float d, float own, float v) {
    const float p = past.scale.at(d);
    q = fmaxf(own, p - kFarBelow);  // own, unless it does not count beside the past
    const float weight = pow2(p - q);
    inverse = reciprocal(weight * past.b + 1.0f);
    y = (weight * past.a + v) * inverse;
  }
};

/// Gradients of one token; `future` holds what comes after it. h: gradient of y times `inverse`,
/// which is also what the token's own weight passes on: q is its exponent, or it does not count.
struct TokenGradient {
  float dk, dv, dd, du;
  template <class S>
  __device__ __forceinline__ TokenGradient(const FutureOf<S>& future, float d, float k, float v,
                                           float y, float h) {
    const float f = pow2(k + future.scale.at(d));
    du = h * (v - y);
    dk = du + f * (future.x * v + future.z);
    dv = h + f * future.x;
    dd = f * (future.xd * v + future.zd);
  }
};

/// k log2 e; never fused with what follows, so that equal scales stay equal.
__device__ __forceinline__ float key_of(float k) {
  return __fmul_rn(k, kLog2E);
}
/// A scale from outside, whatever "nothing" is there.
__device__ __forceinline__ float to_log2(float p) {
  return fmaxf(p * kLog2E, kNoScale);
}

/// Gradients of the incoming state of (sequence, channel) `at`; returns its share of the one by d.
template <class S>
__device__ __forceinline__ float state_gradient(const Wkv4Backward& io, int64_t at, float d,
                                                const FutureOf<S>& future) {
  if (io.a0 == nullptr) return 0;
  const float f = pow2(to_log2(io.p0[at]) + future.scale.at(d));
  put_gradient(io.da0, at, f * future.x, io.add, kDa0);
  put_gradient(io.db0, at, f * future.z, io.add, kDb0);
  put_gradient(io.dp0, at, 0.0f, io.add, kDp0);
  return f * (future.xd * io.a0[at] + future.zd * io.b0[at]);
}

/// What comes before the first token of (sequence, channel) `at`, and after the last.
template <class S>
__device__ __forceinline__ PastOf<S> first_past(const Wkv4Forward& io, int64_t at) {
  if (io.a0 == nullptr) return {};
  return {io.a0[at], io.b0[at], {to_log2(io.p0[at])}};
}
template <class S>
__device__ __forceinline__ FutureOf<S> last_future(const Wkv4Backward& io, int64_t at) {
  if (io.a0 == nullptr) return {};
  return {io.da_out[at], io.db_out[at], 0, 0, {-to_log2(io.p_out[at])}};
}
template <class S>
__device__ __forceinline__ void store_last(const Wkv4Forward& io, int64_t at, const PastOf<S>& past,
                                           float d) {
  io.a_out[at] = past.a;
  io.b_out[at] = past.b;
  io.p_out[at] = past.scale.at(d) * kLn2;
}

/// Rows a, b, scale of saved states, `channels` floats apart.
template <class S>
__device__ __forceinline__ void store_rows(float* to, int64_t channels, const PastOf<S>& past,
                                           float d) {
  to[0] = past.a;
  to[channels] = past.b;
  to[2 * channels] = past.scale.at(d);
}
template <class S>
__device__ __forceinline__ PastOf<S> load_rows(const float* from, int64_t channels) {
  return {from[0], from[channels], {from[2 * channels]}};
}

/// Sums partial parameter gradients (rows, 2, C), by d and u, in a fixed order and in double;
/// time_decay gets the one by d times d. `scratch`: kParamScratchRows more rows.
inline constexpr int kParamScratchRows = 64;
cudaError_t param_gradients(const float* partials, int rows, int channels, const Wkv4Backward& io,
                            float* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda::wkv4
