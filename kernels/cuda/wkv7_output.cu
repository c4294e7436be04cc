// Group norm per head, bonus and gate in one pass. Work split: heads.cuh; a block of 8 warps covers
// one column tile and a chunk of rows, each warp every 8th row of it. The parameter gradients are
// added in registers (row_sums.cuh). Shared memory (backward): 8 KiB. Limited by bandwidth: 6
// tensors forward, 11 backward.

#include "kernels/cuda/common/heads.cuh"
#include "kernels/ops/wkv7_output.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 32 * kRowWarps;

template <class T>
struct Operands {
  const T *y, *r, *k, *v, *gate;
  const float *weight, *bias, *r_k;
  float *mean, *rstd;
  T* out;
  const T* dout;
  Grad<T> dy, dr, dk, dv, dgate;
};

/// Where the statistics of this lane's head lie: of row 0, and from row to row.
struct HeadIndex {
  int64_t first, per_row;
  bool leads;  ///< this lane is the first of its head
};
template <int N>
__device__ __forceinline__ HeadIndex head_index(const Lane<N>& lane, const HeadShape& s) {
  const int c = static_cast<int>(s.c), base = lane.count > 0 ? static_cast<int>(lane.base) : 0;
  return {base / s.head_size, c / s.head_size,
          lane.count > 0 && static_cast<int>(threadIdx.x) % lane.group == 0};
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(Operands<T> o, HeadShape s, float eps) {
  constexpr int kE = Lane<N>::kE;
  const Lane<N> lane(s);
  const int64_t begin = blockIdx.y * s.rows_per_block, end = min(begin + s.rows_per_block, s.rows);
  const float inv_n = 1.0f / static_cast<float>(s.head_size);
  float weight[kE], bias[kE], r_k[kE];
  lane.get(o.weight, 0, weight);
  lane.get(o.bias, 0, bias);
  lane.get(o.r_k, 0, r_k);
  const HeadIndex index = head_index<N>(lane, s);
  for (int64_t row = begin + threadIdx.x / 32; row < end; row += kRowWarps) {
    const int64_t at = row * s.c;
    float y[kE], r[kE], k[kE], v[kE], gate[kE];
    lane.get(o.y, at, y);
    lane.get(o.r, at, r);
    lane.get(o.k, at, k);
    lane.get(o.v, at, v);
    lane.get(o.gate, at, gate);
    const float mean = lane.head_sum([&](int e) { return y[e]; }) * inv_n;
    const float var = lane.head_sum([&](int e) {
      const float d = N > 1 || e < lane.count ? y[e] - mean : 0.0f;
      return d * d;
    }) * inv_n;
    const float rstd = 1.0f / sqrtf(var + eps);
    const float beta = lane.head_sum([&](int e) { return r[e] * k[e] * r_k[e]; });
#pragma unroll
    for (int e = 0; e < kE; ++e)
      y[e] = ((y[e] - mean) * rstd * weight[e] + bias[e] + beta * v[e]) * gate[e];
    lane.put(o.out, at, y);
    if (index.leads) {
      o.mean[index.first + row * index.per_row] = mean;
      o.rstd[index.first + row * index.per_row] = rstd;
    }
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(Operands<T> o, HeadShape s, float* partials) {
  constexpr int kE = Lane<N>::kE;
  __shared__ float fold[kRowWarps * 32 * kE];
  const Lane<N> lane(s);
  const int64_t begin = blockIdx.y * s.rows_per_block, end = min(begin + s.rows_per_block, s.rows);
  const float inv_n = 1.0f / static_cast<float>(s.head_size);
  float weight[kE], bias[kE], r_k[kE];
  lane.get(o.weight, 0, weight);
  lane.get(o.bias, 0, bias);
  lane.get(o.r_k, 0, r_k);
  float sum_w[kE] = {}, sum_b[kE] = {}, sum_rk[kE] = {};
  // The next row is on its way while this one is worked on.
  Ahead<T, N> next_y, next_r, next_k, next_v, next_gate, next_dout;
  const HeadIndex index = head_index<N>(lane, s);
  float next_mean = 0, next_rstd = 0;
  const auto fetch = [&](int64_t at_row) {
    if (at_row >= end) return;
    next_mean = o.mean[index.first + at_row * index.per_row];
    next_rstd = o.rstd[index.first + at_row * index.per_row];
    next_y.fetch(lane, o.y, at_row * s.c);
    next_r.fetch(lane, o.r, at_row * s.c);
    next_k.fetch(lane, o.k, at_row * s.c);
    next_v.fetch(lane, o.v, at_row * s.c);
    next_gate.fetch(lane, o.gate, at_row * s.c);
    next_dout.fetch(lane, o.dout, at_row * s.c);
  };
  fetch(begin + threadIdx.x / 32);
  for (int64_t row = begin + threadIdx.x / 32; row < end; row += kRowWarps) {
    const int64_t at = row * s.c;
    float y[kE], r[kE], k[kE], v[kE], gate[kE], d[kE];
    next_y.get(y);
    next_r.get(r);
    next_k.get(k);
    next_v.get(v);
    next_gate.get(gate);
    next_dout.get(d);
    const float mean = next_mean, rstd = next_rstd;
    fetch(row + kRowWarps);
    const float beta = lane.head_sum([&](int e) { return r[e] * k[e] * r_k[e]; });
    // y becomes the normalised y, gate its own gradient, d that of o + beta v.
#pragma unroll
    for (int e = 0; e < kE; ++e) {
      y[e] = (y[e] - mean) * rstd;
      const float o_e = y[e] * weight[e] + bias[e] + beta * v[e], dout = d[e];
      d[e] = dout * gate[e];
      gate[e] = dout * o_e;
      sum_w[e] += d[e] * y[e];
      sum_b[e] += d[e];
    }
    lane.put(o.dgate, at, gate);
    const float dbeta = lane.head_sum([&](int e) { return d[e] * v[e]; });
    const float g_mean = lane.head_sum([&](int e) { return d[e] * weight[e]; }) * inv_n;
    const float gx_mean = lane.head_sum([&](int e) { return d[e] * weight[e] * y[e]; }) * inv_n;
#pragma unroll
    for (int e = 0; e < kE; ++e) {
      y[e] = rstd * (d[e] * weight[e] - g_mean - y[e] * gx_mean);
      d[e] *= beta;
      const float dr = dbeta * k[e] * r_k[e];
      sum_rk[e] += dbeta * r[e] * k[e];
      k[e] = dbeta * r[e] * r_k[e];
      r[e] = dr;
    }
    lane.put(o.dv, at, d);
    lane.put(o.dy, at, y);
    lane.put(o.dr, at, r);
    lane.put(o.dk, at, k);
  }
  const auto fold_into = [&](const float(&sums)[kE], int which) {
    fold_warps(sums, fold, [&](int from, int e, float total) {
      const int64_t channel = Lane<N>::channel_of(s, from, e);
      if (channel < s.c)
        partials[(static_cast<int64_t>(blockIdx.y) * 3 + which) * s.c + channel] = total;
    });
  };
  fold_into(sum_w, 0);
  fold_into(sum_b, 1);
  fold_into(sum_rk, 2);
}

template <class T>
Operands<T> operands(const OpCall& call) {
  Operands<T> o{};
  o.y = call.in[0].as<T>();
  o.r = call.in[1].as<T>();
  o.k = call.in[2].as<T>();
  o.v = call.in[3].as<T>();
  o.gate = call.in[4].as<T>();
  o.weight = call.param[0].f32();
  o.bias = call.param[1].f32();
  o.r_k = call.param[2].f32();
  o.mean = call.saved[0].f32();
  o.rstd = call.saved[1].f32();
  return o;
}

}  // namespace

void wkv7_output_forward(Context& ctx, const OpCall& call) {
  by_type("wkv7_output", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const auto& attrs = call.attr<Wkv7OutputAttrs>();
    const bool packed = heads_pack(attrs.head_size, kPack<T>) &&
                        packs<T>(call.in[0].last(), {call.in, call.param, call.out});
    HeadShape s = head_shape(call.in[0], attrs.head_size, kPack<T>, packed);
    s.rows_per_block = forward_rows(s);
    Operands<T> o = operands<T>(call);
    o.out = call.out[0].as<T>();
    const dim3 grid(static_cast<unsigned>(s.tiles()),
                    static_cast<unsigned>(ceil_div(s.rows, s.rows_per_block)));
    if (packed)
      forward_kernel<T, kPack<T>><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s, attrs.eps);
    else
      forward_kernel<T, 1><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s, attrs.eps);
    RWKV_LAUNCHED("wkv7_output forward", stream_of(ctx));
  });
}

void wkv7_output_backward(Context& ctx, const OpCall& call) {
  by_type("wkv7_output", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const auto& attrs = call.attr<Wkv7OutputAttrs>();
    const bool packed = heads_pack(attrs.head_size, kHeadHalf) &&
                        packs<T>(call.in[0].last(), {call.in, call.param, call.dout, call.din});
    HeadShape s = head_shape(call.in[0], attrs.head_size, kHeadHalf, packed);
    const RowPlan plan = row_plan(s.rows, s.tiles(), kHeadBlocks);
    s.rows_per_block = plan.rows;
    Operands<T> o = operands<T>(call);
    o.dout = call.dout[0].as<T>();
    Grad<T>* const grads[] = {&o.dy, &o.dr, &o.dk, &o.dv, &o.dgate};
    for (size_t i = 0; i < 5; ++i) *grads[i] = grad_of<T>(call.din[i], call.din_mode[i]);
    auto* partials =
        reinterpret_cast<float*>(ctx.workspace(row_partial_bytes(s.rows, s.c, 3, kHeadBlocks)));
    const dim3 grid(static_cast<unsigned>(s.tiles()), static_cast<unsigned>(plan.chunks));
    if (packed)
      backward_kernel<T, kHeadHalf><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s, partials);
    else
      backward_kernel<T, 1><<<grid, kThreads, 0, stream_of(ctx)>>>(o, s, partials);
    RWKV_LAUNCHED("wkv7_output backward", stream_of(ctx));
    RowSums sums;
    for (size_t p = 0; p < 3; ++p)
      sums.dst[sums.count++] = grad_of<float>(call.dparam[p], call.dparam_mode[p]);
    reduce_row_sums(ctx, partials, plan.chunks, 3, s.c, sums);
  });
}

}  // namespace rwkv::cuda
