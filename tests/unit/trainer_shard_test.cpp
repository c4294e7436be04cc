// Shards: every element belongs to one rank, and memory is what the planner says. The order in
// which a plan reports groups of parameters.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "kernels/core/memory.h"
#include "model/rwkv.h"
#include "trainer/memory.h"
#include "trainer/shard_layout.h"
#include "trainer/sharded_params.h"
#include "trainer/train_step.h"

namespace rwkv {
namespace {

ModelConfig config() {
  ModelConfig c;
  c.n_layer = 3, c.n_embd = 64, c.vocab_size = 257, c.head_size = 32;
  return c;
}

TEST(ShardLayout, SmallBucketsTravelTogetherButForTheLastToBeComplete) {
  const auto begins = [](int64_t layers, int64_t width, int64_t vocab, int64_t parcel) {
    ModelConfig c;
    c.n_layer = layers, c.n_embd = width, c.vocab_size = vocab;
    const auto model = make_model(c);
    const ShardLayout layout(model->params(), 2, parcel);
    std::vector<int32_t> out;
    for (const auto& p : layout.parcels()) out.push_back(p.begin);
    return out;
  };
  constexpr int64_t kM = int64_t{1} << 20;
  // The embedding, twelve blocks of 7 million elements, the head of 39 million.
  EXPECT_EQ(begins(12, 768, 50304, 0).size(), 14u);
  EXPECT_EQ(begins(12, 768, 50304, 16 * kM), (std::vector<int32_t>{0, 1, 2, 3, 4, 7, 10, 13}));
  EXPECT_EQ(begins(12, 768, 50304, 64 * kM), (std::vector<int32_t>{0, 1, 2, 3, 9}));
  // Chosen: what docs/multi-gpu.md measured best.
  EXPECT_EQ(begins(12, 768, 50304, kChosenParcels), begins(12, 768, 50304, 64 * kM));
  EXPECT_EQ(begins(24, 2048, 65536, kChosenParcels), begins(24, 2048, 65536, 128 * kM));
  EXPECT_EQ(begins(24, 2048, 65536, kChosenParcels).size(), 12u) << "three blocks in each";
  EXPECT_EQ(begins(32, 4096, 65536, kChosenParcels), begins(32, 4096, 65536, 0));

  ModelConfig c;
  c.n_layer = 12, c.n_embd = 768, c.vocab_size = 50304;
  const auto model = make_model(c);
  const ShardLayout layout(model->params(), 2, 16 * kM);
  EXPECT_EQ(layout.segments_of(4, 7).size(), 6u);
  EXPECT_EQ(layout.segments_of(4, 7)[0].group, 4);
}

TEST(ShardLayout, SegmentsCoverTheMemoryAndTensorsLieWithin) {
  const auto model = make_model(config());
  const ParamRegistry& params = model->params();
  for (const int ranks : {1, 2, 3, 8}) {
    SCOPED_TRACE(ranks);
    const ShardLayout layout(params, ranks);
    EXPECT_EQ(static_cast<size_t>(layout.groups()), params.buckets().size());
    int64_t end = 0, state = 0, vectors = 0;
    for (const auto& s : layout.segments()) {
      EXPECT_EQ(s.offset, end);
      EXPECT_EQ(s.state, state);
      EXPECT_EQ(s.shard * ranks, s.elements);
      EXPECT_EQ(s.shard % 64, 0);
      if (!s.matrices) {
        EXPECT_EQ(s.vectors, vectors);
        vectors += s.elements;
      }
      end += s.elements, state += s.shard;
    }
    EXPECT_EQ(layout.elements(), end);
    EXPECT_EQ(layout.shard_elements(), state);
    EXPECT_EQ(layout.vector_elements(), vectors);
    int32_t next = 0;
    int64_t largest = 0;
    for (size_t p = 0; p < layout.parcels().size(); ++p) {
      const auto& parcel = layout.parcels()[p];
      EXPECT_EQ(parcel.begin, next);
      int64_t elements = 0;
      for (int32_t g = parcel.begin; g < parcel.end; ++g) {
        EXPECT_EQ(layout.parcel_of(g), static_cast<int32_t>(p));
        for (const auto& s : layout.group(g)) elements += s.elements;
      }
      EXPECT_EQ(parcel.elements, elements);
      largest = std::max(largest, elements);
      next = parcel.end;
    }
    EXPECT_EQ(next, layout.groups());
    EXPECT_EQ(layout.largest_parcel(), largest);
    std::map<int64_t, int64_t> used;  // begin to end
    for (size_t i = 0; i < params.size(); ++i) {
      const auto id = static_cast<ParamId>(i);
      const auto& s = layout.segment_of(id);
      const int64_t at = layout.offset(id), n = params[id].spec.numel();
      EXPECT_EQ(s.matrices, params[id].matrix);
      EXPECT_GE(at, s.offset);
      EXPECT_LE(at + n, s.offset + s.elements);
      EXPECT_EQ(at % 64, 0);
      EXPECT_EQ(params.buckets()[static_cast<size_t>(s.group)].name, params[id].bucket);
      used[at] = at + n;
    }
    int64_t last = 0;
    for (const auto& [begin, stop] : used) {
      EXPECT_GE(begin, last) << "tensors overlap";
      last = stop;
    }
  }
}

TEST(ShardLayout, PiecesOfAllRanksAreEveryTrainedElementOnce) {
  const auto model = make_model(config());
  const ParamRegistry& params = model->params();
  std::vector<bool> trained(params.size(), true);
  trained[3] = false;
  for (const int ranks : {1, 2, 5}) {
    const ShardLayout layout(params, ranks);
    std::vector<int> seen(static_cast<size_t>(layout.elements()), 0);
    for (int r = 0; r < ranks; ++r) {
      std::vector<int> state(static_cast<size_t>(layout.shard_elements()), 0);
      for (const AdamWPiece& p : layout.pieces(r, {.weight_decay = 0.5}, trained, true)) {
        EXPECT_EQ(p.begin % 8, 0);
        EXPECT_EQ(p.shift % 8, 0);
        EXPECT_LE(p.end - p.begin, kAdamWPieceElements);
        for (int64_t i = p.begin; i < p.end; ++i) {
          ++seen[static_cast<size_t>(i)];
          ASSERT_GE(i + p.shift, 0);
          ASSERT_LT(i + p.shift, layout.shard_elements());
          ++state[static_cast<size_t>(i + p.shift)];
        }
      }
      EXPECT_LE(*std::ranges::max_element(state), 1) << "two elements share a moment";
    }
    for (size_t i = 0; i < params.size(); ++i) {
      const int64_t at = layout.offset(static_cast<ParamId>(i));
      for (int64_t k = 0; k < params.specs()[i].spec.numel(); ++k)
        ASSERT_EQ(seen[static_cast<size_t>(at + k)], trained[i] ? 1 : 0);
    }
    const int64_t counted = std::ranges::count(seen, 1);
    EXPECT_EQ(counted, params.numel() - params.specs()[3].spec.numel());
  }
}

TEST(ShardLayout, UpdatesAreDividedAlikeOnAllRanks) {
  struct Case {
    int64_t layers, width, vocab;
    int ranks;
    int64_t parcel = int64_t{16} << 20;
  };
  // On 4 ranks of the first two, pieces of the ranks differ in number just where a launch is large
  // enough.
  for (const Case c : {Case{24, 640, 8192, 4}, Case{32, 640, 8192, 4}, Case{12, 768, 50304, 2},
                       Case{12, 768, 65536, 3}, Case{24, 1024, 65536, 8, 1}, Case{3, 64, 257, 5, 1},
                       Case{24, 1024, 65536, 4, kChosenParcels}}) {
    SCOPED_TRACE(testing::Message()
                 << "L" << c.layers << "-D" << c.width << "-V" << c.vocab << " on " << c.ranks);
    ModelConfig config;
    config.n_layer = c.layers, config.n_embd = c.width, config.vocab_size = c.vocab;
    const auto model = make_model(config);
    const ShardLayout layout(model->params(), c.ranks, c.parcel);
    const auto count = static_cast<int32_t>(layout.parcels().size());
    ASSERT_GT(layout.early_parcels(), 0);
    ASSERT_LE(layout.early_parcels(), count);
    EXPECT_EQ(layout.early_parcels() == count, c.ranks == 2);
    for (const int32_t early : {0, 1, layout.early_parcels()}) {
      std::vector<std::pair<int32_t, int32_t>> of_first;
      for (int r = 0; r < c.ranks; ++r) {
        const auto pieces = layout.pieces(r, {}, {}, true);
        std::vector<std::pair<int32_t, int32_t>> parcels;
        int32_t next = 0;
        int64_t next_piece = 0;
        for (const auto& b : layout.update_batches(pieces, early)) {
          EXPECT_EQ(b.begin, next);
          EXPECT_LT(b.begin, b.end);
          EXPECT_EQ(b.early, b.end <= early) << "no batch is of both kinds";
          EXPECT_EQ(b.first_piece, next_piece);
          const auto& last = layout.parcels()[static_cast<size_t>(b.end) - 1];
          const int64_t begin =
              layout.group(layout.parcels()[static_cast<size_t>(b.begin)].begin)[0].offset;
          const auto& tail = layout.group(last.end - 1).back();
          for (int64_t k = b.first_piece; k < b.last_piece; ++k) {
            ASSERT_GE(pieces[static_cast<size_t>(k)].begin, begin);
            ASSERT_LE(pieces[static_cast<size_t>(k)].end, tail.offset + tail.elements);
          }
          next = b.end, next_piece = b.last_piece;
          parcels.emplace_back(b.begin, b.end);
        }
        EXPECT_EQ(next, count);
        EXPECT_EQ(next_piece, static_cast<int64_t>(pieces.size()));
        if (r == 0) of_first = parcels;
        EXPECT_EQ(parcels, of_first) << "rank " << r;
      }
    }
  }
}

TEST(ShardMemory, StagesNeedLessAndLessPerRank) {
  TrainStepOptions o;
  o.batch = 2, o.tokens = 32;
  const auto needs = [&](int ranks, ZeroStage zero, int64_t micro_batches = 1) {
    o.planned_ranks = ranks, o.zero = zero, o.micro_batches = micro_batches;
    return total_bytes(TrainStep(config(), o).memory());
  };
  const size_t plain = needs(4, ZeroStage::kPlain), one = needs(4, ZeroStage::kOptimizer),
               two = needs(4, ZeroStage::kGradients);
  EXPECT_LT(one, plain);
  EXPECT_LT(two, one);
  EXPECT_LT(needs(8, ZeroStage::kOptimizer), one);
  EXPECT_EQ(needs(4, ZeroStage::kGradients, 2), needs(4, ZeroStage::kOptimizer, 2))
      << "sums over micro-batches stay whole";
}

TEST(ShardMemory, CountsWhatRanksOfTheCpuAdd) {
  const auto of = [](int ranks) {
    TrainStepOptions o;
    o.batch = 2, o.tokens = 32, o.planned_ranks = ranks;
    size_t bytes = 0;
    for (const MemoryItem& item : TrainStep(config(), o).memory())
      if (item.name == "gradients from all ranks") bytes += item.bytes;
    return bytes;
  };
  EXPECT_EQ(of(1), 0u);
  const auto model = make_model(config());
  for (const int ranks : {2, 3, 8}) {
    const ShardLayout layout(model->params(), ranks);
    int64_t most = 0;
    for (const auto& s : layout.segments()) most = std::max(most, s.elements);
    EXPECT_EQ(of(ranks), sizeof(float) * static_cast<size_t>(most)) << ranks;
  }
}

TEST(ShardMemory, TheLargestBatchThatFitsIsNamed) {
  TrainStepOptions o;
  o.batch = 16, o.tokens = 32;
  const TrainStep step(config(), o);
  o.batch = 5;
  const size_t five = total_bytes(TrainStep(config(), o).memory());
  const std::string text = smaller_batch_advice(step, five);
  EXPECT_NE(text.find("largest train.batch that fits here is 5,"), std::string::npos) << text;
  EXPECT_NE(smaller_batch_advice(step, 1000).find("Not even train.batch=1"), std::string::npos);
}

TEST(PlanGroups, AreReportedOnceInTheOrderOfSteps) {
  const auto model = make_model(config());
  const ParamRegistry& params = model->params();
  const ShardLayout layout(params, 2);
  GraphOptions g;
  g.batch = 1, g.tokens = 16, g.mode = GraphOptions::Mode::kLoss;
  const Graph graph = model->build(g);
  for (const auto recompute : {GradCheckpointing::kNone, GradCheckpointing::kBlock}) {
    PlanOptions options;
    options.grad_checkpointing = recompute;
    Plan plan = Plan::build(graph, options);
    Context ctx;
    ParamStore values(Device::kCpu, params, "values"), grads(Device::kCpu, params, "grads");
    model->init_params(values, {.seed = 1, .lr = 1e-3});
    plan.bind(ctx, values.views(), grads.views());
    plan.use_groups(layout.group_of_param());
    for (int32_t* ids : {plan.input("tokens").as<int32_t>(), plan.input("targets").as<int32_t>()})
      for (int i = 0; i < 16; ++i) ids[i] = 7 * i % 257;
    std::vector<int32_t> used, ready, expected;
    std::vector<float> at_report(static_cast<size_t>(layout.groups()));
    const auto sum_of = [&](int32_t group) {
      double sum = 0;
      for (size_t i = 0; i < params.size(); ++i)
        if (layout.group_of_param()[i] == group)
          for (const float x : std::span(grads[static_cast<ParamId>(i)].f32(),
                                         static_cast<size_t>(params.specs()[i].spec.numel())))
            sum += std::abs(static_cast<double>(x));
      return static_cast<float>(sum);
    };
    PlanHooks hooks;
    hooks.before_use = [&](int32_t group) { used.push_back(group); };
    hooks.grads_ready = [&](int32_t group) {
      ready.push_back(group);
      at_report[static_cast<size_t>(group)] = sum_of(group);
    };
    plan.forward(ctx, &hooks);
    EXPECT_TRUE(ready.empty());
    plan.backward(ctx, 1, true, hooks);
    for (int32_t k = 0; k < layout.groups(); ++k) expected.push_back(k);
    EXPECT_EQ(used, expected) << "embedding, blocks, head";
    std::ranges::reverse(expected);
    EXPECT_EQ(ready, expected);
    for (int32_t k = 0; k < layout.groups(); ++k) {
      EXPECT_GT(at_report[static_cast<size_t>(k)], 0.0f) << k;
      EXPECT_EQ(at_report[static_cast<size_t>(k)], sum_of(k)) << "group " << k << " changed later";
    }
    const auto spans = plan.gradient_spans();
    for (size_t k = 0; k + 1 < spans.size(); ++k) EXPECT_GT(spans[k].first, spans[k + 1].last);
  }
}

}  // namespace
}  // namespace rwkv
