#pragma once
/// How blocks of one launch hand each other vectors without a barrier: every f32 travels in one
/// 8-byte store together with a tag that no earlier value in that place has had. Readers look until
/// the tag is there; value and tag cannot be seen apart (one scalar of 64 bits, not a vector of
/// two), so nothing has to be ordered.

#include <cuda_runtime.h>

#include <cstdint>

namespace rwkv::cuda::decode {

/// One value on its way.
struct alignas(8) Tagged {
  uint32_t bits, tag;
};

/// Looks at memory this often before it gives up: a launch that cannot finish ends with an error.
inline constexpr int kMostLooks = 1 << 21;

/// The same for copies: the hardware waits some microseconds each time.
inline constexpr int kMostWaits = 1 << 19;

__device__ __forceinline__ void put(Tagged* to, float x, uint32_t tag) {
  asm volatile(
      "{\n"
      ".reg .b64 both;\n"
      "mov.b64 both, {%1, %2};\n"
      "st.relaxed.gpu.global.b64 [%0], both;\n"
      "}" ::"l"(to),
      "r"(__float_as_uint(x)), "r"(tag)
      : "memory");
}
/// A pair, `offset` bytes behind `from`: sums of addresses of many pairs would take registers.
__device__ __forceinline__ uint4 look(const Tagged* from, uint32_t offset) {
  uint4 x;
  asm volatile(
      "{\n"
      ".reg .u64 at;\n"
      ".reg .b64 one, two;\n"
      "cvt.u64.u32 at, %5;\n"
      "add.u64 at, at, %4;\n"
      "ld.relaxed.gpu.global.v2.b64 {one, two}, [at];\n"
      "mov.b64 {%0, %1}, one;\n"
      "mov.b64 {%2, %3}, two;\n"
      "}"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(from), "r"(offset)
      : "memory");
  return x;
}
__device__ __forceinline__ uint2 look_one(const Tagged* from, uint32_t offset) {
  uint2 x;
  asm volatile(
      "{\n"
      ".reg .u64 at;\n"
      ".reg .b64 one;\n"
      "cvt.u64.u32 at, %3;\n"
      "add.u64 at, at, %2;\n"
      "ld.relaxed.gpu.global.b64 one, [at];\n"
      "mov.b64 {%0, %1}, one;\n"
      "}"
      : "=r"(x.x), "=r"(x.y)
      : "l"(from), "r"(offset)
      : "memory");
  return x;
}

/// The warp's first lane looks until a value is there: looking costs the L2 cache bandwidth that
/// everybody's values need, so the other lanes begin when theirs are likely to have come. `nap`:
/// nanoseconds to wait between looks.
__device__ __forceinline__ void wait_for_one(const Tagged* from, uint32_t offset, uint32_t tag,
                                             uint32_t nap) {
  if (threadIdx.x % 32 == 0)
    for (int looks = 0; look_one(from, offset).y != tag; ++looks) {
      if (looks > kMostLooks) __trap();
      if (nap > 0) __nanosleep(nap);
    }
  __syncwarp();
}

/// n pairs of values, those offset(i) bytes behind from(i). `wanted`: the pair is needed; the same
/// in all threads, and so is the first one.
template <int n, class From, class Offset>
__device__ __forceinline__ void get_pairs(float2 (&x)[n], uint32_t tag, uint32_t nap,
                                          const bool (&wanted)[n], const From& from,
                                          const Offset& offset) {
  wait_for_one(from(0), offset(0), tag, nap);
  uint4 raw[n];
  for (int looks = 0;; ++looks) {
    uint32_t other = 0;
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (wanted[i]) raw[i] = look(from(i), offset(i));
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (wanted[i]) other |= (raw[i].y ^ tag) | (raw[i].w ^ tag);
    if (other == 0) break;
    if (looks > kMostLooks) __trap();
    if (nap > 0) __nanosleep(nap);
  }
#pragma unroll
  for (int i = 0; i < n; ++i)
    x[i] = wanted[i] ? make_float2(__uint_as_float(raw[i].x), __uint_as_float(raw[i].z))
                     : make_float2(0.0f, 0.0f);
}

}  // namespace rwkv::cuda::decode
