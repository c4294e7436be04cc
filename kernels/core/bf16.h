#pragma once
/// bf16 on the host: the upper half of an f32.

#include <bit>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace rwkv {

inline float to_float(BF16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

/// Round to nearest, ties to even; a NaN stays one.
inline BF16 to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

}  // namespace rwkv
