// Heads of a few sequences, with the second low-rank products in the same launch.

#include <algorithm>

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

struct LowTasks {
  CUtensorMap w[kLows];
  const void* middle;
  int ld, rank[kLows], first[kLows];
  int step[kLows + 1];  ///< steps of 64 k of the ones before
};

/// Shared memory of a block that works on kLowWarps * kRounds rows of a head.
template <int kRounds>
struct LowShape {
  static constexpr int kRows = kLowWarps * kRounds;
  static constexpr int kColumns = 16;  ///< of the products; nobody looks at those without a row
  static constexpr int kBuffers = kRounds > 1 ? 2 : 1;  ///< for states, per warp
  static constexpr int kWeightBytes = kN * kDepth * 2, kRowBytes = kColumns * kDepth * 2;
  static constexpr int kTile = kN * kN * 2, kVectors = 5 * kN * 2;
  static constexpr int kLowStride = kColumns * kN;  ///< elements
  int steps;
  __host__ __device__ int middle_at() const { return steps * kWeightBytes; }
  __host__ __device__ int tiles_at() const {
    return (middle_at() + steps * kRowBytes + 1023) / 1024 * 1024;
  }
  __host__ __device__ int vectors_at() const { return tiles_at() + kLowWarps * kBuffers * kTile; }
  __host__ __device__ int low_at() const { return vectors_at() + kLowWarps * kVectors; }
  __host__ __device__ int barriers_at() const { return low_at() + kLows * kLowStride * 2; }
  __host__ __device__ int bytes() const {
    return barriers_at() + 8 * (1 + kLowWarps * kBuffers) + 1024;
  }
};

/// The same with the second low-rank products of the head, for few sequences: the warps of a block
/// multiply together, then each works on its own rows. Weights and states are on their way before
/// the kernel before has ended.
template <class T, int kRounds>
__global__ void __launch_bounds__(32 * kLowWarps)
    half_heads_with_lows_kernel(const Heads a, const __grid_constant__ LowTasks lows,
                                const __grid_constant__ CUtensorMap states) {
  extern __shared__ uint8_t raw_shared[];
  using Shape = LowShape<kRounds>;
  const Shape shape{lows.step[kLows]};
  uint8_t* const base = raw_shared + (1023 & -shared_address(raw_shared));
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  auto* const barriers = reinterpret_cast<uint64_t*>(base + shape.barriers_at());
  auto* const tiles = reinterpret_cast<uint4*>(base + shape.tiles_at()) +
                      warp * (Shape::kBuffers * fp16::kStatePacks);
  auto* const low = reinterpret_cast<T*>(base + shape.low_at());
  let_next_kernel_start();
  const HalfHead<T> head(
      a, states, static_cast<int>(blockIdx.x) % a.heads,
      reinterpret_cast<__half2(*)[kN / 2]>(base + shape.vectors_at() + warp * Shape::kVectors));
  const int begin = static_cast<int>(blockIdx.x) / a.heads * Shape::kRows;
  uint64_t* const own_barriers = barriers + 1 + warp * Shape::kBuffers;
  // Rows that are not there read the last one and write nothing.
  const auto row_of = [&](int n) { return min(begin + kLowWarps * n + warp, a.rows - 1); };
  const auto there = [&](int n) { return begin + kLowWarps * n + warp < a.rows; };
  int slot = a.slots[row_of(0)];
  if (head.lane == 0) {
    for (int i = 0; i < Shape::kBuffers; ++i) make_barrier(shared_address(own_barriers + i));
    if (there(0)) head.load(tiles, slot, own_barriers);
  }
  const uint32_t weights = shared_address(base), middle = weights + shape.middle_at(),
                 full = shared_address(barriers);
  if (thread == 0) {
    make_barrier(full);
    expect(full, shape.middle_at());
    for (int i = 0; i < kLows; ++i)
      for (int s = lows.step[i]; s < lows.step[i + 1]; ++s)
        tile::load_box(weights + static_cast<uint32_t>(s * Shape::kWeightBytes), lows.w[i],
                       (s - lows.step[i]) * kDepth, head.head * kN, full);
  }
  const HeadParams<2> params(a, head.channel());
  auto next_elapsed = static_cast<uint32_t>(a.elapsed[slot]);
  char2 next_exponents = *head.exponents_of(slot);
  wait_for_kernel_before();
  // What the first low-rank matrices gave, as a tile of the products: zeros beyond ranks.
#pragma unroll
  for (int i = 0; i < kLows; ++i)
    for (int p = thread; p < 8 * Shape::kRows * (lows.step[i + 1] - lows.step[i]);
         p += 32 * kLowWarps) {
      const int s = p / (8 * Shape::kRows), at = p / 8 % Shape::kRows, k = 64 * s + p % 8 * 8;
      const bool there = k < lows.rank[i];
      const T* const from = static_cast<const T*>(lows.middle) +
                            static_cast<int64_t>(min(begin + at, a.rows - 1)) * lows.ld +
                            lows.first[i] + k;
      copy_pack(middle + static_cast<uint32_t>((lows.step[i] + s) * Shape::kRowBytes + at * 128 +
                                               ((p % 8 ^ (at & 7)) << 4)),
                there ? from : lows.middle, there);
    }
  HeadInputs<T, 2> inputs;
  inputs.fetch_products(a, head.place(row_of(0)));
  commit_packs();
  wait_packs<0>();
  publish_shared();
  __syncthreads();
  wait_barrier(full, 0);
#pragma unroll 1
  for (int i = 0; i < kLows; ++i) {
    float d[Shape::kColumns / 8][4] = {};
    int s = lows.step[i];
    do {
      const uint32_t w = (weights + static_cast<uint32_t>(s * Shape::kWeightBytes)) & tile::kOwn,
                     x = (middle + static_cast<uint32_t>(s * Shape::kRowBytes)) & tile::kOwn;
      wgmma_begin();
#pragma unroll
      for (uint32_t k = 0; k < kDepth / 16; ++k)
        wgmma_columns<T, Shape::kColumns>(d, describe(w, kSwizzledRows, 2 * k),
                                          describe(x, kSwizzledRows, 2 * k));
      wgmma_commit();
      wgmma_wait<1>();
    } while (++s < lows.step[i + 1]);
    wgmma_wait<0>();
    settle(d);
#pragma unroll
    for (int j = 0; j < Shape::kColumns / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        low[i * Shape::kLowStride + (8 * j + head.lane % 4 * 2 + e % 2) * kN + 16 * warp +
            head.lane / 4 + e / 2 * 8] = Weights<T>::from(d[j][e]);
  }
  __syncthreads();
#pragma unroll 1
  for (int n = 0; n < kRounds && there(n); ++n) {
    const int row = row_of(n), next_slot = a.slots[row_of(n + 1)];
    const bool more = n + 1 < kRounds && there(n + 1);
    const uint32_t elapsed = next_elapsed;
    const char2 before = next_exponents;
    const int64_t at = head.place(row);
    inputs.fetch_lows(low + (row - begin) * kN + 2 * head.lane, Shape::kLowStride);
    const Channels<T, 2> own(a, params, inputs, at);
    const float bonus = head.prepare(own, elapsed);
    const int buffer = n % Shape::kBuffers;
    wait_barrier(shared_address(own_barriers + buffer),
                 static_cast<uint32_t>(n / Shape::kBuffers & 1));
    if (head.lane == 0 && more) {
      wait_tiles_read();
      const int next = (n + 1) % Shape::kBuffers;
      head.load(tiles + next * fp16::kStatePacks, next_slot, own_barriers + next);
    }
    __syncwarp();
    if (more) {
      inputs.fetch_products(a, head.place(row_of(n + 1)));
      next_elapsed = static_cast<uint32_t>(a.elapsed[next_slot]);
      next_exponents = *head.exponents_of(next_slot);
    }
    head.advance(params, own, bonus, at, tiles + buffer * fp16::kStatePacks, slot, elapsed, before);
    slot = next_slot;
  }
  if (head.lane == 0) wait_tiles();
}

int steps_of(int rank) {
  return (rank + kDepth - 1) / kDepth;
}
int low_blocks(const Heads& a, int rounds) {
  return (a.rows + kLowWarps * rounds - 1) / (kLowWarps * rounds) * a.heads;
}
/// The fewest rows per warp with which all blocks run at once; 0: there are too many.
int low_rounds(const Heads& a, const HeadLows& l) {
  int steps = 0;
  for (const int rank : l.rank) steps += steps_of(rank);
  const auto fits = [&]<int kRounds>() {
    const int bytes = LowShape<kRounds>{steps}.bytes();
    return bytes <= kMostShared &&
           low_blocks(a, kRounds) <= a.multiprocessors * (kSharedOfAll / (bytes + 1024));
  };
  return fits.template operator()<1>()   ? 1
         : fits.template operator()<2>() ? 2
         : fits.template operator()<4>() ? 4
                                         : 0;
}

}  // namespace

bool heads_take_lows(const Heads& a, const HeadLows& l) {
  return a.half_state && low_rounds(a, l) > 0;
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
  const auto launch = [&]<class T, int kRounds>() {
    const auto kernel = half_heads_with_lows_kernel<T, kRounds>;
    RWKV_CUDA(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared));
    RWKV_CUDA(launch_dependent(kernel, static_cast<unsigned>(low_blocks(a, kRounds)),
                               32 * kLowWarps,
                               static_cast<size_t>(LowShape<kRounds>{lows.step[kLows]}.bytes()), 1,
                               overlap, stream, a, lows, states));
  };
  by_half(type, [&]<class T>(T) {
    switch (low_rounds(a, l)) {
      case 1:
        launch.template operator()<T, 1>();
        break;
      case 2:
        launch.template operator()<T, 2>();
        break;
      default:
        launch.template operator()<T, 4>();
    }
  });
  RWKV_LAUNCHED("heads of a batch", stream);
}

}  // namespace rwkv::cuda::decode
