#pragma once
/// Device side of WKV-4: the stabilised recurrence forward and backward for one channel, and the
/// composition of runs of tokens (spec rwkv4 3, 4.2, 5.1). The CPU's wkv4_common.h in scalars.

#include <cuda_bf16.h>

#include "kernels/wkv/cuda/wkv4_cuda.h"

namespace rwkv::cuda::wkv4 {

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

inline constexpr float kNoScale = -1e38f;  ///< a log scale below that of any token

/// d = -exp(time_decay), finite.
__device__ __forceinline__ float decay_of(float tau) {
  const float rate = expf(tau);
  return rate > 1e30f ? -1e30f : -rate;
}

/// e^(x - max) and e^(y - max): one of the two is exactly 1.
struct Weights {
  float first, second;
  __device__ __forceinline__ Weights(float x, float y) {
    const float diff = x - y, e = expf(-fabsf(diff));
    first = diff > 0 ? 1.0f : e;
    second = diff > 0 ? e : 1.0f;
  }
};

/// base + age * step, kept as a product so that long runs collect no rounding errors.
struct Scale {
  float base = kNoScale, age = 0;
  __device__ __forceinline__ float at(float step) const { return base + age * step; }
  __device__ __forceinline__ Weights raise(float step, float x) {
    const float older = base + (age + 1) * step;
    const Weights w(older, x);
    const bool newer = older < x;
    base = newer ? x : base;
    age = newer ? 0.0f : age + 1;
    return w;
  }
};

struct Past {
  float a = 0, b = 0;
  Scale scale;
  __device__ __forceinline__ void push(float d, float k, float v) {
    const Weights w = scale.raise(d, k);
    a = w.first * a + w.second * v;
    b = w.first * b + w.second;
  }
  /// Puts a later run of `tokens` tokens behind this one.
  __device__ __forceinline__ void append(float d, float tokens, const Past& later) {
    const float mine = scale.base + (scale.age + tokens) * d, theirs = later.scale.at(d);
    const Weights w(mine, theirs);
    a = w.first * a + w.second * later.a;
    b = w.first * b + w.second * later.b;
    scale = {fmaxf(mine, theirs), 0.0f};
  }
};

struct Future {
  float x = 0, z = 0, xd = 0, zd = 0;
  Scale scale;
  __device__ __forceinline__ void push(float d, float q, float h, float y) {
    const Weights w = scale.raise(d, -q);
    const float g = w.second * h;
    xd = w.first * (xd + x);
    zd = w.first * (zd + z);
    x = w.first * x + g;
    z = w.first * z - g * y;
  }
  /// Puts an earlier run of `tokens` tokens in front of this one.
  __device__ __forceinline__ void prepend(float d, float tokens, const Future& earlier) {
    const float mine = scale.base + (scale.age + tokens) * d, theirs = earlier.scale.at(d);
    const Weights w(mine, theirs);
    xd = w.first * (xd + tokens * x) + w.second * earlier.xd;
    zd = w.first * (zd + tokens * z) + w.second * earlier.zd;
    x = w.first * x + w.second * earlier.x;
    z = w.first * z + w.second * earlier.z;
    scale = {fmaxf(mine, theirs), 0.0f};
  }
};

/// One token read: y, and what the backward needs of its denominator.
struct Readout {
  float y, q, inverse;
  __device__ __forceinline__ Readout(const Past& past, float d, float own, float v) {
    const float p = past.scale.at(d);
    const Weights w(p, own);
    q = fmaxf(p, own);
    inverse = 1.0f / (w.first * past.b + w.second);
    y = (w.first * past.a + w.second * v) * inverse;
  }
};

/// Gradients of one token; `future` holds what comes after it.
struct TokenGradient {
  float dk, dv, dd, du;
  __device__ __forceinline__ TokenGradient(const Future& future, float d, float u, float k, float v,
                                           float y, float q, float h) {
    const float f1 = h * expf(u + k - q), f2 = expf(k + future.scale.at(d));
    du = f1 * (v - y);
    dk = du + f2 * (future.x * v + future.z);
    dv = f1 + f2 * future.x;
    dd = f2 * (future.xd * v + future.zd);
  }
};

/// Gradients of the incoming state of (sequence, channel) `at`; returns its share of the one by d.
__device__ __forceinline__ float state_gradient(const Wkv4Backward& io, int64_t at, float d,
                                                const Future& future) {
  if (io.a0 == nullptr) return 0;
  const float f = expf(io.p0[at] + future.scale.at(d));
  put_gradient(io.da0, at, f * future.x, io.add, kDa0);
  put_gradient(io.db0, at, f * future.z, io.add, kDb0);
  put_gradient(io.dp0, at, 0.0f, io.add, kDp0);
  return f * (future.xd * io.a0[at] + future.zd * io.b0[at]);
}

__device__ __forceinline__ Past first_past(const float* a0, const float* b0, const float* p0,
                                           int64_t at) {
  Past past;
  if (a0 != nullptr) past = {a0[at], b0[at], {p0[at], 0.0f}};
  return past;
}
__device__ __forceinline__ Future last_future(const Wkv4Backward& io, int64_t at) {
  Future f;
  if (io.a0 != nullptr) f = {io.da_out[at], io.db_out[at], 0, 0, {-io.p_out[at], 0.0f}};
  return f;
}
/// Rows a, b, p of saved states, `channels` floats apart.
__device__ __forceinline__ void store_rows(float* to, int channels, const Past& past, float d) {
  to[0] = past.a;
  to[channels] = past.b;
  to[2 * static_cast<int64_t>(channels)] = past.scale.at(d);
}
__device__ __forceinline__ Past load_rows(const float* from, int channels) {
  return {from[0], from[channels], {from[2 * static_cast<int64_t>(channels)], 0.0f}};
}

}  // namespace rwkv::cuda::wkv4
