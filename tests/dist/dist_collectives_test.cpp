// What ranks exchange: the collectives by themselves, and errors that they agree on. A part of
// dist_step_test.

#include <array>
#include <cstring>

#include "kernels/core/arena.h"
#include "kernels/core/bf16.h"
#include "kernels/core/launch_graph.h"
#include "kernels/core/stream_event.h"
#include "tests/dist/rank_test_main.h"
#include "tests/golden/golden_util.h"

namespace rwkv {
namespace {

using test::kTestDevice;
using test::Ranks;

/// Numbers whose sum depends on the order of adding.
float number(int rank, int64_t i) {
  const float big = 16777216.0f * static_cast<float>(i % 3);
  return rank == 0 ? big + 1.0f : rank == 1 ? -big : 0.5f + static_cast<float>(i % 7);
}

class Memory {
 public:
  Memory(Context& ctx, std::vector<float> values)
      : ctx_(ctx),
        spec_({static_cast<int64_t>(values.size())}),
        arena_(kTestDevice, spec_.bytes(), "t") {
    copy(ctx_, view(), TensorView(values.data(), spec_));
    ctx_.synchronize("test");
  }
  TensorView view() const { return arena_.at(0, spec_); }
  float* data() const { return view().f32(); }
  std::vector<float> read(Communicator& comm) const {
    StreamEvent done;
    if (comm.stream() != nullptr) {
      done.record_on(comm.stream());
      done.wait(ctx_);
    }
    return golden::fetch(ctx_, view());
  }

 private:
  Context& ctx_;
  TensorSpec spec_;
  Arena arena_;
};

TEST_F(Ranks, Collectives) {
  Context ctx(kTestDevice);
  const int ranks = comm_->size(), rank = comm_->rank();
  constexpr int64_t kCount = 64;
  const auto all = static_cast<size_t>(kCount * ranks);
  std::vector<float> mine(all), sums(all);
  for (size_t i = 0; i < all; ++i) {
    mine[i] = number(rank, static_cast<int64_t>(i));
    float sum = number(0, static_cast<int64_t>(i));
    for (int r = 1; r < ranks; ++r) sum += number(r, static_cast<int64_t>(i));
    sums[i] = sum;
  }
  const Memory a(ctx, mine);
  comm_->reduce_scatter(a.data(), a.data() + rank * kCount, kCount, DType::kF32);
  const std::vector<float> scattered = a.read(*comm_);
  const bool ordered = kTestDevice == Device::kCpu || ranks == 2;  // NCCL's order is its own
  for (int64_t i = rank * kCount; i < (rank + 1) * kCount && ordered; ++i)
    EXPECT_EQ(scattered[static_cast<size_t>(i)], sums[static_cast<size_t>(i)]) << i;

  const Memory b(ctx, std::vector<float>(all, static_cast<float>(rank)));
  comm_->all_gather(b.data() + rank * kCount, b.data(), kCount, DType::kF32);
  const Memory c(ctx, std::vector<float>(static_cast<size_t>(kCount), static_cast<float>(rank)));
  const Memory d(ctx, std::vector<float>(all, -1.0f));
  const Memory f(ctx, std::vector<float>(static_cast<size_t>(kCount), static_cast<float>(rank)));
  comm_->begin_group();  // may run at the same time, so on different memory
  comm_->all_gather(c.data(), d.data(), kCount, DType::kF32);
  comm_->broadcast(f.data(), kCount, DType::kF32);
  comm_->end_group();
  const std::vector<float> in_place = b.read(*comm_), apart = d.read(*comm_),
                           zeros = f.read(*comm_);
  for (size_t i = 0; i < all; ++i) {
    EXPECT_EQ(in_place[i], static_cast<float>(i / kCount));
    EXPECT_EQ(apart[i], static_cast<float>(i / kCount));
  }
  for (const float x : zeros) EXPECT_EQ(x, 0.0f);
  const Memory e(ctx, {1.0f, static_cast<float>(rank)});
  comm_->all_reduce(e.data(), 2);
  EXPECT_EQ(e.read(*comm_), (std::vector<float>{static_cast<float>(ranks),
                                                static_cast<float>(ranks * (ranks - 1) / 2)}));
}

// Recorded and called in turns, as a step does it; NCCL synchronises the two in different ways.
TEST_F(Ranks, CopyEnginesAddInTheOrderOfRanks) {
  if (!comm_->uses_copy_engines()) GTEST_SKIP() << comm_->description() << " uses none";
  Context ctx(kTestDevice);
  const int ranks = comm_->size(), rank = comm_->rank();
  constexpr int64_t kSmall = 8, kLarge = 70'000, kRounds = 60;
  const int64_t all = (kSmall + kLarge) * ranks;
  const auto bytes = static_cast<size_t>(all) * sizeof(float);
  const Arena memory = comm_->allocate(bytes, "t"), scratch = comm_->allocate(bytes, "t");
  const TensorSpec spec({all});
  const auto f32 = [](const Arena& a, int64_t at) {
    return reinterpret_cast<float*>(a.data()) + at;
  };
  std::vector<float> mine(static_cast<size_t>(all));
  for (size_t i = 0; i < mine.size(); ++i) mine[i] = number(rank, static_cast<int64_t>(i));
  const Memory source(ctx, mine);
  StreamEvent begin, end;
  const std::array segments = {std::pair{int64_t{0}, kSmall}, std::pair{kSmall * ranks, kLarge}};
  // Sums of two segments in one group, in place; then all ranks get all sums.
  const auto work = [&] {
    copy(ctx, memory.at(0, spec), source.view());
    begin.record(ctx);
    begin.wait_on(comm_->stream());
    comm_->begin_group();
    for (const auto& [at, count] : segments)
      comm_->reduce_scatter_by_copies(f32(memory, at), f32(scratch, at),
                                      f32(memory, at + rank * count), count, DType::kF32);
    comm_->end_group();
    comm_->begin_group();
    for (const auto& [at, count] : segments)
      comm_->all_gather(f32(memory, at + rank * count), f32(memory, at), count, DType::kF32);
    comm_->end_group();
    end.record_on(comm_->stream());
    end.wait(ctx);
  };
  std::vector<float> sums(mine.size());
  for (size_t i = 0; i < sums.size(); ++i) {
    sums[i] = number(0, static_cast<int64_t>(i));
    for (int r = 1; r < ranks; ++r) sums[i] += number(r, static_cast<int64_t>(i));
  }
  work();
  EXPECT_EQ(golden::fetch(ctx, memory.at(0, spec)), sums);
  const LaunchGraph graph(ctx, work);
  for (int64_t i = 0; i < kRounds; ++i) {
    if (i % 3 == 2)
      work();
    else
      graph.launch(ctx);
    if (i % 7 == 0) {
      EXPECT_EQ(golden::fetch(ctx, memory.at(0, spec)), sums) << i;
    }
  }
  EXPECT_EQ(golden::fetch(ctx, memory.at(0, spec)), sums);
  // bf16, rounded once.
  std::vector<BF16> halves(static_cast<size_t>(kLarge * ranks));
  for (size_t i = 0; i < halves.size(); ++i)
    halves[i] = to_bf16(number(rank, static_cast<int64_t>(i)));
  const TensorSpec half({kLarge * ranks}, DType::kBF16);
  copy(ctx, memory.at(0, half), TensorView(halves.data(), half));
  ctx.synchronize("test");
  auto* p = reinterpret_cast<BF16*>(memory.data());
  comm_->reduce_scatter_by_copies(p, scratch.data(), p + rank * kLarge, kLarge, DType::kBF16);
  end.record_on(comm_->stream());
  end.wait(ctx);
  copy(ctx, TensorView(halves.data(), half), memory.at(0, half));
  ctx.synchronize("test");
  for (int64_t i = rank * kLarge; i < (rank + 1) * kLarge; ++i) {
    float sum = to_float(to_bf16(number(0, i)));
    for (int r = 1; r < ranks; ++r) sum += to_float(to_bf16(number(r, i)));
    EXPECT_EQ(to_float(halves[static_cast<size_t>(i)]), to_float(to_bf16(sum))) << i;
  }
}

TEST_F(Ranks, AgreeOnErrors) {
  HostGroup& group = comm_->group();
  EXPECT_EQ(group.broadcast(group.rank() == 0 ? std::string(5000, 'x') : ""),
            std::string(5000, 'x'));
  agree(&group, [] {});
  try {
    agree(&group, [&] { RWKV_CHECK(group.rank() != 1, IoError, "no file"); });
    ADD_FAILURE() << "rank 1 failed";
  } catch (const AgreedError& e) {
    EXPECT_EQ(group.rank(), 0);
    EXPECT_EQ(e.exit_code(), 3);
    EXPECT_STREQ(e.what(), "rank 1: no file");
  } catch (const ReportedError& e) {
    EXPECT_NE(group.rank(), 0);
    EXPECT_EQ(e.exit_code(), 3);
  }
  const std::string folder(6000, 'f');
  try {
    agree(&group, [&] { RWKV_CHECK(group.rank() != 1, IoError, folder, ": advice"); });
    ADD_FAILURE() << "rank 1 failed";
  } catch (const AgreedError& e) {
    EXPECT_EQ(e.what(), "rank 1: " + folder + ": advice") << "whatever its length";
  } catch (const ReportedError& e) {
    EXPECT_NE(group.rank(), 0);
  }
  require_same(group, "the colour", "blue");
  try {
    require_same(group, "the colour", group.rank() + 1 == group.size() ? "red" : "blue");
    ADD_FAILURE() << "colours differ";
  } catch (const AgreedError& e) {
    const std::string text = e.what();
    EXPECT_NE(text.find(str("the colour of rank ", group.size() - 1, " differs")), text.npos)
        << text;
  } catch (const ReportedError&) {
    EXPECT_NE(group.rank(), 0);
  }
}

}  // namespace
}  // namespace rwkv
