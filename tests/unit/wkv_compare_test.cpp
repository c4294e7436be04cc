// Losses under several WKV variants: against evaluate_loss, and the sums among themselves.
#include <gtest/gtest.h>

#include <cmath>

#include "inference/compare.h"
#include "kernels/core/error.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

constexpr int64_t kVocab = 300, kCount = 100;
constexpr float kLarge = 800;

class WkvCompare : public testing::Test {
 protected:
  WkvComparison compare(const WkvCompareOptions& options) const {
    return compare_wkv(*m_.model, *m_.weights, {.prefill_tokens = 16}, kCount, reader(), options);
  }
  TokenReader reader() const {
    return [this](int64_t begin, std::span<int32_t> out) {
      std::copy_n(ids_.begin() + begin, out.size(), out.begin());
    };
  }
  test::TestModel m_ = test::random_model(31);
  std::vector<int32_t> ids_ = test::random_ids(31, kCount, kVocab);
};

TEST_F(WkvCompare, AgreesWithTheLossOfEachVariant) {
  const WkvCompareOptions options{.contexts = {8, 16, 32}, .batch_tokens = 40, .bins = 4};
  const WkvComparison got = compare(options);
  ASSERT_EQ(got.variants.size(), 3u);
  EXPECT_EQ(got.variants[2], "wkv7.cpu.fp16-dithered");
  EXPECT_EQ(got.tokens, 96);
  ASSERT_EQ(got.rows.size(), 3u);
  for (size_t v = 0; v < 3; ++v) {
    Engine engine(*m_.model, *m_.weights, {.wkv = options.variants[v], .prefill_tokens = 16});
    for (const WkvComparison::Row& row : got.rows) {
      EXPECT_EQ(row.windows, 96 / row.context);
      const LossSum want = evaluate_loss(engine, 97, reader(), row.context, nullptr);
      EXPECT_NEAR(row.loss[v], want.mean(), 1e-6);
      EXPECT_NEAR(row.difference[v], row.loss[v] - row.loss[0], 1e-12);
    }
  }
  const WkvComparison::Row& longest = got.rows[2];
  EXPECT_EQ(longest.difference[0], 0);
  EXPECT_EQ(longest.error[0], 0);
  EXPECT_EQ(got.bin, 8);
  for (size_t v = 1; v < 3; ++v) {
    EXPECT_NE(longest.difference[v], 0);
    EXPECT_LE(std::fabs(longest.difference[v]), 1e-2);
    EXPECT_GT(longest.error[v], 0);
    ASSERT_EQ(got.by_position[v].size(), 4u);
    double sum = 0;
    for (const double d : got.by_position[v]) sum += d / 4;
    EXPECT_NEAR(sum, longest.difference[v], 1e-6);
  }
}

TEST_F(WkvCompare, AStateBeyondBinary16IsAResult) {
  // Keys and values so large that their products do not always fit, while an f32 state holds them.
  for (const char* name : {"blocks.0.att.key.weight", "blocks.0.att.value.weight"})
    for (float& w : m_.tensor(name)) w *= kLarge;
  const WkvComparison got = compare({.variants = {"serial", "fp16-plain"}, .contexts = {8, 96}});
  const WkvComparison::Row &some = got.rows[0], &all = got.rows[1];
  EXPECT_EQ(some.broken[0], 0);
  EXPECT_GE(some.broken[1], 1);
  EXPECT_LT(some.broken[1], some.windows);
  EXPECT_TRUE(std::isnan(some.loss[1]));
  EXPECT_LE(std::fabs(some.difference[1]), 0.1);  // of the windows that are whole
  EXPECT_GT(some.error[1], 0);
  EXPECT_EQ(all.broken[1], 1);
  EXPECT_TRUE(std::isfinite(all.loss[0]));
  EXPECT_TRUE(std::isnan(all.difference[1]));
  EXPECT_THROW(compare({.variants = {"fp16-plain", "serial"}, .contexts = {96}}), NonFiniteError);
}

TEST_F(WkvCompare, RefusesWhatItCannotMeasure) {
  EXPECT_THROW(compare({.contexts = {100}}), IoError);
  EXPECT_THROW(compare({.contexts = {0}}), ConfigError);
  EXPECT_THROW(compare({.contexts = {}}), ConfigError);
  EXPECT_THROW(compare({.variants = {"no such thing"}, .contexts = {8}}), ConfigError);
}

}  // namespace
}  // namespace rwkv
