#include "kernels/core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/core/error.h"

namespace rwkv {
namespace {

class Parallel : public testing::Test {
 protected:
  ~Parallel() override { set_num_threads(before_); }
  const int before_ = num_threads();
};

TEST_F(Parallel, EveryItemOnceInTheSameChunks) {
  for (const int threads : {1, 2, 3, 8}) {
    set_num_threads(threads);
    for (const int64_t n : {1, 2, 7, 64, 1000})
      for (const int64_t grain : {1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
        std::atomic<int64_t> chunks{0};
        parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          EXPECT_EQ(begin % grain, 0);
          EXPECT_EQ(end, std::min(n, begin + grain));
          for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
          ++chunks;
        });
        for (const auto& h : hits) EXPECT_EQ(h.load(), 1);
        EXPECT_EQ(chunks.load(), (n + grain - 1) / grain);
      }
  }
}

TEST_F(Parallel, NothingToDo) {
  parallel_for(0, 4, [](int64_t, int64_t) { FAIL(); });
  parallel_for(-3, 4, [](int64_t, int64_t) { FAIL(); });
  int calls = 0;
  parallel_for(3, 0, [&](int64_t begin, int64_t end) {
    EXPECT_EQ(end, begin + 1);  // a grain below 1 counts as 1
    ++calls;
  });
  EXPECT_GT(calls, 0);
}

TEST_F(Parallel, FirstExceptionByChunkOrderLeavesAfterAllChunks) {
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    std::atomic<int> done{0};
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t) {
        if (begin == 97 || begin == 31 || begin == 60) throw ShapeError(str("chunk ", begin));
        ++done;
      });
      FAIL() << "no exception";
    } catch (const ShapeError& e) {
      EXPECT_STREQ(e.what(), "chunk 31") << threads << " threads";
    }
    EXPECT_GE(done.load(), 31);
  }
}

TEST_F(Parallel, NestedLoopsRunSerially) {
  set_num_threads(2);
  std::vector<int> order(40, -1);
  parallel_for(4, 1, [&](int64_t outer, int64_t) {
    int next = 0;  // unsynchronised: a parallel inner loop would be a race
    parallel_for(10, 1, [&](int64_t inner, int64_t) {
      order[static_cast<size_t>(outer * 10 + inner)] = next++;
    });
  });
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], static_cast<int>(i % 10));
}

TEST_F(Parallel, NumberOfThreadsIsChecked) {
  EXPECT_GE(num_threads(), 1);
  EXPECT_THROW(set_num_threads(0), ConfigError);
  EXPECT_THROW(set_num_threads(-2), ConfigError);
#ifdef _OPENMP
  set_num_threads(3);
  EXPECT_EQ(num_threads(), 3);
#endif
}

}  // namespace
}  // namespace rwkv
