#pragma once
/// Entry of test programs that run on several ranks at once (mpirun -n N PROGRAM).

#include <gtest/gtest.h>

#include <cstdio>

#include "tests/support/device.h"
#include "trainer/comm/launch.h"

namespace rwkv::test {

/// The ranks of this program; null for a single process, where such tests are skipped.
inline Communicator*& test_ranks() {
  static Communicator* comm = nullptr;
  return comm;
}

/// Tests of those ranks.
class Ranks : public testing::Test {
 protected:
  void SetUp() override {
    if (test_ranks() == nullptr) GTEST_SKIP() << "one process: start it with mpirun -n 2";
    comm_ = test_ranks();
  }

  Communicator* comm_ = nullptr;
};

/// All ranks must come through the same collectives: tests use EXPECT, not ASSERT, around them.
inline int run_rank_tests(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return run_ranks(1, "test", [](RankSession& session) {
    test_ranks() = session.connect(kTestDevice);
    // An exception must end all ranks: the others wait in a collective for the one that threw.
    if (session.size() > 1) GTEST_FLAG_SET(catch_exceptions, false);
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    if (session.rank() != 0) delete listeners.Release(listeners.default_result_printer());
    int failed = RUN_ALL_TESTS();
    constexpr int kSkipped = 77;  // what ctest knows, see support/main.cpp
    if (test_ranks() == nullptr && failed == 0) return kSkipped;
    if (test_ranks() != nullptr) {
      std::vector<int> all(static_cast<size_t>(session.size()));
      session.group()->all_gather(&failed, sizeof failed, all.data());
      for (size_t r = 0; r < all.size(); ++r) {
        if (all[r] != 0 && session.rank() == 0) std::printf("rank %zu failed\n", r);
        failed |= all[r];
      }
    }
    return failed;
  });
}

}  // namespace rwkv::test
