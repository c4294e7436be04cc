// Decoding products of few rows: a block makes one tile of 64 rows of weights and kN rows of x.
//
// Each of its warpgroups sums one piece of k (products.h), so that a tile's pieces meet in one
// block's shared memory, or in that of a cluster of `split` blocks, each of which finishes some of
// the columns: sums are pushed there, not asked for. All weights of a block are on their way
// before the kernel before has ended. x then comes by the threads that multiply it, results leave
// from registers: both are sooner there than by the copy engine, whose way is longer.

#include "kernels/cuda/decode/few_products.h"

#include <algorithm>
#include <type_traits>

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/common/gemm_tile.cuh"
#include "kernels/cuda/decode/cache_hints.cuh"
#include "kernels/cuda/decode/dependent.cuh"
#include "kernels/cuda/decode/product_values.cuh"
#include "kernels/cuda/decode/shared_copies.cuh"
#include "kernels/cuda/decode/wgmma_columns.cuh"

namespace rwkv::cuda::decode {
namespace {

constexpr int kHeight = kFewRows, kDepth = 64, kWeightBytes = kHeight * kDepth * 2;
constexpr int kMostSteps = 16;  ///< of a piece
constexpr int kMostShared = 232448;
constexpr int kParts = 4;  ///< that x of a piece comes in, each waited for alone

struct FewTask {
  const void* x;
  void* y;
  int n, k, steps, act, ldx, ldy;
};
struct FewTasks {
  CUtensorMap w[kMostProducts];
  FewTask of[kMostProducts];
  int first[kMostProducts + 1];  ///< tiles of the ones before
  int rows, columns, pieces, split;
  int depth;  ///< steps that a piece has place for
};

/// Shared memory of a block: per warpgroup weights and x of its piece, sums, barriers.
template <int kN, int kGroups>
struct FewShape {
  static constexpr int kEach = kN / 8;  ///< groups of eight columns
  static constexpr int kRowBytes = kN * kDepth * 2;
  static constexpr int kSum = 128 * 16;  ///< bytes of a warpgroup's sums for eight columns
  int depth, split;
  __host__ __device__ int x_at() const { return kGroups * depth * kWeightBytes; }
  __host__ __device__ int sums_at() const { return x_at() + kGroups * depth * kRowBytes; }
  __host__ __device__ int owned() const { return (kEach + split - 1) / split; }
  __host__ __device__ int barriers_at() const {
    return sums_at() + (kGroups * split > 1 ? kGroups * split * owned() * kSum : 0);
  }
  __host__ __device__ int bytes() const { return barriers_at() + 8 * kGroups * depth + 1024; }
};

__device__ __forceinline__ uint32_t address_in(uint32_t block, uint32_t address) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(block));
  return remote;
}
__device__ __forceinline__ void push(uint32_t to, const float (&v)[4]) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(v[0]), "f"(v[1]),
               "f"(v[2]), "f"(v[3])
               : "memory");
}
__device__ __forceinline__ float4 pull(uint32_t from) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(from)
               : "memory");
  return v;
}
/// Numbers that the compiler knows, so that it does not reserve all of them.
template <int kGroups>
__device__ __forceinline__ void barrier_of(int group) {
  if (kGroups == 1 || group == 0)
    asm volatile("bar.sync 1, 128;" ::: "memory");
  else if (kGroups == 2 || group == 1)
    asm volatile("bar.sync 2, 128;" ::: "memory");
  else if (group == 2)
    asm volatile("bar.sync 3, 128;" ::: "memory");
  else
    asm volatile("bar.sync 4, 128;" ::: "memory");
}

/// Until the first `part` + 1 of kParts groups of copies are there.
__device__ __forceinline__ void wait_part(int part) {
  static_assert(kParts == 4);
  if (part == 0)
    wait_packs<3>();
  else if (part == 1)
    wait_packs<2>();
  else if (part == 2)
    wait_packs<1>();
  else
    wait_packs<0>();
}

/// Rows n and n + 8 of the weights, columns m and m + 1: to y, two neighbours of a row at a time.
template <class T>
__device__ __forceinline__ void put_few(const FewTask& task, int rows, int n, int m,
                                        const float (&d)[4], int lane) {
  const bool odd = (lane & 4) != 0;
  const float a = __shfl_xor_sync(~0u, odd ? d[0] : d[1], 4),
              b = __shfl_xor_sync(~0u, odd ? d[2] : d[3], 4);
  const uint32_t low = odd ? pack_pair<T>(a, d[1]) : pack_pair<T>(d[0], a),
                 high = odd ? pack_pair<T>(b, d[3]) : pack_pair<T>(d[2], b);
  if (odd) --n, ++m;
  if (m >= rows) return;
  T* const to = static_cast<T*>(task.y) + static_cast<int64_t>(m) * task.ldy + n;
  if (n < task.n) *reinterpret_cast<uint32_t*>(to) = low;
  if (n + 8 < task.n) *reinterpret_cast<uint32_t*>(to + 8) = high;
}

template <class T, int kN, int kGroups>
__global__ void __launch_bounds__(128 * kGroups)
    few_products_kernel(const __grid_constant__ FewTasks all) {
  extern __shared__ uint8_t raw_shared[];
  using Shape = FewShape<kN, kGroups>;
  const Shape shape{all.depth, all.split};
  const uint32_t base = (shared_address(raw_shared) + 1023) & ~1023u;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int split = all.split, rank = static_cast<int>(blockIdx.x) % split;
  int item = static_cast<int>(blockIdx.x) / split, which = 0;
  while (item >= all.first[which + 1]) ++which;
  item -= all.first[which];
  const FewTask& task = all.of[which];
  const int row = item / all.columns * kHeight, column = item % all.columns * kN;
  const int piece = rank * kGroups + group;
  const int first = piece_start(task.steps, piece, all.pieces),
            count = piece_start(task.steps, piece + 1, all.pieces) - first;
  const uint32_t w_at = base + static_cast<uint32_t>(group * all.depth * kWeightBytes);
  const uint32_t x_at =
      base + static_cast<uint32_t>(shape.x_at() + group * all.depth * Shape::kRowBytes);
  const uint32_t barriers =
      base + static_cast<uint32_t>(shape.barriers_at() + 8 * group * all.depth);
  let_next_kernel_start();
  if (thread == 0) {
    for (int s = 0; s < count; ++s)
      tile::make_barrier_of(barriers + static_cast<uint32_t>(8 * s), 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int s = 0; s < count; ++s) {
      const uint32_t full = barriers + static_cast<uint32_t>(8 * s),
                     to = w_at + static_cast<uint32_t>(s * kWeightBytes);
      expect(full, kWeightBytes);
      if (all.columns == 1)
        load_box_once(to, all.w[which], (first + s) * kDepth, row, full);
      else
        tile::load_box(to, all.w[which], (first + s) * kDepth, row, full);
    }
  }
  __syncwarp();
  barrier_of<kGroups>(group);
  // Others push into this block's memory, which has to be there.
  if (split > 1) tile::cluster_barrier();
  wait_for_kernel_before();

  // A thread has the same pack of 8 k in each of its rows, in every step.
  const int each = (count + kParts - 1) / kParts, pack = thread % 8, x_row = thread / 8;
  const T* const x = static_cast<const T*>(task.x) +
                     static_cast<int64_t>(column + x_row) * task.ldx + first * kDepth + 8 * pack;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    for (int s = part * each; s < min((part + 1) * each, count); ++s)
#pragma unroll
      for (int i = 0; i < kN / 16; ++i) {
        const int at = x_row + 16 * i;
        const bool there = column + at < all.rows && (first + s) * kDepth + 8 * pack < task.k;
        copy_pack(x_at + static_cast<uint32_t>(s * Shape::kRowBytes + at * 128 +
                                               ((pack ^ (at & 7)) << 4)),
                  there ? x + static_cast<int64_t>(16 * i) * task.ldx + s * kDepth : task.x, there);
      }
    commit_packs();
  }
  float d[Shape::kEach][4];
#pragma unroll
  for (int j = 0; j < Shape::kEach; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) d[j][e] = 0;
  int step = 0, part = 0, next = 0;
  do {
    if (step == next) {
      wait_part(part++);
      next += each;
      publish_shared();
      barrier_of<kGroups>(group);
    }
    wait_barrier(barriers + static_cast<uint32_t>(8 * step), 0);
    const uint32_t w = (w_at + static_cast<uint32_t>(step * kWeightBytes)) & tile::kOwn;
    const uint32_t from = (x_at + static_cast<uint32_t>(step * Shape::kRowBytes)) & tile::kOwn;
    wgmma_begin();
#pragma unroll
    for (uint32_t k = 0; k < kDepth / 16; ++k)
      wgmma_columns<T, kN>(d, describe(w, kSwizzledRows, 2 * k),
                           describe(from, kSwizzledRows, 2 * k));
    wgmma_commit();
    wgmma_wait<1>();
  } while (++step < count);
  wgmma_wait<0>();
  settle(d);

  const int n = row + 16 * (thread / 32) + lane / 4, m = column + lane % 4 * 2;
  const auto act = static_cast<ProductAct>(task.act);
  if (kGroups == 1 && split == 1) {
#pragma unroll
    for (int j = 0; j < Shape::kEach; ++j) {
      activate_values(act, d[j]);
      put_few<T>(task, all.rows, n, m + 8 * j, d[j], lane);
    }
    return;
  }
  // Eight columns j belong to block j % split of the cluster, whose j / split-th they are.
  const uint32_t sums =
      base + static_cast<uint32_t>(shape.sums_at()) + static_cast<uint32_t>(16 * thread);
  const int owned = shape.owned();
#pragma unroll
  for (int j = 0; j < Shape::kEach; ++j) {
    const uint32_t at = sums + static_cast<uint32_t>((piece * owned + j / split) * Shape::kSum);
    push(address_in(static_cast<uint32_t>(j % split), at), d[j]);
  }
  if (split > 1)
    tile::cluster_barrier();
  else
    __syncthreads();
  for (int i = group; i * split + rank < Shape::kEach; i += kGroups) {
    const auto part = [&](int p) {
      return pull(sums + static_cast<uint32_t>((p * owned + i) * Shape::kSum));
    };
    float4 v = plus(part(0), part(1));
    if (all.pieces > 2) v = plus(v, plus(part(2), part(3)));
    if (all.pieces > 4) v = plus(v, plus(plus(part(4), part(5)), plus(part(6), part(7))));
    float y[4] = {v.x, v.y, v.z, v.w};
    activate_values(act, y);
    put_few<T>(task, all.rows, n, m + 8 * (i * split + rank), y, lane);
  }
}

int up(int n, int unit) {
  return (n + unit - 1) / unit;
}
int tiles_of(std::span<const Product> products, int rows, int columns) {
  int tiles = 0;
  for (const Product& p : products) tiles += up(p.n, kHeight) * up(rows, columns);
  return tiles;
}
int depth_of(std::span<const Product> products, int pieces) {
  int depth = 0;
  for (const Product& p : products) depth = std::max(depth, up(up(p.k, kDepth), pieces));
  return depth;
}

/// Calls fn<kN, kGroups>() for those that there are.
template <class Fn>
auto by_shape(int columns, int groups, const Fn& fn) {
  const auto with = [&]<int kN>() {
    return groups == 1   ? fn.template operator()<kN, 1>()
           : groups == 2 ? fn.template operator()<kN, 2>()
                         : fn.template operator()<kN, 4>();
  };
  return columns == 16   ? with.template operator()<16>()
         : columns == 32 ? with.template operator()<32>()
                         : with.template operator()<64>();
}

}  // namespace

bool few_products_fit(std::span<const Product> products, int rows, int pieces,
                      const ProductPlan& plan, int multiprocessors) {
  const int groups = pieces / plan.split, depth = depth_of(products, pieces);
  if (plan.pair != 1 || plan.split * groups != pieces || plan.split > 8) return false;
  if (groups != 1 && groups != 2 && groups != 4) return false;
  if (plan.columns != 16 && plan.columns != 32 && plan.columns != 64) return false;
  if (depth > kMostSteps) return false;
  if (std::ranges::any_of(products, [](const Product& p) { return p.wide || p.n % 8 != 0; }))
    return false;
  const int bytes = by_shape(plan.columns, groups, [&]<int kN, int kGroups>() {
    return FewShape<kN, kGroups>{depth, plan.split}.bytes();
  });
  return bytes <= kMostShared && tiles_of(products, rows, plan.columns) * plan.split <=
                                     multiprocessors * std::min(2, kMostShared / bytes);
}

void launch_few_products(const ProductLaunch& l, std::span<const Product> products,
                         cudaStream_t stream) {
  RWKV_ASSERT(products.size() <= kMostProducts && l.late.products.empty(), products.size(), " and ",
              l.late.products.size(), " products");
  FewTasks all{};
  all.rows = l.rows;
  all.columns = up(l.rows, l.plan.columns);
  all.pieces = l.pieces;
  all.split = l.plan.split;
  all.depth = depth_of(products, l.pieces);
  size_t i = 0;
  for (const Product& p : products) {
    RWKV_ASSERT(p.k % 8 == 0 && p.ldx % 8 == 0 && p.ldw % 8 == 0 && p.ldy % 8 == 0 && !p.wide,
                "product ", p.n, " x ", p.k);
    RWKV_ASSERT(up(p.k, kDepth) >= l.pieces, "k ", p.k, " in ", l.pieces, " pieces");
    RWKV_CUDA(tile::describe_matrix(all.w[i], p.w, p.n, p.k, kHeight, p.ldw));
    all.of[i] = {.x = p.x,
                 .y = p.y,
                 .n = p.n,
                 .k = p.k,
                 .steps = up(p.k, kDepth),
                 .act = static_cast<int>(p.act),
                 .ldx = p.ldx,
                 .ldy = p.ldy};
    all.first[i + 1] = all.first[i] + up(p.n, kHeight) * all.columns;
    ++i;
  }
  for (; i < kMostProducts; ++i) all.first[i + 1] = all.first[i];
  const auto blocks = static_cast<unsigned>(all.first[kMostProducts] * all.split);
  const auto launch = [&]<class T>() {
    return by_shape(l.plan.columns, l.pieces / l.plan.split, [&]<int kN, int kGroups>() {
      const auto kernel = few_products_kernel<T, kN, kGroups>;
      const int bytes = FewShape<kN, kGroups>{all.depth, all.split}.bytes();
      if (const cudaError_t e = cudaFuncSetAttribute(
              kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
          e != cudaSuccess)
        return e;
      return launch_dependent(kernel, blocks, 128 * kGroups, static_cast<size_t>(bytes),
                              static_cast<unsigned>(all.split), l.overlap, stream, all);
    });
  };
  RWKV_CUDA(l.type == DType::kF16 ? launch.template operator()<__half>()
                                  : launch.template operator()<__nv_bfloat16>());
  RWKV_LAUNCHED("products of few rows", stream);
}

}  // namespace rwkv::cuda::decode
