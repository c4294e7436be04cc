#pragma once
/// What the kernels of heads of a batch share: a head's vectors, the step of a state, its output.

#include <cuda.h>

#include "kernels/cuda/decode/batch_kernels.h"
#include "kernels/cuda/decode/weights.cuh"
#include "kernels/wkv/cuda/tma.cuh"
#include "kernels/wkv/cuda/wgmma.cuh"
#include "kernels/wkv/cuda/wkv7_fp16.cuh"

namespace rwkv::cuda::decode {

inline constexpr int kN = rwkv::decode::kHeadSize;

__device__ __forceinline__ float logistic_of(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}

/// Pack q of row i of a state in shared memory: no access meets a bank twice.
__device__ __forceinline__ int swizzled(int i, int q) {
  return i * fp16::kPacks + (q ^ (i & (fp16::kPacks - 1)));
}

template <class E, int kPer>
struct alignas(sizeof(E) * kPer) Few {
  E x[kPer];
};

/// A head's vectors of weights, of kPer neighbouring channels.
template <int kPer>
struct HeadParams {
  using Value = Few<float, kPer>;
  Value w0, a0, v0, key_scale, key_rate, bonus, weight, bias;
  __device__ __forceinline__ HeadParams(const Heads& a, int channel) {
    using namespace rwkv::decode;
    const auto get = [&](Param which) {
      return *reinterpret_cast<const Value*>(
          a.params + static_cast<int64_t>(which) * (a.heads * kN) + channel);
    };
    w0 = get(kW0), a0 = get(kA0), v0 = get(kV0);
    key_scale = get(kKeyScale), key_rate = get(kKeyRate), bonus = get(kBonus);
    weight = get(kLnXWeight), bias = get(kLnXBias);
  }
};

/// What the products gave for them, as it lies in memory.
template <class T, int kPer>
struct HeadInputs {
  using Value = Few<T, kPer>;
  Value r, k, v, w, in, gate, mix, first;
  static __device__ __forceinline__ Value get(const void* p, int64_t at) {
    return *reinterpret_cast<const Value*>(static_cast<const T*>(p) + at);
  }
  __device__ __forceinline__ void fetch(const Heads& a, int64_t at) {
    r = get(a.r, at), k = get(a.k, at), v = get(a.v, at);
    w = get(a.low[0], at), in = get(a.low[1], at), gate = get(a.low[3], at);
    if (a.layer > 0) mix = get(a.low[2], at), first = get(a.v_first, at);
  }
  __device__ __forceinline__ void fetch_products(const Heads& a, int64_t at) {
    r = get(a.r, at), k = get(a.k, at), v = get(a.v, at);
    if (a.layer > 0) first = get(a.v_first, at);
  }
  /// `low`: of w, a, v, g, `stride` elements apart.
  __device__ __forceinline__ void fetch_lows(const T* low, int stride) {
    w = get(low, 0), in = get(low, stride), mix = get(low, 2 * stride);
    gate = get(low, 3 * stride);
  }
};

/// What the state is worked on with, before the sums over the head.
template <class T, int kPer>
struct Channels {
  float r[kPer], k[kPer], v[kPer], decay[kPer], rate[kPer], gate[kPer], u[kPer];
  float squares = 0, bonus = 0;  ///< sums of u^2 and r k r_k

  __device__ __forceinline__ Channels(const Heads& a, const HeadParams<kPer>& p,
                                      const HeadInputs<T, kPer>& x, int64_t at) {
    const auto to = [](T y) { return Weights<T>::to(y); };
    if (a.layer == 0) *reinterpret_cast<Few<T, kPer>*>(static_cast<T*>(a.v_first) + at) = x.v;
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      r[e] = to(x.r.x[e]);
      k[e] = to(x.k.x[e]);
      v[e] = to(x.v.x[e]);
      gate[e] = to(x.gate.x[e]);
      decay[e] = p.w0.x[e] + to(x.w.x[e]);
      rate[e] = logistic_of(p.a0.x[e] + to(x.in.x[e]));
      if (a.layer > 0) v[e] += (to(x.first.x[e]) - v[e]) * logistic_of(p.v0.x[e] + to(x.mix.x[e]));
      u[e] = k[e] * p.key_scale.x[e];
      k[e] *= 1.0f + (rate[e] - 1.0f) * p.key_rate.x[e];
      squares += u[e] * u[e];
      bonus += r[e] * k[e] * p.bonus.x[e];
    }
  }
  /// Group norm of y, bonus and gate. `variance` of the head's y - mean.
  __device__ __forceinline__ void finish(const Heads& a, const HeadParams<kPer>& p, int64_t at,
                                         const float (&centred)[kPer], float variance,
                                         float all_bonus) const {
    const float scale = rsqrtf(variance + 64e-5f);
    Few<T, kPer> out;
#pragma unroll
    for (int e = 0; e < kPer; ++e)
      out.x[e] = Weights<T>::from(
          (centred[e] * scale * p.weight.x[e] + p.bias.x[e] + all_bonus * v[e]) * gate[e]);
    *reinterpret_cast<Few<T, kPer>*>(static_cast<T*>(a.out) + at) = out;
  }
};

/// Two rows of a state.
struct TwoRows {
  fp16::Row of[2];

  /// The chains of u = S a, one per row, as in fp16::dot; x is read once for both.
  __device__ __forceinline__ void dot(const __half* x, __half (&u)[2]) const {
    __half2 sums[2] = {__float2half2_rn(0.0f), __float2half2_rn(0.0f)};
#pragma unroll
    for (int q = 0; q < fp16::kPacks; ++q) {
      const fp16::Pack p = fp16::load_pack(x + 8 * q);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e) sums[e] = __hfma2(p.pair[m], of[e].s[4 * q + m], sums[e]);
    }
    u[0] = fp16::joined(sums[0]);
    u[1] = fp16::joined(sums[1]);
  }
  /// One token, as fp16::advance.
  __device__ __forceinline__ void advance(const __half (&u)[2], const __half (&v)[2],
                                          const __half* w, const __half* k, const __half* b,
                                          const __half* r, __half (&y)[2]) {
    const __half2 uu[2] = {__half2half2(u[0]), __half2half2(u[1])};
    const __half2 vv[2] = {__half2half2(v[0]), __half2half2(v[1])};
    __half2 out[2] = {__float2half2_rn(0.0f), __float2half2_rn(0.0f)};
#pragma unroll
    for (int q = 0; q < fp16::kPacks; ++q) {
      const fp16::Pack pw = fp16::load_pack(w + 8 * q), pk = fp16::load_pack(k + 8 * q),
                       pb = fp16::load_pack(b + 8 * q), pr = fp16::load_pack(r + 8 * q);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const __half2 old = of[e].s[4 * q + m];
          const __half2 now =
              __hfma2(old, pw.pair[m], __hfma2(pk.pair[m], vv[e], __hfma2(uu[e], pb.pair[m], old)));
          of[e].s[4 * q + m] = now;
          out[e] = __hfma2(pr.pair[m], now, out[e]);
        }
    }
    y[0] = fp16::joined(out[0]);
    y[1] = fp16::joined(out[1]);
  }
};

/// A lane's part of a head with f16 states: two channels, and two rows of the state, which are not
/// those in order: no eight lanes meet in a bank of shared memory.
template <class T>
struct HalfHead {
  const Heads& a;
  const CUtensorMap& states;
  int lane, head, swap;
  __half2 (*vectors)[kN / 2];  ///< 5, of the warp, in shared memory

  __device__ __forceinline__ HalfHead(const Heads& heads, const CUtensorMap& map, int h,
                                      __half2 (*shared)[kN / 2])
      : a(heads), states(map), lane(static_cast<int>(threadIdx.x) % 32), head(h), vectors(shared) {
    // 0 2 4 6 9 11 13 15 ... first.
    swap = (lane >> 2) & 1;
  }
  __device__ __forceinline__ int channel() const { return head * kN + 2 * lane; }
  __device__ __forceinline__ int64_t place(int row) const {
    return static_cast<int64_t>(row) * (a.heads * kN) + channel();
  }
  __device__ __forceinline__ char2* exponents_of(int slot) const {  // of rows 2 lane, 2 lane + 1
    return reinterpret_cast<char2*>(a.exponents + slot * a.exponents_stride) +
           (head * kN / 2 + lane);
  }
  __device__ __forceinline__ void load(uint4* tile, int slot, uint64_t* barrier) const {
    const uint32_t full = shared_address(barrier);
    expect(full, kN * kN * 2);
    load_tile(shared_address(tile), states, 0, head * kN, slot, full);
  }
  /// What the state is worked on with, to shared memory. Returns the sum of r k r_k.
  __device__ __forceinline__ float prepare(const Channels<T, 2>& own, uint32_t elapsed) const {
    const float squares = warp_sum(own.squares), bonus = warp_sum(own.bonus);
    const float inverse = rsqrtf(fmaxf(squares, 1e-24f));
    float w[2], z[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      z[e] = own.u[e] * inverse;
      w[e] = fp16::decay_of<true>(own.decay[e], dither_phase(elapsed, static_cast<uint32_t>(head),
                                                             static_cast<uint32_t>(2 * lane + e)));
    }
    vectors[0][lane] = __floats2half2_rn(own.r[0], own.r[1]);
    vectors[1][lane] = __floats2half2_rn(w[0], w[1]);
    vectors[2][lane] = __floats2half2_rn(own.k[0], own.k[1]);
    vectors[3][lane] = __floats2half2_rn(-z[0], -z[1]);
    vectors[4][lane] = __floats2half2_rn(z[0] * own.rate[0], z[1] * own.rate[1]);
    return bonus;
  }
  /// One token of the state in `tile`, which goes back to its slot, and the head's output.
  __device__ __forceinline__ void advance(const HeadParams<2>& params, const Channels<T, 2>& own,
                                          float bonus, int64_t at, uint4* tile, int slot,
                                          uint32_t elapsed, char2 before) const {
    const auto vector = [&](int i) { return reinterpret_cast<const __half*>(vectors[i]); };
    TwoRows rows;
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int q = 0; q < fp16::kPacks; ++q)
        *reinterpret_cast<fp16::Pack*>(&rows.of[e].s[4 * q]) =
            fp16::load_pack(&tile[swizzled(2 * lane + (e ^ swap), q)]);
    int exponent[2] = {swap != 0 ? before.y : before.x, swap != 0 ? before.x : before.y};
    const __half v[2] = {
        fp16::row_value(__float2half_rn((swap != 0 ? own.v[1] : own.v[0]) * a.scale),
                        power_of_two(-exponent[0])),
        fp16::row_value(__float2half_rn((swap != 0 ? own.v[0] : own.v[1]) * a.scale),
                        power_of_two(-exponent[1]))};
    __half u[2], half_y[2];
    rows.dot(vector(3), u);
    rows.advance(u, v, vector(1), vector(2), vector(4), vector(0), half_y);
    const float y[2] = {__half2float(half_y[0]) * (a.inverse * power_of_two(exponent[0])),
                        __half2float(half_y[1]) * (a.inverse * power_of_two(exponent[1]))};
    if (exponent_due(elapsed)) {
      const bool first = fp16::follow(rows.of[0], exponent[0]),
                 second = fp16::follow(rows.of[1], exponent[1]);
      if (first || second)
        *exponents_of(slot) =
            make_char2(static_cast<signed char>(swap != 0 ? exponent[1] : exponent[0]),
                       static_cast<signed char>(swap != 0 ? exponent[0] : exponent[1]));
    }
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int q = 0; q < fp16::kPacks; ++q)
        fp16::store_pack(&tile[swizzled(2 * lane + (e ^ swap), q)],
                         *reinterpret_cast<const fp16::Pack*>(&rows.of[e].s[4 * q]));
    publish_shared();
    __syncwarp();
    if (lane == 0) {
      store_tile(states, false, shared_address(tile), 0, head * kN, slot);
      commit_tiles();
    }
    const float mean = warp_sum(y[0] + y[1]) * (1.0f / kN);
    const float centred[2] = {(swap != 0 ? y[1] : y[0]) - mean, (swap != 0 ? y[0] : y[1]) - mean};
    const float variance =
        warp_sum(centred[0] * centred[0] + centred[1] * centred[1]) * (1.0f / kN);
    own.finish(a, params, at, centred, variance, bonus);
  }
};

/// f16 states of a layer: boxes of a head's 64 rows of 64, (column, row of all heads, slot).
inline cudaError_t describe_states(CUtensorMap& map, const Heads& a) {
  return describe_vector(map, a.wkv, a.all_slots, a.heads * kN, kN, kN, a.wkv_stride);
}

}  // namespace rwkv::cuda::decode
