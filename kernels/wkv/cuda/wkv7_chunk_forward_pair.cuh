#pragma once
/// The chunked forward for heads of 64 with two warpgroups per head: the first prepares a step
/// (operands, 16 x 16 matrices) while the second walks the step before it. What takes part in the
/// chain from chunk to chunk is then all that a head has to wait for, which pays where heads are
/// too few to hide it.

#include "kernels/wkv/cuda/wkv7_chunk_forward.cuh"

namespace rwkv::cuda::chunk {

struct PairShared {
  using Rows = uint4[Head<64>::kRowsWords];
  Rows r[2], a[2], b[2], k[2], v[2];  // of two steps
  Rows raw[5];                        // r, w, k, a, b of the next step
  Rows y;
  uint4 small[2][2 * kSmalls * kSmallBytes / 16];
  float solve[2 * kChunk * kSolveRow];
  float end[2][128];
  uint64_t loaded, v_loaded[2];  // barriers of the loads
};

/// Named barriers of a block; kFull, kEmpty: one per slot of a step.
enum PairBarrier { kPreparers = 1, kWalkers = 2, kFull = 3, kEmpty = 5 };
__device__ __forceinline__ void sync_on(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_on(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/// Where a block stands.
struct PairPlace {
  int head, segment, first, last, channel, batch;
  __device__ explicit PairPlace(const ForwardParams& p)
      : head(static_cast<int>(blockIdx.x)),
        segment(static_cast<int>(blockIdx.y) + p.first_segment),
        first(segment * p.steps_per_segment),
        last(min(first + p.steps_per_segment, p.steps)),
        channel(head % p.heads * 64),
        batch(head / p.heads) {}
};

__device__ __forceinline__ Tilde pair_tilde(const PairShared& shared, int slot) {
  return {shared_address(shared.r[slot]), shared_address(shared.a[slot]),
          shared_address(shared.b[slot]), shared_address(shared.k[slot])};
}

template <bool kY, bool kV>
__device__ __forceinline__ void prepare_steps(const ForwardParams& p, const ForwardMaps& maps,
                                              PairShared& shared) {
  const PairPlace at(p);
  const Lanes<64> lanes;
  constexpr int kTileBytes = sizeof(shared.y);
  const uint32_t loaded = shared_address(&shared.loaded);
  const auto raw_at = [&](int i) { return shared_address(shared.raw[i]); };
  const auto load = [&](const CUtensorMap& map, const void* to, int step, uint32_t barrier) {
    load_tile(shared_address(to), map, at.channel, step * kStep, at.batch, barrier);
  };
  const auto load_next = [&](int step) {
    expect(loaded, (3 + (kY ? 1 : 0) + (kV ? 1 : 0)) * kTileBytes);
    load(maps.w, shared.raw[1], step, loaded);
    load(maps.a, shared.raw[3], step, loaded);
    load(maps.b, shared.raw[4], step, loaded);
    if constexpr (kV) load(maps.k, shared.raw[2], step, loaded);
    if constexpr (kY) load(maps.r, shared.raw[0], step, loaded);
  };
  const bool leads = threadIdx.x == 0;
  if (leads) load_next(at.first);
  for (int step = at.first; step < at.last; ++step) {
    const int n = step - at.first, slot = n & 1;
    if (n >= 2) sync_on(kEmpty + slot, 256);
    if (kV && leads) {
      const uint32_t barrier = shared_address(&shared.v_loaded[slot]);
      expect(barrier, kTileBytes);
      load(maps.v, shared.v[slot], step, barrier);
    }
    wait_barrier(loaded, static_cast<uint32_t>(slot));
    Raw raw;
    load_raw<kY, kV>(raw, raw_at(0), raw_at(1), raw_at(2), raw_at(3), raw_at(4));
    const Tilde tilde = pair_tilde(shared, slot);
    prepare<64, kY, kV, false>(raw, p.tokens - step * kStep, tilde, shared.end[slot], nullptr);
    publish_shared();
    sync_on(kPreparers, 128);
    if (leads && step + 1 < at.last) load_next(step + 1);
    causal_products<64, kY, kV>(tilde, shared_address(shared.small[slot]), shared.solve, lanes);
    publish_shared();
    arrive_on(kFull + slot, 256);
  }
}

template <Walk kWalk>
__device__ __forceinline__ void walk_steps(const ForwardParams& p, const ForwardMaps& maps,
                                           PairShared& shared) {
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  const PairPlace at(p);
  const Chain<64> chain;
  const int64_t state = static_cast<int64_t>(at.head) * p.segments + at.segment;
  const uint32_t own = tile<64>(chain.lanes.across, warp_in_group<4>());
  const uint32_t y_at = shared_address(shared.y);
  const bool leads = threadIdx.x == 128;
  StateRows<64> s = {};
  if (kWalk == Walk::kOperatorM) identity_state(s);
  if (kY && p.start != nullptr) load_state(s, p.start + state * Head<64>::kStateFloats);
  for (int step = at.first; step < at.last; ++step) {
    const int n = step - at.first, slot = n & 1;
    if (kY && leads) wait_tiles_read();  // y of the step before has left
    sync_on(kFull + slot, 256);
    if (kV) wait_barrier(shared_address(&shared.v_loaded[slot]), static_cast<uint32_t>(n >> 1 & 1));
    if (kY && p.checkpoints != nullptr)
      store_checkpoint(s, p.checkpoints + (static_cast<int64_t>(at.head) * p.steps + step) *
                                              Head<64>::kCheckpointWords);
    const Tilde tilde = pair_tilde(shared, slot);
#pragma unroll 1
    for (int c = 0; c < 2; ++c) {
      const auto rows = static_cast<uint32_t>(c * kChunk * 128);
      const Frag y =
          walk_chunk<64, kY, kV>(chain, s, tilde, rows, shared_address(shared.v[slot]) + rows + own,
                                 shared_address(shared.small[slot]) + c * kSmalls * kSmallBytes,
                                 shared.end[slot] + c * 64);
      if constexpr (kY) store_frag_t(y_at + rows + own, y);
    }
    if (step + 2 < at.last) arrive_on(kEmpty + slot, 256);
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
  else if (p.s_out != nullptr && at.segment == p.segments - 1)
    store_state(s, p.s_out + static_cast<int64_t>(at.head) * Head<64>::kStateFloats);
  if (kY && leads) wait_tiles();
}

template <Walk kWalk>
__device__ __forceinline__ void walk_pair(const ForwardParams& p, const ForwardMaps& maps) {
  constexpr bool kY = kWalk == Walk::kOutputs, kV = kWalk != Walk::kOperatorM;
  extern __shared__ __align__(1024) uint4 memory[];
  PairShared& shared = *reinterpret_cast<PairShared*>(memory);
  if (threadIdx.x == 0) {
    make_barrier(shared_address(&shared.loaded));
    make_barrier(shared_address(&shared.v_loaded[0]));
    make_barrier(shared_address(&shared.v_loaded[1]));
  }
  __syncthreads();
  if (threadIdx.x < 128)
    prepare_steps<kY, kV>(p, maps, shared);
  else
    walk_steps<kWalk>(p, maps, shared);
}

template <int kN, int kBlocks>
__global__ void __launch_bounds__(256, kBlocks)
    pair_forward_kernel(const ForwardParams p, const __grid_constant__ ForwardMaps maps) {
  wait_for_previous_kernel();
  walk_pair<Walk::kOutputs>(p, maps);
}

// M of every segment, and N if it is wanted.
template <int kN, int kBlocks>
__global__ void __launch_bounds__(256, kBlocks)
    pair_operators_kernel(const ForwardParams p, const __grid_constant__ ForwardMaps maps) {
  if (blockIdx.z == 1)
    walk_pair<Walk::kOperatorN>(p, maps);
  else
    walk_pair<Walk::kOperatorM>(p, maps);
}

}  // namespace rwkv::cuda::chunk
