#pragma once
/// Which inputs cumsum-naive takes, on every device.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/core/error.h"

namespace rwkv {

/// Half the span of exponents with which sums of sums over `tokens` terms stay in the range of f32.
inline float wkv4_naive_reach(int64_t tokens) {
  return 84.0f - 2.0f * std::log(static_cast<float>(tokens));
}

/// Throws ConfigError where the exponents of a whole sequence, which span `width`, or the bonus
/// u + d leave that range. d: log decay per token. The incoming state is one of the exponents: its
/// scale and the logarithm of the larger of its sums, in whole powers of two, if that is above 0.
inline void wkv4_check_naive_range(int64_t sequence, int64_t channel, int64_t tokens, float width,
                                   float d, float u) {
  constexpr float kLargestBonus = 80;
  const float most = 2 * wkv4_naive_reach(tokens);
  RWKV_CHECK(width <= most && std::abs(u + d) <= kLargestBonus, ConfigError,
             "wkv4 by cumulative sums over a whole sequence (cumsum-naive): in sequence ", sequence,
             ", channel ", channel, ", the exponents of ", tokens, " tokens at a rate of ", -d,
             " per token span ", width, ", more than the ", most,
             " that f32 can hold (beyond it sums overflow or vanish); use cumsum, scan or serial");
}

}  // namespace rwkv
