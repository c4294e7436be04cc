#pragma once
/// Draws of tokens from logits: the arithmetic that CPU and GPU share, so that both choose the same
/// token from the same logits, always.
///
/// Every step is either exact or a fixed sequence of IEEE operations without contraction:
///   - a token's distance is d = largest logit - its logit, rounded to f32; distances order tokens,
///     lower ids first among equals;
///   - its weight at inverse temperature t is the whole number floor(2^44 e), e = exp(-d t) in f32
///     (weight_of: d t rounds to f32, the rest adds 2e-7). Sums of whole numbers have no order;
///   - the draw is the first token, by id, at which the running sum of weights exceeds
///     floor(random total / 2^64), `random` being 64 random bits.
/// Tokens below 2^-44 of the most probable one have weight 0 and are never drawn.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/half.h"

namespace rwkv::sample {

/// What changes the logit of one token.
struct Adjustment {
  static constexpr uint32_t kSeen = 1, kGenerated = 2, kBanned = 4;
  int32_t token = 0;
  uint32_t flags = 0;
  float bias = 0;
  int32_t last = 0;        ///< position at which `occurrences` was set
  double occurrences = 0;  ///< since then they shrink by the decay with every position
};

/// One draw. `random` is the caller's; everything else follows from options and history.
struct DrawRow {
  double repetition = 1, presence = 0, frequency = 0, decay = 1;
  uint64_t random = 0;
  uint64_t top_p = 0;             ///< 2^64 top_p; 0: off
  float inverse_temperature = 1;  ///< 0: the most probable token, filters ignored
  float farthest = 0;             ///< largest distance that min_p keeps; infinity: all
  int32_t top_k = 0;              ///< 0: off
  int32_t position = 0;           ///< tokens before this one
  int32_t vocab = 0;              ///< ids from here on are never drawn
  int32_t adjustments = 0;        ///< on a device: how many, those of `slot`; -1: no draw at all
  int32_t slot = 0;
  int32_t top = -1;  ///< on a device: log-probabilities wanted, with so many of the most probable
};

inline constexpr int kWeightBits = 44;
/// Keys of finite distances are below: the bits of a distance, as an integer.
inline constexpr uint32_t kKeyEnd = 0x7f800000u;
/// Buckets of a histogram of distances.
inline constexpr uint32_t kBuckets = 512;
/// Buckets of the first one per unit of distance.
inline constexpr float kPerUnit = 16;

// Products and sums that no compiler joins. (On the host by -ffp-contract=off where they are used.)
#if defined(__CUDA_ARCH__)
RWKV_HOST_DEVICE float times(float a, float b) {
  return __fmul_rn(a, b);
}
RWKV_HOST_DEVICE float plus(float a, float b) {
  return __fadd_rn(a, b);
}
RWKV_HOST_DEVICE double times(double a, double b) {
  return __dmul_rn(a, b);
}
RWKV_HOST_DEVICE double plus(double a, double b) {
  return __dadd_rn(a, b);
}
RWKV_HOST_DEVICE uint64_t high_product(uint64_t a, uint64_t b) {
  return __umul64hi(a, b);
}
#else
RWKV_HOST_DEVICE float times(float a, float b) {
  return a * b;
}
RWKV_HOST_DEVICE float plus(float a, float b) {
  return a + b;
}
RWKV_HOST_DEVICE double times(double a, double b) {
  return a * b;
}
RWKV_HOST_DEVICE double plus(double a, double b) {
  return a + b;
}
RWKV_HOST_DEVICE uint64_t high_product(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((static_cast<Wide>(a) * b) >> 64);
}
#endif

/// floor(2^44 exp(-distance inverse_temperature)) but for rounding of the exponential; for distance
/// >= 0, also infinite, and 1e-30 <= inverse_temperature <= 1e30. Without branches.
RWKV_HOST_DEVICE uint64_t weight_of(float distance, float inverse_temperature) {
  constexpr float kLog2E = 1.44269504f, kFarthest = 40;
  constexpr float kLn2High = 355.0f / 512, kLn2Low = -2.12194440e-4f;  // their sum is log 2
  float y = times(distance, inverse_temperature);
  y = y < kFarthest ? y : kFarthest;
  const auto n = static_cast<int32_t>(plus(times(y, kLog2E), 0.5f));
  const auto whole = static_cast<float>(n);
  // exp(-y) = 2^-n exp(r), |r| <= 0.35; the first product is exact.
  const float r = plus(plus(times(whole, kLn2High), -y), times(whole, kLn2Low));
  float e = 1.0f / 5040;
  e = plus(times(e, r), 1.0f / 720);
  e = plus(times(e, r), 1.0f / 120);
  e = plus(times(e, r), 1.0f / 24);
  e = plus(times(e, r), 1.0f / 6);
  e = plus(times(e, r), 0.5f);
  e = plus(times(e, r), 1.0f);
  e = plus(times(e, r), 1.0f);
  const uint32_t bits = float_bits(e);
  const uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  const int32_t exponent = static_cast<int32_t>(bits >> 23) - 127;  // 0 or -1
  return (mantissa << (kWeightBits - 23)) >> (n - exponent);
}

/// x^n for n >= 0, in one order.
RWKV_HOST_DEVICE double power(double x, int32_t n) {
  double y = 1;
  for (; n > 0; n >>= 1) {
    if ((n & 1) != 0) y = times(y, x);
    x = times(x, x);
  }
  return y;
}

/// Repetition penalty, then presence and frequency penalties, in double; then the bias.
RWKV_HOST_DEVICE float adjusted(float logit, const Adjustment& a, const DrawRow& row) {
  auto x = static_cast<double>(logit);
  if ((a.flags & Adjustment::kSeen) != 0) {
    x = x > 0 ? x / row.repetition : times(x, row.repetition);
    if ((a.flags & Adjustment::kGenerated) != 0) {
      const double n = times(a.occurrences, power(row.decay, row.position - a.last));
      x = plus(x, -plus(row.presence, times(n, row.frequency)));
    }
  }
  const float y = plus(static_cast<float>(x), a.bias);
  return (a.flags & Adjustment::kBanned) != 0 ? bits_float(0xff800000u) : y;
}

/// The sum of weights that top_p asks for, at least 1.
RWKV_HOST_DEVICE uint64_t top_p_target(uint64_t top_p, uint64_t total) {
  const uint64_t whole = high_product(top_p, total) + (top_p * total != 0 ? 1 : 0);
  return whole > 0 ? whole : 1;
}

/// Keys [low, high) among which the last kept token is being looked for: first all of them, by
/// distance; then what one bucket held, by equal steps of the key, until that is one key.
struct KeyRange {
  uint32_t low = 0, high = kKeyEnd;
  bool first = true;

  RWKV_HOST_DEVICE bool holds(uint32_t key) const { return key >= low && key < high; }
  RWKV_HOST_DEVICE int shift() const {
    int s = 0;
    while (((high - low - 1) >> s) >= kBuckets) ++s;
    return s;
  }
  /// Of a key that it holds.
  RWKV_HOST_DEVICE uint32_t bucket(uint32_t key, int shift) const {
    if (!first) return (key - low) >> shift;
    const float d = bits_float(key);
    return d < kBuckets / kPerUnit ? static_cast<uint32_t>(times(d, kPerUnit)) : kBuckets - 1;
  }
  RWKV_HOST_DEVICE KeyRange inside(uint32_t bucket, int shift) const {
    KeyRange r;
    r.first = false;
    if (first) {
      r.low = float_bits(static_cast<float>(bucket) / kPerUnit);
      r.high = bucket + 1 < kBuckets ? float_bits(static_cast<float>(bucket + 1) / kPerUnit) : high;
    } else {
      r.low = low + (bucket << shift);
      const uint32_t end = r.low + (1u << shift);
      r.high = end < high ? end : high;
    }
    return r;
  }
};

/// Which tokens the filters keep: those with a key below `end`, but of those whose key is `tie`
/// only the first `ties` by id.
struct Cut {
  uint32_t end = kKeyEnd, tie = kKeyEnd;
  uint64_t ties = 0;
};

// On the CPU.

/// Tokens that may be drawn, in ascending order, with their weights.
struct Weights {
  std::vector<int32_t> tokens;  ///< empty: all of them, 0, 1, ...
  std::vector<uint64_t> weights;
  uint64_t total = 0;
  std::vector<float> distances;  ///< scratch
};
/// Messages about logits that nothing can be drawn from.
std::string bad_logit(int64_t token, float logit);
std::string no_logit(int64_t vocab);
/// The largest logit's first position. Throws NonFiniteError naming the first logit that is NaN or
/// +infinity, and if all are -infinity; ShapeError for no logits.
size_t check_logits(std::span<const float> logits);
void adjust(std::span<float> logits, const DrawRow& row, std::span<const Adjustment> list);
/// Filters and temperature; inverse_temperature > 0. Throws as check_logits.
void weigh(std::span<const float> logits, const DrawRow& row, Weights& out);
/// Sum of weight_of(largest - x, 1).
uint64_t total_weight(std::span<const float> logits, float largest);
int32_t pick(const Weights& weights, uint64_t random);

}  // namespace rwkv::sample
