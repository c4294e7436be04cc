#pragma once
/// The chunked forward for heads of 64 with two warpgroups per head: the first prepares a step
/// (operands, 16 x 16 matrices) while the second walks the step before it. What takes part in the
/// chain from chunk to chunk is then all that a head has to wait for, which pays where heads are
/// too few to hide it.

#include "kernels/wkv/cuda/wkv7_chunk_forward.cuh"

namespace rwkv::cuda::chunk {

/// Up to this many blocks per multiprocessor, two warpgroups per head are faster than one.
inline constexpr int kPairs = 2;

struct PairShared {
  using Rows = uint4[Head<64>::kRowsWords];
  Rows r[2], a[2], b[2], k[2], v[2];  // of two steps
  Rows raw[5];                        // r, w, k, a, b of the next step
  Rows y;
  uint4 small[2][2 * kSmalls * kSmallBytes / 16];
  float solve[2 * kChunk * kSolveRow];
  float end[2][128], open[2][128];  // open: f16 only
  uint64_t loaded, v_loaded[2];     // barriers of the loads
};

/// Named barriers of a block; kFull, kEmpty: one per slot of a step.
enum PairBarrier { kPreparers = 1, kWalkers = 2, kFull = 3, kEmpty = 5 };
__device__ __forceinline__ void sync_on(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_on(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// What a block works on: `count` steps from `begin` on, forwards or backwards (kSign).
template <int kSign>
struct PairPlace {
  int begin, count, channel, batch;
  __device__ int step(int n) const { return begin + kSign * n; }
};

__device__ __forceinline__ Tilde pair_tilde(const PairShared& shared, int slot) {
  return {shared_address(shared.r[slot]), shared_address(shared.a[slot]),
          shared_address(shared.b[slot]), shared_address(shared.k[slot])};
}

/// The first warpgroup. kRows: v (or what stands for it in the maps) is loaded too.
template <bool kR, bool kK, bool kRows, int kSign, class E = __nv_bfloat16>
__device__ __forceinline__ void prepare_steps(const PairPlace<kSign>& at, int tokens,
                                              const ForwardMaps& maps, PairShared& shared) {
  const Lanes<64> lanes;
  constexpr int kTileBytes = sizeof(shared.y);
  const uint32_t loaded = shared_address(&shared.loaded);
  const auto raw_at = [&](int i) { return shared_address(shared.raw[i]); };
  const auto load = [&](const CUtensorMap& map, const void* to, int n, uint32_t barrier) {
    load_tile(shared_address(to), map, at.channel, at.step(n) * kStep, at.batch, barrier);
  };
  const auto load_next = [&](int n) {
    expect(loaded, (3 + (kR ? 1 : 0) + (kK ? 1 : 0)) * kTileBytes);
    load(maps.w, shared.raw[1], n, loaded);
    load(maps.a, shared.raw[3], n, loaded);
    load(maps.b, shared.raw[4], n, loaded);
    if constexpr (kK) load(maps.k, shared.raw[2], n, loaded);
    if constexpr (kR) load(maps.r, shared.raw[0], n, loaded);
    if constexpr (kR && kK) {  // the chain of states or gradients alone gains nothing
      if (n + 1 == at.count) return;
      for (const CUtensorMap* map : {&maps.w, &maps.a, &maps.b, &maps.k, &maps.r, &maps.v})
        prefetch_tile(*map, at.channel, at.step(n + 1) * kStep, at.batch);
    }
  };
  const bool leads = threadIdx.x == 0;
  if (leads) load_next(0);
  for (int n = 0; n < at.count; ++n) {
    const int slot = n & 1;
    if (n >= 2) sync_on(kEmpty + slot, 256);
    if (kRows && leads) {
      const uint32_t barrier = shared_address(&shared.v_loaded[slot]);
      expect(barrier, kTileBytes);
      load(maps.v, shared.v[slot], n, barrier);
    }
    wait_barrier(loaded, static_cast<uint32_t>(slot));
    Raw raw;
    load_raw<kR, kK>(raw, raw_at(0), raw_at(1), raw_at(2), raw_at(3), raw_at(4));
    const Tilde tilde = pair_tilde(shared, slot);
    prepare<64, kR, kK, false, Head<64>::kExpRow, E>(raw, tokens - at.step(n) * kStep, tilde,
                                                     shared.end[slot], nullptr, shared.open[slot]);
    publish_shared();
    sync_on(kPreparers, 128);
    if (leads && n + 1 < at.count) load_next(n + 1);
    causal_products<64, kR, kK, E>(tilde, shared_address(shared.small[slot]), shared.solve, lanes);
    publish_shared();
    arrive_on(kFull + slot, 256);
  }
}

/// The second warpgroup, before and after its work on step n.
template <bool kRows>
__device__ __forceinline__ void await_step(PairShared& shared, int n) {
  sync_on(kFull + (n & 1), 256);
  if (kRows)
    wait_barrier(shared_address(&shared.v_loaded[n & 1]), static_cast<uint32_t>(n >> 1 & 1));
}
__device__ __forceinline__ void release_step(int count, int n) {
  if (n + 2 < count) arrive_on(kEmpty + (n & 1), 256);
}

__device__ __forceinline__ void make_pair_barriers(PairShared& shared) {
  if (threadIdx.x == 0) {
    make_barrier(shared_address(&shared.loaded));
    make_barrier(shared_address(&shared.v_loaded[0]));
    make_barrier(shared_address(&shared.v_loaded[1]));
  }
  __syncthreads();
}

template <Walk kWalk, class E>
__device__ __forceinline__ void walk_steps(const ForwardParams& p, const ForwardMaps& maps,
                                           const PairPlace<1>& at, PairShared& shared) {
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  const Chain<64, E> chain;
  const int head = static_cast<int>(blockIdx.x), segment = static_cast<int>(blockIdx.y);
  const int64_t state = static_cast<int64_t>(head) * p.segments + segment;
  const uint32_t own = tile<64>(chain.lanes.across, warp_in_group<4>());
  const uint32_t y_at = shared_address(shared.y);
  const bool leads = threadIdx.x == 128;
  StateRows<64> s = {};
  if (kWalk == Walk::kOperatorM) identity_state(s);
  if (kY && p.start != nullptr) load_state(s, p.start + state * Head<64>::kStateFloats);
  for (int n = 0; n < at.count; ++n) {
    const int step = at.step(n), slot = n & 1;
    if (kY && leads) wait_tiles_read();  // y of the step before has left
    await_step<kV>(shared, n);
    if (kY && p.checkpoints != nullptr)
      store_checkpoint(s, p.checkpoints + (static_cast<int64_t>(head) * p.steps + step) *
                                              Head<64>::kCheckpointWords);
    const Tilde tilde = pair_tilde(shared, slot);
#pragma unroll 1
    for (int c = 0; c < 2; ++c) {
      const auto rows = static_cast<uint32_t>(c * kChunk * 128);
      const Frag y = walk_chunk<64, kY, kV, E>(
          chain, s, tilde, rows, shared_address(shared.v[slot]) + rows + own,
          shared_address(shared.small[slot]) + c * kSmalls * kSmallBytes, shared.end[slot] + c * 64,
          shared.open[slot] + c * 64);
      if constexpr (kY) store_frag_t(y_at + rows + own, y);
    }
    release_step(at.count, n);
    if constexpr (kY) {
      publish_shared();
      sync_on(kWalkers, 128);
      if (leads) {
        store_tile(maps.y, false, y_at, at.channel, step * kStep, at.batch);
        commit_tiles();
      }
    }
  }
  if constexpr (!kY)
    store_state(s, (kV ? p.operator_n : p.operator_m) + state * Head<64>::kStateFloats);
  else if (p.s_out != nullptr && segment == p.segments - 1)
    store_state(s, p.s_out + static_cast<int64_t>(head) * Head<64>::kStateFloats);
  if (kY && leads) wait_tiles();
}

template <Walk kWalk, class E>
__device__ __forceinline__ void walk_pair(const ForwardParams& p, const ForwardMaps& maps) {
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  extern __shared__ __align__(1024) uint4 memory[];
  PairShared& shared = *reinterpret_cast<PairShared*>(memory);
  make_pair_barriers(shared);
  const int first = static_cast<int>(blockIdx.y) * p.steps_per_segment;
  const int last = min(first + p.steps_per_segment, p.steps);
  const int head = static_cast<int>(blockIdx.x);
  const PairPlace<1> at{first, last - first, head % p.heads * 64, head / p.heads};
  if (threadIdx.x < 128)
    prepare_steps<kY, kV, kV, 1, E>(at, p.tokens, maps, shared);
  else
    walk_steps<kWalk, E>(p, maps, at, shared);
}

template <int kN, int kBlocks, class E>
__global__ void __launch_bounds__(256, kBlocks)
    pair_forward_kernel(const ForwardParams p, const __grid_constant__ ForwardMaps maps) {
  wait_for_previous_kernel();
  walk_pair<Walk::kOutputs, E>(p, maps);
}

// N and M of every segment.
template <int kN, int kBlocks, class E>
__global__ void __launch_bounds__(256, kBlocks)
    pair_operators_kernel(const ForwardParams p, const __grid_constant__ ForwardMaps maps) {
  if (blockIdx.z == 1)
    walk_pair<Walk::kOperatorN, E>(p, maps);
  else
    walk_pair<Walk::kOperatorM, E>(p, maps);
}

}  // namespace rwkv::cuda::chunk
