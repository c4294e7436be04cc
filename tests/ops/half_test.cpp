// binary16 arithmetic and the dithered decay (kernels/core/half.h, kernels/wkv/dither.h) against
// integers and doubles.
#include "kernels/core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/core/rng.h"
#include "kernels/wkv/dither.h"
#include "tests/ops/wkv7_fp16_harness.h"

namespace rwkv::test {
namespace {

double value_of(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double mag = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                     : exponent == 0 ? std::ldexp(fraction, -24)
                                     : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -mag : mag;
}

TEST(Half, EveryNumberSurvives) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const F16 h{static_cast<uint16_t>(i)};
    const float x = to_float(h);
    const double want = value_of(h.bits);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(x) && std::isnan(to_float(to_half(x)))) << i;
      continue;
    }
    ASSERT_EQ(static_cast<double>(x), want) << i;
    ASSERT_EQ(std::signbit(x), (i & 0x8000) != 0) << i;
    ASSERT_EQ(half_bits(x).bits, h.bits);
    ASSERT_EQ(to_half(x).bits, h.bits);
  }
}

TEST(Half, RoundsToNearestEven) {
  for (uint16_t i = 0; i < 0x7bff; ++i) {  // between i and i + 1
    const float low = to_float(F16{i}), high = to_float(F16{static_cast<uint16_t>(i + 1)});
    const float middle = low + (high - low) / 2;  // exact
    const uint16_t even = i % 2 == 0 ? i : static_cast<uint16_t>(i + 1);
    for (const float sign : {1.0f, -1.0f}) {
      const int minus = sign < 0 ? 0x8000 : 0;
      ASSERT_EQ(to_half(sign * middle).bits, even | minus) << middle;
      ASSERT_EQ(to_half(sign * std::nextafter(middle, 0.0f)).bits, i | minus) << middle;
      ASSERT_EQ(to_half(sign * std::nextafter(middle, INFINITY)).bits, (i + 1) | minus) << middle;
    }
  }
  EXPECT_EQ(to_half(65519.996f).bits, 0x7bff);
  EXPECT_EQ(to_half(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_half(-3e38f).bits, 0xfc00);
  EXPECT_EQ(to_half(-1e-40f).bits, 0x8000);
}

TEST(Half, FusedMultiplyAddRoundsOnce) {
  const auto same = [](float a, float b, float c) {
    const float got = half_fma(a, b, c), want = exact_half_fma(a, b, c);
    return float_bits(got) == float_bits(want) ? testing::AssertionSuccess()
                                               : testing::AssertionFailure()
                                                     << a << " * " << b << " + " << c << " is "
                                                     << got << ", expected " << want;
  };
  const auto half_of = [](uint32_t bits) {
    const auto h = static_cast<uint16_t>(bits);
    return to_float(F16{(h & 0x7c00) == 0x7c00 ? static_cast<uint16_t>(h ^ 0x4000) : h});
  };
  uint64_t x = 88172645463325252u;  // xorshift: the whole range of bits, and nothing else matters
  int naive_wrong = 0;
  for (int i = 0; i < 400000; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    const float a = half_of(static_cast<uint32_t>(x)), b = half_of(static_cast<uint32_t>(x >> 16));
    float c = half_of(static_cast<uint32_t>(x >> 32));
    // Three of four near a tie or cancelling: the addend close to the product or its last place.
    if (i % 4 == 1) c = round_to_half(-a * b);
    if (i % 4 == 2) c = round_to_half(a * b * 0x1p-11f * (1 + static_cast<float>(x >> 60)));
    if (i % 4 == 3) c = round_to_half(a * b * 0x1p11f);
    if (std::isinf(c)) continue;
    ASSERT_TRUE(same(a, b, c));
    naive_wrong += float_bits(round_to_half(std::fma(a, b, c))) != float_bits(half_fma(a, b, c));
    const float sum = half_add(a, c);
    ASSERT_EQ(float_bits(sum), float_bits(exact_half_fma(a, 1.0f, c))) << a << " + " << c;
  }
  EXPECT_GT(naive_wrong, 0) << "no case in which rounding twice differs: the test sees too little";
  EXPECT_TRUE(std::isnan(half_fma(INFINITY, 0.0f, 1.0f)));
  EXPECT_TRUE(std::isnan(half_fma(INFINITY, 1.0f, -INFINITY)));
  EXPECT_TRUE(std::isnan(half_fma(1.0f, NAN, 1.0f)));
  EXPECT_EQ(half_fma(-INFINITY, 2.0f, 5.0f), -INFINITY);
  EXPECT_EQ(half_fma(300.0f, 300.0f, 0.0f), INFINITY);
}

TEST(Dither, RotatorIsSmallAndWraps) {
  for (uint32_t i = 0; i < 100000; ++i) {
    const uint32_t phase = i * 42949u;
    const double want = std::ldexp(static_cast<double>(static_cast<float>(
                                       static_cast<int32_t>(2654435769ull * phase & 0xffffffffu))),
                                   -41);
    ASSERT_EQ(static_cast<double>(dither_rotator(phase)), want);
    ASSERT_LE(std::fabs(want), 0x1p-10);
  }
  EXPECT_EQ(dither_phase(0xffffffffu, 1, 3), 66u);
}

// Every binary16 logit: sigmoid and decay to the accuracy that the header names, w' to half a unit
// of binary16 beyond it.
TEST(Dither, DecayIsAccurate) {
  const double scale = std::exp(-0.5);
  for (uint32_t i = 0; i < 65536; ++i) {
    const float x = to_float(F16{static_cast<uint16_t>(i)});
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(dithered_decay(x, i)));
      continue;
    }
    const double s = 1 / (1 + std::exp(-static_cast<double>(x)));
    ASSERT_LE(std::fabs(static_cast<double>(exact_sigmoid(x)) - s), 0x1p-23) << x;
    const double want = std::exp(-scale * s) - 1;
    ASSERT_LE(std::fabs(static_cast<double>(decay_minus_one(x)) - want), 0x1p-23) << x;
    const auto check = [&](float w, double exact) {
      const int exponent = std::max(std::ilogb(exact == 0 ? 1e-9 : exact), -14);
      ASSERT_EQ(w, round_to_half(w));
      ASSERT_LE(std::fabs(static_cast<double>(w) - exact), std::ldexp(0.5, exponent - 10) + 0x1p-22)
          << x;
    };
    check(plain_decay(x), want);
    for (const uint32_t phase : {0u, i, 123457u * i})
      check(dithered_decay(x, phase), want + static_cast<double>(dither_rotator(phase)));
  }
  EXPECT_EQ(plain_decay(-100.0f), 0.0f);
  EXPECT_EQ(plain_decay(-INFINITY), 0.0f);
  EXPECT_EQ(plain_decay(INFINITY), plain_decay(20.0f));
}

// The bits themselves, so that no compiler, option or device can change them unseen.
TEST(Dither, BitsArePinned) {
  uint64_t sum = 14695981039346656037u;
  for (uint32_t i = 0; i < 0x7c00; ++i)
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float x = to_float(F16{static_cast<uint16_t>(i | sign)});
      sum = (sum ^ float_bits(decay_minus_one(x))) * 1099511628211u;
    }
  EXPECT_EQ(sum, 4737005386259188197u);
}

}  // namespace
}  // namespace rwkv::test
