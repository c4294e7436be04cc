// Layer norm. A block of 4 warps (8 for the widest rows) forms groups of W = 1, 2, 4 or 8 warps; a
// group takes one row at a time and keeps it in registers (up to 4 packs a thread), so memory is
// read once, one row ahead of the arithmetic. Mean and variance are two passes over the registers.
// The backward adds the parameter gradients of the block's chunk of rows in registers
// (row_sums.cuh). Shared memory: 8 KiB. Limited by bandwidth: 2 tensors forward, 3 backward.

#include "kernels/cuda/common/math.cuh"
#include "kernels/cuda/common/row_sums.cuh"
#include "kernels/ops/layer_norm.h"

namespace rwkv::cuda {
namespace {

constexpr int kMostWarps = 8;  ///< of a group, and of a block
constexpr int kItems = 4;      ///< most packs of a row that one thread holds
constexpr int kScalars = 16;   ///< most elements where there are no packs

/// How rows are spread: warps per row, and packs (or elements) per thread.
struct Split {
  int warps = 0, items = 0;
};
Split split_of(int64_t c, int pack) {
  for (int w = 1; w <= kMostWarps; w *= 2) {
    const auto items = static_cast<int>(ceil_div(c, 32 * pack * w));
    if (pack == 1 && items <= kScalars) return {w, kScalars};
    // Four packs only where there is no other way: their sums leave room for half as many blocks.
    if (pack > 1 && items <= (w == kMostWarps ? kItems : kItems - 1)) return {w, items};
  }
  return {};
}

/// Sums of a group of W warps; `smem` holds 2 * kRowWarps floats. Threads of all groups take part.
__device__ __forceinline__ float2 group_sum(float a, float b, int warps, float2* smem) {
  a = lane_sum(a);
  b = lane_sum(b);
  if (warps == 1) return make_float2(a, b);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();  // the last sum's readers are done
  if (threadIdx.x % 32 == 0) smem[warp] = make_float2(a, b);
  __syncthreads();
  float2 total = make_float2(0, 0);
  const int first = warp / warps * warps;
  for (int w = 0; w < warps; ++w) {
    total.x += smem[first + w].x;
    total.y += smem[first + w].y;
  }
  return total;
}

struct Shape {
  int64_t rows, c, rows_per_block;
  int warps;
};

/// One row of a tensor, as one thread sees it.
template <class T, int N, int ITEMS>
struct Row {
  Raw<T, N> raw[ITEMS];
  __device__ __forceinline__ void fetch(const T* p, int64_t row, bool live, int64_t c, int thread,
                                        int step) {
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      const int64_t at = static_cast<int64_t>(thread + j * step) * N;
      if (live && at < c)
        raw[j].fetch(p + row * c + at);
      else
        raw[j].clear();
    }
  }
};

/// Weights of a thread's channels: in registers if they are few, else read again for every row.
template <int N, int ITEMS>
struct Weights {
  static constexpr bool kHeld = N > 1 && N* ITEMS <= 24;
  const float* p;
  float held[kHeld ? ITEMS : 1][N];

  __device__ __forceinline__ Weights(const float* from, int64_t c, int thread, int step) : p(from) {
    if constexpr (kHeld) {
#pragma unroll
      for (int j = 0; j < ITEMS; ++j) {
        const int64_t at = static_cast<int64_t>(thread + j * step) * N;
        if (at < c) load<N>(p + at, held[j]);
      }
    }
  }
  __device__ __forceinline__ void get(int j, int64_t c, float (&w)[N]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int e = 0; e < N; ++e) w[e] = held[j][e];
    } else {
      load<N>(p + c, w);
    }
  }
};

template <class T, int N, int ITEMS>
__global__ void __launch_bounds__(32 * kMostWarps)
    forward_kernel(const T* __restrict__ x, const float* __restrict__ weight,
                   const float* __restrict__ bias, T* __restrict__ y, float* __restrict__ mean_out,
                   float* __restrict__ rstd_out, Shape s, float eps) {
  __shared__ float2 smem[kMostWarps];
  const int step = s.warps * 32, groups = static_cast<int>(blockDim.x) / step;
  const int group = static_cast<int>(threadIdx.x) / step;
  const int thread = static_cast<int>(threadIdx.x) % step;
  const float inv_c = 1.0f / static_cast<float>(s.c);
  const int64_t begin = blockIdx.x * s.rows_per_block;
  const int64_t end = min(begin + s.rows_per_block, s.rows);
  Weights<N, ITEMS> w_held(weight, s.c, thread, step), b_held(bias, s.c, thread, step);
  Row<T, N, ITEMS> next;
  next.fetch(x, begin + group, begin + group < end, s.c, thread, step);
  // The loop's trip count is the same for all threads of the block: group_sum has barriers.
  for (int64_t row0 = begin; row0 < end; row0 += groups) {
    const int64_t row = row0 + group;
    float v[ITEMS][N];
    float sum = 0;
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      next.raw[j].get(v[j]);
#pragma unroll
      for (int e = 0; e < N; ++e) sum += v[j][e];
    }
    next.fetch(x, row + groups, row + groups < end, s.c, thread, step);
    const float mean = group_sum(sum, 0.0f, s.warps, smem).x * inv_c;
    float square = 0;
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      if (static_cast<int64_t>(thread + j * step) * N >= s.c) break;
#pragma unroll
      for (int e = 0; e < N; ++e) square += (v[j][e] - mean) * (v[j][e] - mean);
    }
    const float rstd = 1.0f / sqrtf(group_sum(square, 0.0f, s.warps, smem).x * inv_c + eps);
    if (row >= end) continue;
    if (thread == 0) {
      mean_out[row] = mean;
      rstd_out[row] = rstd;
    }
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      const int64_t c = static_cast<int64_t>(thread + j * step) * N;
      if (c >= s.c) break;
      float w[N], b[N];
      w_held.get(j, c, w);
      b_held.get(j, c, b);
#pragma unroll
      for (int e = 0; e < N; ++e) w[e] = (v[j][e] - mean) * rstd * w[e] + b[e];
      store<N>(y + row * s.c + c, w);
    }
  }
}

template <class T, int N, int ITEMS>
__global__ void __launch_bounds__(32 * kMostWarps)
    backward_kernel(const T* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ mean_in, const float* __restrict__ rstd_in,
                    const T* __restrict__ dy, Grad<T> dx, float* __restrict__ partials, Shape s) {
  __shared__ float2 smem[kMostWarps];
  __shared__ float fold[kMostWarps * 32 * N];
  const int step = s.warps * 32, groups = static_cast<int>(blockDim.x) / step;
  const int group = static_cast<int>(threadIdx.x) / step;
  const int thread = static_cast<int>(threadIdx.x) % step;
  const float inv_c = 1.0f / static_cast<float>(s.c);
  const int64_t begin = blockIdx.x * s.rows_per_block;
  const int64_t end = min(begin + s.rows_per_block, s.rows);
  float dw[ITEMS][N] = {}, db[ITEMS][N] = {};
  // The next row is on its way while this one is worked on.
  Row<T, N, ITEMS> next_x, next_dy;
  float next_mean = 0, next_rstd = 0;
  const auto fetch = [&](int64_t row) {
    const bool live = row < end;
    next_x.fetch(x, row, live, s.c, thread, step);
    next_dy.fetch(dy, row, live, s.c, thread, step);
    next_mean = live ? mean_in[row] : 0.0f;
    next_rstd = live ? rstd_in[row] : 0.0f;
  };
  fetch(begin + group);
  for (int64_t row0 = begin; row0 < end; row0 += groups) {
    const int64_t row = row0 + group;
    float v[ITEMS][N], d[ITEMS][N];  // normalised x, gradient of it
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      next_x.raw[j].get(v[j]);
      next_dy.raw[j].get(d[j]);
    }
    const float mean = next_mean, rstd = next_rstd;
    fetch(row + groups);
    float sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      const int64_t c = static_cast<int64_t>(thread + j * step) * N;
      if (row >= end || c >= s.c) continue;
      float w[N];
      load<N>(weight + c, w);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        v[j][e] = (v[j][e] - mean) * rstd;
        dw[j][e] += d[j][e] * v[j][e];
        db[j][e] += d[j][e];
        d[j][e] *= w[e];
        sum_g += d[j][e];
        sum_gx += d[j][e] * v[j][e];
      }
    }
    if (dx.mode == Accum::kSkip) continue;
    const float2 total = group_sum(sum_g, sum_gx, s.warps, smem);
    const float mean_g = total.x * inv_c, mean_gx = total.y * inv_c;
#pragma unroll
    for (int j = 0; j < ITEMS; ++j) {
      const int64_t c = static_cast<int64_t>(thread + j * step) * N;
      if (row >= end || c >= s.c) continue;
#pragma unroll
      for (int e = 0; e < N; ++e) d[j][e] = rstd * (d[j][e] - mean_g - v[j][e] * mean_gx);
      emit<N>(dx, row * s.c + c, d[j]);
    }
  }
  // Fold the groups: thread q of the first group owns the same channels as thread q of the others.
  const auto fold_groups = [&](const float(&sums)[N], int j, int which) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < N; ++e) fold[(group * N + e) * step + thread] = sums[e];
    __syncthreads();
    for (int q = static_cast<int>(threadIdx.x); q < step * N; q += static_cast<int>(blockDim.x)) {
      const int64_t c = static_cast<int64_t>(q % step + j * step) * N + q / step;
      if (c >= s.c) continue;
      float total = 0;
      for (int g = 0; g < groups; ++g) total += fold[g * N * step + q];
      partials[(static_cast<int64_t>(blockIdx.x) * 2 + which) * s.c + c] = total;
    }
  };
#pragma unroll
  for (int j = 0; j < ITEMS; ++j) {
    if (static_cast<int64_t>(j) * step * N >= s.c) break;
    fold_groups(dw[j], j, 0);
    fold_groups(db[j], j, 1);
  }
}

template <class T>
int pack_of(const OpCall& call, const TensorView& like) {
  const bool packed = packs<T>(like.last(), {call.in, call.out, call.dout, call.din, call.param});
  return packed ? kPack<T> : 1;
}

Shape shape_of(const TensorView& x, int pack) {
  Shape s{.rows = x.rows(),
          .c = x.last(),
          .rows_per_block = 0,
          .warps = split_of(x.last(), pack).warps};
  RWKV_CHECK(s.warps > 0, ShapeError, "op layer_norm on CUDA: found ", s.c, " channels, expected ",
             "at most ", kMostWarps * 32 * (pack == 1 ? kScalars : kItems * pack));
  return s;
}

/// fn(N, ITEMS) as integral constants.
template <class T, class Fn>
void by_split(int64_t c, int pack, const Fn& fn) {
  using std::integral_constant;
  if (pack == 1) return fn(integral_constant<int, 1>(), integral_constant<int, kScalars>());
  constexpr integral_constant<int, kPack<T>> n;
  switch (split_of(c, pack).items) {
    case 1:
      return fn(n, integral_constant<int, 1>());
    case 2:
      return fn(n, integral_constant<int, 2>());
    case 3:
      return fn(n, integral_constant<int, 3>());
    default:
      return fn(n, integral_constant<int, 4>());
  }
}

/// Four warps, or as many as a row takes.
unsigned block_threads(const Shape& s) {
  return 32u * static_cast<unsigned>(std::max(4, s.warps));
}

}  // namespace

void layer_norm_forward(Context& ctx, const OpCall& call) {
  by_type("layer_norm", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int pack = pack_of<T>(call, call.in[0]);
    Shape s = shape_of(call.in[0], pack);
    // Eight rows per group: enough blocks for every multiprocessor, few enough to amortise starts.
    s.rows_per_block = 8 * block_threads(s) / (32 * s.warps);
    const auto blocks = static_cast<unsigned>(ceil_div(s.rows, s.rows_per_block));
    by_split<T>(s.c, pack, [&](auto n, auto items) {
      forward_kernel<T, decltype(n)::value, decltype(items)::value>
          <<<blocks, block_threads(s), 0, stream_of(ctx)>>>(
              call.in[0].as<T>(), call.param[0].f32(), call.param[1].f32(), call.out[0].as<T>(),
              call.saved[0].f32(), call.saved[1].f32(), s, call.attr<LayerNormAttrs>().eps);
    });
    RWKV_LAUNCHED("layer_norm forward", stream_of(ctx));
  });
}

void layer_norm_backward(Context& ctx, const OpCall& call) {
  by_type("layer_norm", call.in[0], [&](auto zero) {
    using T = decltype(zero);
    const int pack = pack_of<T>(call, call.in[0]);
    Shape s = shape_of(call.in[0], pack);
    const RowPlan plan = row_plan(s.rows, 1, kWholeRowBlocks);
    s.rows_per_block = plan.rows;
    auto* partials =
        reinterpret_cast<float*>(ctx.workspace(whole_row_partial_bytes(s.rows, s.c, 2)));
    by_split<T>(s.c, pack, [&](auto n, auto items) {
      backward_kernel<T, decltype(n)::value, decltype(items)::value>
          <<<static_cast<unsigned>(plan.chunks), block_threads(s), 0, stream_of(ctx)>>>(
              call.in[0].as<T>(), call.param[0].f32(), call.saved[0].f32(), call.saved[1].f32(),
              call.dout[0].as<T>(), grad_of<T>(call.din[0], call.din_mode[0]), partials, s);
    });
    RWKV_LAUNCHED("layer_norm backward", stream_of(ctx));
    RowSums sums{.dst = {grad_of<float>(call.dparam[0], call.dparam_mode[0]),
                         grad_of<float>(call.dparam[1], call.dparam_mode[1])},
                 .count = 2};
    reduce_row_sums(ctx, partials, plan.chunks, 2, s.c, sums);
  });
}

}  // namespace rwkv::cuda
