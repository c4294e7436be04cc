#pragma once
/// Exponential, logistic and tanh in f32 for the CPU kernels: branch-free, so that GCC vectorises
/// the loops that call them, without -ffast-math. NaN stays NaN; infinities give the limits.
///
/// Errors, measured over all magnitudes by tests/ops/math_test.cpp: exp_f 1 ulp, sigmoid 2.5 ulp,
/// tanh 1.5 ulp. The polynomial coefficients are Chebyshev interpolants computed for this file.

#include <bit>
#include <cstdint>

namespace rwkv::cpu {

/// e^x. Overflows to +inf above 88.72; results below 2^-126 are rounded into the subnormals.
inline float exp_f(float x) {
  // Beyond these bounds the result is inf or 0 anyway; a NaN passes both comparisons.
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the integer in the low mantissa bits.
  constexpr float kMagic = 12582912.0f;
  const float shifted = x * 1.44269504f + kMagic;
  const float n = shifted - kMagic;
  // ln 2 in two parts; the first has 15 trailing zero bits, so n times it is exact.
  float r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  float q = 0.00019891030387952924f;
  q = q * r + 0.0013933685841038823f;
  q = q * r + 0.00833331048488617f;
  q = q * r + 0.041666463017463684f;
  q = q * r + 0.1666666716337204f;
  q = q * r + 0.5f;
  const float p = (q * r) * r + r + 1.0f;
  // 2^n as a product of two powers, so that neither leaves the normal range.
  const int32_t e = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kMagic);
  const int32_t half = e >> 1;
  const float s1 = std::bit_cast<float>(static_cast<uint32_t>(half + 127) << 23);
  const float s2 = std::bit_cast<float>(static_cast<uint32_t>(e - half + 127) << 23);
  return p * s1 * s2;
}

/// e^-|x|: at most 1, never overflows.
inline float exp_neg_abs(float x) {
  return exp_f(x < 0.0f ? x : -x);
}

/// 1 / (1 + e^-x)
inline float sigmoid(float x) {
  const float e = exp_neg_abs(x);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

/// The logistic function with 1 - sigmoid and its derivative, each to full relative precision (the
/// difference 1 - sigmoid(x) would have none left for large x).
struct Logistic {
  float value, complement, slope;
};
inline Logistic logistic(float x) {
  const float e = exp_neg_abs(x);
  const float inv = 1.0f / (1.0f + e);
  const float small = e * inv;
  return {x < 0.0f ? small : inv, x < 0.0f ? inv : small, small * inv};
}

inline float tanh_f(float x) {
  const float m = x < 0.0f ? -x : x;
  // |x| >= 0.65: 1 - 2 / (e^2m + 1), in terms of e^-2m, which cannot overflow.
  const float e = exp_f(-2.0f * m);
  const float large = 1.0f - (2.0f * e) / (1.0f + e);
  // |x| < 0.65: odd polynomial.
  const float z = x * x;
  float q = 0.0022149027790874243f;
  q = q * z + -0.00827245693653822f;
  q = q * z + 0.021746186539530754f;
  q = q * z + -0.053956348448991776f;
  q = q * z + 0.13333290815353394f;
  q = q * z + -0.3333333432674408f;
  const float small = (q * z) * x + x;
  const float signed_large = x < 0.0f ? -large : large;
  return m < 0.65f ? small : signed_large;
}

}  // namespace rwkv::cpu
