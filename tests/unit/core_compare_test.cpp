// The comparison helper must fail on what it is there to catch: every test plants an error.

#include "tests/support/compare.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tests/support/guarded_buffer.h"

namespace rwkv::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<double> reference() {
  std::vector<double> want(24);
  for (size_t i = 0; i < want.size(); ++i) want[i] = 1.0 + 0.25 * static_cast<double>(i % 5);
  return want;
}

testing::AssertionResult compare(const std::vector<float>& got, const std::vector<double>& want,
                                 const Tolerance& tol, double row_floor = 1e-3) {
  return matches(std::span<const float>(got), std::span<const double>(want), tol,
                 {.what = "planted", .row_length = 6, .seed = 17, .row_floor = row_floor});
}

TEST(Compare, AcceptsEqualAndSlightlyDifferentValues) {
  const auto want = reference();
  std::vector<float> got(want.begin(), want.end());
  EXPECT_TRUE(compare(got, want, Tolerance::all(0.0)));
  got[3] += 1e-6f;
  EXPECT_TRUE(compare(got, want, Tolerance::all(1e-5)));
}

TEST(Compare, EachMeasureCatchesAPlantedError) {
  const auto want = reference();
  std::vector<float> got(want.begin(), want.end());
  got[13] += 0.1f;
  EXPECT_FALSE(compare(got, want, {1e-3, -1, -1}));
  EXPECT_FALSE(compare(got, want, {-1, 1e-3, -1}));
  EXPECT_FALSE(compare(got, want, {-1, -1, 1e-3}));
  EXPECT_TRUE(compare(got, want, {-1, -1, -1}));
}

TEST(Compare, OneBadRowHidesFromTheNormButNotFromItsRow) {
  std::vector<double> want(600, 1.0);
  for (size_t i = 594; i < 600; ++i) want[i] = 0.01;
  std::vector<float> got(want.begin(), want.end());
  for (size_t i = 594; i < 600; ++i) got[i] = 0.02f;
  EXPECT_TRUE(compare(got, want, {0.02, -1, 0.02}));
  EXPECT_FALSE(compare(got, want, {0.02, 0.5, 0.02}));
}

TEST(Compare, NaNFailsEveryMeasureEvenWhenSwitchedOff) {
  const auto want = reference();
  for (const size_t at : {size_t{0}, size_t{7}, size_t{23}}) {
    std::vector<float> got(want.begin(), want.end());
    got[at] = kNaN;
    EXPECT_FALSE(compare(got, want, Tolerance::all(1e30)));
    EXPECT_FALSE(compare(got, want, {-1, -1, -1}));
  }
  auto broken = want;
  broken[2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(compare(std::vector<float>(want.begin(), want.end()), broken, Tolerance::all(1e30)));
}

TEST(Compare, InfinityFails) {
  const auto want = reference();
  std::vector<float> got(want.begin(), want.end());
  got[4] = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(compare(got, want, Tolerance::all(1e30)));
}

TEST(Compare, AllZeroReferenceAdmitsZerosOnly) {
  const std::vector<double> want(12, 0.0);
  std::vector<float> got(12, 0.0f);
  EXPECT_TRUE(compare(got, want, Tolerance::all(0.0)));
  got[11] = 1e-30f;
  EXPECT_FALSE(compare(got, want, Tolerance::all(1e-3)));
}

TEST(Compare, RowFloorDecidesHowSmallRowsCount) {
  std::vector<double> want(12, 1.0);
  std::vector<float> got(12, 1.0f);
  for (size_t i = 6; i < 12; ++i) {
    want[i] = 1e-9;
    got[i] = 2e-9f;
  }
  EXPECT_TRUE(compare(got, want, Tolerance::all(1e-4)));
  EXPECT_FALSE(compare(got, want, Tolerance::all(1e-4), 0.0));
}

TEST(Compare, SizesMustAgreeAndNotBeZero) {
  const auto want = reference();
  EXPECT_FALSE(compare(std::vector<float>(23, 1.0f), want, Tolerance::all(1e30)));
  EXPECT_FALSE(compare({}, {}, Tolerance::all(1e30)));
}

TEST(Compare, MessageNamesSeedIndexAndBothValues) {
  const auto want = reference();
  std::vector<float> got(want.begin(), want.end());
  got[13] = 7.5f;
  const std::string text = compare(got, want, Tolerance::all(1e-6)).message();
  for (const char* part : {"planted", "seed 17", "index 13", "got 7.5", "expected 1.75", "row 2"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " not in: " << text;
}

TEST(Compare, BitEqualSeesOneBit) {
  std::vector<float> a(5, 1.0f), b(5, 1.0f);
  EXPECT_TRUE(bit_equal(std::span<const float>(a), std::span<const float>(b), "same"));
  b[4] = std::nextafter(1.0f, 2.0f);
  EXPECT_FALSE(bit_equal(std::span<const float>(a), std::span<const float>(b), "bit"));
  b[4] = 1.0f;
  a[0] = 0.0f;
  b[0] = -0.0f;
  EXPECT_FALSE(bit_equal(std::span<const float>(a), std::span<const float>(b), "sign of zero"));
}

TEST(GuardedBuffer, StartsAsNaNAndSeesWritesOnBothSides) {
  for (const size_t misalign : {size_t{0}, size_t{1}, size_t{7}}) {
    GuardedBuffer buffer(TensorSpec{3, 5}, misalign);
    for (const float v : buffer.f32()) EXPECT_TRUE(std::isnan(v));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.view().data) % 64, 4 * misalign);
    for (float& v : buffer.f32()) v = 0.0f;
    EXPECT_TRUE(buffer.intact("untouched"));
    float* data = buffer.view().f32();
    const float before = data[-1], after = data[15];
    data[-1] = 0.0f;
    EXPECT_FALSE(buffer.intact("before the first"));
    data[-1] = before;
    EXPECT_TRUE(buffer.intact("restored"));
    data[15] = 0.0f;
    EXPECT_FALSE(buffer.intact("after the last"));
    data[15] = after;
  }
}

}  // namespace
}  // namespace rwkv::test
