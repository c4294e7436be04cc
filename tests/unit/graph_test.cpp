// Planner and executor on small ops defined here: gradients against central differences,
// recomputation bit-equal, write and add, lifetimes, dead outputs, frozen parameters.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "kernels/core/rng.h"
#include "model/graph/plan.h"

namespace rwkv {
namespace {

// --- test ops: x * w (parameter, same shape), x * y, sin(x) with a saved cosine, sum, split ------

float* din(const OpCall& c, size_t i) {
  return c.din[i].f32();
}

void put(float& to, float value, Accum mode) {
  if (mode == Accum::kWrite) to = value;
  if (mode == Accum::kAdd) to += value;
}

void like_first(ShapeCall& c) {
  c.out = {c.in[0]};
}

const Op kScale = {.name = "scale",
                   .infer = like_first,
                   .backward_reads_in = 1,
                   .backward_reads_out = 0,
                   .forward = {[](Context&, const OpCall& c) {
                                 for (int64_t i = 0; i < c.in[0].numel(); ++i)
                                   c.out[0].f32()[i] = c.in[0].f32()[i] * c.param[0].f32()[i];
                               },
                               nullptr},
                   .backward = {[](Context&, const OpCall& c) {
                                  for (int64_t i = 0; i < c.dout[0].numel(); ++i) {
                                    const float g = c.dout[0].f32()[i];
                                    if (c.din_mode[0] != Accum::kSkip)
                                      put(din(c, 0)[i], g * c.param[0].f32()[i], c.din_mode[0]);
                                    if (c.dparam_mode[0] != Accum::kSkip)
                                      put(c.dparam[0].f32()[i], g * c.in[0].f32()[i],
                                          c.dparam_mode[0]);
                                  }
                                },
                                nullptr}};

const Op kMul = {.name = "mul",
                 .infer = like_first,
                 .backward_reads_in = 3,
                 .backward_reads_out = 0,
                 .forward = {[](Context&, const OpCall& c) {
                               for (int64_t i = 0; i < c.in[0].numel(); ++i)
                                 c.out[0].f32()[i] = c.in[0].f32()[i] * c.in[1].f32()[i];
                             },
                             nullptr},
                 .backward = {[](Context&, const OpCall& c) {
                                for (int64_t i = 0; i < c.dout[0].numel(); ++i) {
                                  const float g = c.dout[0].f32()[i];
                                  for (size_t k = 0; k < 2; ++k)
                                    if (c.din_mode[k] != Accum::kSkip)
                                      put(din(c, k)[i], g * c.in[1 - k].f32()[i], c.din_mode[k]);
                                }
                              },
                              nullptr}};

const Op kSin = {.name = "sin",
                 .infer =
                     [](ShapeCall& c) {
                       c.out = {c.in[0]};
                       c.saved = {c.in[0]};
                     },
                 .backward_reads_in = 0,
                 .backward_reads_out = 0,
                 .forward = {[](Context&, const OpCall& c) {
                               for (int64_t i = 0; i < c.in[0].numel(); ++i) {
                                 c.out[0].f32()[i] = std::sin(c.in[0].f32()[i]);
                                 c.saved[0].f32()[i] = std::cos(c.in[0].f32()[i]);
                               }
                             },
                             nullptr},
                 .backward = {[](Context&, const OpCall& c) {
                                for (int64_t i = 0; i < c.dout[0].numel(); ++i)
                                  put(din(c, 0)[i], c.dout[0].f32()[i] * c.saved[0].f32()[i],
                                      c.din_mode[0]);
                              },
                              nullptr}};

const Op kSum = {.name = "sum",
                 .infer = [](ShapeCall& c) { c.out = {TensorSpec{}}; },
                 .backward_reads_in = 0,
                 .backward_reads_out = 0,
                 .forward = {[](Context&, const OpCall& c) {
                               double s = 0;
                               for (int64_t i = 0; i < c.in[0].numel(); ++i) s += c.in[0].f32()[i];
                               *c.out[0].f32() = static_cast<float>(s);
                             },
                             nullptr},
                 .backward = {[](Context&, const OpCall& c) {
                                for (int64_t i = 0; i < c.din[0].numel(); ++i)
                                  put(din(c, 0)[i], *c.dout[0].f32(), c.din_mode[0]);
                              },
                              nullptr}};

/// Two outputs: x and 2x. The backward reads both output gradients.
const Op kSplit = {.name = "split",
                   .infer =
                       [](ShapeCall& c) {
                         c.out = {c.in[0], c.in[0]};
                       },
                   .backward_reads_in = 0,
                   .backward_reads_out = 0,
                   .forward = {[](Context&, const OpCall& c) {
                                 for (int64_t i = 0; i < c.in[0].numel(); ++i) {
                                   c.out[0].f32()[i] = c.in[0].f32()[i];
                                   c.out[1].f32()[i] = 2 * c.in[0].f32()[i];
                                 }
                               },
                               nullptr},
                   .backward = {[](Context&, const OpCall& c) {
                                  for (int64_t i = 0; i < c.dout[0].numel(); ++i)
                                    put(din(c, 0)[i], c.dout[0].f32()[i] + 2 * c.dout[1].f32()[i],
                                        c.din_mode[0]);
                                },
                                nullptr}};

constexpr int64_t kN = 6;

/// Parameters p0..p3 and a network of three blocks with fan-out across blocks, a saved tensor, a
/// dead output and a parameter that is used twice.
struct Net {
  std::vector<GraphParam> params;
  std::vector<std::vector<float>> value, grad;

  Net() {
    const Rng rng(7, hash_name("graph test"));
    for (int p = 0; p < 4; ++p) {
      params.push_back({str("p", p), TensorSpec{kN}});
      value.emplace_back();
      for (int64_t i = 0; i < kN; ++i)
        value.back().push_back(
            static_cast<float>(0.5 + rng.uniform(static_cast<uint64_t>(p * kN + i))));
      grad.emplace_back(kN, std::nanf(""));
    }
  }

  Graph build() const {
    Graph g(params);
    const Value x = g.input("x", {kN}, true);
    Value first, y = x;
    for (int b = 0; b < 3; ++b) {
      const auto scope = g.block(str("block", b));
      const Value s = g.apply(kScale, {y}, {b}, str("b", b, ".scale"))[0];
      if (b == 0) first = s;
      const Value t = g.apply(kSin, {s}, {}, str("b", b, ".sin"))[0];
      const Values two = g.apply(kSplit, {t}, {}, str("b", b, ".split"));
      // Blocks 1 and 2 look back at block 0; block 1 leaves the second half of the split unused.
      const Value m = b == 0 ? g.apply(kMul, {two[0], two[1]}, {}, "b0.mul")[0]
                             : g.apply(kMul, {two[0], first}, {}, str("b", b, ".mul"))[0];
      y = b == 2 ? g.apply(kMul, {m, two[1]}, {}, "b2.mul2")[0] : m;
    }
    y = g.apply(kScale, {y}, {0}, "again")[0];  // p0 a second time
    g.output("loss", g.apply(kSum, {y}, {}, "loss")[0]);
    g.output("y", y);
    return g;
  }

  std::vector<TensorView> views(std::vector<std::vector<float>>& v) const {
    std::vector<TensorView> out;
    for (auto& t : v) out.emplace_back(t.data(), TensorSpec{kN});
    return out;
  }
};

void set_x(const Plan& plan, float shift = 0, int64_t at = -1) {
  for (int64_t i = 0; i < kN; ++i)
    plan.input("x").f32()[i] = 0.3f + 0.1f * static_cast<float>(i) + (i == at ? shift : 0);
}

TEST(Graph, GradientsMatchCentralDifferences) {
  Net net;
  const Graph g = net.build();
  Context ctx;
  Plan plan = Plan::build(g, {});
  plan.bind(ctx, net.views(net.value), net.views(net.grad));
  set_x(plan);
  plan.forward(ctx);
  plan.backward(ctx, 1, true);
  const std::vector<float> dx(plan.input_grad("x").f32(), plan.input_grad("x").f32() + kN);
  const auto loss = [&] {
    plan.forward(ctx);
    return static_cast<double>(*plan.output("loss").f32());
  };
  const float h = 1e-2f;
  for (size_t p = 0; p < 3; ++p)
    for (size_t i = 0; i < kN; ++i) {
      const float keep = net.value[p][i];
      net.value[p][i] = keep + h;
      const double up = loss();
      net.value[p][i] = keep - h;
      const double down = loss();
      net.value[p][i] = keep;
      EXPECT_LE(std::fabs((up - down) / (2 * h) - net.grad[p][i]), 2e-3 * (1 + std::fabs(up)))
          << p << " " << i;
    }
  for (int64_t i = 0; i < kN; ++i) {
    set_x(plan, h, i);
    const double up = loss();
    set_x(plan, -h, i);
    const double down = loss();
    EXPECT_LE(std::fabs((up - down) / (2 * h) - dx[static_cast<size_t>(i)]),
              2e-3 * (1 + std::fabs(up)))
        << i;
  }
  // p3 is in no op: not reached, gradient untouched.
  EXPECT_EQ(plan.reached_params(), (std::vector<bool>{true, true, true, false}));
  EXPECT_TRUE(std::isnan(net.grad[3][0]));
}

TEST(Graph, RecomputationIsBitEqualAndSmaller) {
  Net net, again;
  const Graph g = net.build();
  Context ctx;
  Plan plain = Plan::build(g, {});
  Plan block = Plan::build(g, {.grad_checkpointing = GradCheckpointing::kBlock});
  plain.bind(ctx, net.views(net.value), net.views(net.grad));
  block.bind(ctx, again.views(again.value), again.views(again.grad));
  set_x(plain);
  set_x(block);
  for (Plan* p : {&plain, &block}) {
    p->forward(ctx);
    p->backward(ctx, 0.5f, true);
  }
  for (size_t p = 0; p < 3; ++p)
    EXPECT_EQ(0, std::memcmp(net.grad[p].data(), again.grad[p].data(), kN * sizeof(float))) << p;
  EXPECT_EQ(
      0, std::memcmp(plain.input_grad("x").data, block.input_grad("x").data, kN * sizeof(float)));
  size_t recomputed = 0;
  std::set<std::string> names;
  for (const PlanStep& s : block.steps())
    if (s.kind == PlanStep::Kind::kRecompute) {
      ++recomputed;
      names.insert(g.nodes()[static_cast<size_t>(s.node)].label);
    }
  // Needed again are what the backward reads; the last op of a block, read by nobody, is not.
  EXPECT_TRUE(names.contains("b1.sin"));
  EXPECT_FALSE(names.contains("b0.mul"));
  EXPECT_FALSE(names.contains("b2.mul2"));
  EXPECT_GE(recomputed, 9u);
}

TEST(Graph, SomeBlocksRecomputeBitEqualAndTakeMemoryInBetween) {
  const Net shape;
  const Graph g = shape.build();
  const auto run = [&](Net& net, const PlanOptions& options, size_t* bytes) {
    Context ctx;
    Plan plan = Plan::build(g, options);
    *bytes = plan.activation_bytes();
    plan.bind(ctx, net.views(net.value), net.views(net.grad));
    set_x(plan);
    plan.forward(ctx);
    plan.backward(ctx, 0.5f, true);
    std::set<int32_t> blocks;
    for (const PlanStep& s : plan.steps())
      if (s.kind == PlanStep::Kind::kRecompute) blocks.insert(s.block);
    return blocks;
  };
  Net none, all;
  size_t none_bytes = 0, all_bytes = 0;
  EXPECT_EQ(run(none, {}, &none_bytes), std::set<int32_t>());
  const PlanOptions every{.grad_checkpointing = GradCheckpointing::kBlock};
  EXPECT_EQ(run(all, every, &all_bytes), (std::set<int32_t>{0, 1, 2}));
  EXPECT_LT(all_bytes, none_bytes);
  for (int64_t n = 1; n <= 3; ++n) {
    Net some;
    PlanOptions options = every;
    options.recompute_blocks = n;
    size_t bytes = 0;
    const auto blocks = run(some, options, &bytes);
    EXPECT_EQ(static_cast<int64_t>(blocks.size()), n);
    EXPECT_EQ(*blocks.rbegin(), n - 1);
    EXPECT_LE(bytes, none_bytes) << n;
    for (size_t p = 0; p < 3; ++p)
      EXPECT_EQ(0, std::memcmp(none.grad[p].data(), some.grad[p].data(), kN * sizeof(float))) << n;
  }
}

TEST(Graph, MicroBatchesAccumulate) {
  Net net;
  const Graph g = net.build();
  Context ctx;
  Plan plan = Plan::build(g, {});
  plan.bind(ctx, net.views(net.value), net.views(net.grad));
  set_x(plan);
  plan.forward(ctx);
  plan.backward(ctx, 0.5f, true);
  const auto once = net.grad;
  plan.forward(ctx);
  plan.backward(ctx, 0.5f, false);
  for (size_t p = 0; p < 3; ++p)
    for (size_t i = 0; i < kN; ++i) EXPECT_FLOAT_EQ(net.grad[p][i], 2 * once[p][i]);
}

TEST(Graph, LiveBuffersNeverOverlap) {
  Net net;
  const Graph g = net.build();
  for (const auto mode : {GradCheckpointing::kNone, GradCheckpointing::kBlock}) {
    const Plan plan = Plan::build(g, {.grad_checkpointing = mode});
    const auto buffers = plan.buffers();
    for (size_t i = 0; i < buffers.size(); ++i)
      for (size_t j = 0; j < i; ++j) {
        const PlanBuffer &a = buffers[i], &b = buffers[j];
        if (a.last < b.first || b.last < a.first) continue;
        EXPECT_TRUE(a.offset + a.spec.bytes() <= b.offset || b.offset + b.spec.bytes() <= a.offset)
            << a.label << " and " << b.label;
      }
    // Every buffer that a step touches is alive at that step.
    for (size_t s = 0; s < plan.steps().size(); ++s) {
      const PlanStep& step = plan.steps()[s];
      for (const auto* list : {&step.in, &step.out, &step.saved, &step.dout, &step.din})
        for (const int32_t b : *list)
          if (b >= 0) {
            EXPECT_LE(buffers[static_cast<size_t>(b)].first, static_cast<int32_t>(s));
            EXPECT_GE(buffers[static_cast<size_t>(b)].last, static_cast<int32_t>(s));
          }
    }
    EXPECT_LT(plan.activation_bytes(), plan.unpacked_bytes());
  }
}

TEST(Graph, FrozenParametersAreSkipped) {
  Net net;
  const Graph g = net.build();
  Context ctx;
  Plan plan = Plan::build(g, {.frozen = {false, true, false, false}});
  plan.bind(ctx, net.views(net.value), net.views(net.grad));
  set_x(plan);
  plan.forward(ctx);
  plan.backward(ctx, 1, true);
  EXPECT_TRUE(std::isnan(net.grad[1][0]));
  EXPECT_TRUE(std::isfinite(net.grad[0][0]));
  EXPECT_FALSE(plan.reached_params()[1]);
  EXPECT_THROW(Plan::build(g, {.loss = "nothing"}), ConfigError);
  EXPECT_THROW(Plan::build(g, {.loss = "y"}), ConfigError);  // not a scalar
}

TEST(Graph, BlocksReportTheirGradientsInBackwardOrder) {
  Net net;
  const Graph g = net.build();
  Context ctx;
  Plan plan = Plan::build(g, {.grad_checkpointing = GradCheckpointing::kBlock});
  plan.bind(ctx, net.views(net.value), net.views(net.grad));
  set_x(plan);
  plan.forward(ctx);
  std::vector<int32_t> order;
  plan.backward(ctx, 1, true, [&](int32_t b) { order.push_back(b); });
  EXPECT_EQ(order, (std::vector<int32_t>{2, 1, 0, -1}));
}

TEST(Graph, StepsAllocateNothing) {
  Net net;
  const Graph g = net.build();
  Context ctx;
  Plan plan = Plan::build(g, {});
  plan.bind(ctx, net.views(net.value), net.views(net.grad));
  set_x(plan);
  const uint64_t before = arena_allocation_count();
  for (int i = 0; i < 3; ++i) {
    plan.forward(ctx);
    plan.backward(ctx, 1, true);
  }
  EXPECT_EQ(arena_allocation_count(), before);
}

TEST(Graph, FiniteCheckNamesTheOp) {
  Net net;
  const Graph g = net.build();
  Context ctx;
  Plan plan = Plan::build(g, {});
  plan.bind(ctx, net.views(net.value), net.views(net.grad));
  plan.check_finite(true);
  set_x(plan);
  plan.forward(ctx);
  net.value[1][2] = std::nanf("");
  try {
    plan.forward(ctx);
    FAIL() << "expected NonFiniteError";
  } catch (const NonFiniteError& e) {
    EXPECT_NE(std::string(e.what()).find("b1.scale"), std::string::npos) << e.what();
  }
}

TEST(Graph, OptionalSavedTensorsAreForTrainingOnly) {
  Op sin = kSin;
  sin.saved_optional = true;
  sin.forward[0] = [](Context&, const OpCall& c) {
    EXPECT_EQ(c.saved.size(), 1u);
    c.out[0].f32()[0] = c.saved[0] ? 1 : 2;
  };
  const std::vector<GraphParam> params = {{"p", TensorSpec{kN}}};
  Graph g(params);
  const Value x = g.apply(kScale, {g.input("x", {kN})}, {0}, "scale")[0];
  const Value y = g.apply(sin, {x}, {}, "sin")[0];
  g.output("loss", g.apply(kSum, {y}, {}, "loss")[0]);
  g.output("y", y);
  std::vector<float> value(kN, 1.0f), grad(kN);
  const TensorView v(value.data(), TensorSpec{kN}), d(grad.data(), TensorSpec{kN});
  Context ctx;
  Plan infer = Plan::build(g, {.training = false}), train = Plan::build(g, {});
  infer.bind(ctx, std::span(&v, 1), {});
  train.bind(ctx, std::span(&v, 1), std::span(&d, 1));
  infer.forward(ctx);
  EXPECT_EQ(*infer.output("y").f32(), 2);
  train.forward(ctx);
  EXPECT_EQ(*train.output("y").f32(), 1);
  EXPECT_LT(infer.buffers().size(), train.buffers().size());
}

TEST(Graph, DumpNamesEveryStepAndTheTotals) {
  Net net;
  const Graph g = net.build();
  const std::string dump = Plan::build(g, {.grad_checkpointing = GradCheckpointing::kBlock}).dump();
  for (const char* text : {"forward b0.scale (scale) in block0", "recompute b1.sin", "write dp1",
                           "add dp0", "MiB", "packed into"})
    EXPECT_NE(dump.find(text), std::string::npos) << text << "\n" << dump;
}

TEST(Graph, MisuseIsRefused) {
  Net net;
  Graph g = net.build();
  const Value x = g.input("z", {kN});
  EXPECT_THROW(g.input("z", {kN}), InternalError);
  EXPECT_THROW(g.apply(kMul, {x, x}, {}, "square"), InternalError);
  EXPECT_THROW(g.output("loss", x), InternalError);
  EXPECT_THROW(g.apply(kScale, {x}, {17}, "no such parameter"), InternalError);
  Plan plan = Plan::build(g, {});
  Context ctx;
  EXPECT_THROW(plan.forward(ctx), InternalError);  // not bound
  EXPECT_THROW((void)plan.output("nothing"), ConfigError);
}

}  // namespace
}  // namespace rwkv
