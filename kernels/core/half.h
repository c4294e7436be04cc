#pragma once
/// binary16 arithmetic that gives the same bits everywhere: host and device code, with or without
/// half-precision instructions, vectorised or not, with or without contraction.
///
/// Two forms of a binary16 number: its bits (F16), and a float that holds its value, which is what
/// the arithmetic takes and returns ("half-valued" below). Everything rounds to nearest, ties to
/// even; subnormal numbers are kept, overflow gives infinity, the sign of zero is IEEE's. Sign
/// and payload of a NaN are not specified.
///
/// Why contraction cannot change anything: the only products are those of two half-valued numbers
/// (22 bits, exact in float) and by powers of two. Flushing of float subnormals cannot either: the
/// smallest nonzero product is 2^-48, and every sum is a multiple of it.

#include <cstdint>

#include "kernels/core/dtype.h"

#if defined(__CUDACC__)
#define RWKV_HOST_DEVICE __host__ __device__ __forceinline__
#else
#include <bit>
#define RWKV_HOST_DEVICE inline
#endif

namespace rwkv {

RWKV_HOST_DEVICE uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

RWKV_HOST_DEVICE float bits_float(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(x);
#else
  return __builtin_bit_cast(float, x);
#endif
}

/// The nearest half-valued number. Without branches, so that loops over it become vector code.
RWKV_HOST_DEVICE float round_to_half(float x) {
  const uint32_t bits = float_bits(x), sign = bits & 0x80000000u, mag = bits ^ sign;
  // Below 2^-14 the numbers are multiples of 2^-24, the last place of floats in [1/2, 1).
  const uint32_t small = float_bits((bits_float(mag) + 0.75f) - 0.75f);
  // Otherwise 13 of the 23 stored bits go; a carry moves on into the exponent as it should.
  uint32_t large = (mag + 0xfffu + (mag >> 13 & 1u)) & ~0x1fffu;
  large = large > 0x477fe000u ? 0x7f800000u : large;                        // above 65504
  large = mag > 0x7f800000u ? (mag | 0x400000u) : large;                    // NaN, made quiet
  const uint32_t is_small = 0u - static_cast<uint32_t>(mag < 0x38800000u);  // all bits or none
  return bits_float((small & is_small) | (large & ~is_small) | sign);
}

/// Bits of a half-valued number.
RWKV_HOST_DEVICE F16 half_bits(float x) {
  const uint32_t bits = float_bits(x), mag = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
  uint32_t h = (mag >> 13) - (112u << 10);
  if (mag < 0x38800000u) h = static_cast<uint32_t>(bits_float(mag) * 16777216.0f);  // times 2^24
  if (mag >= 0x7f800000u) h = 0x7c00u | (mag >> 13 & 0x3ffu);
  return {static_cast<uint16_t>(h | sign)};
}

RWKV_HOST_DEVICE F16 to_half(float x) {
  return half_bits(round_to_half(x));
}

RWKV_HOST_DEVICE float to_float(F16 x) {
  const uint32_t mag = x.bits & 0x7fffu, sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  uint32_t bits = (mag << 13) + (112u << 23);
  if (mag < 0x400u) bits = float_bits(static_cast<float>(mag) * 0x1p-24f);
  if (mag >= 0x7c00u) bits = 0x7f800000u | (mag & 0x3ffu) << 13;
  return bits_float(bits | sign);
}

/// a * b + c with one rounding, of half-valued numbers.
///
/// The product is exact in float; the sum s is rounded to 24 bits, which may put it on a tie of
/// binary16 that the exact sum misses. So s is rounded to odd first: the error of the sum (exact,
/// by Knuth's two-sum) tells on which side of s the exact value lies, and an even s moves one unit
/// to that side. Rounding to odd and then to 11 bits equals one rounding, because 24 >= 11 + 2.
RWKV_HOST_DEVICE float half_fma(float a, float b, float c) {
  const float p = a * b;
  const float s = p + c;
  const float c_seen = s - p;
  const float err = (p - (s - c_seen)) + (c - c_seen);  // NaN if s is not finite
  const uint32_t s_bits = float_bits(s);
  // Not zero and not NaN, asked of the bits: floating-point comparisons keep loops from vectors.
  const auto inexact = static_cast<uint32_t>((float_bits(err) & 0x7fffffffu) - 1u < 0x7f800000u);
  const uint32_t inward = (float_bits(err) ^ s_bits) >> 31;
  const uint32_t odd = s_bits + (inexact & ~s_bits & 1u) * (1u - 2u * inward);
  return round_to_half(bits_float(odd));
}

/// a + b of half-valued numbers. Two roundings equal one here: 24 >= 2 * 11 + 2.
RWKV_HOST_DEVICE float half_add(float a, float b) {
  return round_to_half(a + b);
}

}  // namespace rwkv
