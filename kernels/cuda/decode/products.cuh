#pragma once
/// The kernel of products.h, for Hopper.
///
/// A block works on tiles of 128 rows of weights (wgmma's rows) and kN rows of x (its columns), so
/// that a few sequences do not waste the tensor cores. One thread has the copy engine fill a ring
/// of stages of 64 k, two warpgroups multiply 64 x kN each. Blocks of a cluster: `pair` tiles below
/// each other share x, each loads half of it for both; `split` blocks work on different pieces of
/// one tile's k, whose sums they add through each other's shared memory. Blocks with several pieces
/// keep sums that have to wait in device memory (the L2 cache).
///
/// Weights do not depend on the kernel before, so a block fills its ring with them before it waits
/// for that kernel, and then adds the x.
///
/// Products that read what others of the launch write (LateProducts) come last, and wait for a
/// count of what is there. Blocks that have a round less to do than others take them, so that they
/// cost nothing where they fit in.

#include <algorithm>

#include "kernels/cuda/common/gemm_tile.cuh"
#include "kernels/cuda/decode/cache_hints.cuh"
#include "kernels/cuda/decode/dependent.cuh"
#include "kernels/cuda/decode/product_values.cuh"
#include "kernels/cuda/decode/products.h"
#include "kernels/cuda/decode/weights.cuh"
#include "kernels/cuda/decode/wgmma_columns.cuh"

namespace rwkv::cuda::decode {

inline constexpr int kDepth = 64, kProductThreads = 384, kMultiplyingThreads = 256;
inline constexpr int kWeightBytes = kTileRows * kDepth * 2;

/// What a launch works on, by value to the kernel.
struct ProductTask {
  int n, steps, pieces, act, ld;
  bool keep;
  float* wide;
};
struct ProductTasks {
  CUtensorMap w[kMostProducts], x[kMostProducts], y[kMostProducts];
  ProductTask of[kMostProducts];
  int first[kMostProducts + 1];  ///< pairs of tiles, times columns of tiles, of the ones before
  int rows, columns, pair, split, levels;
  float4* memory;
  int makers;       ///< the late products wait for this many, the first ones
  int late;         ///< the first late product; the items before it are the main ones
  int late_begin;   ///< clusters from here on share the late items
  uint32_t needed;  ///< count in gate[0] when all makers are done; gate[1] counts blocks that are
  uint32_t* gate;
};
static_assert(sizeof(ProductTasks) <= 32764);

template <int kN>
struct ProductShape {
  /// Few columns: registers remain for the kernels between products, which do not need shared
  /// memory.
  static constexpr bool kSmall = kN <= 64;
  static constexpr int kBlocks = kSmall ? 2 : 1;                         ///< that registers are for
  static constexpr int kLoading = 40, kMultiplying = kSmall ? 96 : 232;  ///< registers
  static constexpr int kStageBytes = kWeightBytes + kN * kDepth * 2;
  /// Results on their way out: groups of 16 rows of x; two slots per warpgroup.
  static constexpr int kGroups = kN / 16;
  static constexpr int kPart = kSmall ? 1 : kGroups % 3 == 0 ? 3 : kGroups % 2 == 0 ? 2 : 1;
  static constexpr int kGroupBytes = 16 * 64 * 2, kSlot = kPart * kGroupBytes;
  static constexpr int kStages = std::min(12, (232448 - 1024 - 256 - 4 * kSlot) / kStageBytes);
  static constexpr int kSlotsAt = kStages * kStageBytes, kBarriersAt = kSlotsAt + 4 * kSlot;
  static constexpr int kBytes = kBarriersAt + 16 * kStages + 1024;
  static_assert(kStages >= 3 && kBytes <= 232448);
  static_assert(kTileRows * kN * 4 <= kStages * kStageBytes, "sums go through the ring");
  uint32_t base;
  __device__ __forceinline__ uint32_t w(uint32_t stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t x(uint32_t stage) const { return w(stage) + kWeightBytes; }
  __device__ __forceinline__ uint32_t slot(int group, int i) const {
    return base + kSlotsAt + (2 * group + i) * kSlot;
  }
  __device__ __forceinline__ uint32_t full(uint32_t stage) const {
    return base + kBarriersAt + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty(uint32_t stage) const {
    return full(stage) + 8 * kStages;
  }
};

template <int kStages>
struct ProductRing {
  uint32_t stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
  __device__ __forceinline__ uint32_t before() const {
    return stage == 0 ? kStages - 1 : stage - 1;
  }
};

/// A block's place in its cluster, and which tiles and pieces are its own.
struct ProductPlace {
  int pair, split, cluster, clusters;
  __device__ __forceinline__ explicit ProductPlace(const ProductTasks& all) {
    const int size = all.pair * all.split, rank = static_cast<int>(blockIdx.x) % size;
    pair = rank % all.pair;
    split = rank / all.pair;
    cluster = static_cast<int>(blockIdx.x) / size;
    clusters = static_cast<int>(gridDim.x) / size;
  }
  __device__ __forceinline__ int first_late(const ProductTasks& all) const {
    return cluster < all.late_begin ? all.first[kMostProducts]
                                    : all.first[all.late] + cluster - all.late_begin;
  }
  __device__ __forceinline__ int first_item(const ProductTasks& all) const {
    return cluster < all.first[all.late] ? cluster : first_late(all);
  }
  __device__ __forceinline__ int next_item(const ProductTasks& all, int item) const {
    if (item >= all.first[all.late]) return item + clusters - all.late_begin;
    item += clusters;
    return item < all.first[all.late] ? item : first_late(all);
  }
};
struct ProductTile {
  int which, row, column;
  __device__ __forceinline__ ProductTile(const ProductTasks& all, const ProductPlace& place, int kN,
                                         int item) {
    which = 0;
    while (item >= all.first[which + 1]) ++which;
    item -= all.first[which];
    row = (item / all.columns * all.pair + place.pair) * kTileRows;
    column = item % all.columns * kN;
  }
};
/// Walks over a block's stages in the order of their use.
template <int kN>
struct ProductCursor {
  const ProductTasks& all;
  const ProductPlace& place;
  int item, step = 0, last = 0;
  ProductTile tile;
  __device__ __forceinline__ ProductCursor(const ProductTasks& a, const ProductPlace& p)
      : all(a), place(p), item(p.first_item(a)), tile(a, p, kN, valid() ? item : 0) {
    open();
  }
  __device__ __forceinline__ void open() {
    const ProductTask& task = all.of[tile.which];
    const int own = task.pieces / all.split;
    step = piece_start(task.steps, place.split * own, task.pieces);
    last = piece_start(task.steps, (place.split + 1) * own, task.pieces);
  }
  __device__ __forceinline__ bool valid() const { return item < all.first[kMostProducts]; }
  __device__ __forceinline__ void next() {
    if (++step < last) return;
    item = place.next_item(all, item);
    if (!valid()) return;
    tile = ProductTile(all, place, kN, item);
    open();
  }
};

__device__ __forceinline__ void load_box_for(uint32_t to, const CUtensorMap& map, int x, int y,
                                             uint32_t barrier, uint32_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}

/// To the cache that the copy engine takes descriptors from.
__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/// Until what the late products read is there. Written and read by the copy engine, told of and
/// waited for by threads.
__device__ __forceinline__ void wait_for_makers(const ProductTasks& all) {
  uint32_t there = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(all.gate) : "memory");
  } while (there < all.needed);
  asm volatile("fence.proxy.async;" ::: "memory");
}
/// What this thread had the copy engine write is there.
__device__ __forceinline__ void tell_late_ones(const ProductTasks& all) {
  wait_tiles();
  asm volatile("fence.proxy.async;" ::: "memory");
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(all.gate) : "memory");
}

/// One thread.
template <int kN>
__device__ __forceinline__ void load_stages(const ProductTasks& all, const ProductPlace& place,
                                            const ProductShape<kN>& shared) {
  using Shape = ProductShape<kN>;
  ProductCursor<kN> weights(all, place);
  ProductRing<Shape::kStages> ring;
  const auto load_w = [&](const ProductCursor<kN>& c, uint32_t stage) {
    const CUtensorMap& map = all.w[c.tile.which];
    const int x = c.step * kDepth;
    if (all.columns == 1)
      load_box_once(shared.w(stage), map, x, c.tile.row, shared.full(stage));
    else  // other blocks want them as well
      tile::load_box(shared.w(stage), map, x, c.tile.row, shared.full(stage));
  };
  bool late = false;
  const auto load_x = [&](const ProductCursor<kN>& c, uint32_t stage) {
    if (c.tile.which >= all.late && !late) {
      wait_for_makers(all);
      late = true;
    }
    if (all.pair == 1)
      tile::load_box(shared.x(stage), all.x[c.tile.which], c.step * kDepth, c.tile.column,
                     shared.full(stage));
    else
      load_box_for(shared.x(stage) + place.pair * (kN / 2 * 128), all.x[c.tile.which],
                   c.step * kDepth, c.tile.column + place.pair * (kN / 2), shared.full(stage),
                   3u << (2 * place.split));
  };
  ProductCursor<kN> begin = weights;
  int early = 0;
  for (; early < Shape::kStages && weights.valid(); ++early, weights.next()) {
    expect(shared.full(static_cast<uint32_t>(early)), Shape::kStageBytes);
    load_w(weights, static_cast<uint32_t>(early));
  }
  wait_for_kernel_before();
  for (int i = 0; i < early; ++i) {
    load_x(begin, static_cast<uint32_t>(i));
    begin.next();
    ring.next();
  }
  for (; weights.valid(); weights.next(), ring.next()) {
    wait_barrier(shared.empty(ring.stage), ring.phase ^ 1);
    expect(shared.full(ring.stage), Shape::kStageBytes);
    load_w(weights, ring.stage);
    load_x(weights, ring.stage);
  }
}

__device__ __forceinline__ void store_transposed(uint32_t address, uint32_t x0, uint32_t x1,
                                                 uint32_t x2, uint32_t x3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}
__device__ __forceinline__ float4 read_remote(uint32_t address, uint32_t block) {
  float4 v;
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n"
      "}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(block)
      : "memory");
  return v;
}
/// Numbers that the compiler knows, so that it does not reserve all of them.
__device__ __forceinline__ void warpgroup_barrier(int group) {
  if (group == 0)
    asm volatile("bar.sync 1, 128;" ::: "memory");
  else
    asm volatile("bar.sync 2, 128;" ::: "memory");
}

/// Registers to y. A warpgroup's 64 rows of w are 64 neighbouring elements of each row of y.
template <class T, int kN>
struct ProductOut {
  using Shape = ProductShape<kN>;
  const ProductTasks& all;
  const Shape& shared;
  int group, thread, lane, warp;
  int turn = 0;  ///< of the slots

  template <int kTiles>
  __device__ __forceinline__ void activate_all(int which, float (&d)[kTiles][4]) const {
    const auto act = static_cast<ProductAct>(all.of[which].act);
    if (act == ProductAct::kNone) return;
    if (act == ProductAct::kSquaredRelu) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) activate_value(ProductAct::kSquaredRelu, d[j][e], 1.0f);
    } else {
      const float scale = act == ProductAct::kTanh ? 2.0f : 1.0f;
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) activate_value(ProductAct::kSigmoid, d[j][e], scale);
    }
  }
  /// 16 rows of y to their place in a slot.
  __device__ __forceinline__ void put(uint32_t to, const float (&a)[4], const float (&b)[4]) const {
    const int row = (lane & 7) + 8 * (lane >> 4), pack = 2 * warp + ((lane >> 3) & 1);
    store_transposed(to + static_cast<uint32_t>(row * 128 + ((pack ^ (row & 7)) << 4)),
                     pack_pair<T>(a[0], a[1]), pack_pair<T>(a[2], a[3]), pack_pair<T>(b[0], b[1]),
                     pack_pair<T>(b[2], b[3]));
  }
  /// f32: 8 columns of the product, straight to memory, 32 bytes of a row of y at a time.
  __device__ __forceinline__ void put_wide(const ProductTile& t, int column,
                                           const float (&d)[4]) const {
    const ProductTask& task = all.of[t.which];
    const int n = t.row + 64 * group + 16 * warp + lane / 4, m = column + lane % 4 * 2;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (n + e / 2 * 8 < task.n && m + e % 2 < all.rows)
        task.wide[static_cast<int64_t>(m + e % 2) * task.ld + n + e / 2 * 8] = d[e];
  }
  /// Groups [first, first + count) of 16 columns; `values(i)` gives pairs of eight columns.
  template <int kCount, class Values>
  __device__ __forceinline__ void store(const ProductTile& t, int first, const Values& values) {
    const uint32_t slot = shared.slot(group, turn++ & 1);
    if (thread == 0) tile::wait_all_but_one_read();
    warpgroup_barrier(group);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      put(slot + static_cast<uint32_t>(i * Shape::kGroupBytes), values(2 * i), values(2 * i + 1));
    publish_shared();
    warpgroup_barrier(group);
    if (thread == 0) {
      const int n = t.row + 64 * group;
      if (n < all.of[t.which].n) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const int m = t.column + 16 * (first + i);
          if (m < all.rows) {
            const uint32_t from = slot + static_cast<uint32_t>(i * Shape::kGroupBytes);
            if (all.of[t.which].keep)
              store_box_kept(all.y[t.which], from, n, m);
            else
              tile::store_box(all.y[t.which], from, n, m);
          }
        }
      }
      commit_tiles();
    }
  }
  __device__ __forceinline__ void whole(const ProductTile& t, float (&d)[kN / 8][4]) {
    if (all.of[t.which].wide != nullptr) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) put_wide(t, t.column + 8 * j, d[j]);
      return;
    }
    activate_all(t.which, d);
#pragma unroll
    for (int part = 0; part < Shape::kGroups / Shape::kPart; ++part)
      store<Shape::kPart>(t, part * Shape::kPart, [&](int i) -> const float(&)[4] {
        return d[2 * part * Shape::kPart + i];
      });
  }
  /// The sums of `split` blocks, each in its ring; every block of them finishes some columns.
  __device__ __forceinline__ void shared_sums(const ProductPlace& place, const ProductTile& t) {
    const auto sum_of = [&](int j) {
      const uint32_t at = shared.base + static_cast<uint32_t>(
                                            (j * kMultiplyingThreads + 128 * group + thread) * 16);
      const auto from = [&](int i) {
        return read_remote(at, static_cast<uint32_t>(i * all.pair + place.pair));
      };
      float4 v = plus(from(0), from(1));
      if (all.split > 2) v = plus(v, plus(from(2), from(3)));
      if (all.split > 4) v = plus(v, plus(plus(from(4), from(5)), plus(from(6), from(7))));
      return v;
    };
    for (int g = place.split; g < Shape::kGroups; g += all.split) {
      float d[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float4 v = sum_of(2 * g + j);
        d[j][0] = v.x, d[j][1] = v.y, d[j][2] = v.z, d[j][3] = v.w;
      }
      if (all.of[t.which].wide != nullptr) {
        put_wide(t, t.column + 16 * g, d[0]);
        put_wide(t, t.column + 16 * g + 8, d[1]);
        continue;
      }
      activate_all(t.which, d);
      store<1>(t, g, [&](int i) -> const float(&)[4] { return d[i]; });
    }
  }
};

template <class T, int kN>
__device__ __forceinline__ void multiply_tiles(const ProductTasks& all, const ProductPlace& place,
                                               const ProductShape<kN>& shared) {
  using Shape = ProductShape<kN>;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  ProductOut<T, kN> out{all, shared, group, thread, lane, thread / 32};
  float d[kN / 8][4];
  ProductRing<Shape::kStages> ring;
  const auto release = [&](uint32_t stage) {
    if (lane < all.pair)
      tile::arrive_at(shared.empty(stage), static_cast<uint32_t>(place.split * all.pair + lane));
  };
  const auto waiting = [&](int level) {
    return all.memory +
           (static_cast<int64_t>(blockIdx.x) * all.levels + level) * (kN / 8) *
               kMultiplyingThreads +
           128 * group + thread;
  };
  for (int item = place.first_item(all); item < all.first[kMostProducts];
       item = place.next_item(all, item)) {
    const ProductTile t(all, place, kN, item);
    const int steps = all.of[t.which].steps, pieces = all.of[t.which].pieces,
              own = pieces / all.split;
    for (int i = 0; i < own; ++i) {
      const int piece = place.split * own + i, first = piece_start(steps, piece, pieces),
                last = piece_start(steps, piece + 1, pieces);
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) d[j][e] = 0;
      if constexpr (kN > 256) settle(d);  // all are zeros before the first of two instructions
      int step = first;
      do {
        wait_barrier(shared.full(ring.stage), ring.phase);
        const uint32_t w = (shared.w(ring.stage) + group * (64 * 128)) & tile::kOwn;
        const uint32_t x = shared.x(ring.stage) & tile::kOwn;
        wgmma_begin();
#pragma unroll
        for (uint32_t k = 0; k < kDepth / 16; ++k)
          wgmma_columns<T, kN>(d, describe(w, kSwizzledRows, 2 * k),
                               describe(x, kSwizzledRows, 2 * k));
        wgmma_commit();
        wgmma_wait<1>();
        if (step > first) release(ring.before());
        ring.next();
      } while (++step < last);
      wgmma_wait<0>();
      settle(d);
      release(ring.before());
      // The sums of pieces as a binary counter adds up: a sum of 2^l pieces waits at level l.
      int level = 0;
      for (; (i >> level) & 1; ++level) {
        const float4* const from = waiting(level);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
          const float4 v = __ldcg(from + j * kMultiplyingThreads);
          d[j][0] = v.x + d[j][0], d[j][1] = v.y + d[j][1];
          d[j][2] = v.z + d[j][2], d[j][3] = v.w + d[j][3];
        }
      }
      if (i + 1 < own) {
        float4* const to = waiting(level);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j)
          __stcg(to + j * kMultiplyingThreads, make_float4(d[j][0], d[j][1], d[j][2], d[j][3]));
      }
    }
    if (all.split == 1) out.whole(t, d);
    if (t.which < all.makers && thread == 0) tell_late_ones(all);
  }
  if (all.split > 1) {
    // One tile per block: the ring is free as soon as both warpgroups have multiplied.
    asm volatile("bar.sync 3, 256;" ::: "memory");
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                       shared.base + static_cast<uint32_t>(
                                         (j * kMultiplyingThreads + 128 * group + thread) * 16)),
                   "f"(d[j][0]), "f"(d[j][1]), "f"(d[j][2]), "f"(d[j][3])
                   : "memory");
    __syncwarp();
    tile::cluster_barrier();
    out.shared_sums(place, ProductTile(all, place, kN, place.cluster));
  }
  // Shared memory stays until results have left it; they are in memory when the launch is done.
  if (thread == 0) wait_tiles_read();
  // The last block leaves the counts as it found them. Some block has passed the gate by then, so
  // nobody adds to them any more. A block that had nothing to do has waited for nothing yet, and
  // the counts may still be those of the launch before.
  if (all.makers > 0 && group == 0 && thread == 0) {
    wait_for_kernel_before();
    if (atomicAdd(all.gate + 1, 1u) == gridDim.x - 1) all.gate[0] = all.gate[1] = 0;
  }
}

template <class T, int kN>
__global__ void __launch_bounds__(kProductThreads, ProductShape<kN>::kBlocks)
    products_kernel(const __grid_constant__ ProductTasks all) {
  extern __shared__ uint8_t raw_shared[];
  using Shape = ProductShape<kN>;
  const Shape shared{(shared_address(raw_shared) + 1023) & ~1023u};
  const ProductPlace place(all);
  const bool clustered = all.pair * all.split > 1;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < Shape::kStages; ++i) {
      tile::make_barrier_of(shared.full(i), 1);
      tile::make_barrier_of(shared.empty(i), all.pair * 8);  // every warp that multiplies
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  // Descriptors of what comes after the wait.
  if (threadIdx.x == 32 && place.first_item(all) < all.first[kMostProducts]) {
    const ProductTile t(all, place, kN, place.first_item(all));
    prefetch_map(all.x[t.which]);
    if (all.of[t.which].wide == nullptr) prefetch_map(all.y[t.which]);
  }
  let_next_kernel_start();
  if (clustered)
    tile::cluster_barrier();
  else
    __syncthreads();
  if (threadIdx.x < 128) {
    tile::give_registers<Shape::kLoading>();
    if (threadIdx.x == 0) load_stages<kN>(all, place, shared);
    __syncwarp();
    if (all.split > 1) tile::cluster_barrier();  // the one of multiply_tiles
  } else {
    tile::take_registers<Shape::kMultiplying>();
    multiply_tiles<T, kN>(all, place, shared);
    __syncwarp();
  }
  if (clustered) tile::cluster_barrier();  // others still reach for this block's memory
}

/// For the translation units of the two types.
template <class T>
cudaError_t launch_products_of(const ProductTasks& all, int columns, unsigned blocks,
                               unsigned cluster, bool overlap, cudaStream_t stream) {
  const auto launch = [&]<int kN>() {
    const auto kernel = products_kernel<T, kN>;
    if (const cudaError_t e = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, ProductShape<kN>::kBytes);
        e != cudaSuccess)
      return e;
    return launch_dependent(kernel, blocks, kProductThreads, ProductShape<kN>::kBytes, cluster,
                            overlap, stream, all);
  };
  switch (columns) {
    case 16:
      return launch.template operator()<16>();
    case 32:
      return launch.template operator()<32>();
    case 64:
      return launch.template operator()<64>();
    case 128:
      return launch.template operator()<128>();
    case 160:
      return launch.template operator()<160>();
    case 240:
      return launch.template operator()<240>();
    case 256:
      return launch.template operator()<256>();
    case 320:
      return launch.template operator()<320>();
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_products_f16(const ProductTasks& all, int columns, unsigned blocks,
                                unsigned cluster, bool overlap, cudaStream_t stream);
cudaError_t launch_products_bf16(const ProductTasks& all, int columns, unsigned blocks,
                                 unsigned cluster, bool overlap, cudaStream_t stream);

}  // namespace rwkv::cuda::decode
