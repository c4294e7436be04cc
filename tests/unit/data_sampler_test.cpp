// Data orders: the reference's numbers, and that every slot is visited once.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "data/io/atomic_file.h"
#include "data/sampler.h"
#include "kernels/core/error.h"
#include "tests/unit/data_test_util.h"

namespace rwkv {
namespace {

TEST(Sampler, MagicPrimesOfTheReference) {
  EXPECT_EQ(magic_prime(1498226207, 512), 2926181);
  EXPECT_EQ(magic_prime(1498226207, 4096), 365759);
  EXPECT_EQ(magic_prime(332115325534, 4096), 81082817);
  EXPECT_EQ(magic_prime(31138, 64), 479);
  EXPECT_EQ(magic_prime(31138, 128), 239);
  // p < slots, strictly: 480 slots and 479 would both fit "<=" at 479 slots.
  EXPECT_EQ(magic_prime(480 * 64, 64), 479);
  EXPECT_EQ(magic_prime(479 * 64, 64), 467);
  EXPECT_EQ(magic_prime(3, 1), 2);
  EXPECT_EQ(magic_prime(2, 1), 0);
  EXPECT_THROW(magic_prime(100, 0), ConfigError);
}

TEST(Sampler, PrimeOrderOfMiniPile) {
  const PrimeSampler s(1498226207, 512);
  EXPECT_EQ(s.factor(), 1808479);
  EXPECT_EQ(s.samples_per_epoch(), 2926181);
  const int64_t slots[] = {1808479, 2763108, 2010037, 1621597, 743938};
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(s.offset(i), slots[i] * 512);
}

TEST(Sampler, PrimeOrderOfTheReferenceFile) {
  const char* folder = std::getenv("RWKV_TEST_DATA");
  if (folder == nullptr) GTEST_SKIP() << "RWKV_TEST_DATA is not set";
  const auto reference =
      nlohmann::json::parse(read_file(std::string(folder) + "/refs/rwkv_lm_sampler.json"));
  for (const auto& c : reference["magic_primes"])
    EXPECT_EQ(magic_prime(c["data_tokens"], c["ctx_len"]), c["magic_prime"].get<int64_t>());
  size_t cases = 0;
  for (const auto& c : reference["samples"]) {
    int64_t tokens = 0;  // the case names its prime: find the data set it belongs to
    for (const auto& m : reference["magic_primes"])
      if (m["magic_prime"] == c["magic_prime"] && m["ctx_len"] == c["ctx_len"])
        tokens = m["data_tokens"];
    ASSERT_GT(tokens, 0);
    const PrimeSampler s(tokens, c["ctx_len"]);
    EXPECT_EQ(s.factor(), c["factor"].get<int64_t>());
    const auto index = c["epoch"].get<uint64_t>() * 40320 +
                       c["idx"].get<uint64_t>() * c["world_size"].get<uint64_t>() +
                       c["rank"].get<uint64_t>();
    EXPECT_EQ(s.offset(index), c["offset_tokens"].get<int64_t>()) << c;
    ++cases;
  }
  EXPECT_EQ(cases, 28u);
}

void expect_permutation(const Sampler& s, int64_t tokens, int64_t length) {
  const int64_t n = s.samples_per_epoch();
  for (uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = s.offset(epoch * static_cast<uint64_t>(n) + static_cast<uint64_t>(i));
      ASSERT_EQ(at % length, 0);
      ASSERT_LE(at + length + 1, tokens);
      const auto slot = static_cast<size_t>(at / length);
      ASSERT_LT(slot, seen.size());
      ASSERT_FALSE(seen[slot]) << s.name() << " slot " << slot;
      seen[slot] = true;
    }
  }
}

TEST(Sampler, EverySlotOncePerEpoch) {
  for (const int64_t slots : {1, 2, 3, 4, 5, 16, 17, 100, 1000, 1023, 4099}) {
    const int64_t tokens = slots * 8 + 1;
    expect_permutation(*make_sampler("sequential", tokens, 8, 0), tokens, 8);
    expect_permutation(*make_sampler("shuffle", tokens, 8, 42), tokens, 8);
    EXPECT_EQ(make_sampler("shuffle", tokens, 8, 42)->samples_per_epoch(), slots);
    if (slots >= 1000) expect_permutation(*make_sampler("prime", tokens, 8, 0), tokens, 8);
  }
}

TEST(Sampler, ShuffleDependsOnSeedAndEpochAndLooksRandom) {
  const ShuffleSampler a(1000 * 8 + 1, 8, 1), b(1000 * 8 + 1, 8, 2);
  int same_seed = 0, same_epoch = 0, neighbours = 0;
  double moved = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same_seed += a.offset(i) == b.offset(i);
    same_epoch += a.offset(i) == a.offset(i + 1000);
    neighbours += a.offset(i + 1) == a.offset(i) + 8;
    moved += std::abs(static_cast<double>(a.offset(i)) / 8 - static_cast<double>(i));
  }
  // Expected 1 each (Poisson) and a mean distance of a third of the range, 333 +- 8.
  EXPECT_LE(same_seed, 8);
  EXPECT_LE(same_epoch, 8);
  EXPECT_LE(neighbours, 8);
  EXPECT_NEAR(moved / 1000, 333, 40);
}

TEST(Sampler, AnotherPrimeThatTheReferenceWouldTake) {
  // 480 slots: 479 is the magic prime, 467 passes the reference's checks too.
  const PrimeSampler s(31138, 64, 467);
  EXPECT_EQ(s.prime(), 467);
  EXPECT_EQ(s.samples_per_epoch(), 467);
  expect_permutation(s, 31138, 64);
  EXPECT_EQ(PrimeSampler(31138, 64, 479).offset(5), PrimeSampler(31138, 64).offset(5));
  // Not a prime; 1 modulo 3; too small; beyond the data; negative.
  for (const int64_t wrong : {480, 478, 463, 431, 491, 2926181, -479}) {
    const auto text = test::error_of<ConfigError>([&] { PrimeSampler(31138, 64, wrong); });
    EXPECT_NE(text.find("it is 479"), std::string::npos) << text;
  }
  EXPECT_THROW(make_sampler("shuffle", 31138, 64, 0, 479), ConfigError);
}

TEST(Sampler, RefusesWhatCannotWork) {
  EXPECT_THROW(make_sampler("random", 1000, 8, 0), ConfigError);
  EXPECT_THROW(make_sampler("sequential", 8, 8, 0), ConfigError);
  EXPECT_THROW(make_sampler("shuffle", 1000, 0, 0), ConfigError);
  EXPECT_NO_THROW(make_sampler("sequential", 9, 8, 0));
  const auto text = test::error_of<ConfigError>([] { PrimeSampler(8 * 8, 8); });
  EXPECT_NE(text.find("shuffle"), std::string::npos) << text;
}

}  // namespace
}  // namespace rwkv
