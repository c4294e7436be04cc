#pragma once
/// Chunked WKV-7 forward (spec rwkv7 4.1). Per chunk of 16 tokens and 16 value rows of the state:
///   X = A~ S^T + A_ak V;  U = X + (Tm - I) X;  Y = R~ S^T + A_rb U + A_rk V
///   S = (S + U^T B~ + V^T K~) diag(P)
/// all computed transposed, so that accumulators of one product are the A operand of the next.
/// Precision: the 16 x 16 matrices enter as two bf16 numbers each (value and rest).

#include "kernels/wkv/cuda/wkv7_chunk.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_head.h"
#include "kernels/wkv/cuda/wkv7_segments.cuh"

namespace rwkv::cuda::chunk {

struct ForwardParams {
  Inputs in;
  const float* start;  // (B H, segments) states, or s0 with one segment; null: zero
  __nv_bfloat16* y;
  float* s_out;
  uint32_t* checkpoints;  // (B H, steps) packed states at each step's start; null: not saved
  float *operator_n, *operator_m;  // (B H, segments), for kOperator
  int first_segment;               // what blockIdx.y = 0 walks
  int tokens, heads, steps, segments, steps_per_segment;
};

// From this many heads on, the forward walks whole heads even if the backward has segments: a block
// per head then takes less time than finding N and M first.
inline constexpr int kWholeHeads = 64;

template <int kN>
struct ForwardShared {
  using Rows = uint4[Head<kN>::kRowsWords];
  Rows r, a, b, k, v;
  uint4 small[2 * kSmalls * kSmallBytes / 16];
  float solve[2 * kChunk * kSolveRow];
  float end[2 * kN];
};

// What a walk over a segment is for: y and the states; or one of the segment's operators, N (start
// 0) or M (start I, v = 0, so that k does not enter).
enum class Walk { kOutputs, kOperatorN, kOperatorM };

template <int kN, Walk kWalk>
__device__ __forceinline__ void walk_segment(const ForwardParams& p) {
  using Sizes = Head<kN>;
  constexpr int kTiles = Sizes::kTiles;
  extern __shared__ uint4 memory[];
  ForwardShared<kN>& shared = *reinterpret_cast<ForwardShared<kN>*>(memory);
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
  const int head = static_cast<int>(blockIdx.x),
            segment = static_cast<int>(blockIdx.y) + p.first_segment;
  const int first = segment * p.steps_per_segment;
  const int last = min(first + p.steps_per_segment, p.steps);
  const int64_t stride = static_cast<int64_t>(p.heads) * kN;
  const int64_t origin = static_cast<int64_t>(head / p.heads) * p.tokens * stride +
                         static_cast<int64_t>(head % p.heads) * kN;
  const int64_t slot = static_cast<int64_t>(head) * p.segments + segment;

  const Tilde tilde{shared_address(shared.r), shared_address(shared.a), shared_address(shared.b),
                    shared_address(shared.k)};
  const uint32_t v_at = shared_address(shared.v), small_at = shared_address(shared.small);
  const Lanes<kN> lanes;

  StateRows<kN> s = {};
  if (kWalk == Walk::kOperatorM) identity_state(s);
  if (kY && p.start != nullptr) load_state(s, p.start + slot * Sizes::kStateFloats);

  Raw raw;
  load_raw<kN, kY, kV, true>(raw, p.in, origin + int64_t{first} * kStep * stride, stride,
                             p.tokens - first * kStep);
  for (int step = first; step < last; ++step) {
    const int tokens = p.tokens - step * kStep;
    const int64_t x0 = origin + int64_t{step} * kStep * stride;
    if constexpr (kV) copy_rows<kN>(v_at, p.in.v, x0, stride, tokens);
    copy_async_commit();
    prepare<kN, kY, kV, false>(raw, tokens, tilde, shared.end, nullptr);
    __syncthreads();
    if (step + 1 < last)
      load_raw<kN, kY, kV, true>(raw, p.in, x0 + kStep * stride, stride, tokens - kStep);
    causal_products<kN, kY, kV>(tilde, small_at, shared.solve, lanes);
    copy_async_wait<0>();
    __syncthreads();

    if (kY && p.checkpoints != nullptr) {
      uint4* to = reinterpret_cast<uint4*>(
          p.checkpoints + (static_cast<int64_t>(head) * p.steps + step) * Sizes::kCheckpointWords +
          warp * (Sizes::kCheckpointWords / Sizes::kWarps));
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const Frag f = pack_frag(s[2 * j], s[2 * j + 1]);
        to[j * 32 + lane] = make_uint4(f.x[0], f.x[1], f.x[2], f.x[3]);
      }
    }
#pragma unroll 1
    for (int c = 0; c < 2; ++c) {
      const uint32_t rows = static_cast<uint32_t>(c * kChunk * Sizes::kRowBytes) + lanes.across;
      const uint32_t down = static_cast<uint32_t>(c * kChunk * Sizes::kRowBytes) + lanes.down;
      const uint32_t small = small_at + c * kSmalls * kSmallBytes + lanes.small_across;
      float x[2][4] = {}, y[2][4] = {};
      Frag v{};
      if constexpr (kV) v = load_frag_t(v_at + rows + warp * 32);
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const Frag high = pack_frag(s[2 * j], s[2 * j + 1]);
        const Frag a = load_frag(tilde.a + rows + j * 32);
        mma16(x, high, a);
        if constexpr (kY) {
          const Frag r = load_frag(tilde.r + rows + j * 32);
          mma16(y, high, r);
        }
      }
      if constexpr (kV) {
        mma16(x, v, load_frag(small + kAkRest * kSmallBytes));
        mma16(x, v, load_frag(small + kAk * kSmallBytes));
      }
      apply_tm(x, load_frag(small + kTm * kSmallBytes), load_frag(small + kTmRest * kSmallBytes));
      const Frag u = pack_frag(x[0], x[1]);
      add_outer(s, u, tilde.b + down);
      if constexpr (kV) add_outer(s, v, tilde.k + down);
      scale_columns(s, shared.end + c * kN);
      if constexpr (kY) {
        mma16(y, v, load_frag(small + kRk * kSmallBytes));
        mma16(y, v, load_frag(small + kRkRest * kSmallBytes));
        mma16(y, u, load_frag(small + kRb * kSmallBytes));
        mma16(y, u, load_frag(small + kRbRest * kSmallBytes));
        store_rows(p.y, RowPlace(x0 + c * kChunk * stride + warp * 16, stride, tokens - c * kChunk),
                   transpose_frag(pack_frag(y[0], y[1])));
      }
    }
    __syncthreads();
  }
  if constexpr (!kY)
    store_state(s, (kV ? p.operator_n : p.operator_m) + slot * Sizes::kStateFloats);
  else if (p.s_out != nullptr && segment == p.segments - 1)
    store_state(s, p.s_out + static_cast<int64_t>(head) * Sizes::kStateFloats);
}

// kBlocks per multiprocessor: fewer leave the compiler more registers; 4 pays when blocks queue.
template <int kN, int kBlocks>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    forward_kernel(const ForwardParams p) {
  wait_for_previous_kernel();
  walk_segment<kN, Walk::kOutputs>(p);
}

// M of every segment, and N if it is wanted.
template <int kN, int kBlocks>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    operators_kernel(const ForwardParams p) {
  if (blockIdx.z == 1)
    walk_segment<kN, Walk::kOperatorN>(p);
  else
    walk_segment<kN, Walk::kOperatorM>(p);
}

template <int kN>
cudaError_t forward(const Wkv7Shape& shape, const Wkv7Forward& io, cudaStream_t stream) {
  using Sizes = Head<kN>;
  constexpr size_t kShared = sizeof(ForwardShared<kN>);
  const Plan plan(shape);
  const int streams = shape.batch * shape.heads;
  const auto bf16 = [](const void* p) { return static_cast<const __nv_bfloat16*>(p); };
  ForwardParams p{};
  p.in = {bf16(io.r), bf16(io.w), bf16(io.k), bf16(io.v), bf16(io.a), bf16(io.b)};
  p.start = io.s0;
  p.y = static_cast<__nv_bfloat16*>(io.y);
  p.s_out = io.s_out;
  p.tokens = shape.tokens;
  p.heads = shape.heads;
  p.steps = plan.steps;
  p.segments = plan.segments;
  p.steps_per_segment = plan.steps_per_segment;
  const Memory memory(plan, streams, io.saved, io.workspace);
  p.checkpoints = memory.checkpoints;
  const dim3 grid(static_cast<unsigned>(streams), static_cast<unsigned>(plan.segments));
  const bool whole_heads = streams >= kWholeHeads;
  if (plan.segments > 1 && (!whole_heads || io.saved != nullptr)) {
    p.operator_m = memory.operator_m;
    p.operator_n = memory.operator_n;
    // The backward, which alone needs M then, never asks for the first segment's.
    p.first_segment = whole_heads ? 1 : 0;
    const auto rows = static_cast<unsigned>(plan.segments - p.first_segment);
    if (const cudaError_t e = launch(operators_kernel<kN, Sizes::kForwardFew>,
                                     dim3(grid.x, rows, whole_heads ? 1 : 2), Sizes::kThreads,
                                     kShared, false, stream, p);
        e != cudaSuccess)
      return e;
  }
  p.first_segment = 0;
  if (whole_heads) {
    p.segments = 1;
    p.steps_per_segment = plan.steps;
  } else if (plan.segments > 1) {
    if (const cudaError_t e = join_forward<kN>(plan, streams, memory, io.s0, stream);
        e != cudaSuccess)
      return e;
    p.start = memory.operator_n;
  }
  int multiprocessors = 0;
  if (const cudaError_t e = count_multiprocessors(multiprocessors); e != cudaSuccess) return e;
  const int blocks = streams * p.segments;
  const auto kernel = blocks <= Sizes::kForwardFew * multiprocessors
                          ? forward_kernel<kN, Sizes::kForwardFew>
                          : forward_kernel<kN, Sizes::kForwardMany>;
  return launch(kernel, dim3(grid.x, static_cast<unsigned>(p.segments)), Sizes::kThreads, kShared,
                plan.segments > 1, stream, p);
}

}  // namespace rwkv::cuda::chunk
