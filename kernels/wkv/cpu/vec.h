#pragma once
/// Small SIMD vocabulary of the CPU WKV kernels, written with GCC/Clang vector extensions: one code
/// for AVX-512, AVX2 and 128-bit machines. Everything is inline; nothing here allocates.

#include <cstdint>
#include <cstring>
#include <utility>

namespace rwkv::cpu {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;  ///< floats per vector
inline constexpr int kPanel = 4;   ///< vectors side by side in a register tile (32 registers)
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
inline constexpr int kPanel = 2;  // 16 registers
#else
inline constexpr int kLanes = 4;
inline constexpr int kPanel = 2;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecIndex __attribute__((vector_size(kLanes * 4)));
typedef float VecUnaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define RWKV_INLINE inline __attribute__((always_inline))

RWKV_INLINE Vec load(const float* p) {
  return *reinterpret_cast<const VecUnaligned*>(p);
}
RWKV_INLINE void store(float* p, Vec v) {
  *reinterpret_cast<VecUnaligned*>(p) = v;
}

namespace detail {
template <size_t... I>
RWKV_INLINE Vec splat_lanes(float x, std::index_sequence<I...>) {
  return Vec{((void)I, x)...};
}
/// Masks of one butterfly stage over two vectors p, q (lanes kLanes.. mean q):
/// low keeps p where bit h of the lane is clear and takes q[l - h] elsewhere; high takes p[l + h]
/// where it is clear and keeps q elsewhere.
template <int h, size_t... I>
RWKV_INLINE VecIndex low_mask(std::index_sequence<I...>) {
  return VecIndex{((int(I) & h) == 0 ? int(I) : kLanes + int(I) - h)...};
}
template <int h, size_t... I>
RWKV_INLINE VecIndex high_mask(std::index_sequence<I...>) {
  return VecIndex{((int(I) & h) == 0 ? int(I) + h : kLanes + int(I))...};
}
using Lanes = std::make_index_sequence<kLanes>;

template <int h>
RWKV_INLINE void transpose_stage(Vec* x) {
  for (int i = 0; i < kLanes; ++i) {
    if ((i & h) != 0) continue;
    const Vec p = x[i], q = x[i + h];
    x[i] = __builtin_shuffle(p, q, low_mask<h>(Lanes{}));
    x[i + h] = __builtin_shuffle(p, q, high_mask<h>(Lanes{}));
  }
  if constexpr (h > 1) transpose_stage<h / 2>(x);
}
template <int h>
RWKV_INLINE void reduce_stage(Vec* x) {
  for (int i = 0; i < h; ++i) {
    const Vec p = x[i], q = x[i + h];
    x[i] = __builtin_shuffle(p, q, low_mask<h>(Lanes{})) +
           __builtin_shuffle(p, q, high_mask<h>(Lanes{}));
  }
  if constexpr (h > 1) reduce_stage<h / 2>(x);
}
}  // namespace detail

RWKV_INLINE Vec splat(float x) {
  return detail::splat_lanes(x, detail::Lanes{});
}

/// Sums of kLanes vectors at once: lane i of the result is the sum of the lanes of x[i], always
/// added in the same order. Destroys x.
RWKV_INLINE Vec sum_lanes(Vec* x) {
  detail::reduce_stage<kLanes / 2>(x);
  return x[0];
}

/// dst (cols, rows) = src (rows, cols)^T; both extents are multiples of kLanes.
template <int rows, int cols>
__attribute__((noinline)) void transpose(const float* src, int64_t src_stride, float* dst,
                                         int64_t dst_stride) {
  static_assert(rows % kLanes == 0 && cols % kLanes == 0);
  for (int i = 0; i < rows; i += kLanes) {
    for (int j = 0; j < cols; j += kLanes) {
      Vec x[kLanes];
      for (int l = 0; l < kLanes; ++l) x[l] = load(src + (i + l) * src_stride + j);
      detail::transpose_stage<kLanes / 2>(x);
      for (int l = 0; l < kLanes; ++l) store(dst + (j + l) * dst_stride + i, x[l]);
    }
  }
}

namespace detail {
/// exp(+-x) = 2^(+-n) (even(r) +- odd(r)), n = round(x / ln 2), |r| <= ln(2)/2: Taylor sums whose
/// first dropped terms, r^8/8! and r^9/9!, are below 6e-9.
struct ExpParts {
  Vec even, odd;
  VecBits n;  // two's complement
};
RWKV_INLINE ExpParts exp_parts(Vec x) {
  // 2^n must stay a normal number; NaN passes both comparisons unchanged.
  const Vec hi = splat(87.3f), lo = splat(-87.3f);
  x = x > hi ? hi : x;
  x = x < lo ? lo : x;
  // Adding 1.5 * 2^23 rounds to the nearest integer, which then sits in the low mantissa bits.
  const Vec magic = splat(12582912.0f);
  const Vec shifted = x * 1.44269504088896341f + magic;
  const Vec n = shifted - magic;
  Vec r = x - n * 0.693359375f;  // ln 2 in two pieces; the first has 9 bits: n times it is exact
  r = r - n * -2.12194440e-4f;
  const Vec r2 = r * r;
  Vec even = r2 * (1.0f / 720) + 1.0f / 24;
  even = even * r2 + 0.5f;
  even = even * r2 + 1.0f;
  Vec odd = r2 * (1.0f / 5040) + 1.0f / 120;
  odd = odd * r2 + 1.0f / 6;
  odd = odd * r2 + 1.0f;
  VecBits bits, magic_bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&magic_bits, &magic, sizeof bits);
  return {even, odd * r, bits - magic_bits};
}
RWKV_INLINE Vec pow2(VecBits n) {
  const VecBits bits = (n + 127u) << 23;
  Vec out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}
}  // namespace detail

/// e^x to about 1.5 units in the last place; |x| is limited to 87.3 (no infinities, no denormals).
RWKV_INLINE Vec vexp(Vec x) {
  const auto p = detail::exp_parts(x);
  return (p.even + p.odd) * detail::pow2(p.n);
}
/// e^x and e^-x for little more than the price of one.
RWKV_INLINE void vexp_both(Vec x, Vec& plus, Vec& minus) {
  const auto p = detail::exp_parts(x);
  plus = (p.even + p.odd) * detail::pow2(p.n);
  minus = (p.even - p.odd) * detail::pow2(-p.n);
}
/// s = sigmoid(x) and 1 - s = sigmoid(-x), both to a few units in the last place: 1 - s is not
/// formed by subtraction.
RWKV_INLINE void vsigmoid(Vec x, Vec& s, Vec& one_minus_s) {
  const Vec e = vexp(-x);
  s = 1.0f / (1.0f + e);
  one_minus_s = e * s;
}

}  // namespace rwkv::cpu
