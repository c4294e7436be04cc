// Philox4x32-10 against the known answers of its authors (Random123 distribution, kat_vectors), and
// the distributions built on it.

#include "kernels/core/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

namespace rwkv {
namespace {

using Block = std::array<uint32_t, 4>;

TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t f = 0xffffffff;
  EXPECT_EQ(philox4x32({f, f, f, f}, {f, f}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, HashNameIsFnv1a) {
  EXPECT_EQ(hash_name(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(hash_name("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_EQ(hash_name("foobar"), 0x85944171f73967e8ull);
}

TEST(Rng, SequenceEqualsRandomAccess) {
  Rng sequence(1, 2, 3);
  const Rng access(1, 2, 3);
  for (uint64_t i = 0; i < 10; ++i) EXPECT_EQ(sequence.next_u64(), access.u64(i));
}

TEST(Rng, SeedPurposeStepAndIndexAllMatter) {
  std::set<uint64_t> seen;
  for (uint64_t seed : {0ull, 1ull, 1ull << 40})
    for (uint64_t purpose : {0ull, 1ull, 1ull << 40})
      for (uint64_t step : {0, 1, 2})
        for (uint64_t index : {0ull, 1ull, 1ull << 33})
          seen.insert(Rng(seed, purpose, step).u64(index));
  EXPECT_EQ(seen.size(), 81u);
}

TEST(Rng, UniformIsInRangeAndEven) {
  const Rng rng(5, hash_name("uniform"));
  int bins[10] = {};
  constexpr int n = 100000;
  for (uint64_t i = 0; i < n; ++i) {
    const double u = rng.uniform(i);
    ASSERT_TRUE(u >= 0.0 && u < 1.0);
    ++bins[static_cast<int>(u * 10)];
  }
  double chi2 = 0;
  for (const int b : bins) chi2 += (b - n / 10.0) * (b - n / 10.0) / (n / 10.0);
  EXPECT_LT(chi2, 27.9);  // 9 degrees of freedom, 0.1 %
}

TEST(Rng, BelowIsUnbiasedAtAwkwardBounds) {
  const Rng rng(6, hash_name("below"));
  std::map<uint64_t, int> count;
  for (uint64_t i = 0; i < 70000; ++i) ++count[rng.below(i, 7)];
  ASSERT_EQ(count.size(), 7u);
  EXPECT_EQ(count.rbegin()->first, 6u);
  for (const auto& [value, n] : count) EXPECT_NEAR(n, 10000, 400) << value;
  // 2^64 mod this bound is almost the bound: without rejection the lower half would come twice.
  const uint64_t bound = (1ull << 63) + (1ull << 62);
  int low = 0;
  for (uint64_t i = 0; i < 3000; ++i) {
    const uint64_t v = rng.below(i, bound);
    ASSERT_LT(v, bound);
    low += v < bound / 3;
  }
  EXPECT_NEAR(low, 1000, 110);
  EXPECT_EQ(rng.below(3, 1), 0u);
}

TEST(Rng, NormalHasTheMoments) {
  const Rng rng(7, hash_name("normal"));
  constexpr int n = 200000;
  double sum = 0, sum2 = 0, sum4 = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const double x = rng.normal(i);
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    sum2 += x * x;
    sum4 += x * x * x * x;
  }
  // Four standard errors: 1 / sqrt(n), sqrt(2 / n), sqrt(96 / n).
  EXPECT_NEAR(sum / n, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(sum2 / n, 1, 4 * std::sqrt(2.0 / n));
  EXPECT_NEAR(sum4 / n, 3, 4 * std::sqrt(96.0 / n));
}

}  // namespace
}  // namespace rwkv
