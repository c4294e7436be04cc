// Learning-rate schedules against the published log, the formulas and their edges.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <numbers>

#include "kernels/core/error.h"
#include "trainer/schedule.h"

namespace rwkv {
namespace {

Schedule minipile() {
  return {.kind = ScheduleKind::kCosine,
          .lr = 6e-4,
          .lr_final = 6e-5,
          .warmup = 10,
          .warmup_start = 0.01,
          .tokens_per_step = 16 * 512,
          .exit_tokens = 1498226207};
}

TEST(Schedule, CosineGivesTheRatesOfThePublishedLog) {
  // Reference MiniPile demo, learning rate at the end of mini-epochs of 2520 steps.
  const std::array<double, 12> published = {5.9975e-4, 5.9899e-4, 5.9773e-4, 5.9597e-4,
                                            5.9371e-4, 5.9096e-4, 5.8771e-4, 5.8399e-4,
                                            5.7978e-4, 5.7511e-4, 5.6999e-4, 5.6441e-4};
  const Schedule s = minipile();
  for (size_t e = 0; e < published.size(); ++e)
    EXPECT_NEAR(s.at(2520 * static_cast<int64_t>(e + 1) - 1), published[e], 5.1e-9) << e;
}

TEST(Schedule, WarmUpStartsAtItsFactorAndEndsAtTheFullRate) {
  for (const double start : {0.01, 0.2}) {
    Schedule s = minipile();
    s.warmup_start = start;
    EXPECT_NEAR(s.at(0), 6e-4 * start, 1e-18);
    EXPECT_NEAR(s.at(5), 6e-4 * (start + (1 - start) * 0.5), 1e-12);
    EXPECT_DOUBLE_EQ(s.at(10), 6e-4);
  }
}

TEST(Schedule, CosineRunsFromFirstToLastRateInTokens) {
  Schedule s = minipile();
  s.warmup = 0;
  s.tokens_per_step = 10;
  s.exit_tokens = 1000;
  EXPECT_DOUBLE_EQ(s.at(0), 6e-4);
  EXPECT_NEAR(s.at(50), (6e-4 + 6e-5) / 2, 1e-18);
  EXPECT_NEAR(s.at(100), 6e-5, 1e-18);
  EXPECT_NEAR(s.at(1000000), 6e-5, 1e-18);
  EXPECT_EQ(s.total_steps(), 100);
  s.exit_tokens = 1001;
  EXPECT_EQ(s.total_steps(), 101);
}

TEST(Schedule, LinearWsdAndConstant) {
  Schedule s = minipile();
  s.warmup = 0;
  s.tokens_per_step = 1;
  s.exit_tokens = 100;
  s.kind = ScheduleKind::kLinear;
  EXPECT_DOUBLE_EQ(s.at(25), 6e-4 + 0.25 * (6e-5 - 6e-4));
  EXPECT_NEAR(s.at(200), 6e-5, 1e-18);
  s.kind = ScheduleKind::kWsd;
  s.decay_part = 0.2;
  EXPECT_DOUBLE_EQ(s.at(80), 6e-4);
  EXPECT_NEAR(s.at(90), (6e-4 + 6e-5) / 2, 1e-15);
  EXPECT_NEAR(s.at(100), 6e-5, 1e-15);
  s.decay_part = 0;
  EXPECT_DOUBLE_EQ(s.at(100), 6e-4);
  s.kind = ScheduleKind::kConstant;
  EXPECT_DOUBLE_EQ(s.at(0), 6e-4);
  EXPECT_DOUBLE_EQ(s.at(99), 6e-4);
}

TEST(Schedule, ExponentialIsThatOfRwkv4) {
  const Schedule s{.kind = ScheduleKind::kExponential,
                   .lr = 2e-3,
                   .lr_final = 2e-4,
                   .warmup = 5,
                   .warmup_start = 0.2,
                   .tokens_per_step = 128,
                   .exit_tokens = 40 * 128};
  EXPECT_DOUBLE_EQ(s.at(0), 2e-3 * 0.2);
  EXPECT_DOUBLE_EQ(s.at(4), 2e-3 * (0.2 + 0.8 * 4 / 5));
  EXPECT_DOUBLE_EQ(s.at(5), 2e-3 * std::pow(0.1, 1.0 / 35));
  EXPECT_DOUBLE_EQ(s.at(20), 2e-3 * std::pow(0.1, 16.0 / 35));
  EXPECT_DOUBLE_EQ(s.at(39), 2e-4);
  EXPECT_DOUBLE_EQ(s.at(60), 2e-4);
  Schedule held = s;
  held.hold = 10;
  EXPECT_DOUBLE_EQ(held.at(14), 2e-3);
  EXPECT_DOUBLE_EQ(held.at(30), s.at(20));
  Schedule to_zero = s;
  to_zero.lr_final = 0;  // linear then
  EXPECT_DOUBLE_EQ(to_zero.at(20), 2e-3 * (1 - 16.0 / 35));
}

TEST(Schedule, WarmUpLongerThanTheRunIsNoDivisionByZero) {
  for (const auto kind : {ScheduleKind::kCosine, ScheduleKind::kLinear, ScheduleKind::kWsd,
                          ScheduleKind::kExponential}) {
    const Schedule s{.kind = kind,
                     .lr = 1e-3,
                     .lr_final = 1e-4,
                     .warmup = 10,
                     .warmup_start = 0.01,
                     .tokens_per_step = 10,
                     .exit_tokens = 100};
    for (int64_t n = 0; n < 12; ++n) {
      EXPECT_GT(s.at(n), 0);
      EXPECT_LE(s.at(n), 1e-3);
    }
  }
}

TEST(Schedule, UnknownNamesListTheKnownOnes) {
  EXPECT_EQ(parse_schedule_kind("wsd"), ScheduleKind::kWsd);
  try {
    parse_schedule_kind("cosin");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("'cosin'"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("cosine"), std::string::npos);
  }
}

}  // namespace
}  // namespace rwkv
