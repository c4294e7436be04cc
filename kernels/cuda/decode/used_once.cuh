#pragma once
/// Copies to and from shared memory of what is read or written once in a step, weights and states:
/// first to leave the L2 cache, so that what the kernels hand to each other can stay there.

#include <cuda.h>

#include <cstdint>

namespace rwkv::cuda::decode {

/// Policy of the L2 cache for all of an access: evict first. What createpolicy.fractional makes.
inline constexpr uint64_t kUsedOnce = 0x12f0000000000000;

__device__ __forceinline__ void load_tile_once(uint32_t tile, const CUtensorMap& map, int x, int y,
                                               int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(tile),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(barrier), "l"(kUsedOnce)
      : "memory");
}
__device__ __forceinline__ void store_tile_once(const CUtensorMap& map, uint32_t tile, int x, int y,
                                                int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group.L2::cache_hint "
      "[%0, {%1, %2, %3}], [%4], %5;" ::"l"(&map),
      "r"(x), "r"(y), "r"(z), "r"(tile), "l"(kUsedOnce)
      : "memory");
}
__device__ __forceinline__ void load_box_once(uint32_t to, const CUtensorMap& map, int x, int y,
                                              uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "l"(kUsedOnce)
      : "memory");
}

}  // namespace rwkv::cuda::decode
