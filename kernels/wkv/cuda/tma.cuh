#pragma once
/// Bulk copies of token rows between shared memory and a (B, T, C) vector, by the copy engine.
/// A tile is 16 or 32 tokens of 64 channels as swizzled rows (wgmma.cuh); tokens beyond T arrive as
/// zeros and are not stored.

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace rwkv::cuda {

/// Describes a vector (batch, tokens, channels) of 16-bit elements to the copy engine. channels % 8
/// == 0. `stride`: bytes from one element of the batch to the next, a multiple of 16; 0: without
/// gaps.
inline cudaError_t describe_vector(CUtensorMap& map, void* data, int batch, int tokens,
                                   int channels, int tile_tokens, int64_t stride = 0) {
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
  const auto c = static_cast<cuuint64_t>(channels), t = static_cast<cuuint64_t>(tokens);
  const cuuint64_t sizes[] = {c, t, static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {2 * c, stride > 0 ? static_cast<cuuint64_t>(stride) : 2 * c * t};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(tile_tokens), 1}, steps[] = {1, 1, 1};
  const CUresult result = reinterpret_cast<Encode>(entry)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, data, sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#ifdef __CUDACC__
/// Stores a tile, or adds it to what is there. One thread; the tile is published (wgmma.cuh).
__device__ __forceinline__ void store_tile(const CUtensorMap& map, bool add, uint32_t tile,
                                           int channel, int token, int batch) {
  if (add)
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2, %3}], "
        "[%4];" ::"l"(&map),
        "r"(channel), "r"(token), "r"(batch), "r"(tile)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];" ::
            "l"(&map),
        "r"(channel), "r"(token), "r"(batch), "r"(tile)
        : "memory");
}
__device__ __forceinline__ void commit_tiles() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Makes a barrier in shared memory that one thread's `expect` completes. One thread; others behind
/// a block barrier.
__device__ __forceinline__ void make_barrier(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// Announces the bytes that the loads to come will bring.
__device__ __forceinline__ void expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait_barrier(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "again%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
      "@there bra done%=;\n"
      "bra again%=;\n"
      "done%=:\n"
      "}" ::"r"(barrier),
      "r"(phase)
      : "memory");
}
__device__ __forceinline__ void load_tile(uint32_t tile, const CUtensorMap& map, int channel,
                                          int token, int batch, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(tile),
      "l"(&map), "r"(channel), "r"(token), "r"(batch), "r"(barrier)
      : "memory");
}
/// Brings a tile to the L2 cache.
__device__ __forceinline__ void prefetch_tile(const CUtensorMap& map, int channel, int token,
                                              int batch) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map),
               "r"(channel), "r"(token), "r"(batch)
               : "memory");
}
/// Until this thread's stores have read shared memory.
__device__ __forceinline__ void wait_tiles_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
/// Until they are complete.
__device__ __forceinline__ void wait_tiles() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
#endif

}  // namespace rwkv::cuda
