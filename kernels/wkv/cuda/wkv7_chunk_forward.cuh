#pragma once
/// Chunked WKV-7 forward (spec rwkv7 4.1). Per chunk of 16 tokens and 16 value rows of the state:
///   X = A~ S^T + A_ak V;  U = X + (Tm - I) X;  Y = R~ S^T + A_rb U + A_rk V
///   S = (S + U^T B~ + V^T K~) diag(P)
/// all computed transposed, so that accumulators of one product are the A operand of the next.
/// Precision: the 16 x 16 matrices enter as two numbers each (value and rest).

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
  int tokens, heads, steps, segments, steps_per_segment;
};

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
  float end[128], open[128];  // open: f16 only
  uint64_t loaded;            // barrier of the loads
};

// What a walk over a segment is for: y and the states; or one of the segment's operators, N (start
// 0) or M (start I, v = 0, so that k does not enter).
enum class Walk { kOutputs, kOperatorN, kOperatorM };

// This warp's 16 rows of a state, packed as its lanes hold them.
template <int kTiles>
__device__ __forceinline__ void store_checkpoint(const float (&s)[kTiles][4], uint32_t* to) {
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = warp_in_group<kTiles / 2>();
  uint4* at = reinterpret_cast<uint4*>(to + warp * (kTiles * 64)) + lane;
#pragma unroll
  for (int j = 0; j < kTiles / 2; ++j) {
    const Frag f = pack_frag(s[2 * j], s[2 * j + 1]);
    at[j * 32] = make_uint4(f.x[0], f.x[1], f.x[2], f.x[3]);
  }
}

// One chunk: the state, and with kY this warp's tile of y, transposed. `v_own`: lane's address of
// this warp's columns of v.
template <int kN, bool kY, bool kV, class E = __nv_bfloat16>
__device__ __forceinline__ Frag walk_chunk(const Chain<kN, E>& chain, StateRows<kN>& s,
                                           const Tilde& t, uint32_t rows, uint32_t v_own,
                                           uint32_t smalls, const float* end,
                                           const float* open = nullptr) {
  float x[2][4] = {}, y[2][4] = {};
  Frag v{}, high[kN / 16];
  if constexpr (kV) v = load_frag_t(v_own);
  if constexpr (kIsHalf<E>) scale_columns(s, open);
#pragma unroll
  for (int j = 0; j < kN / 16; ++j) high[j] = pack_frag<E>(s[2 * j], s[2 * j + 1]);
  chain.begin();
  chain.rows(x, high, t.a + rows);
  if constexpr (kV) {
    chain.template small<false>(x, v, smalls, kAkRest);
    chain.template small<false>(x, v, smalls, kAk);
  }
  chain.commit();
  chain.finish(x);
  chain.template apply_tm<false>(x, smalls);
  chain.commit();
  chain.begin();
  if constexpr (kY) {
    chain.rows(y, high, t.r + rows);
    chain.template small<false>(y, v, smalls, kRk);
    chain.template small<false>(y, v, smalls, kRkRest);
  }
  if constexpr (kV) chain.outer(s, v, t.k + rows);
  chain.commit();
  chain.template finish<1>(x);
  const Frag u = pack_frag<E>(x[0], x[1]);
  chain.begin();
  chain.outer(s, u, t.b + rows);
  chain.commit();
  if constexpr (kY) {
    chain.template small<false>(y, u, smalls, kRb);
    chain.template small<false>(y, u, smalls, kRbRest);
  }
  chain.commit();
  chain.template finish<1>(s);
  scale_columns(s, end);
  chain.finish(y);
  return pack_frag<E>(y[0], y[1]);
}

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

// kWhole: there is one segment.
template <int kN, Walk kWalk, bool kWhole, class E>
__device__ __forceinline__ void walk_segment(const ForwardParams& p, const Maps<kN>& maps) {
  using Sizes = Head<kN>;
  constexpr bool kGroup = Sizes::kGroup;
  extern __shared__ __align__(1024) uint4 memory[];
  ForwardShared<kN>& shared = *reinterpret_cast<ForwardShared<kN>*>(memory);
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int head = static_cast<int>(blockIdx.x);
  const int segment = kWhole ? 0 : static_cast<int>(blockIdx.y);
  const int first = kWhole ? 0 : segment * p.steps_per_segment;
  const int last = kWhole ? p.steps : min(first + p.steps_per_segment, p.steps);
  const int64_t stride = static_cast<int64_t>(p.heads) * kN;
  const int channel = head % p.heads * kN, batch = head / p.heads;
  const int64_t origin = static_cast<int64_t>(batch) * p.tokens * stride + channel;
  const int64_t slot = kWhole ? head : static_cast<int64_t>(head) * p.segments + segment;

  const Tilde tilde{shared_address(shared.r), shared_address(shared.a), shared_address(shared.b),
                    shared_address(shared.k)};
  const uint32_t small_at = shared_address(shared.small);
  const Chain<kN, E> chain;

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
    float* open = nullptr;
    if constexpr (kGroup) open = shared.open;
    prepare<kN, kY, kV, false, Sizes::kExpRow, E>(raw, tokens, tilde, shared.end, nullptr, open);
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
    causal_products<kN, kY, kV, E>(tilde, small_at, shared.solve, chain.lanes);
    chain.publish();
    if constexpr (!kGroup) copy_async_wait<0>();
    __syncthreads();

    if (kY && p.checkpoints != nullptr)
      store_checkpoint(s, p.checkpoints + (static_cast<int64_t>(head) * p.steps + step) *
                                              Sizes::kCheckpointWords);
#pragma unroll 1
    for (int c = 0; c < 2; ++c) {
      const auto rows = static_cast<uint32_t>(c * kChunk * Sizes::kRowBytes);
      const uint32_t own = v_at + rows + tile<kN>(chain.lanes.across, warp);
      const Frag y = walk_chunk<kN, kY, kV, E>(chain, s, tilde, rows, own,
                                               small_at + c * kSmalls * kSmallBytes,
                                               shared.end + c * kN, open + (kGroup ? c * kN : 0));
      if constexpr (kGroup && kY) store_frag_t(own, y);  // this warp has read its columns of v
      if constexpr (!kGroup && kY)
        store_rows(p.y, RowPlace(x0 + c * kChunk * stride + warp * 16, stride, tokens - c * kChunk),
                   transpose_frag(y));
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
  else if (p.s_out != nullptr && (kWhole || segment == p.segments - 1))
    store_state(s, p.s_out + static_cast<int64_t>(head) * Sizes::kStateFloats);
}

// kBlocks per multiprocessor: fewer leave the compiler more registers; kForwardMany, which pays
// when blocks queue, is for whole heads only.
template <int kN, int kBlocks, class E>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    forward_kernel(const ForwardParams p, const __grid_constant__ Maps<kN> maps) {
  wait_for_previous_kernel();
  walk_segment<kN, Walk::kOutputs, kBlocks == Head<kN>::kForwardMany, E>(p, maps);
}

// N and M of every segment.
template <int kN, int kBlocks, class E>
__global__ void __launch_bounds__(Head<kN>::kThreads, kBlocks)
    operators_kernel(const ForwardParams p, const __grid_constant__ Maps<kN> maps) {
  if (blockIdx.z == 1)
    walk_segment<kN, Walk::kOperatorN, false, E>(p, maps);
  else
    walk_segment<kN, Walk::kOperatorM, false, E>(p, maps);
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

}  // namespace rwkv::cuda::chunk
