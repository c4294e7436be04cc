#pragma once
/// Chunked WKV-7 forward (spec rwkv7 4.1). Per chunk of 16 tokens and 16 value rows of the state:
///   X = A~ S^T + A_ak V;  U = X + (Tm - I) X;  Y = R~ S^T + A_rb U + A_rk V
///   S = (S + U^T B~ + V^T K~) diag(P)
/// all computed transposed, so that accumulators of one product are the A operand of the next.
/// Precision: the 16 x 16 matrices enter as two bf16 numbers each (value and rest).

#include <type_traits>
#include "kernels/wkv/cuda/wkv7_chunk.cuh"

#include "kernels/wkv/cuda/tma.cuh"
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

// With heads of 64 the copy engine loads a step's rows while the step before is worked on, and
// stores y; tiles of 32 tokens.
struct ForwardMaps {
  CUtensorMap r, w, k, v, a, b, y;
};
struct NoMaps {};
template <int kN>
using Maps = std::conditional_t<Head<kN>::kGroup, ForwardMaps, NoMaps>;

template <int kN>
struct ForwardShared {
  using Rows = uint4[Head<kN>::kRowsWords];
  Rows r, a, b, k, v[1];
  uint4 small[2 * kSmalls * kSmallBytes / 16];
  float solve[2 * kChunk * kSolveRow];
  float end[2 * kN];
};
template <>
struct ForwardShared<64> {
  using Rows = uint4[Head<64>::kRowsWords];
  Rows r, a, b, k;
  Rows v[2];    // of this step, later its y; and of the next step
  Rows raw[5];  // r, w, k, a, b of the next step
  uint4 small[2 * kSmalls * kSmallBytes / 16];
  float solve[2 * kChunk * kSolveRow];
  float end[128];
  uint64_t loaded;  // barrier of the loads
};

// What a walk over a segment is for: y and the states; or one of the segment's operators, N (start
// 0) or M (start I, v = 0, so that k does not enter).
enum class Walk { kOutputs, kOperatorN, kOperatorM };

// Starts the loads of a step of heads of 64; one thread.
template <bool kR, bool kK>
__device__ __forceinline__ void load_step(const ForwardMaps& maps, ForwardShared<64>& shared,
                                          int channel, int token, int batch, int parity) {
  constexpr int kTileBytes = sizeof(shared.r);
  const uint32_t barrier = shared_address(&shared.loaded);
  const auto load = [&](const CUtensorMap& map, const void* to) {
    load_tile(shared_address(to), map, channel, token, batch, barrier);
  };
  expect(barrier, (3 + (kR ? 1 : 0) + (kK ? 2 : 0)) * kTileBytes);
  load(maps.w, shared.raw[1]);
  load(maps.a, shared.raw[3]);
  load(maps.b, shared.raw[4]);
  if constexpr (kK) load(maps.k, shared.raw[2]);
  if constexpr (kR) load(maps.r, shared.raw[0]);
  if constexpr (kK) load(maps.v, shared.v[parity]);
}

template <int kN, Walk kWalk>
__device__ __forceinline__ void walk_segment(const ForwardParams& p, const Maps<kN>& maps) {
  using Sizes = Head<kN>;
  constexpr int kTiles = Sizes::kTiles;
  constexpr bool kGroup = Sizes::kGroup;
  extern __shared__ __align__(1024) uint4 memory[];
  ForwardShared<kN>& shared = *reinterpret_cast<ForwardShared<kN>*>(memory);
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
  const int head = static_cast<int>(blockIdx.x),
            segment = static_cast<int>(blockIdx.y) + p.first_segment;
  const int first = segment * p.steps_per_segment;
  const int last = min(first + p.steps_per_segment, p.steps);
  const int64_t stride = static_cast<int64_t>(p.heads) * kN;
  const int channel = head % p.heads * kN, batch = head / p.heads;
  const int64_t origin = static_cast<int64_t>(batch) * p.tokens * stride + channel;
  const int64_t slot = static_cast<int64_t>(head) * p.segments + segment;

  const Tilde tilde{shared_address(shared.r), shared_address(shared.a), shared_address(shared.b),
                    shared_address(shared.k)};
  const uint32_t small_at = shared_address(shared.small);
  const Chain<kN> chain;

  StateRows<kN> s = {};
  if (kWalk == Walk::kOperatorM) identity_state(s);
  if (kY && p.start != nullptr) load_state(s, p.start + slot * Sizes::kStateFloats);

  Raw raw;
  if constexpr (kGroup) {
    if (threadIdx.x == 0) {
      make_barrier(shared_address(&shared.loaded));
      load_step<kY, kV>(maps, shared, channel, first * kStep, batch, 0);
    }
    __syncthreads();
  } else {
    load_raw<kN, kY, kV, true>(raw, p.in, origin + int64_t{first} * kStep * stride, stride,
                               p.tokens - first * kStep);
  }
  for (int step = first; step < last; ++step) {
    const int tokens = p.tokens - step * kStep, parity = kGroup ? (step - first) & 1 : 0;
    const uint32_t v_at = shared_address(shared.v[parity]);
    const int64_t x0 = origin + int64_t{step} * kStep * stride;
    if constexpr (kGroup) {
      wait_barrier(shared_address(&shared.loaded), static_cast<uint32_t>(parity));
      const auto at = [&](int i) { return shared_address(shared.raw[i]); };
      load_raw<kY, kV>(raw, at(0), at(1), at(2), at(3), at(4));
    } else {
      if constexpr (kV) copy_rows<kN>(v_at, p.in.v, x0, stride, tokens);
      copy_async_commit();
    }
    prepare<kN, kY, kV, false>(raw, tokens, tilde, shared.end, nullptr);
    chain.publish();
    __syncthreads();
    if constexpr (kGroup) {
      if (threadIdx.x == 0 && step + 1 < last) {
        if (kY) wait_tiles_read();  // y of the step before lies where v is to go
        load_step<kY, kV>(maps, shared, channel, (step + 1) * kStep, batch, parity ^ 1);
      }
    } else if (step + 1 < last) {
      load_raw<kN, kY, kV, true>(raw, p.in, x0 + kStep * stride, stride, tokens - kStep);
    }
    causal_products<kN, kY, kV>(tilde, small_at, shared.solve, chain.lanes);
    chain.publish();
    if constexpr (!kGroup) copy_async_wait<0>();
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
      const auto rows = static_cast<uint32_t>(c * kChunk * Sizes::kRowBytes);
      const uint32_t small = small_at + c * kSmalls * kSmallBytes;
      float x[2][4] = {}, y[2][4] = {};
      Frag v{}, high[kTiles];
      if constexpr (kV) v = load_frag_t(v_at + rows + tile<kN>(chain.lanes.across, warp));
#pragma unroll
      for (int j = 0; j < kTiles; ++j) high[j] = pack_frag(s[2 * j], s[2 * j + 1]);
      chain.begin();
      chain.rows(x, high, tilde.a + rows);
      if constexpr (kV) {
        chain.template small<false>(x, v, small + kAkRest * kSmallBytes);
        chain.template small<false>(x, v, small + kAk * kSmallBytes);
      }
      chain.commit();
      chain.finish(x);
      chain.template apply_tm<false>(x, small);
      chain.commit();
      chain.begin();
      if constexpr (kY) {
        chain.rows(y, high, tilde.r + rows);
        chain.template small<false>(y, v, small + kRk * kSmallBytes);
        chain.template small<false>(y, v, small + kRkRest * kSmallBytes);
      }
      if constexpr (kV) chain.outer(s, v, tilde.k + rows);
      chain.commit();
      chain.template finish<1>(x);
      const Frag u = pack_frag(x[0], x[1]);
      chain.begin();
      chain.outer(s, u, tilde.b + rows);
      chain.commit();
      if constexpr (kY) {
        chain.template small<false>(y, u, small + kRb * kSmallBytes);
        chain.template small<false>(y, u, small + kRbRest * kSmallBytes);
      }
      chain.commit();
      chain.template finish<1>(s);
      scale_columns(s, shared.end + c * kN);
      chain.finish(y);
      if constexpr (kY) {
        const Frag out = pack_frag(y[0], y[1]);
        if constexpr (kGroup)  // over this warp's columns of v, which it has read
          store_frag_t(v_at + rows + tile<kN>(chain.lanes.across, warp), out);
        else
          store_rows(p.y,
                     RowPlace(x0 + c * kChunk * stride + warp * 16, stride, tokens - c * kChunk),
                     transpose_frag(out));
      }
    }
    if (kY) chain.publish();
    __syncthreads();
    if constexpr (kGroup && kY)
      if (threadIdx.x == 0) {
        store_tile(maps.y, false, v_at, channel, step * kStep, batch);
        commit_tiles();
      }
  }
  if constexpr (kGroup && kY)
    if (threadIdx.x == 0) wait_tiles();
  if constexpr (!kY)
    store_state(s, (kV ? p.operator_n : p.operator_m) + slot * Sizes::kStateFloats);
  else if (p.s_out != nullptr && segment == p.segments - 1)
    store_state(s, p.s_out + static_cast<int64_t>(head) * Sizes::kStateFloats);
}

// kBlocks per multiprocessor: fewer leave the compiler more registers; 4 pays when blocks queue.
template <int kN, int kBlocks>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    forward_kernel(const ForwardParams p, const __grid_constant__ Maps<kN> maps) {
  wait_for_previous_kernel();
  walk_segment<kN, Walk::kOutputs>(p, maps);
}

// M of every segment, and N if it is wanted.
template <int kN, int kBlocks>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    operators_kernel(const ForwardParams p, const __grid_constant__ Maps<kN> maps) {
  if (blockIdx.z == 1)
    walk_segment<kN, Walk::kOperatorN>(p, maps);
  else
    walk_segment<kN, Walk::kOperatorM>(p, maps);
}

inline cudaError_t describe_vectors(ForwardMaps& maps, const ForwardParams& p, int batch) {
  CUtensorMap* const to[] = {&maps.r, &maps.w, &maps.k, &maps.v, &maps.a, &maps.b, &maps.y};
  const __nv_bfloat16* const data[] = {p.in.r, p.in.w, p.in.k, p.in.v, p.in.a, p.in.b, p.y};
  for (int i = 0; i < 7; ++i)
    if (const cudaError_t e = describe_vector(*to[i], const_cast<__nv_bfloat16*>(data[i]), batch,
                                              p.tokens, p.heads * 64, kStep);
        e != cudaSuccess)
      return e;
  return cudaSuccess;
}
inline cudaError_t describe_vectors(NoMaps&, const ForwardParams&, int) {
  return cudaSuccess;
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
  Maps<kN> maps{};
  if (const cudaError_t e = describe_vectors(maps, p, shape.batch); e != cudaSuccess) return e;
  const bool whole_heads = streams >= kWholeHeads;
  if (plan.segments > 1 && (!whole_heads || io.saved != nullptr)) {
    p.operator_m = memory.operator_m;
    p.operator_n = memory.operator_n;
    // The backward, which alone needs M then, never asks for the first segment's.
    p.first_segment = whole_heads ? 1 : 0;
    const auto rows = static_cast<unsigned>(plan.segments - p.first_segment);
    if (const cudaError_t e = launch(operators_kernel<kN, Sizes::kForwardFew>,
                                     dim3(grid.x, rows, whole_heads ? 1 : 2), Sizes::kThreads,
                                     kShared, false, stream, p, maps);
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
                plan.segments > 1, stream, p, maps);
}

}  // namespace rwkv::cuda::chunk
