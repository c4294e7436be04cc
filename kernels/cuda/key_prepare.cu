// Key normalisation and the WKV-7 vectors k, a, b. Work split: heads.cuh; a block of 8 warps covers
// one column tile and a chunk of rows, each warp every 8th row of it. The backward recomputes norm
// and sigmoid and adds the gradients of k_k and k_a in registers (row_sums.cuh). Shared memory
// (backward): 8 KiB. Limited by bandwidth: 5 tensors forward, 7 backward.

#include "kernels/cuda/common/heads.cuh"
#include "kernels/ops/key_prepare.h"

namespace rwkv::cuda {
namespace {

constexpr float kNormFloor = 1e-12f;
constexpr int kThreads = 32 * kRowWarps;

template <class T>
struct Operands {
  const T *k0, *logit;
  const float *k_k, *k_a;
  T *k, *a, *b;
  const T *dk, *da, *db;
  Grad<T> dk0, dlogit;
};

/// 1 / max(|u|, floor) of a head, u = k0 * k_k.
struct Scale {
  float value;
  bool floored;
};
template <int N>
__device__ __forceinline__ Scale scale_of(const Lane<N>& lane, const float (&k0)[Lane<N>::kE],
                                          const float (&k_k)[Lane<N>::kE]) {
  const float norm = sqrtf(lane.head_sum([&](int e) {
    const float u = k0[e] * k_k[e];
    return u * u;
  }));
  const bool floored = norm < kNormFloor;
  return {1.0f / (floored ? kNormFloor : norm), floored};
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads) forward_kernel(Operands<T> o, HeadShape s) {
  constexpr int kE = Lane<N>::kE;
  const Lane<N> lane(s);
  const int64_t begin = blockIdx.y * s.rows_per_block, end = min(begin + s.rows_per_block, s.rows);
  float k_k[kE], k_a[kE];
  lane.get(o.k_k, 0, k_k);
  lane.get(o.k_a, 0, k_a);
  for (int64_t r = begin + threadIdx.x / 32; r < end; r += kRowWarps) {
    float k0[kE], logit[kE], a[kE], b[kE];
    lane.get(o.k0, r * s.c, k0);
    lane.get(o.logit, r * s.c, logit);
    const Scale scale = scale_of<N>(lane, k0, k_k);
#pragma unroll
    for (int e = 0; e < kE; ++e) {
      const Logistic iclr = logistic<T>(logit[e]);
      const float z = k0[e] * k_k[e] * scale.value;
      k0[e] *= 1.0f - iclr.complement * k_a[e];
      a[e] = -z;
      b[e] = z * iclr.value;
    }
    lane.put(o.k, r * s.c, k0);
    lane.put(o.a, r * s.c, a);
    lane.put(o.b, r * s.c, b);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(Operands<T> o, HeadShape s, float* partials) {
  constexpr int kE = Lane<N>::kE;
  __shared__ float fold[kRowWarps * 32 * kE];
  const Lane<N> lane(s);
  const int64_t begin = blockIdx.y * s.rows_per_block, end = min(begin + s.rows_per_block, s.rows);
  float k_k[kE], k_a[kE], sum_kk[kE] = {}, sum_ka[kE] = {};
  lane.get(o.k_k, 0, k_k);
  lane.get(o.k_a, 0, k_a);
  // The next row is on its way while this one is worked on.
  Ahead<T, N> next_k0, next_logit, next_dk, next_da, next_db;
  const auto fetch = [&](int64_t at_row) {
    if (at_row >= end) return;
    next_k0.fetch(lane, o.k0, at_row * s.c);
    next_logit.fetch(lane, o.logit, at_row * s.c);
    next_dk.fetch(lane, o.dk, at_row * s.c);
    next_da.fetch(lane, o.da, at_row * s.c);
    next_db.fetch(lane, o.db, at_row * s.c);
  };
  fetch(begin + threadIdx.x / 32);
  for (int64_t r = begin + threadIdx.x / 32; r < end; r += kRowWarps) {
    float k0[kE], logit[kE], dk[kE], da[kE], db[kE];
    next_k0.get(k0);
    next_logit.get(logit);
    next_dk.get(dk);
    next_da.get(da);
    next_db.get(db);
    fetch(r + kRowWarps);
    const Scale scale = scale_of<N>(lane, k0, k_k);
    float z[kE];
#pragma unroll
    for (int e = 0; e < kE; ++e) {
      const Logistic iclr = logistic<T>(logit[e]);
      const float dk_k0 = dk[e] * k0[e];
      z[e] = k0[e] * k_k[e] * scale.value;
      da[e] = db[e] * iclr.value - da[e];  // now dz
      logit[e] = (db[e] * z[e] + dk_k0 * k_a[e]) * iclr.slope;
      dk[e] *= 1.0f - iclr.complement * k_a[e];
      sum_ka[e] -= dk_k0 * iclr.complement;
    }
    lane.put(o.dlogit, r * s.c, logit);
    const float inner = lane.head_sum([&](int e) { return da[e] * z[e]; });
    const float radial = scale.floored ? 0.0f : inner;
#pragma unroll
    for (int e = 0; e < kE; ++e) {
      const float du = (da[e] - z[e] * radial) * scale.value;
      dk[e] += du * k_k[e];
      sum_kk[e] += du * k0[e];
    }
    lane.put(o.dk0, r * s.c, dk);
  }
  const auto fold_into = [&](const float(&sums)[kE], int which) {
    fold_warps(sums, fold, [&](int from, int e, float total) {
      const int64_t channel = Lane<N>::channel_of(s, from, e);
      if (channel < s.c)
        partials[(static_cast<int64_t>(blockIdx.y) * 2 + which) * s.c + channel] = total;
    });
  };
  fold_into(sum_kk, 0);
  fold_into(sum_ka, 1);
}

}  // namespace

void key_prepare_forward(Context& ctx, const OpCall& call) {
  by_type("key_prepare", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.attr<KeyPrepareAttrs>().head_size;
    const bool packed =
        heads_pack(n, kPack<T>) && packs<T>(call.in[0].last(), {call.in, call.param, call.out});
    HeadShape s = head_shape(call.in[0], n, kPack<T>, packed);
    s.rows_per_block = forward_rows(s);
    Operands<T> o{};
    o.k0 = call.in[0].as<T>();
    o.logit = call.in[1].as<T>();
    o.k_k = call.param[0].f32();
    o.k_a = call.param[1].f32();
    o.k = call.out[0].as<T>();
    o.a = call.out[1].as<T>();
    o.b = call.out[2].as<T>();
    const dim3 grid(static_cast<unsigned>(s.tiles()),
                    static_cast<unsigned>(ceil_div(s.rows, s.rows_per_block)));
    if (packed)
      forward_kernel<T, kPack<T>><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s);
    else
      forward_kernel<T, 1><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s);
    RWKV_LAUNCHED("key_prepare forward", stream_of(ctx));
  });
}

void key_prepare_backward(Context& ctx, const OpCall& call) {
  by_type("key_prepare", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int64_t n = call.attr<KeyPrepareAttrs>().head_size;
    const bool packed = heads_pack(n, kHeadHalf) &&
                        packs<T>(call.in[0].last(), {call.in, call.param, call.dout, call.din});
    HeadShape s = head_shape(call.in[0], n, kHeadHalf, packed);
    const RowPlan plan = row_plan(s.rows, s.tiles(), kHeadBlocks);
    s.rows_per_block = plan.rows;
    Operands<T> o{};
    o.k0 = call.in[0].as<T>();
    o.logit = call.in[1].as<T>();
    o.k_k = call.param[0].f32();
    o.k_a = call.param[1].f32();
    o.dk = call.dout[0].as<T>();
    o.da = call.dout[1].as<T>();
    o.db = call.dout[2].as<T>();
    o.dk0 = grad_of<T>(call.din[0], call.din_mode[0]);
    o.dlogit = grad_of<T>(call.din[1], call.din_mode[1]);
    auto* partials =
        reinterpret_cast<float*>(ctx.workspace(row_partial_bytes(s.rows, s.c, 2, kHeadBlocks)));
    const dim3 grid(static_cast<unsigned>(s.tiles()), static_cast<unsigned>(plan.chunks));
    if (packed)
      backward_kernel<T, kHeadHalf><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s, partials);
    else
      backward_kernel<T, 1><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s, partials);
    RWKV_LAUNCHED("key_prepare backward", stream_of(ctx));
    const RowSums sums{.dst = {grad_of<float>(call.dparam[0], call.dparam_mode[0]),
                               grad_of<float>(call.dparam[1], call.dparam_mode[1])},
                       .count = 2};
    reduce_row_sums(ctx, partials, plan.chunks, 2, s.c, sums);
  });
}

}  // namespace rwkv::cuda
