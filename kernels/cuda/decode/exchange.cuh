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
/// The same for copies: about two seconds.
inline constexpr int64_t kMostClocks = int64_t{1} << 32;

__device__ __forceinline__ void put(Tagged* to, float x, uint32_t tag) {
  asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(__float_as_uint(x)),
               "r"(tag)
               : "memory");
}
__device__ __forceinline__ uint4 look(const Tagged* from) {
  uint4 x;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ uint2 look_one(const Tagged* from) {
  uint2 x;
  asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(x.x), "=r"(x.y)
               : "l"(from)
               : "memory");
  return x;
}

/// n pairs of values, those at at(i); `wanted`: this thread has the pair. `nap`: nanoseconds to
/// wait between looks. Where there are many, looks are at the first until that is there: looking
/// costs the L2 cache bandwidth that others need.
template <int n, class At>
__device__ __forceinline__ void get_pairs(float2 (&x)[n], uint32_t tag, uint32_t nap,
                                          const bool (&wanted)[n], const At& at) {
  uint4 raw[n];
  if (n > 2 && wanted[0])
    for (int looks = 0;; ++looks) {
      raw[0] = look(at(0));
      if (raw[0].y == tag && raw[0].w == tag) break;
      if (looks > kMostLooks) __trap();
      if (nap > 0) __nanosleep(nap);
    }
  for (int looks = 0;; ++looks) {
    bool there = true;
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (wanted[i]) raw[i] = look(at(i));
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (wanted[i]) there = there && raw[i].y == tag && raw[i].w == tag;
    if (there) break;
    if (looks > kMostLooks) __trap();
    if (nap > 0) __nanosleep(nap);
  }
#pragma unroll
  for (int i = 0; i < n; ++i)
    x[i] = wanted[i] ? make_float2(__uint_as_float(raw[i].x), __uint_as_float(raw[i].z))
                     : make_float2(0.0f, 0.0f);
}

__device__ __forceinline__ float get_one(const Tagged* from, uint32_t tag, uint32_t nap) {
  for (int looks = 0;; ++looks) {
    const uint2 x = look_one(from);
    if (x.y == tag) return __uint_as_float(x.x);
    if (looks > kMostLooks) __trap();
    if (nap > 0) __nanosleep(nap);
  }
}

}  // namespace rwkv::cuda::decode
