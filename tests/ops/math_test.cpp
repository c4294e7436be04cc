// The vectorised exponential, logistic and tanh: errors in units in the last place over all
// magnitudes (every 397th bit pattern of f32), special values, and the extremes of the ops.

#include "kernels/cpu/math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

namespace rwkv::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// |got - exact| in units of the float spacing at `exact`; mismatched NaN or infinity is infinite.
double ulps(float got, double exact) {
  if (std::isnan(exact)) return std::isnan(got) ? 0 : std::numeric_limits<double>::infinity();
  if (std::isinf(got) || std::isinf(static_cast<float>(exact)))
    return got == static_cast<float>(exact) ? 0 : std::numeric_limits<double>::infinity();
  const float f = static_cast<float>(std::fabs(exact));
  const double spacing = static_cast<double>(std::nextafter(f, kInf)) - static_cast<double>(f);
  return std::fabs(static_cast<double>(got) - exact) / spacing;
}

template <class F, class Exact>
double worst(F f, Exact exact) {
  double most = 0;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 397) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(bits));
    const double u = ulps(f(x), exact(static_cast<double>(x)));
    if (!(u <= most)) most = u;
  }
  return most;
}

TEST(Math, ExpIsAccurate) {
  EXPECT_LE(worst(exp_f, [](double x) { return std::exp(x); }), 1.0);
}

TEST(Math, SigmoidIsAccurate) {
  EXPECT_LE(worst(sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }), 2.5);
}

TEST(Math, LogisticPartsAreAccurate) {
  const auto value = [](float x) { return logistic(x).value; };
  const auto complement = [](float x) { return logistic(x).complement; };
  const auto slope = [](float x) { return logistic(x).slope; };
  EXPECT_LE(worst(value, [](double x) { return 1 / (1 + std::exp(-x)); }), 3.0);
  EXPECT_LE(worst(complement, [](double x) { return 1 / (1 + std::exp(x)); }), 3.0);
  EXPECT_LE(worst(slope,
                  [](double x) {
                    const double e = std::exp(-std::fabs(x));
                    return e / ((1 + e) * (1 + e));
                  }),
            5.0);  // one exponential, two reciprocals, two products
}

TEST(Math, TanhIsAccurate) {
  EXPECT_LE(worst(tanh_f, [](double x) { return std::tanh(x); }), 1.5);
}

TEST(Math, LimitsAndNaN) {
  EXPECT_EQ(exp_f(kInf), kInf);
  EXPECT_EQ(exp_f(-kInf), 0.0f);
  EXPECT_EQ(exp_f(0.0f), 1.0f);
  EXPECT_EQ(sigmoid(kInf), 1.0f);
  EXPECT_EQ(sigmoid(-kInf), 0.0f);
  EXPECT_EQ(sigmoid(0.0f), 0.5f);
  EXPECT_EQ(tanh_f(kInf), 1.0f);
  EXPECT_EQ(tanh_f(-kInf), -1.0f);
  EXPECT_EQ(tanh_f(0.0f), 0.0f);
  EXPECT_EQ(logistic(kInf).slope, 0.0f);
  EXPECT_EQ(logistic(-kInf).slope, 0.0f);
  for (const float nan : {kNaN, -kNaN}) {
    EXPECT_TRUE(std::isnan(exp_f(nan)));
    EXPECT_TRUE(std::isnan(sigmoid(nan)));
    EXPECT_TRUE(std::isnan(tanh_f(nan)));
    EXPECT_TRUE(std::isnan(logistic(nan).slope));
  }
}

}  // namespace
}  // namespace rwkv::cpu
