// Heads of a few sequences, with the second low-rank products in the same launch.

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/common/gemm_tile.cuh"
#include "kernels/cuda/decode/batch_heads.cuh"
#include "kernels/cuda/decode/dependent.cuh"
#include "kernels/cuda/decode/half_types.h"
#include "kernels/cuda/decode/shared_copies.cuh"
#include "kernels/cuda/decode/wgmma_columns.cuh"

namespace rwkv::cuda::decode {
namespace {

/// Shared memory: of a block at most, of a multiprocessor.
constexpr int kMostShared = 232448, kSharedOfAll = 233472;
constexpr int kLows = rwkv::decode::kLowRanks, kLowWarps = 4, kDepth = 64;
/// Where a head's low ranks cost more than a launch: 1.5B, 32 heads, is 2.5 % slower with 16
/// sequences and 5 % with 64; 0.1B gains 2 to 14 % with one row per warp, with two it loses 1 %.
constexpr int kMostHeads = 16;

struct LowTasks {
  CUtensorMap w[kLows];
  const void* middle;
  int ld, rank[kLows], first[kLows];
  int step[kLows + 1];  ///< steps of 64 k of the ones before
};

/// Shared memory of a block, whose warps have a row of one head each.
struct LowShape {
  static constexpr int kColumns = 16;  ///< of the products; nobody looks at those without a row
  static constexpr int kWeightBytes = kN * kDepth * 2, kRowBytes = kColumns * kDepth * 2;
  static constexpr int kTile = kN * kN * 2, kVectors = 5 * kN * 2;
  static constexpr int kLowStride = kColumns * kN;  ///< elements
  int steps;
  __host__ __device__ int middle_at() const { return steps * kWeightBytes; }
  __host__ __device__ int tiles_at() const {
    return (middle_at() + steps * kRowBytes + 1023) / 1024 * 1024;
  }
  __host__ __device__ int vectors_at() const { return tiles_at() + kLowWarps * kTile; }
  __host__ __device__ int low_at() const { return vectors_at() + kLowWarps * kVectors; }
  __host__ __device__ int barriers_at() const { return low_at() + kLows * kLowStride * 2; }
  __host__ __device__ int bytes() const { return barriers_at() + 8 * (1 + kLowWarps) + 1024; }
};

/// The same with the second low-rank products of the head, for few sequences: the warps of a block
/// multiply together, then each works on its own rows. Weights and states are on their way before
/// the kernel before has ended.
template <class T>
__global__ void __launch_bounds__(32 * kLowWarps)
    half_heads_with_lows_kernel(const Heads a, const __grid_constant__ LowTasks lows,
                                const __grid_constant__ CUtensorMap states) {
  extern __shared__ uint8_t raw_shared[];
  const LowShape shape{lows.step[kLows]};
  uint8_t* const base = raw_shared + (1023 & -shared_address(raw_shared));
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  auto* const barriers = reinterpret_cast<uint64_t*>(base + shape.barriers_at());
  auto* const tiles = reinterpret_cast<uint4*>(base + shape.tiles_at()) + warp * fp16::kStatePacks;
  auto* const low = reinterpret_cast<T*>(base + shape.low_at());
  let_next_kernel_start();
  const HalfHead<T> head(
      a, states, static_cast<int>(blockIdx.x) % a.heads,
      reinterpret_cast<__half2(*)[kN / 2]>(base + shape.vectors_at() + warp * LowShape::kVectors));
  const int begin = static_cast<int>(blockIdx.x) / a.heads * kLowWarps;
  uint64_t* const own_barrier = barriers + 1 + warp;
  // Rows that are not there read the last one and write nothing.
  const bool there = begin + warp < a.rows;
  const int row = min(begin + warp, a.rows - 1), slot = a.slots[row];
  if (head.lane == 0) {
    make_barrier(shared_address(own_barrier));
    if (there) head.load(tiles, slot, own_barrier);
  }
  const uint32_t weights = shared_address(base), middle = weights + shape.middle_at(),
                 full = shared_address(barriers);
  if (thread == 0) {
    make_barrier(full);
    expect(full, shape.middle_at());
    for (int i = 0; i < kLows; ++i)
      for (int s = lows.step[i]; s < lows.step[i + 1]; ++s)
        tile::load_box(weights + static_cast<uint32_t>(s * LowShape::kWeightBytes), lows.w[i],
                       (s - lows.step[i]) * kDepth, head.head * kN, full);
  }
  const HeadParams<2> params(a, head.channel());
  const auto elapsed = static_cast<uint32_t>(a.elapsed[slot]);
  const char2 before = *head.exponents_of(slot);
  wait_for_kernel_before();
  // What the first low-rank matrices gave, as a tile of the products: zeros beyond ranks.
#pragma unroll
  for (int i = 0; i < kLows; ++i)
    for (int p = thread; p < 8 * kLowWarps * (lows.step[i + 1] - lows.step[i]);
         p += 32 * kLowWarps) {
      const int s = p / (8 * kLowWarps), at = p / 8 % kLowWarps, k = 64 * s + p % 8 * 8;
      const bool within = k < lows.rank[i];
      const T* const from = static_cast<const T*>(lows.middle) +
                            static_cast<int64_t>(min(begin + at, a.rows - 1)) * lows.ld +
                            lows.first[i] + k;
      copy_pack(middle + static_cast<uint32_t>((lows.step[i] + s) * LowShape::kRowBytes + at * 128 +
                                               ((p % 8 ^ (at & 7)) << 4)),
                within ? from : lows.middle, within);
    }
  HeadInputs<T, 2> inputs;
  inputs.fetch_products(a, head.place(row));
  commit_packs();
  wait_packs<0>();
  publish_shared();
  __syncthreads();
  wait_barrier(full, 0);
#pragma unroll 1
  for (int i = 0; i < kLows; ++i) {
    float d[LowShape::kColumns / 8][4] = {};
    int s = lows.step[i];
    do {
      const uint32_t w = (weights + static_cast<uint32_t>(s * LowShape::kWeightBytes)) & tile::kOwn,
                     x = (middle + static_cast<uint32_t>(s * LowShape::kRowBytes)) & tile::kOwn;
      wgmma_begin();
#pragma unroll
      for (uint32_t k = 0; k < kDepth / 16; ++k)
        wgmma_columns<T, LowShape::kColumns>(d, describe(w, kSwizzledRows, 2 * k),
                                             describe(x, kSwizzledRows, 2 * k));
      wgmma_commit();
      wgmma_wait<1>();
    } while (++s < lows.step[i + 1]);
    wgmma_wait<0>();
    settle(d);
#pragma unroll
    for (int j = 0; j < LowShape::kColumns / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        low[i * LowShape::kLowStride + (8 * j + head.lane % 4 * 2 + e % 2) * kN + 16 * warp +
            head.lane / 4 + e / 2 * 8] = Weights<T>::from(d[j][e]);
  }
  __syncthreads();
  if (!there) return;
  inputs.fetch_lows(low + warp * kN + 2 * head.lane, LowShape::kLowStride);
  const int64_t at = head.place(row);
  const Channels<T, 2> own(a, params, inputs, at);
  const float bonus = head.prepare(own, elapsed);
  wait_barrier(shared_address(own_barrier), 0);
  __syncwarp();
  head.advance(params, own, bonus, at, tiles, slot, elapsed, before);
  if (head.lane == 0) wait_tiles();
}

int steps_of(int rank) {
  return (rank + kDepth - 1) / kDepth;
}
int bytes_of(const HeadLows& l) {
  LowShape shape{};
  for (const int rank : l.rank) shape.steps += steps_of(rank);
  return shape.bytes();
}
int low_blocks(const Heads& a) {
  return (a.rows + kLowWarps - 1) / kLowWarps * a.heads;
}

}  // namespace

bool heads_take_lows(const Heads& a, const HeadLows& l) {
  const int bytes = bytes_of(l);
  return a.half_state && a.heads <= kMostHeads && bytes <= kMostShared &&
         low_blocks(a) <= a.multiprocessors * (kSharedOfAll / (bytes + 1024));
}

void launch_heads_with_lows(DType type, const Heads& a, const HeadLows& l, bool overlap,
                            cudaStream_t stream) {
  RWKV_ASSERT(heads_take_lows(a, l), a.rows, " rows of ", a.heads, " heads");
  LowTasks lows{};
  lows.middle = l.middle;
  lows.ld = l.ld;
  for (int i = 0; i < kLows; ++i) {
    RWKV_CUDA(tile::describe_matrix(lows.w[i], l.w[i], a.heads * kN, l.rank[i], kN, l.rank[i]));
    lows.rank[i] = l.rank[i];
    lows.first[i] = l.first[i];
    lows.step[i + 1] = lows.step[i] + steps_of(l.rank[i]);
  }
  CUtensorMap states;
  RWKV_CUDA(describe_states(states, a));
  by_half(type, [&]<class T>(T) {
    const auto kernel = half_heads_with_lows_kernel<T>;
    RWKV_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared));
    RWKV_CUDA(launch_dependent(kernel, static_cast<unsigned>(low_blocks(a)), 32 * kLowWarps,
                               static_cast<size_t>(bytes_of(l)), 1, overlap, stream, a, lows,
                               states));
  });
  RWKV_LAUNCHED("heads of a batch", stream);
}

}  // namespace rwkv::cuda::decode
