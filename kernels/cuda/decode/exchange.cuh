#pragma once
/// How blocks of one launch hand each other vectors without a barrier: every f32 travels in one
/// 8-byte store together with a tag that no earlier value in that place has had. Readers look until
/// the tag is there; value and tag cannot be seen apart, so nothing has to be ordered.

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
  asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(__float_as_uint(x)),
               "r"(tag)
               : "memory");
}
/// A pair, `offset` bytes behind `from`: sums of addresses of many pairs would take registers.
__device__ __forceinline__ uint4 look(const Tagged* from, uint32_t offset) {
  uint4 x;
  asm volatile(
      "{\n"
      ".reg .u64 at;\n"
      "cvt.u64.u32 at, %5;\n"
      "add.u64 at, at, %4;\n"
      "ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [at];\n"
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
      "cvt.u64.u32 at, %3;\n"
      "add.u64 at, at, %2;\n"
      "ld.volatile.global.v2.u32 {%0, %1}, [at];\n"
      "}"
      : "=r"(x.x), "=r"(x.y)
      : "l"(from), "r"(offset)
      : "memory");
  return x;
}

/// n pairs of values, those offset(i) bytes behind from(i). `wanted`: the pair is needed; the same
/// in all threads. `nap`: nanoseconds to wait between looks. `first_one`: looks are at the first
/// until that is there, as looking costs the L2 cache bandwidth that others need.
template <int n, class From, class Offset>
__device__ __forceinline__ void get_pairs(float2 (&x)[n], uint32_t tag, uint32_t nap,
                                          const bool (&wanted)[n], bool first_one, const From& from,
                                          const Offset& offset) {
  uint4 raw[n];
  for (int looks = 0; first_one; ++looks) {
    raw[0] = look(from(0), offset(0));
    if (((raw[0].y ^ tag) | (raw[0].w ^ tag)) == 0) break;
    if (looks > kMostLooks) __trap();
    if (nap > 0) __nanosleep(nap);
  }
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
