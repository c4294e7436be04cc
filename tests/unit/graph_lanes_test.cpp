// Lanes: conflicting steps stay ordered whatever the graph, and independent ones spread. Gradients
// that pass through sums: shared memory gives the same bits as copies, on random graphs.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/core/rng.h"
#include "kernels/ops/elementwise.h"
#include "kernels/ops/linear.h"
#include "model/graph/lanes.h"
#include "model/graph/plan.h"

namespace rwkv {
namespace {

bool touch(const std::vector<MemoryRange>& a, const std::vector<MemoryRange>& b) {
  for (const auto& x : a)
    for (const auto& y : b)
      if (std::max(x.begin, y.begin) < std::min(x.end, y.end)) return true;
  return false;
}

std::vector<LaneStep> random_steps(uint64_t seed, size_t count, uint64_t memory) {
  const Rng rng(seed, hash_name("lanes"));
  uint64_t n = 0;
  std::vector<LaneStep> steps(count);
  for (LaneStep& s : steps) {
    for (auto* list : {&s.reads, &s.writes})
      for (uint64_t k = rng.below(n++, 3) + (list == &s.writes ? 1 : 0); k > 0; --k) {
        const uintptr_t begin = rng.below(n++, memory);
        list->push_back({begin, begin + 1 + rng.below(n++, 5)});
      }
    s.seconds = 1e-6 * static_cast<double>(1 + rng.below(n++, 20));
  }
  return steps;
}

TEST(Lanes, ConflictingStepsAreOrdered) {
  for (uint64_t seed = 0; seed < 30; ++seed)
    for (const int lanes : {1, 2, 3, 8}) {
      const auto steps = random_steps(seed, 60, 40 + 60 * seed);
      const auto slots = schedule_lanes(steps, lanes);
      ASSERT_EQ(slots.size(), steps.size());
      // reached[i][j]: j is over before i begins, by lanes, waits and what those imply.
      std::vector<std::vector<bool>> reached(steps.size(), std::vector<bool>(steps.size(), false));
      for (size_t i = 0; i < steps.size(); ++i) {
        ASSERT_GE(slots[i].lane, 0);
        ASSERT_LT(slots[i].lane, lanes);
        const auto follow = [&](size_t j) {
          reached[i][j] = true;
          for (size_t k = 0; k < j; ++k)
            if (reached[j][k]) reached[i][k] = true;
        };
        for (size_t j = i; j-- > 0;)
          if (slots[j].lane == slots[i].lane) {
            follow(j);
            break;
          }
        for (const int32_t j : slots[i].waits) {
          ASSERT_LT(static_cast<size_t>(j), i);
          EXPECT_TRUE(slots[static_cast<size_t>(j)].awaited);
          EXPECT_NE(slots[static_cast<size_t>(j)].lane, slots[i].lane);
          follow(static_cast<size_t>(j));
        }
        for (size_t j = 0; j < i; ++j)
          if (touch(steps[j].writes, steps[i].writes) || touch(steps[j].writes, steps[i].reads) ||
              touch(steps[j].reads, steps[i].writes)) {
            EXPECT_TRUE(reached[i][j]) << "seed " << seed << ", step " << i << " after " << j;
          }
      }
    }
}

TEST(Lanes, IndependentStepsSpread) {
  std::vector<LaneStep> steps;
  for (uintptr_t i = 0; i < 4; ++i) steps.push_back({{}, {{10 * i, 10 * i + 10}}, 1e-5});
  const auto slots = schedule_lanes(steps, 4);
  std::vector<int> lanes;
  for (const auto& s : slots) {
    lanes.push_back(s.lane);
    EXPECT_TRUE(s.waits.empty());
  }
  std::ranges::sort(lanes);
  EXPECT_EQ(lanes, (std::vector<int>{0, 1, 2, 3}));
}

TEST(Lanes, AChainStaysOnOneLane) {
  std::vector<LaneStep> steps;
  for (uintptr_t i = 0; i < 5; ++i) steps.push_back({{{i, i + 1}}, {{i + 1, i + 2}}, 1e-5});
  for (const auto& s : schedule_lanes(steps, 4)) {
    EXPECT_EQ(s.lane, 0);
    EXPECT_TRUE(s.waits.empty());
  }
}

/// A random graph of sums, products with a residual, and squares; every value may be used often.
/// Returns all parameter gradients and the input's.
std::vector<float> gradients(uint64_t seed, bool passing, GradCheckpointing mode, int32_t linger,
                             size_t* steps) {
  static const Op plain_add = [] {
    Op op = kAdd;
    op.passes_gradient = 0;
    return op;
  }();
  static const Op plain_linear = [] {
    Op op = kLinear;
    op.passes_gradient = 0;
    return op;
  }();
  const Op &add = passing ? kAdd : plain_add, &linear = passing ? kLinear : plain_linear;
  constexpr int64_t kRows = 3, kWidth = 4;
  const Rng rng(seed, hash_name("passing"));
  uint64_t n = 0;
  const std::vector<GraphParam> params = {{"w0", {kWidth, kWidth}}, {"w1", {kWidth, kWidth}}};
  Graph g(params);
  std::vector<Value> pool = {g.input("x", {kRows, kWidth}, true)};
  const auto any = [&] { return pool[rng.below(n++, pool.size())]; };
  const auto two = [&] {  // an op never takes the same value twice
    const size_t i = rng.below(n++, pool.size() - 1);
    return Values{pool[i], pool[i + 1 + rng.below(n++, pool.size() - i - 1)]};
  };
  pool.push_back(g.apply(kSquaredRelu, {pool[0]}, {}, "second")[0]);
  for (int b = 0; b < 3; ++b) {
    const auto scope = g.block(str("block", b));
    for (int k = 0; k < 4; ++k) {
      const std::string label = str("n", b, k);
      switch (rng.below(n++, 3)) {
        case 0:
          pool.push_back(g.apply(add, two(), {}, label)[0]);
          break;
        case 1:
          pool.push_back(g.apply(linear, two(), {rng.below(n++, 2) == 0 ? 0 : 1}, label)[0]);
          break;
        default:
          pool.push_back(g.apply(kSquaredRelu, {any()}, {}, label)[0]);
      }
    }
  }
  Value sum = pool[0];
  for (size_t i = 1; i < pool.size(); ++i) sum = g.apply(add, {sum, pool[i]}, {}, "sum")[0];
  // A sum of squares as the loss would need another op: one row and column is enough of a scalar.
  static const Op first = {.name = "first",
                           .infer = [](ShapeCall& c) { c.out = {TensorSpec{}}; },
                           .backward_reads_in = 0,
                           .backward_reads_out = 0,
                           .forward = {[](Context&, const OpCall& c) {
                                         float s = 0;
                                         for (int64_t i = 0; i < c.in[0].numel(); ++i)
                                           s += c.in[0].f32()[i] * static_cast<float>(i + 1);
                                         c.out[0].f32()[0] = s;
                                       },
                                       nullptr},
                           .backward = {[](Context&, const OpCall& c) {
                                          for (int64_t i = 0; i < c.din[0].numel(); ++i)
                                            c.din[0].f32()[i] =
                                                c.dout[0].f32()[0] * static_cast<float>(i + 1);
                                        },
                                        nullptr}};
  g.output("loss", g.apply(first, {g.apply(linear, {sum}, {0}, "last")[0]}, {}, "loss")[0]);

  PlanOptions options;
  options.grad_checkpointing = mode;
  options.linger_steps = linger;
  Plan plan = Plan::build(g, options);
  *steps = plan.steps().size();
  Context ctx;
  Arena memory(Device::kCpu, 1 << 14, "parameters");
  std::vector<TensorView> values, grads;
  for (const auto& p : params) {
    values.push_back(memory.take(p.spec, p.name));
    grads.push_back(memory.take(p.spec, p.name));
    for (int64_t i = 0; i < p.spec.numel(); ++i)
      values.back().f32()[i] = static_cast<float>(0.5 * rng.normal(n++));
  }
  plan.bind(ctx, values, grads);
  const TensorView x = plan.input("x");
  for (int64_t i = 0; i < x.numel(); ++i) x.f32()[i] = static_cast<float>(rng.normal(n++));
  plan.forward(ctx);
  plan.backward(ctx, 1, true);
  plan.forward(ctx);  // a second time: nothing that must stay was overwritten
  plan.backward(ctx, 1, false);
  std::vector<float> out;
  for (const TensorView& v : {grads[0], grads[1], plan.input_grad("x")})
    out.insert(out.end(), v.f32(), v.f32() + v.numel());
  return out;
}

TEST(PassedGradients, EqualCopiedOnes) {
  size_t fewer = 0;
  for (uint64_t seed = 0; seed < 200; ++seed)
    for (const auto mode : {GradCheckpointing::kNone, GradCheckpointing::kBlock}) {
      size_t steps = 0, plain_steps = 0;
      const auto want = gradients(seed, false, mode, 0, &plain_steps);
      for (const int32_t linger : {0, 3}) {
        EXPECT_EQ(gradients(seed, true, mode, linger, &steps), want) << "seed " << seed;
        EXPECT_LE(steps, plain_steps);
        if (steps < plain_steps) ++fewer;
      }
    }
  EXPECT_GT(fewer, 100u);  // sharing does happen
}

}  // namespace
}  // namespace rwkv
