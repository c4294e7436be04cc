#pragma once
/// Warpgroup products of Hopper: 64 rows, 16 of them per warp, B straight from shared memory.
///
/// Accumulators and A operands in registers are those of four mma.sync tiles (mma.cuh) below each
/// other, one per warp. B comes from
///   token rows of 64 channels, 128 bytes each, 16-byte pieces swizzled (piece ^ (row & 7)): as
///     columns (K = channels), or as K (columns = channels);
///   a Small (wkv7_chunk.cuh) or its transpose.
/// What was written to shared memory with ordinary stores must be published first.

#include "kernels/wkv/cuda/mma.cuh"

namespace rwkv::cuda {

/// Makes this thread's stores to shared memory visible to wgmma of threads behind the next barrier.
__device__ __forceinline__ void publish_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Before the first product that touches registers which ordinary instructions wrote.
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kPending groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from using accumulators ahead of a wait.
template <int kTiles>
__device__ __forceinline__ void settle(float (&d)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

/// Descriptors: address, two strides in units of 16 bytes, kind of swizzle. `offset`: to add to the
/// address, in units of 16 bytes; a constant costs nothing.
__device__ __forceinline__ uint64_t describe(uint32_t address, uint64_t kind, uint32_t offset = 0) {
  const uint32_t low = (address >> 4) + (static_cast<uint32_t>(kind) + offset);
  return (kind & 0xffffffff00000000u) | low;
}
inline constexpr uint64_t kSwizzledRows = (uint64_t{1} << 62) | (uint64_t{64} << 32) | (1u << 16);
inline constexpr uint64_t kSmallAsIs = (uint64_t{8} << 32) | (16u << 16);
inline constexpr uint64_t kSmallTransposed = (uint64_t{16} << 32) | (8u << 16);

// One instruction for either type of elements, which its name holds.
#define RWKV_WGMMA16(TYPE)                                                                  \
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." TYPE "." TYPE                  \
               " {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1, %13;"            \
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), \
                 "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3])                                \
               : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b),                \
                 "n"(static_cast<int>(kTransposed)))
#define RWKV_WGMMA64(TYPE)                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                      \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,"   \
               "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, 1, 1, 1," \
               " 1;"                                                                            \
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]),     \
                 "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]),     \
                 "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]),     \
                 "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),     \
                 "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), "+f"(d[6][0]),     \
                 "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),     \
                 "+f"(d[7][2]), "+f"(d[7][3])                                                   \
               : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "l"(b))

/// d (64 x 16) += a (64 x 16) B; kTransposed: B is stored with its rows as K.
template <bool kTransposed, class E = __nv_bfloat16>
__device__ __forceinline__ void wgmma16(float (&d)[2][4], const Frag& a, uint64_t b) {
  if constexpr (kIsHalf<E>)
    RWKV_WGMMA16("f16");
  else
    RWKV_WGMMA16("bf16");
}

/// d (64 x 64) += a (64 x 16) times 16 token rows.
template <class E = __nv_bfloat16>
__device__ __forceinline__ void wgmma64(float (&d)[8][4], const Frag& a, uint64_t b) {
  if constexpr (kIsHalf<E>)
    RWKV_WGMMA64("f16");
  else
    RWKV_WGMMA64("bf16");
}
#undef RWKV_WGMMA16
#undef RWKV_WGMMA64

/// d (64 x 16) += state (64 x 64, packed) times 16 token rows as columns.
template <class E = __nv_bfloat16>
__device__ __forceinline__ void wgmma_rows(float (&d)[2][4], const Frag (&state)[4],
                                           uint32_t rows) {
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j)
    wgmma16<false, E>(d, state[j], describe(rows, kSwizzledRows, 2 * j));
}
/// d (64 x 64) += left (64 x 16) times 16 token rows.
template <class E = __nv_bfloat16>
__device__ __forceinline__ void wgmma_outer(float (&d)[8][4], const Frag& left, uint32_t rows) {
  wgmma64<E>(d, left, describe(rows, kSwizzledRows));
}
/// d (64 x 16) += left (64 x 16) times the transpose of a Small (kTransposed: the Small itself),
/// which lies `offset` units of 16 bytes behind `smalls`.
template <bool kTransposed, class E = __nv_bfloat16>
__device__ __forceinline__ void wgmma_small(float (&d)[2][4], const Frag& left, uint32_t smalls,
                                            uint32_t offset) {
  wgmma16<kTransposed, E>(d, left,
                          describe(smalls, kTransposed ? kSmallTransposed : kSmallAsIs, offset));
}

/// d (64 x 32) += A B, both in shared memory; kTransposedA, kTransposedB: stored with K as rows.
template <bool kTransposedA, bool kTransposedB>
__device__ __forceinline__ void wgmma32(float (&d)[4][4], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,"
      "%11,%12,%13,%14,%15}, %16, %17, 1, 1, 1, %18, %19;"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3])
      : "l"(a), "l"(b), "n"(static_cast<int>(kTransposedA)), "n"(static_cast<int>(kTransposedB)));
}

}  // namespace rwkv::cuda
