#pragma once
/// Rows of a binary16 WKV-7 state that have exponents of their own (Wkv7Attrs::row_exponents): one
/// definition for host and device. The transition of WKV-7 works on columns, so a row (a value
/// index) never meets another, and a head that expands takes all its range from its own exponents.
///
/// A row with exponent e holds X = c 2^-e S, c = Wkv7Attrs::state_scale. After the tokens whose
/// position t (counted from the first of the sequence, whatever the calls) has t mod 16 = 15, with
/// m = max |X[j]| over the row's columns, NaN counting as more than any number:
///
///   64 <= m < infinity and e < 112:  X[j] = half(X[j] 2^-8), e += 8
///   m < 1/16 and e > 0:              X[j] = half(X[j] 2^8),  e -= 8
///
/// The products are exact unless a number becomes subnormal: then it loses what is less than
/// 2^-25, 2^-23 of the row's largest. The state that leaves a call is the one behind this.
///
/// Room: a product of a row with a vector x of Euclidean length |x| is at most 8 m |x|. The length
/// of a is 1, that of r some 10 in trained models, so u and y stay below 64 * 8 * 10 at a check, a
/// twelfth of 65504. Until the next one the transition can expand by 2 / sqrt 3 per token at most
/// (2-norm of 1 - k (alpha k)^T with |k| = 1, 0 <= alpha <= 1), ten in 16 tokens; the one head that
/// was seen to expand, to 9e7 in 17,000 tokens, grew by a thousandth per token.

#include "kernels/core/half.h"

namespace rwkv {

inline constexpr uint32_t kExponentTokens = 16;  ///< from one check to the next
inline constexpr int kExponentStep = 8;
inline constexpr int kMostExponent = 112;  ///< holds all that float does, with c = 2^-8
inline constexpr float kLargeRow = 64, kSmallRow = 0.0625f;

/// Whether exponents are looked at after the token at this position.
RWKV_HOST_DEVICE bool exponent_due(uint32_t position) {
  return position % kExponentTokens == kExponentTokens - 1;
}

/// What is to be added to the exponent of a row; `largest`: bits of max |X| as float.
RWKV_HOST_DEVICE int exponent_change(uint32_t largest, int exponent) {
  if (largest >= float_bits(kLargeRow) && largest < 0x7f800000u && exponent < kMostExponent)
    return kExponentStep;
  return largest < float_bits(kSmallRow) && exponent > 0 ? -kExponentStep : 0;
}

/// 2^e, -126 <= e <= 127.
RWKV_HOST_DEVICE float power_of_two(int e) {
  return bits_float(static_cast<uint32_t>(e + 127) << 23);
}

/// The exponent of a row that is not known, by its largest |c S|: the least that leaves it below
/// 64.
RWKV_HOST_DEVICE int exponent_for(float largest) {
  int e = 0;
  for (; largest >= kLargeRow && e < kMostExponent; largest *= power_of_two(-kExponentStep))
    e += kExponentStep;
  return e;
}

}  // namespace rwkv
