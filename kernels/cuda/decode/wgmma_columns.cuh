#pragma once
/// Warpgroup products with both operands in shared memory, K-major, swizzled rows of 128 bytes, for
/// any of some numbers of columns: d (64 x kN) += A (64 x 16) B (16 x kN), f16 or bf16.

#include <type_traits>

#include <cuda_fp16.h>

#include "kernels/wkv/cuda/wgmma.cuh"

namespace rwkv::cuda::decode {

// Names of the accumulators, and the accumulators, eight columns a part.
#define RWKV_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define RWKV_NAMES_32 \
  RWKV_NAMES_16       \
  ",%8,%9,%10,%11,%12,%13,%14,%15"
#define RWKV_NAMES_64 \
  RWKV_NAMES_32       \
  ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define RWKV_NAMES_128                                               \
  RWKV_NAMES_64                                                      \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define RWKV_NAMES_160 \
  RWKV_NAMES_128       \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define RWKV_NAMES_240                                                           \
  RWKV_NAMES_160                                                                 \
  ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"             \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111" \
  ",%112,%113,%114,%115,%116,%117,%118,%119"
#define RWKV_NAMES_256 \
  RWKV_NAMES_240       \
  ",%120,%121,%122,%123,%124,%125,%126,%127"
#define RWKV_PART(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define RWKV_PARTS_16 RWKV_PART(0), RWKV_PART(1)
#define RWKV_PARTS_32 RWKV_PARTS_16, RWKV_PART(2), RWKV_PART(3)
#define RWKV_PARTS_64 RWKV_PARTS_32, RWKV_PART(4), RWKV_PART(5), RWKV_PART(6), RWKV_PART(7)
#define RWKV_PARTS_128                                                                    \
  RWKV_PARTS_64, RWKV_PART(8), RWKV_PART(9), RWKV_PART(10), RWKV_PART(11), RWKV_PART(12), \
      RWKV_PART(13), RWKV_PART(14), RWKV_PART(15)
#define RWKV_PARTS_160 RWKV_PARTS_128, RWKV_PART(16), RWKV_PART(17), RWKV_PART(18), RWKV_PART(19)
#define RWKV_PARTS_240                                                                       \
  RWKV_PARTS_160, RWKV_PART(20), RWKV_PART(21), RWKV_PART(22), RWKV_PART(23), RWKV_PART(24), \
      RWKV_PART(25), RWKV_PART(26), RWKV_PART(27), RWKV_PART(28), RWKV_PART(29)
#define RWKV_PARTS_256 RWKV_PARTS_240, RWKV_PART(30), RWKV_PART(31)
#define RWKV_WGMMA(n, type, a_at, b_at)                                                            \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" RWKV_NAMES_##n \
               "}, " a_at ", " b_at ", 1, 1, 1, 0, 0;"                                             \
               : RWKV_PARTS_##n                                                                    \
               : "l"(a), "l"(b))
#define RWKV_WGMMA_OF(n, a_at, b_at)         \
  if constexpr (kN == n) {                   \
    if constexpr (std::is_same_v<T, __half>) \
      RWKV_WGMMA(n, "f16", a_at, b_at);      \
    else                                     \
      RWKV_WGMMA(n, "bf16", a_at, b_at);     \
  }

/// `a`, `b`: descriptors (describe, kSwizzledRows).
template <class T, int kN>
__device__ __forceinline__ void wgmma_columns(float (&d)[kN / 8][4], uint64_t a, uint64_t b) {
  RWKV_WGMMA_OF(16, "%8", "%9")
  RWKV_WGMMA_OF(32, "%16", "%17")
  RWKV_WGMMA_OF(64, "%32", "%33")
  RWKV_WGMMA_OF(128, "%64", "%65")
  RWKV_WGMMA_OF(160, "%80", "%81")
  RWKV_WGMMA_OF(240, "%120", "%121")
  RWKV_WGMMA_OF(256, "%128", "%129")
  if constexpr (kN == 320) {  // more than an instruction has
    constexpr int kHalf = kN / 2;
    wgmma_columns<T, kHalf>(*reinterpret_cast<float(*)[kHalf / 8][4]>(&d[0]), a, b);
    wgmma_columns<T, kHalf>(*reinterpret_cast<float(*)[kHalf / 8][4]>(&d[kHalf / 8]), a,
                            b + (kHalf * 128 >> 4));
  }
}

#undef RWKV_NAMES_16
#undef RWKV_PARTS_16
#undef RWKV_NAMES_32
#undef RWKV_PARTS_32
#undef RWKV_NAMES_64
#undef RWKV_PARTS_64
#undef RWKV_NAMES_128
#undef RWKV_PARTS_128
#undef RWKV_NAMES_160
#undef RWKV_PARTS_160
#undef RWKV_NAMES_240
#undef RWKV_PARTS_240
#undef RWKV_NAMES_256
#undef RWKV_PARTS_256
#undef RWKV_PART
#undef RWKV_WGMMA
#undef RWKV_WGMMA_OF

}  // namespace rwkv::cuda::decode
