#pragma once
/// Copies to shared memory of what is read once in a step, the weights: first to leave the L2
/// cache, so that what the kernels hand to each other can stay there. (States, which are written as
/// well, got slower by it.)

#include <cuda.h>

#include <cstdint>

namespace rwkv::cuda::decode {

/// Policy of the L2 cache for all of an access: evict first. What createpolicy.fractional makes.
inline constexpr uint64_t kUsedOnce = 0x12f0000000000000;

__device__ __forceinline__ void load_box_once(uint32_t to, const CUtensorMap& map, int x, int y,
                                              uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(x), "r"(y), "r"(barrier), "l"(kUsedOnce)
      : "memory");
}

}  // namespace rwkv::cuda::decode
