#pragma once
/// A matrix product for Hopper with an epilogue of our own: C (m, n) = A (m, k) B, bf16 or
/// (forward) f16, sums in f32 in one fixed order.
///
/// A block makes tiles of 128 x 256 with two warpgroups that multiply (64 x 256 each, wgmma) and a
/// thread that has the copy engine fill a ring of stages of 64 k. The two blocks of a cluster work
/// on tiles below each other and share B: each loads half of it for both. Blocks stay for many
/// tiles. The second warpgroup starts a little behind the first, so that the epilogue of one meets
/// products of the other.
///
/// Rows and columns that a tile has too many arrive as zeros and are not stored. Limited by the
/// tensor cores (and the card's power): tools/gpu/gemm_notes.md.

#include <algorithm>

#include "kernels/wkv/cuda/tma.cuh"
#include "kernels/wkv/cuda/wgmma.cuh"

namespace rwkv::cuda::tile {

inline constexpr int kRows = 128, kColumns = 256, kDepth = 64, kStages = 4, kCluster = 2;
inline constexpr int kBytesA = kRows * kDepth * 2, kBytesB = kColumns * kDepth * 2;
inline constexpr int kStageBytes = kBytesA + kBytesB;
/// Results on their way out: per warpgroup two slots of 64 x 64.
inline constexpr int kSlotBytes = 64 * 64 * 2;
inline constexpr int kBarriersAt = kStages * kStageBytes + 4 * kSlotBytes;
inline constexpr int kSharedBytes = kBarriersAt + 16 * kStages + 1024;  // 1024: alignment
static_assert(kSharedBytes <= 232448);
inline constexpr int kThreads = 384;
/// Stages that the first warpgroup has before the second one starts.
inline constexpr int kAhead = 2;
/// Stages that are still to come when a tile's y is asked for.
inline constexpr int kEarly = 3;
inline constexpr int kGroup = 8;  ///< pairs of tiles below each other that share columns of B in L2

/// What a launch works on; the matrices are in the tensor maps.
struct Shape {
  int m, n, k;
  const uint16_t* factor;  ///< backward: y (m, n), bf16
  __host__ __device__ int row_pairs() const {
    return (m + kCluster * kRows - 1) / (kCluster * kRows);
  }
  __host__ __device__ int column_tiles() const { return (n + kColumns - 1) / kColumns; }
  __host__ __device__ int pairs() const { return row_pairs() * column_tiles(); }
};

/// Pair number i: kGroup pairs of rows share their columns of B before the next columns' turn.
struct Place {
  int row, column;
  __device__ __forceinline__ Place(const Shape& s, int i, int rank) {
    const int columns = s.column_tiles(), group = i / (kGroup * columns);
    const int first = group * kGroup, rest = i - first * columns;
    const int rows = min(kGroup, s.row_pairs() - first);
    column = rest / rows * kColumns;
    row = ((first + rest % rows) * kCluster + rank) * kRows;
  }
};

__device__ __forceinline__ void make_barrier_of(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Arrives at the same barrier of a block of the cluster. Of the narrow scope: only the tensor
/// cores have read what is given back, and they are done; the wide one would cost a fence of all
/// memory.
__device__ __forceinline__ void arrive_at(uint32_t barrier, uint32_t block) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier),
      "r"(block)
      : "memory");
}
__device__ __forceinline__ void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
__device__ __forceinline__ void load_box(uint32_t to, const CUtensorMap& map, int x, int y,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
/// To the same place in all blocks of the cluster.
__device__ __forceinline__ void load_box_for_all(uint32_t to, const CUtensorMap& map, int x, int y,
                                                 uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "h"(static_cast<uint16_t>((1 << kCluster) - 1))
      : "memory");
}
__device__ __forceinline__ void store_box(const CUtensorMap& map, uint32_t from, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
          &map),
      "r"(x), "r"(y), "r"(from)
      : "memory");
}
/// Until at most one of this thread's stores still reads shared memory.
__device__ __forceinline__ void wait_all_but_one_read() {
  asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
}
__device__ __forceinline__ void warpgroup_barrier(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}
/// One warpgroup waits until the other has arrived.
__device__ __forceinline__ void warpgroups_barrier_wait() {
  asm volatile("bar.sync 3, 256;" ::: "memory");
}
__device__ __forceinline__ void warpgroups_barrier_arrive() {
  asm volatile("bar.arrive 3, 256;" ::: "memory");
}
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t x0, uint32_t x1,
                                               uint32_t x2, uint32_t x3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// d (64 x 256) = or += A B, both in shared memory, A stored with K as columns; kTransposedB: B
/// stored with K as rows. `add`: 0 or 1.
#define RWKV_WGMMA256(TYPE)                                                                       \
  asm volatile(                                                                                   \
      "{\n"                                                                                       \
      ".reg .pred add;\n"                                                                         \
      "setp.ne.b32 add, %130, 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE                                \
      " {"                                                                                        \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"            \
      "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,"          \
      "%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,"          \
      "%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,"          \
      "%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,"             \
      "%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,"          \
      "%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"                                    \
      "}, %128, %129, add, 1, 1, 0, %131;\n"                                                      \
      "}"                                                                                         \
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), \
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), \
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), \
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), \
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), \
        "+f"(d[7][2]), "+f"(d[7][3]), "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]), \
        "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]), "+f"(d[10][0]),               \
        "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]), "+f"(d[11][0]), "+f"(d[11][1]),           \
        "+f"(d[11][2]), "+f"(d[11][3]), "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]),           \
        "+f"(d[12][3]), "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),           \
        "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]), "+f"(d[15][0]),           \
        "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3]), "+f"(d[16][0]), "+f"(d[16][1]),           \
        "+f"(d[16][2]), "+f"(d[16][3]), "+f"(d[17][0]), "+f"(d[17][1]), "+f"(d[17][2]),           \
        "+f"(d[17][3]), "+f"(d[18][0]), "+f"(d[18][1]), "+f"(d[18][2]), "+f"(d[18][3]),           \
        "+f"(d[19][0]), "+f"(d[19][1]), "+f"(d[19][2]), "+f"(d[19][3]), "+f"(d[20][0]),           \
        "+f"(d[20][1]), "+f"(d[20][2]), "+f"(d[20][3]), "+f"(d[21][0]), "+f"(d[21][1]),           \
        "+f"(d[21][2]), "+f"(d[21][3]), "+f"(d[22][0]), "+f"(d[22][1]), "+f"(d[22][2]),           \
        "+f"(d[22][3]), "+f"(d[23][0]), "+f"(d[23][1]), "+f"(d[23][2]), "+f"(d[23][3]),           \
        "+f"(d[24][0]), "+f"(d[24][1]), "+f"(d[24][2]), "+f"(d[24][3]), "+f"(d[25][0]),           \
        "+f"(d[25][1]), "+f"(d[25][2]), "+f"(d[25][3]), "+f"(d[26][0]), "+f"(d[26][1]),           \
        "+f"(d[26][2]), "+f"(d[26][3]), "+f"(d[27][0]), "+f"(d[27][1]), "+f"(d[27][2]),           \
        "+f"(d[27][3]), "+f"(d[28][0]), "+f"(d[28][1]), "+f"(d[28][2]), "+f"(d[28][3]),           \
        "+f"(d[29][0]), "+f"(d[29][1]), "+f"(d[29][2]), "+f"(d[29][3]), "+f"(d[30][0]),           \
        "+f"(d[30][1]), "+f"(d[30][2]), "+f"(d[30][3]), "+f"(d[31][0]), "+f"(d[31][1]),           \
        "+f"(d[31][2]), "+f"(d[31][3])                                                            \
      : "l"(a), "l"(b), "r"(add), "n"(static_cast<int>(kTransposedB)))
template <bool kTransposedB, class E>
__device__ __forceinline__ void wgmma256(float (&d)[32][4], uint64_t a, uint64_t b, int add) {
  if constexpr (kIsHalf<E>)
    RWKV_WGMMA256("f16");
  else
    RWKV_WGMMA256("bf16");
}
#undef RWKV_WGMMA256

/// 64 channels of B (n rows of k), or with kTransposedB 16 rows k of 64 columns each, the next 64
/// columns kDepth rows further.
template <bool kTransposedB>
inline constexpr uint64_t kLayoutB = kTransposedB ? (uint64_t{1} << 62) | (uint64_t{64} << 32) |
                                                        (uint64_t{kDepth * 128 / 16} << 16)
                                                  : kSwizzledRows;

/// Position in the ring of stages.
struct Ring {
  uint32_t stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

/// Descriptors have no place for the number of the block in the cluster, which addresses of shared
/// memory carry above these bits.
inline constexpr uint32_t kOwn = 0x3ffff;

struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t a(uint32_t stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ uint32_t b(uint32_t stage) const { return a(stage) + kBytesA; }
  __device__ __forceinline__ uint32_t slot(int group, int i) const {
    return base + kStages * kStageBytes + (2 * group + i) * kSlotBytes;
  }
  __device__ __forceinline__ uint32_t full(uint32_t stage) const {
    return base + kBarriersAt + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty(uint32_t stage) const {
    return full(stage) + 8 * kStages;
  }
};

/// One thread.
template <bool kTransposedB>
__device__ __forceinline__ void fill_ring(const CUtensorMap& map_a, const CUtensorMap& map_b,
                                          const Shape& s, const Shared& shared, int cluster,
                                          int clusters, int rank) {
  Ring ring;
  const int steps = (s.k + kDepth - 1) / kDepth;
  for (int i = cluster; i < s.pairs(); i += clusters) {
    const Place place(s, i, rank);
    for (int step = 0; step < steps; ++step) {
      const int k = step * kDepth;
      wait_barrier(shared.empty(ring.stage), ring.phase ^ 1);
      const uint32_t full = shared.full(ring.stage), b = shared.b(ring.stage);
      expect(full, kStageBytes);
      load_box(shared.a(ring.stage), map_a, k, place.row, full);
      constexpr int kPart = kColumns / kCluster;  // columns of B that each block loads
      if constexpr (kTransposedB) {
#pragma unroll
        for (int j = 0; j < kPart / 64; ++j) {
          const int at = kPart / 64 * rank + j;
          load_box_for_all(b + at * (kDepth * 128), map_b, place.column + 64 * at, k, full);
        }
      } else {
        load_box_for_all(b + rank * (kBytesB / kCluster), map_b, k, place.column + rank * kPart,
                         full);
      }
      ring.next();
    }
  }
}

/// y of a warp's 16 rows: for each of 4 times 64 columns, 16 bytes of every fourth row.
struct Factors {
  uint4 raw[4][4];
  __device__ __forceinline__ void fetch(const Shape& s, int row, int column) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int r = row + lane / 8, c = column + 8 * (lane % 8);
    const uint16_t* from = s.factor + static_cast<int64_t>(r) * s.n + c;
#pragma unroll
    for (int t = 0; t < 4; ++t)
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        uint4& w = raw[part][t];
        w = make_uint4(0, 0, 0, 0);
        if (r + 4 * t < s.m && c + 64 * part < s.n)
          asm volatile("ld.global.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];"
                       : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                       : "l"(from + static_cast<int64_t>(4 * t) * s.n + 64 * part));
      }
  }
  /// To the warp's rows (128 bytes each, swizzled) of a slot.
  __device__ __forceinline__ void put(int part, uint32_t rows) const {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t t = 0; t < 4; ++t) {
      const uint32_t row = 4 * t + lane / 8;
      const uint4& w = raw[part][t];
      asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(rows + row * 128 +
                                                                 (((lane ^ row) & 7) << 4)),
                   "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w)
                   : "memory");
    }
    __syncwarp();
  }
};

/// max(x, 0)^2; a NaN stays one.
__device__ __forceinline__ float squared_relu(float x) {
  float p;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(p) : "f"(x), "f"(0.0f));
  return p * p;
}
__device__ __forceinline__ float root(float x) {
  float r;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}

template <bool kBackward, class E>
__device__ __forceinline__ void multiply(const CUtensorMap& map_c, const Shape& s,
                                         const Shared& shared, int cluster, int clusters,
                                         int rank) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1, warp = thread / 32;
  const int steps = (s.k + kDepth - 1) / kDepth;
  float d[32][4];
  Ring ring;
  // The second warpgroup starts when the first has had `ahead` stages.
  int ahead = min(kAhead, steps) - 1;
  if (group == 1 && ahead >= 0 && cluster < s.pairs()) warpgroups_barrier_wait();
  const auto release = [&](uint32_t stage) {
    if (lane < kCluster) arrive_at(shared.empty(stage), static_cast<uint32_t>(lane));
  };
  for (int i = cluster; i < s.pairs(); i += clusters) {
    const Place place(s, i, rank);
    const auto walk = [&](int from, int to) {
      for (int step = from; step < to; ++step) {
        wait_barrier(shared.full(ring.stage), ring.phase);
        const uint32_t a = (shared.a(ring.stage) + group * (64 * 128)) & kOwn;
        const uint32_t b = shared.b(ring.stage) & kOwn;
        wgmma_begin();
#pragma unroll
        for (uint32_t k = 0; k < kDepth / 16; ++k)
          wgmma256<kBackward, E>(d, describe(a, kSwizzledRows, 2 * k),
                                 describe(b, kLayoutB<kBackward>, (kBackward ? 128 : 2) * k),
                                 step > 0 || k > 0 ? 1 : 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (group == 0 && step == ahead) {
          warpgroups_barrier_arrive();
          ahead = -1;
        }
        if (step > 0) release(ring.stage == 0 ? kStages - 1 : ring.stage - 1);
        ring.next();
      }
    };
    Factors y;
    if constexpr (kBackward) {
      const int early = max(0, steps - kEarly);
      walk(0, early);
      y.fetch(s, place.row + 64 * group + 16 * warp, place.column);
      walk(early, steps);
    } else {
      walk(0, steps);
    }
    wgmma_wait<0>();
    settle(d);
    release(ring.stage == 0 ? kStages - 1 : ring.stage - 1);

#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const uint32_t slot = shared.slot(group, part % 2);
      if (thread == 0) wait_all_but_one_read();
      warpgroup_barrier(group);
      if constexpr (kBackward) y.put(part, slot + 16 * warp * 128);
      const uint32_t row = slot + (16 * warp + (lane & 15)) * 128;
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        const uint32_t at = row + (((j + lane / 16) ^ (lane & 7)) << 4);
        uint32_t out[4];
        Frag f;
        if constexpr (kBackward) f = load_frag(at);
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float(&x)[4] = d[8 * part + j + q / 2];
          const float first = x[q % 2 * 2], second = x[q % 2 * 2 + 1];
          if constexpr (kBackward) {
            out[q] = pack((first + first) * root(low_half(f.x[q])),
                          (second + second) * root(high_half(f.x[q])));
          } else {
            out[q] = pack<E>(squared_relu(first), squared_relu(second));
          }
        }
        store_matrices(at, out[0], out[1], out[2], out[3]);
      }
      publish_shared();
      warpgroup_barrier(group);
      if (thread == 0) {
        store_box(map_c, slot, place.column + 64 * part, place.row + 64 * group);
        commit_tiles();
      }
    }
  }
  if (thread == 0) wait_tiles();
}

template <bool kBackward, class E>
__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads, 1)
    gemm_kernel(const __grid_constant__ CUtensorMap map_a,
                const __grid_constant__ CUtensorMap map_b,
                const __grid_constant__ CUtensorMap map_c, const Shape s) {
  extern __shared__ uint8_t raw_shared[];
  const Shared shared{(shared_address(raw_shared) + 1023) & ~1023u};
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  const int cluster = static_cast<int>(blockIdx.x) / kCluster;
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) {
      make_barrier_of(shared.full(i), 1);
      make_barrier_of(shared.empty(i), kCluster * 8);  // every warp of the warpgroups
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_barrier();
  if (threadIdx.x < 128) {
    give_registers<40>();
    if (threadIdx.x == 0) fill_ring<kBackward>(map_a, map_b, s, shared, cluster, clusters, rank);
  } else {
    take_registers<232>();
    multiply<kBackward, E>(map_c, s, shared, cluster, clusters, rank);
  }
  __syncwarp();
  cluster_barrier();  // the other block may still write to this one's memory
}

/// A row-major matrix of 16-bit elements as boxes of 64 columns of swizzled rows. `pitch`: elements
/// from row to row, a multiple of 8; 0: as many as there are columns.
inline cudaError_t describe_matrix(CUtensorMap& map, const void* data, int64_t rows,
                                   int64_t columns, int box_rows, int64_t pitch = 0) {
  using Encode =
      CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                   const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                   CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                             12000, cudaEnableDefault, &found);
      e != cudaSuccess)
    return e;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {2 * static_cast<cuuint64_t>(pitch > 0 ? pitch : columns)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult result = reinterpret_cast<Encode>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/// c (m, n) = max(a b^T, 0)^2 with b (n, k), or with kBackward = 2 sqrt(factor) (a b) with b (k,
/// n).
template <bool kBackward, class E = __nv_bfloat16>
cudaError_t run(const void* a, const void* b, void* c, const void* factor, int64_t m, int64_t n,
                int64_t k, int multiprocessors, cudaStream_t stream) {
  static_assert(!(kBackward && kIsHalf<E>));
  CUtensorMap map_a, map_b, map_c;
  if (const cudaError_t e = describe_matrix(map_a, a, m, k, kRows); e != cudaSuccess) return e;
  if (const cudaError_t e = describe_matrix(map_b, b, kBackward ? k : n, kBackward ? n : k,
                                            kBackward ? kDepth : kColumns / kCluster);
      e != cudaSuccess)
    return e;
  if (const cudaError_t e = describe_matrix(map_c, c, m, n, 64); e != cudaSuccess) return e;
  if (const cudaError_t e = cudaFuncSetAttribute(
          gemm_kernel<kBackward, E>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
      e != cudaSuccess)
    return e;
  const Shape s{static_cast<int>(m), static_cast<int>(n), static_cast<int>(k),
                static_cast<const uint16_t*>(factor)};
  const int clusters = std::min(s.pairs(), multiprocessors / kCluster);
  gemm_kernel<kBackward, E>
      <<<static_cast<unsigned>(clusters * kCluster), kThreads, kSharedBytes, stream>>>(map_a, map_b,
                                                                                       map_c, s);
  return cudaGetLastError();
}

}  // namespace rwkv::cuda::tile
