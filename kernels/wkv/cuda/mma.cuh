#pragma once
/// Warp-level matrix pieces: ldmatrix, mma.sync m16n8k16 (bf16 or f16, fp32 accumulate), packing.
/// E: type of the operands' elements, __nv_bfloat16 or __half.
///
/// Fragment layouts, lane = 4 g + q:
///   accumulator (16 x 8)   c[0..1]: row g, columns 2q, 2q+1;   c[2..3]: row g + 8
///   A operand (16 x 16)    x[0]: row g, k 2q..; x[1]: row g + 8; x[2], x[3]: the same, k + 8
///   B operand (16 x 8)     b0: k 2q.., column g;   b1: k + 8
/// So two neighbouring accumulators pack into one A operand. ldmatrix gives four 8 x 8 tiles of a
/// (16 rows x 16 columns) block of shared memory, in an order that the lanes' addresses choose:
///   order "down" (0,0) (8,0) (0,8) (8,8): A operand; transposed, B operands (x0, x1) and (x2, x3)
///     of columns 0.. and 8.., with the block's rows as k
///   order "across" (0,0) (0,8) (8,0) (8,8): B operands (x0, x1) and (x2, x3) whose columns are the
///     block's rows; transposed, the A operand of the transposed block
/// Thus a B operand is always an aligned register pair, and no register is moved.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace rwkv::cuda {

struct Frag {
  uint32_t x[4];
};

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ Frag load_frag(uint32_t address) {
  Frag f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(address)
               : "memory");
  return f;
}

__device__ __forceinline__ Frag load_frag_t(uint32_t address) {
  Frag f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f.x[0]), "=r"(f.x[1]), "=r"(f.x[2]), "=r"(f.x[3])
               : "r"(address)
               : "memory");
  return f;
}

template <class E>
inline constexpr bool kIsHalf = std::is_same_v<E, __half>;

template <class E = __nv_bfloat16>
__device__ __forceinline__ void mma(float (&d)[4], const Frag& a, uint32_t b0, uint32_t b1) {
  if constexpr (kIsHalf<E>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}

/// d (16 x 16) += a (16 x 16) b, b as its two B operands.
template <class E = __nv_bfloat16>
__device__ __forceinline__ void mma16(float (&d)[2][4], const Frag& a, const Frag& b) {
  mma<E>(d[0], a, b.x[0], b.x[1]);
  mma<E>(d[1], a, b.x[2], b.x[3]);
}

template <class E = __nv_bfloat16>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t d;
  if constexpr (kIsHalf<E>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
template <class E = __nv_bfloat16>
__device__ __forceinline__ float low_half(uint32_t x) {
  if constexpr (kIsHalf<E>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(x)));
  else
    return __uint_as_float(x << 16);
}
template <class E = __nv_bfloat16>
__device__ __forceinline__ float high_half(uint32_t x) {
  if constexpr (kIsHalf<E>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(x >> 16)));
  else
    return __uint_as_float(x & 0xffff0000u);
}

/// What packing lost: the same two numbers minus their rounded values.
template <class E = __nv_bfloat16>
__device__ __forceinline__ uint32_t pack_rest(float low, float high, uint32_t packed) {
  return pack<E>(low - low_half<E>(packed), high - high_half<E>(packed));
}

/// Two neighbouring accumulators as an A operand.
template <class E = __nv_bfloat16>
__device__ __forceinline__ Frag pack_frag(const float (&left)[4], const float (&right)[4]) {
  return {{pack<E>(left[0], left[1]), pack<E>(left[2], left[3]), pack<E>(right[0], right[1]),
           pack<E>(right[2], right[3])}};
}
template <class E = __nv_bfloat16>
__device__ __forceinline__ Frag pack_frag_rest(const float (&left)[4], const float (&right)[4],
                                               const Frag& f) {
  return {{pack_rest<E>(left[0], left[1], f.x[0]), pack_rest<E>(left[2], left[3], f.x[1]),
           pack_rest<E>(right[0], right[1], f.x[2]), pack_rest<E>(right[2], right[3], f.x[3])}};
}

__device__ __forceinline__ uint32_t transpose8(uint32_t x) {
  uint32_t d;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(x));
  return d;
}

__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t x, uint32_t y) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(x), "r"(y));
  return d;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
  return d;
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t x) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}
/// Four 8 x 8 tiles, each written transposed.
__device__ __forceinline__ void store_frag_t(uint32_t address, const Frag& f) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address),
               "r"(f.x[0]), "r"(f.x[1]), "r"(f.x[2]), "r"(f.x[3])
               : "memory");
}

/// 16 bytes from global to shared memory, zeros when `valid` is false.
__device__ __forceinline__ void copy_async16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Where this lane stores its part of a 16 x 16 tile of bf16 rows in memory: element offsets of its
/// rows g and g + 8.
struct RowPlace {
  int64_t upper, lower;
  bool has_upper, has_lower;
  __device__ RowPlace(int64_t at, int64_t stride, int rows) {
    const int lane = static_cast<int>(threadIdx.x) & 31, row = lane >> 2;
    upper = at + row * stride + (lane & 2) * 2 + (lane & 1) * 8;
    lower = upper + 8 * stride;
    has_upper = row < rows;
    has_lower = row + 8 < rows;
  }
};

/// Stores a 16 x 16 tile as bf16 rows. Words: x[0] row g, columns 2q..; x[1] row g + 8; x[2], x[3]
/// the same, columns + 8. Neighbour lanes swap halves so that each row goes out as a whole sector.
__device__ __forceinline__ void store_rows(__nv_bfloat16* to, const RowPlace& at, const Frag& f) {
  const bool odd = (threadIdx.x & 1u) != 0;
  const uint32_t other0 = __shfl_xor_sync(0xffffffffu, odd ? f.x[0] : f.x[2], 1);
  const uint32_t other1 = __shfl_xor_sync(0xffffffffu, odd ? f.x[1] : f.x[3], 1);
  // Inline, or the compiler turns each into two stores of half a sector.
  const auto put = [](__nv_bfloat16* row, uint32_t x, uint32_t y) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(row), "r"(x), "r"(y) : "memory");
  };
  const uint32_t upper0 = odd ? other0 : f.x[0], upper1 = odd ? f.x[2] : other0;
  const uint32_t lower0 = odd ? other1 : f.x[1], lower1 = odd ? f.x[3] : other1;
  if (at.has_upper) put(to + at.upper, upper0, upper1);
  if (at.has_lower) put(to + at.lower, lower0, lower1);
}

/// The same, added to what is there.
__device__ __forceinline__ void add_rows(__nv_bfloat16* to, const RowPlace& at, const Frag& f) {
  const bool odd = (threadIdx.x & 1u) != 0;
  const uint32_t other0 = __shfl_xor_sync(0xffffffffu, odd ? f.x[0] : f.x[2], 1);
  const uint32_t other1 = __shfl_xor_sync(0xffffffffu, odd ? f.x[1] : f.x[3], 1);
  const auto sum = [](uint32_t x, uint32_t y) {
    return pack(low_half(x) + low_half(y), high_half(x) + high_half(y));
  };
  const auto put = [&](__nv_bfloat16* row, uint32_t x, uint32_t y) {
    uint2* word = reinterpret_cast<uint2*>(row);
    const uint2 old = *word;
    *word = make_uint2(sum(old.x, x), sum(old.y, y));
  };
  const uint32_t upper0 = odd ? other0 : f.x[0], upper1 = odd ? f.x[2] : other0;
  const uint32_t lower0 = odd ? other1 : f.x[1], lower1 = odd ? f.x[3] : other1;
  if (at.has_upper) put(to + at.upper, upper0, upper1);
  if (at.has_lower) put(to + at.lower, lower0, lower1);
}

/// Brings one line of 128 bytes to the L2 cache.
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

}  // namespace rwkv::cuda
