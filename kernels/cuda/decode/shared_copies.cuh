#pragma once
/// Copies to shared memory by threads, 16 bytes at a time, that nobody waits for at first.

#include <cstdint>

namespace rwkv::cuda::decode {

/// Zeros where nothing is `there`; `from` must be a valid address all the same.
__device__ __forceinline__ void copy_pack(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_packs() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until at most kPending groups of this thread's copies are on their way.
template <int kPending>
__device__ __forceinline__ void wait_packs() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace rwkv::cuda::decode
