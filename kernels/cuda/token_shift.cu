// Token shift with all its mixes in one pass. A thread keeps one pack of channels and walks down
// consecutive rows, so that the row before stays in registers; a block is 32 packs wide and 8 runs
// of rows deep. The number of mixes is bounded by a template argument, which keeps mixes and sums
// in registers. Shared memory (backward): 8 KiB. Limited by bandwidth: n + 1 tensors forward, n + 2
// backward.

#include "kernels/cuda/common/row_sums.cuh"
#include "kernels/ops/token_shift.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 32 * kRowWarps;
constexpr int kMaxMixes = 6;

template <class T>
struct Operands {
  const T *h, *prev;  ///< prev: null means zeros
  const float* mix[kMaxMixes];
  T* y[kMaxMixes];
  T* last;
  const T* dy[kMaxMixes];
  const T* dlast;
  Grad<T> dh, dprev;
  int64_t rows, t, c, rows_per_warp;
  int mixes;
  bool weights_current;
};

template <int N, class T>
__device__ __forceinline__ void load_before(const Operands<T>& o, int64_t r, int64_t c,
                                            float (&before)[N]) {
  if (r % o.t != 0) {
    load<N>(o.h + (r - 1) * o.c + c, before);
  } else if (o.prev != nullptr) {
    load<N>(o.prev + r / o.t * o.c + c, before);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) before[e] = 0.0f;
  }
}

template <class T, int N, int M>
__global__ void __launch_bounds__(kThreads) forward_kernel(Operands<T> o) {
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32) * N;
  if (c >= o.c) return;
  const int64_t begin =
      (static_cast<int64_t>(blockIdx.y) * kRowWarps + threadIdx.x / 32) * o.rows_per_warp;
  const int64_t end = min(begin + o.rows_per_warp, o.rows);
  if (begin >= end) return;
  float mix[M][N] = {}, before[N];
#pragma unroll
  for (int m = 0; m < M; ++m)
    if (m < o.mixes) load<N>(o.mix[m] + c, mix[m]);
  load_before<N>(o, begin, c, before);
  constexpr int kAhead = 2;  // rows that are on their way while one is worked on
  Raw<T, N> next[kAhead];
#pragma unroll
  for (int slot = 0; slot < kAhead; ++slot)
    if (begin + slot < end) next[slot].fetch(o.h + (begin + slot) * o.c + c);
  int64_t t = begin % o.t;  // position in the sequence; 64-bit remainders per row would show
  for (int64_t r0 = begin; r0 < end; r0 += kAhead) {
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) {
      const int64_t r = r0 + slot;
      if (r >= end) break;
      if (r != begin && t == 0) load_before<N>(o, r, c, before);
      float now[N];
      next[slot].get(now);
      if (r + kAhead < end) next[slot].fetch(o.h + (r + kAhead) * o.c + c);
      t = t + 1 == o.t ? 0 : t + 1;
      if (o.last != nullptr && t == 0) store<N>(o.last + r / o.t * o.c + c, now);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        float y[N];
#pragma unroll
        for (int e = 0; e < N; ++e)
          y[e] = o.weights_current ? before[e] + (now[e] - before[e]) * mix[m][e]
                                   : now[e] + (before[e] - now[e]) * mix[m][e];
        if (m < o.mixes) store<N>(o.y[m] + r * o.c + c, y);
      }
#pragma unroll
      for (int e = 0; e < N; ++e) before[e] = now[e];
    }
  }
}

// y_t = h_t own + h_{t-1} past per mix, so dh_t = sum over mixes of dy_t own + dy_{t+1} past within
// the sequence. Walking down, the row's own part waits in registers for the next row's past part;
// the last row of a run reads the row after it once more.
template <class T, int N, int M>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(Operands<T> o, float* partials) {
  __shared__ float fold[kRowWarps * 32 * N];
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x % 32) * N;
  const int64_t begin =
      (static_cast<int64_t>(blockIdx.y) * kRowWarps + threadIdx.x / 32) * o.rows_per_warp;
  const int64_t end = min(begin + o.rows_per_warp, o.rows);
  float sums[M][N] = {};
  if (c < o.c && begin < end) {
    float mix[M][N] = {}, before[N], waiting[N] = {};
#pragma unroll
    for (int m = 0; m < M; ++m)
      if (m < o.mixes) load<N>(o.mix[m] + c, mix[m]);
    load_before<N>(o, begin, c, before);
    // kAhead rows are on their way while one is worked on.
    constexpr int kAhead = M == 1 ? 4 : 1;
    Raw<T, N> next_h[kAhead], next_dy[kAhead][M];
    const auto fetch = [&](int64_t r, int slot) {
      if (r > end || r >= o.rows) return;
      next_h[slot].fetch(o.h + r * o.c + c);
#pragma unroll
      for (int m = 0; m < M; ++m)
        if (m < o.mixes) next_dy[slot][m].fetch(o.dy[m] + r * o.c + c);
    };
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot) {
      next_h[slot].clear();
#pragma unroll
      for (int m = 0; m < M; ++m) next_dy[slot][m].clear();
      fetch(begin + slot, slot);
    }
    int64_t t = begin % o.t;  // position in the sequence; 64-bit remainders per row would show
    for (int64_t r0 = begin; r0 <= end; r0 += kAhead) {
#pragma unroll
      for (int slot = 0; slot < kAhead; ++slot) {
        const int64_t r = r0 + slot;
        // Row `end` only gives its past part to the row before it.
        const bool beyond = r == end, starts = t == 0;
        if (r > end || (beyond && (starts || r == o.rows))) break;
        t = t + 1 == o.t ? 0 : t + 1;
        if (r != begin && starts) load_before<N>(o, r, c, before);
        float now[N], dy[M][N], own[N] = {}, past[N] = {};
        next_h[slot].get(now);
#pragma unroll
        for (int m = 0; m < M; ++m) next_dy[slot][m].get(dy[m]);
        fetch(r + kAhead, slot);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int e = 0; e < N; ++e) {
            const float with = dy[m][e] * mix[m][e], without = dy[m][e] * (1.0f - mix[m][e]);
            own[e] += o.weights_current ? with : without;
            past[e] += o.weights_current ? without : with;
          }
        if (r != begin && !starts) {
#pragma unroll
          for (int e = 0; e < N; ++e) waiting[e] += past[e];
          emit<N>(o.dh, (r - 1) * o.c + c, waiting);
        }
        if (beyond) break;
        if (starts && o.prev != nullptr) emit<N>(o.dprev, r / o.t * o.c + c, past);
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float delta = o.weights_current ? now[e] - before[e] : before[e] - now[e];
#pragma unroll
          for (int m = 0; m < M; ++m) sums[m][e] += dy[m][e] * delta;
          waiting[e] = own[e];
          before[e] = now[e];
        }
        if (t == 0) {  // nothing comes after: done with this row
          if (o.dlast != nullptr) {
            float dlast[N];
            load<N>(o.dlast + r / o.t * o.c + c, dlast);
#pragma unroll
            for (int e = 0; e < N; ++e) waiting[e] += dlast[e];
          }
          emit<N>(o.dh, r * o.c + c, waiting);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; ++m)
    fold_warps(sums[m], fold, [&](int lane, int e, float total) {
      const int64_t channel = (static_cast<int64_t>(blockIdx.x) * 32 + lane) * N + e;
      if (channel < o.c && m < o.mixes)
        partials[(static_cast<int64_t>(blockIdx.y) * o.mixes + m) * o.c + channel] = total;
    });
}

template <class T>
Operands<T> operands(const OpCall& call, const TensorView& h) {
  Operands<T> o{};
  const bool has_prev = call.in.size() > 1;
  const size_t mixes = call.param.size();
  o.h = call.in[0].as<T>();
  if (has_prev) o.prev = call.in[1].as<T>();
  o.rows = h.rows();
  o.t = h.dim(1);
  o.c = h.dim(2);
  o.mixes = static_cast<int>(mixes);
  o.weights_current = call.attr<TokenShiftAttrs>().weights_current;
  for (size_t m = 0; m < mixes; ++m) {
    o.mix[m] = call.param[m].f32();
    if (!call.out.empty()) o.y[m] = call.out[m].template as<T>();
    if (!call.dout.empty()) o.dy[m] = call.dout[m].template as<T>();
  }
  if (has_prev && !call.out.empty()) o.last = call.out[mixes].template as<T>();
  if (call.dout.empty()) return o;
  o.dh = grad_of<T>(call.din[0], call.din_mode[0]);
  if (has_prev) {
    o.dlast = call.dout[mixes].template as<T>();
    o.dprev = grad_of<T>(call.din[1], call.din_mode[1]);
  }
  return o;
}

/// fn(std::integral_constant<int, M>) with M at least the number of mixes. RWKV-7 has 6 and 1,
/// RWKV-4 has 3 and 2.
template <class Fn>
void by_mixes(size_t mixes, const Fn& fn) {
  if (mixes == 1)
    fn(std::integral_constant<int, 1>());
  else if (mixes <= 3)
    fn(std::integral_constant<int, 3>());
  else
    fn(std::integral_constant<int, 6>());
}

}  // namespace

void token_shift_forward(Context& ctx, const OpCall& call) {
  by_type("token_shift", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    auto o = operands<T>({.in = call.in, .param = call.param, .out = call.out, .attrs = call.attrs},
                         call.in[0]);
    const bool packed = packs<T>(o.c, {call.in, call.param, call.out});
    const int64_t tiles = ceil_div(o.c, 32 * (packed ? kPack<T> : 1));
    // All blocks at once: what fits beside each other is two blocks a multiprocessor, with one mix
    // four.
    const int64_t blocks = (o.mixes == 1 ? 2 : 1) * kRowBlocks;
    o.rows_per_warp = ceil_div(o.rows * tiles, blocks * kRowWarps);
    const dim3 grid(static_cast<unsigned>(tiles),
                    static_cast<unsigned>(ceil_div(o.rows, o.rows_per_warp * kRowWarps)));
    by_mixes(call.param.size(), [&](auto m) {
      if (packed)
        forward_kernel<T, kPack<T>, m()><<<grid, kThreads, 0, stream_of(ctx)>>>(o);
      else
        forward_kernel<T, 1, m()><<<grid, kThreads, 0, stream_of(ctx)>>>(o);
    });
    RWKV_LAUNCHED("token_shift forward", stream_of(ctx));
  });
}

void token_shift_backward(Context& ctx, const OpCall& call) {
  by_type("token_shift", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    auto o = operands<T>({.in = call.in,
                          .param = call.param,
                          .dout = call.dout,
                          .din = call.din,
                          .din_mode = call.din_mode,
                          .attrs = call.attrs},
                         call.in[0]);
    const bool packed = packs<T>(o.c, {call.in, call.param, call.dout, call.din});
    const auto mixes = static_cast<int64_t>(call.param.size());
    // Half packs of bf16: twelve registers less per mix and sum.
    constexpr int kWide = 4;
    const int64_t tiles = ceil_div(o.c, 32 * (packed ? kWide : 1));
    const RowPlan plan = row_plan(o.rows, tiles);
    o.rows_per_warp = ceil_div(plan.rows, kRowWarps);
    auto* partials = reinterpret_cast<float*>(ctx.workspace(row_partial_bytes(o.rows, o.c, mixes)));
    const dim3 grid(static_cast<unsigned>(tiles),
                    static_cast<unsigned>(ceil_div(o.rows, o.rows_per_warp * kRowWarps)));
    by_mixes(call.param.size(), [&](auto m) {
      if (packed)
        backward_kernel<T, kWide, m()><<<grid, kThreads, 0, stream_of(ctx)>>>(o, partials);
      else
        backward_kernel<T, 1, m()><<<grid, kThreads, 0, stream_of(ctx)>>>(o, partials);
    });
    RWKV_LAUNCHED("token_shift backward", stream_of(ctx));
    RowSums sums;
    for (size_t m = 0; m < call.param.size(); ++m)
      sums.dst[sums.count++] = grad_of<float>(call.dparam[m], call.dparam_mode[m]);
    reduce_row_sums(ctx, partials, grid.y, mixes, o.c, sums);
  });
}

}  // namespace rwkv::cuda
