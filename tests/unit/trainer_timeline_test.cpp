// Timelines: exposed time of made-up intervals, clocks of ranks, files; and those of real steps.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/core/rng.h"
#include "tests/support/device.h"
#include "trainer/memory.h"
#include "trainer/recompute.h"
#include "trainer/trace_file.h"
#include "trainer/train_step.h"
#include "trainer/trainer.h"

namespace rwkv {
namespace {

using test::kTestDevice;

TimelineInterval interval(TimelineKind kind, int32_t track, double begin, double end,
                          int64_t step = 0, const std::string& name = "x") {
  return {name, kind, track, step, begin, end, is_exchange(kind) ? 100.0 : 0.0};
}

constexpr int32_t kWire = Timeline::kExchangeTrack;

TEST(TimelineTimes, ExposedIsWhatNoLaneCovers) {
  RankTimeline t = {interval(TimelineKind::kForward, 0, 0, 1),
                    interval(TimelineKind::kBackward, 1, 0.5, 1.5),
                    interval(TimelineKind::kBackward, 0, 2, 3),
                    interval(TimelineKind::kReduce, kWire, 0.75, 2.25),
                    interval(TimelineKind::kReduce, kWire, 2.5, 2.75),
                    interval(TimelineKind::kGather, kWire, 2.75, 3.5)};
  const TimelineTimes a = timeline_times(t, 0);
  EXPECT_DOUBLE_EQ(a.step, 3.5);
  EXPECT_DOUBLE_EQ(a.compute, 2.5);
  EXPECT_DOUBLE_EQ(a.exchange, 2.5);
  EXPECT_DOUBLE_EQ(a.exposed, 1.0);  // 1.5 to 2, 3 to 3.5
  EXPECT_DOUBLE_EQ(a.idle, 0.0);
  EXPECT_DOUBLE_EQ(a.forward, 1.0);
  EXPECT_DOUBLE_EQ(a.backward, 2.0);
  EXPECT_DOUBLE_EQ(a.bytes, 300.0);
  // With a next step the rest of the time until then is idle; other steps do not count.
  t.push_back(interval(TimelineKind::kForward, 0, 4, 5, 1));
  const TimelineTimes b = timeline_times(t, 0);
  EXPECT_DOUBLE_EQ(b.step, 4.0);
  EXPECT_DOUBLE_EQ(b.idle, 0.5);
  EXPECT_DOUBLE_EQ(b.exposed, 1.0);
  EXPECT_DOUBLE_EQ(timeline_times(t, 7).step, 0.0);
}

TEST(TimelineTimes, NothingIsExposedUnderOneKernelAndEverythingWithout) {
  const RankTimeline covered = {interval(TimelineKind::kBackward, 0, 0, 10),
                                interval(TimelineKind::kReduce, kWire, 0, 4),
                                interval(TimelineKind::kReduce, kWire, 4, 10)};
  EXPECT_DOUBLE_EQ(timeline_times(covered, 0).exposed, 0.0);
  const RankTimeline bare = {interval(TimelineKind::kBackward, 0, 0, 1),
                             interval(TimelineKind::kReduce, kWire, 1, 3)};
  EXPECT_DOUBLE_EQ(timeline_times(bare, 0).exposed, 2.0);
}

TEST(TimelineTimes, TypicalStepHasTheMedianLength) {
  RankTimeline t;
  EXPECT_EQ(typical_step(t), -1);
  double at = 0;
  for (const double length : {9.0, 2.0, 3.0, 1.0}) {
    t.push_back(
        interval(TimelineKind::kForward, 0, at, at + length / 2, static_cast<int64_t>(t.size())));
    at += length;
  }
  EXPECT_EQ(typical_step(t), 2);  // of 9, 2, 3: the last step has no next one
}

TEST(TimelineFiles, ClocksOfRanksAreSetByTheirExchanges) {
  std::vector<RankTimeline> ranks(2);
  for (int i = 0; i < 5; ++i) {
    const std::string name = std::string("bucket ") + std::to_string(i);
    ranks[0].push_back(interval(TimelineKind::kReduce, kWire, i, i + 0.5, 0, name));
    // Five seconds later by its own clock; begins earlier; one exchange is odd.
    const double end = i + 5.5 + (i == 2 ? 0.25 : 0.0);
    ranks[1].push_back(interval(TimelineKind::kReduce, kWire, i + 4.9, end, 0, name));
  }
  align_timelines(ranks);
  EXPECT_DOUBLE_EQ(ranks[1][0].end, 0.5);
  EXPECT_NEAR(ranks[1][0].begin, -0.1, 1e-12);
  EXPECT_DOUBLE_EQ(ranks[1][2].end, 2.75);
  EXPECT_DOUBLE_EQ(ranks[0][4].end, 4.5);
}

void expect_trace(const std::vector<RankTimeline>& ranks) {
  const auto j = nlohmann::json::parse(chrome_trace(ranks));
  std::map<int, size_t> spans;
  std::set<std::string> names;
  for (const auto& e : j.at("traceEvents")) {
    if (e.at("ph") == "M") {
      names.insert(e.at("args").at("name").get<std::string>());
      continue;
    }
    EXPECT_EQ(e.at("ph"), "X");
    EXPECT_GE(e.at("ts").get<double>(), 0);
    EXPECT_GE(e.at("dur").get<double>(), 0);
    EXPECT_FALSE(e.at("name").get<std::string>().empty());
    ++spans[e.at("pid").get<int>()];
  }
  for (size_t r = 0; r < ranks.size(); ++r) {
    EXPECT_EQ(spans[static_cast<int>(r)], ranks[r].size());
    EXPECT_TRUE(names.contains("rank " + std::to_string(r)));
  }
}

TEST(TimelineFiles, TraceAndPicture) {
  const std::vector<RankTimeline> ranks(
      2, {interval(TimelineKind::kForward, 0, 1, 2), interval(TimelineKind::kBackward, 1, 2, 3),
          interval(TimelineKind::kReduce, kWire, 2.5, 3.25)});
  expect_trace(ranks);
  const std::string svg = timeline_svg(ranks, 0, "two ranks");
  size_t open = 0;
  for (size_t at = 0; (at = svg.find("<rect", at)) != std::string::npos; ++at) ++open;
  // Background, six colours, and for each rank three intervals and what is exposed.
  EXPECT_EQ(open, 1u + 6 + 2 * (3 + 1));
  EXPECT_NE(svg.find("exposed, 250.00 ms"), std::string::npos);
  EXPECT_NE(svg.find("two ranks"), std::string::npos);
  EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
  EXPECT_THROW(timeline_svg(ranks, 3, ""), ConfigError);
}

class Steps : public testing::Test {
 protected:
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }

  static ModelConfig model() {
    ModelConfig c;
    c.n_layer = 3, c.n_embd = 64, c.vocab_size = 96;
    return c;
  }
  static TrainStepOptions options() {
    TrainStepOptions o;
    o.batch = 2, o.tokens = 32, o.device = kTestDevice;
    if (kTestDevice == Device::kCuda) o.dtype = DType::kBF16;
    return o;
  }
  static void prepare(TrainStep& step) {
    step.allocate();
    std::vector<float> values(1021);
    const Rng rng(1, 2);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(rng.uniform(i)) * 0.1f - 0.05f;
    step.fill(values);
  }
  static TrainStep::Result one(TrainStep& step, int64_t micro_batches = 1) {
    for (int64_t i = 0; i < micro_batches; ++i) {
      for (size_t k = 0; k < step.tokens().size(); ++k) {
        step.tokens()[k] = static_cast<int32_t>((7 * k + 3) % 96);
        step.targets()[k] = static_cast<int32_t>((11 * k + 5) % 96);
      }
      step.accumulate(i);
    }
    return step.finish(1e-3);
  }
};

/// Intervals of one track follow each other; every part of the model went forward and backward.
void expect_steps(const RankTimeline& timeline, int64_t steps, const std::set<int32_t>& blocks,
                  const std::set<int32_t>& recomputed) {
  std::map<int32_t, std::vector<const TimelineInterval*>> tracks;
  std::map<int64_t, std::map<TimelineKind, std::set<std::string>>> seen;
  for (const TimelineInterval& i : timeline) {
    EXPECT_LE(0, i.begin);
    EXPECT_LE(i.begin, i.end) << i.name;
    tracks[i.track].push_back(&i);
    seen[i.step][i.kind].insert(i.name);
  }
  for (auto& [track, list] : tracks) {
    std::ranges::sort(list, {}, &TimelineInterval::begin);
    for (size_t k = 1; k < list.size(); ++k) EXPECT_LE(list[k - 1]->end, list[k]->begin + 1e-6);
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), steps);
  for (auto& [step, kinds] : seen) {
    for (const int32_t b : blocks) {
      const std::string name = "blocks." + std::to_string(b);
      EXPECT_TRUE(kinds[TimelineKind::kForward].contains(name)) << name;
      EXPECT_TRUE(kinds[TimelineKind::kBackward].contains(name)) << name;
      EXPECT_EQ(kinds[TimelineKind::kRecompute].contains(name), recomputed.contains(b)) << name;
    }
    EXPECT_FALSE(kinds[TimelineKind::kOptimizer].empty());
    const TimelineTimes t = timeline_times(timeline, step);
    EXPECT_GT(t.forward, 0);
    EXPECT_GT(t.backward, 0);
    EXPECT_LE(t.compute, t.step);
    EXPECT_EQ(t.exposed, 0);
  }
}

TEST_F(Steps, AreSeenWhileTheyAreWatchedAndComputeTheSame) {
  for (const int64_t blocks : {-1, 2}) {
    TrainStepOptions o = options();
    if (blocks >= 0) o.grad_checkpointing = GradCheckpointing::kBlock, o.recompute_blocks = blocks;
    TrainStep plain(model(), o), watched(model(), o);
    prepare(plain);
    prepare(watched);
    EXPECT_EQ(one(plain).loss, one(watched).loss);
    Timeline timeline(watched.context());
    watched.watch(&timeline);
    for (int i = 0; i < 3; ++i) {
      const TrainStep::Result a = one(plain), b = one(watched);
      EXPECT_TRUE(a.finite);
      EXPECT_EQ(a.loss, b.loss);
      EXPECT_EQ(a.grad_norm, b.grad_norm);
    }
    watched.watch(nullptr);
    EXPECT_EQ(one(plain).loss, one(watched).loss);
    EXPECT_EQ(timeline.steps(), 3);
    expect_steps(timeline.intervals(), 3, {0, 1, 2},
                 blocks < 0 ? std::set<int32_t>{} : std::set<int32_t>{0, 1});
    expect_trace({timeline.intervals()});
  }
}

TEST_F(Steps, MicroBatchesAreAllSeen) {
  TrainStepOptions o = options();
  o.micro_batches = 4;
  TrainStep step(model(), o);
  prepare(step);
  one(step, 4);
  Timeline timeline(step.context());
  step.watch(&timeline);
  one(step, 4);
  one(step, 4);
  int forward = 0;
  for (const TimelineInterval& i : timeline.intervals())
    if (i.kind == TimelineKind::kForward && i.name == "embedding") ++forward;
  EXPECT_EQ(forward, 2 * 4);
  step.watch(nullptr);
}

TEST_F(Steps, RecomputeAsLittleAsFits) {
  TrainStepOptions o = options();
  o.device = Device::kCpu, o.dtype = DType::kF32;
  const auto needs = [&](int64_t blocks) {
    TrainStepOptions with = o;
    with.recompute_blocks = blocks;
    with.grad_checkpointing = blocks > 0 ? GradCheckpointing::kBlock : GradCheckpointing::kNone;
    return total_bytes(TrainStep(model(), with).memory());
  };
  EXPECT_EQ(fewest_recomputed_blocks(model(), o, 0), 0);
  EXPECT_EQ(fewest_recomputed_blocks(model(), o, needs(0)), 0);
  EXPECT_EQ(fewest_recomputed_blocks(model(), o, needs(3) - 1), -1);
  for (int64_t n = 1; n <= 3; ++n) {
    ASSERT_LT(needs(n), needs(n - 1));
    EXPECT_EQ(fewest_recomputed_blocks(model(), o, needs(n)), n);
    EXPECT_EQ(fewest_recomputed_blocks(model(), o, needs(n - 1) - 1), n);
  }
}

TEST_F(Steps, AutoTakesWhatFitsIntoTheLimit) {
  const std::string base = R"({"model": {"n_layer": 4, "n_embd": 128, "vocab_size": 257},
    "data": {"train": "synthetic"}, "train": {"context": 512, "batch": 8, "steps": 2,
    "grad_checkpointing": "auto"}, "limits": {"memory_mib": )";
  const auto fitted = [&](int64_t mib) {
    const TrainConfig c = parse_config(base + std::to_string(mib) + "}}", "test", {});
    return with_recomputation(c, Device::kCpu, nullptr);
  };
  EXPECT_EQ(fitted(100000).train.grad_checkpointing, "none");
  EXPECT_EQ(fitted(1).train.grad_checkpointing, "block");
  EXPECT_EQ(fitted(1).train.recompute_blocks, 0);
  const auto needs = [&](const TrainConfig& c) {
    return total_bytes(TrainStep(c.model, step_options(c, Device::kCpu)).memory());
  };
  const auto most = static_cast<int64_t>(needs(fitted(100000)) >> 20);
  const TrainConfig some = fitted(most - 8);
  EXPECT_EQ(some.train.grad_checkpointing, "block");
  EXPECT_GT(some.train.recompute_blocks, 0);
  EXPECT_LT(some.train.recompute_blocks, 4);
  EXPECT_LE(needs(some), static_cast<size_t>(most - 8) << 20);
  TrainConfig other = some;
  other.train.grad_checkpointing = "block";
  other.train.recompute_blocks = 3;
  EXPECT_EQ(with_recomputation(other, Device::kCpu, nullptr).train.recompute_blocks, 3);
}

TEST_F(Steps, FillRepeatsTheValues) {
  TrainStepOptions o = options();
  o.device = Device::kCpu, o.dtype = DType::kF32;
  TrainStep step(model(), o);
  step.allocate();
  const std::vector<float> values = {1, 2, 3, 4, 5, 6, 7};
  step.fill(values);
  const std::span<float> flat = step.values().flat();
  for (size_t i = 0; i < flat.size(); ++i) ASSERT_EQ(flat[i], values[i % 7]);
}

}  // namespace
}  // namespace rwkv
