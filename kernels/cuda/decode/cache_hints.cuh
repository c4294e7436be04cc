#pragma once
/// Copies by the copy engine that say what the L2 cache should do with their lines.

#include <cuda.h>

#include <cstdint>

namespace rwkv::cuda::decode {

/// Policies for all of an access, as createpolicy.fractional makes them.
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000, kEvictLast = 0x14f0000000000000;

/// To shared memory, of what nobody reads again: it makes room for what kernels hand to each other.
__device__ __forceinline__ void load_box_once(uint32_t to, const CUtensorMap& map, int x, int y,
                                              uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "l"(kEvictFirst)
      : "memory");
}
/// From shared memory, to stay while much else goes through the cache.
__device__ __forceinline__ void store_box_kept(const CUtensorMap& map, uint32_t from, int x,
                                               int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group.L2::cache_hint "
      "[%0, {%1, %2}], [%3], %4;" ::"l"(&map),
      "r"(x), "r"(y), "r"(from), "l"(kEvictLast)
      : "memory");
}

}  // namespace rwkv::cuda::decode
