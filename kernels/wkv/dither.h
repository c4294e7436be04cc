#pragma once
/// The decay of WKV-7 with a binary16 state, as its distance from one, with deterministic dither
/// (spec rwkv7 section 5, phase of the third generation): one definition for host and device, the
/// same bits from both.
///
/// Every operation is one correctly rounded float operation, in the order written: fmaf, addition,
/// division. The only products outside of fmaf are by powers of two, which are exact, so a compiler
/// that contracts products and sums changes nothing. No library function is used.

#include "kernels/core/half.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace rwkv {

/// a b + c with one rounding; a / b correctly rounded, also under -use_fast_math.
RWKV_HOST_DEVICE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return fmaf(a, b, c);
#endif
}
RWKV_HOST_DEVICE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// Position t + 64 h + j of the rotator, modulo 2^32: t counts the tokens of the sequence from 0,
/// h is the head, j the key column. Neither the layer nor the slot in the batch enters.
RWKV_HOST_DEVICE uint32_t dither_phase(uint32_t t, uint32_t head, uint32_t column) {
  return t + 64u * head + column;
}

/// 2^-41 * float(int32(2654435769 * phase mod 2^32)), in [-2^-10, 2^-10]: a sequence of low
/// discrepancy (multiples of the golden ratio). The conversion to float rounds to nearest.
RWKV_HOST_DEVICE float dither_rotator(uint32_t phase) {
  const auto turned = static_cast<int32_t>(2654435769u * phase);
#if defined(__CUDA_ARCH__)
  return __int2float_rn(turned) * 0x1p-41f;
#else
  return static_cast<float>(turned) * 0x1p-41f;
#endif
}

/// 2^f for |f| <= 1/2 to 2^-25 of it, exactly 1 at 0: Taylor's sum to the seventh power by Horner's
/// rule; the first dropped term is below 6e-9.
RWKV_HOST_DEVICE float exp2_fraction(float f) {
  float p = fused(1.52527338e-5f, f, 1.54035304e-4f);  // (ln 2)^7 / 7!, (ln 2)^6 / 6!
  p = fused(p, f, 1.33335581e-3f);
  p = fused(p, f, 9.61812911e-3f);
  p = fused(p, f, 5.55041087e-2f);
  p = fused(p, f, 2.40226507e-1f);
  p = fused(p, f, 6.93147181e-1f);
  return fused(p, f, 1.0f);
}

/// p * 2^n, n given as the bits of 1.5 * 2^23 + n; n > -126.
RWKV_HOST_DEVICE float times_exp2(float p, float shifted) {
  return p * bits_float((float_bits(shifted) - 0x4b400000u + 127u) << 23);
}

/// sigmoid(x) to 2^-23, NaN for NaN:
///   m = max(-|x|, -80);  n = m log2(e) rounded to an integer by adding and taking away 1.5 * 2^23
///   f = fma(m, lo, fma(m, hi, -n)), hi + lo = log2(e);  q = exp2_fraction(f) * 2^n  (= e^-|x|)
///   (x < 0 ? q : 1) / (1 + q)
RWKV_HOST_DEVICE float exact_sigmoid(float x) {
  const float magic = 12582912.0f;
  float m = bits_float(float_bits(x) | 0x80000000u);
  m = m < -80.0f ? -80.0f : m;
  const float shifted = fused(m, 1.44269502f, magic);
  const float n = shifted - magic;
  const float f = fused(m, 1.92596303e-8f, fused(m, 1.44269502f, -n));
  const float q = times_exp2(exp2_fraction(f), shifted);
  return divide(x < 0.0f ? q : 1.0f, 1.0f + q);
}

/// exp2(E * sigmoid(w_logit)) - 1, the distance of the decay from one, in [-0.4548, 0], to 2^-22:
///   n = E s rounded to an integer as above;  f = fma(E, s, -n)
///   exp2_fraction(f) * 2^n - 1
RWKV_HOST_DEVICE float decay_minus_one(float w_logit) {
  const float magic = 12582912.0f;
  const float e = -0.8750387749145276f;  // -exp(-1/2) log2(e)
  const float s = exact_sigmoid(w_logit);
  const float shifted = fused(e, s, magic);
  const float f = fused(e, s, -(shifted - magic));
  return times_exp2(exp2_fraction(f), shifted) - 1.0f;
}

/// w', half-valued: what a state column is multiplied by and increased by in one token, with dither
/// and without it. w_logit is half-valued. The dither may make w' slightly positive.
RWKV_HOST_DEVICE float dithered_decay(float w_logit, uint32_t phase) {
  return round_to_half(decay_minus_one(w_logit) + dither_rotator(phase));
}
RWKV_HOST_DEVICE float plain_decay(float w_logit) {
  return round_to_half(decay_minus_one(w_logit));
}

}  // namespace rwkv
