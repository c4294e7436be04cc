// The engine's two forms against each other and against the graph that training uses.

#include "inference/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/bf16.h"
#include "kernels/core/packed_rows.h"
#include "kernels/core/parallel.h"
#include "model/graph/plan.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::random_ids;
using test::random_model;
using test::random_rwkv4;
using test::TestModel;

constexpr int64_t kVocab = 300;

std::vector<float> copy(const TensorView& v) {
  return {v.f32(), v.f32() + v.numel()};
}

std::vector<float> copy(const RnnState& s) {
  std::vector<float> all;
  for (size_t i = 0; i < s.specs().size(); ++i) {
    const auto part = copy(s[i]);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

/// What a state stands for. RWKV-4's sums a e^p and b e^p can be written in many ways: their ratio
/// and the logarithm of the second one cannot.
std::vector<float> meaning(const RnnState& s) {
  std::vector<float> all;
  for (size_t i = 0; i < s.specs().size(); ++i) {
    auto part = copy(s[i]);
    if (s.specs()[i].name.ends_with("wkv_a_state")) {
      const auto b = copy(s[i + 1]), p = copy(s[i + 2]);
      for (size_t k = 0; k < b.size(); ++k) {
        part[k] /= b[k];
        part.push_back(p[k] + std::log(b[k]));
      }
      i += 2;
    }
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

/// Fails on NaN. `tolerance` is relative to the largest expected magnitude.
void expect_close(std::span<const float> got, std::span<const float> want, double tolerance,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double scale = 0, error = 0;
  size_t worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    scale = std::max(scale, std::fabs(double{want[i]}));
    const double e = std::fabs(double{got[i]} - want[i]);
    if (!(e <= error)) error = e, worst = i;
    if (std::isnan(e)) break;
  }
  EXPECT_LE(error, tolerance * scale)
      << what << ": element " << worst << " is " << got[worst] << ", expected " << want[worst];
}

/// Logits (T, V) of the graph without state: the forward that training differentiates.
std::vector<float> training_logits(const TestModel& m, std::span<const int32_t> ids) {
  Context ctx;
  const Graph graph =
      m.model->build({.batch = 1, .tokens = std::ssize(ids), .mode = GraphOptions::Mode::kLogits});
  Plan plan = Plan::build(graph, {.training = false});
  plan.bind(ctx, m.weights->views(), {});
  std::memcpy(plan.input("tokens").data, ids.data(), ids.size_bytes());
  plan.forward(ctx);
  return copy(plan.output("logits"));
}

std::vector<float> all_logits(Engine& engine, RnnState& state, std::span<const int32_t> ids) {
  std::vector<float> out;
  engine.all_logits(state, ids, [&](int64_t first, const TensorView& logits) {
    EXPECT_EQ(static_cast<size_t>(first) * kVocab, out.size());
    const auto piece = copy(logits);
    out.insert(out.end(), piece.begin(), piece.end());
  });
  return out;
}

TEST(Engine, PrefillDecodeAndTrainingAgreeForAnyLength) {
  for (const int64_t head_size : {64, 32, 0}) {
    // RWKV-4 has no heads.
    const TestModel m =
        head_size == 0 ? random_rwkv4(3) : random_model(3, 3, 128, kVocab, head_size);
    for (const int64_t n : {1, 2, 15, 16, 17, 255, 256, 257}) {
      const std::string what = str("head size ", head_size, ", ", n, " tokens");
      const auto ids = random_ids(static_cast<uint64_t>(n), n, kVocab);
      const auto want = training_logits(m, ids);
      const std::span<const float> last(want.data() + want.size() - kVocab, kVocab);

      Engine engine(*m.model, *m.weights);
      RnnState stepped = engine.new_state();
      std::vector<float> decoded;
      for (const int32_t id : ids) {
        const auto row = copy(engine.decode(stepped, {&id, 1}));
        decoded.insert(decoded.end(), row.begin(), row.end());
      }
      expect_close(decoded, want, 1e-5, what + ", decode");

      for (const int64_t piece : {256, 100, 16, 7}) {
        Engine pieces(*m.model, *m.weights, {.prefill_tokens = piece});
        RnnState state = pieces.new_state();
        const TensorView logits = pieces.prefill(state, ids);
        EXPECT_EQ(logits.spec, (TensorSpec{1, kVocab}));
        expect_close(copy(logits), last, 1e-5, str(what, ", prefill in pieces of ", piece));
        expect_close(meaning(state), meaning(stepped), 1e-5,
                     str(what, ", state, pieces of ", piece));
        RnnState again = pieces.new_state();
        expect_close(all_logits(pieces, again, ids), want, 1e-5,
                     str(what, ", all logits in pieces of ", piece));
      }
    }
  }
}

TEST(Engine, EveryWkvVariantGivesTheSame) {
  const TestModel m = random_model(4);
  const auto ids = random_ids(4, 130, kVocab);
  const auto want = training_logits(m, ids);
  for (const char* wkv : {"serial", "chunk"}) {
    Engine engine(*m.model, *m.weights, {.wkv = wkv});
    RnnState state = engine.new_state();
    expect_close(all_logits(engine, state, ids), want, 2e-5, wkv);
  }
  EXPECT_THROW(Engine(*m.model, *m.weights, {.wkv = "nonsense"}), ConfigError);
}

class EngineModels : public testing::TestWithParam<const char*> {
 protected:
  static TestModel model(uint64_t seed) {
    return random_model(seed, 3, 128, kVocab, 0, GetParam());
  }
};
INSTANTIATE_TEST_SUITE_P(Architecture, EngineModels, testing::Values("rwkv7", "rwkv4"));

TEST_P(EngineModels, StatesContinueAndFork) {
  const TestModel m = model(5);
  Engine engine(*m.model, *m.weights, {.prefill_tokens = 32});
  const auto ids = random_ids(5, 90, kVocab);
  const std::span<const int32_t> all(ids);
  const auto want = training_logits(m, ids);

  RnnState state = engine.new_state();
  engine.prefill(state, all.first(41));
  RnnState fork = state.clone();
  const auto rest = all_logits(engine, state, all.subspan(41));
  const std::span<const float> tail(want.data() + 41 * kVocab, 49 * kVocab);
  expect_close(rest, tail, 1e-5, "continued");
  // The fork is independent of what its origin did meanwhile.
  EXPECT_EQ(all_logits(engine, fork, all.subspan(41)), rest);
  EXPECT_EQ(copy(fork), copy(state));
  // And a fresh state forgets.
  state.reset();
  EXPECT_EQ(copy(engine.prefill(state, all.first(1))),
            copy(engine.prefill(*std::make_unique<RnnState>(engine.new_state()), all.first(1))));
}

TEST_P(EngineModels, SequencesOfABatchAreIndependent) {
  const TestModel m = model(6);
  Engine engine(*m.model, *m.weights, {.prefill_tokens = 24});
  constexpr int64_t kBatch = 3, kTokens = 37;
  const auto run = [&](const std::vector<int32_t>& ids) {
    RnnState state = engine.new_state(kBatch);
    auto out = copy(engine.prefill(state, ids));
    const std::vector<int32_t> next = {ids[0], ids[kTokens], ids[2 * kTokens]};
    const TensorView logits = engine.decode(state, next);
    EXPECT_EQ(logits.spec, (TensorSpec{kBatch, kVocab}));
    const auto decoded = copy(logits);
    out.insert(out.end(), decoded.begin(), decoded.end());
    return out;
  };
  const auto ids = random_ids(60, kBatch * kTokens, kVocab);
  const auto together = run(ids);
  for (int64_t b = 0; b < kBatch; ++b) {
    // Other neighbours: not one bit changes.
    auto other = random_ids(61, kBatch * kTokens, kVocab);
    std::copy_n(ids.begin() + b * kTokens, kTokens, other.begin() + b * kTokens);
    const auto with_others = run(other);
    // Alone: the same up to the rounding of differently tiled products.
    RnnState alone = engine.new_state();
    const std::span<const int32_t> own(ids.data() + b * kTokens, kTokens);
    const auto prefilled = copy(engine.prefill(alone, own));
    const auto decoded = copy(engine.decode(alone, own.first(1)));
    for (const bool second : {false, true}) {
      const size_t at = static_cast<size_t>((second ? kBatch : 0) + b) * kVocab;
      const std::span<const float> mine(together.data() + at, kVocab);
      EXPECT_TRUE(std::ranges::equal(mine, std::span(with_others).subspan(at, kVocab))) << b;
      expect_close(mine, second ? decoded : prefilled, 1e-5, str("sequence ", b));
    }
  }
}

TEST_P(EngineModels, ThreadsDoNotMatter) {
  const TestModel m = model(7);
  const auto ids = random_ids(7, 70, kVocab);
  const auto run = [&](int threads) {
    set_num_threads(threads);
    Engine engine(*m.model, *m.weights, {.prefill_tokens = 64});
    RnnState state = engine.new_state();
    return all_logits(engine, state, ids);
  };
  const int before = num_threads();
  const auto one = run(1), two = run(2), three = run(3);
  set_num_threads(before);
  EXPECT_EQ(one, two);
  EXPECT_EQ(one, three);
}

TEST_P(EngineModels, TokenLossIsTheLossOfTheLogits) {
  const TestModel m = model(8);
  Engine engine(*m.model, *m.weights, {.prefill_tokens = 16});
  constexpr int64_t kBatch = 2, kTokens = 37;
  const auto ids = random_ids(8, kBatch * kTokens, kVocab);
  const auto targets = random_ids(9, kBatch * kTokens, kVocab);
  RnnState state = engine.new_state(kBatch);
  std::vector<float> loss(ids.size()), want;
  engine.token_loss(state, ids, targets, loss);
  for (int64_t b = 0; b < kBatch; ++b) {
    const auto logits =
        training_logits(m, std::span(ids).subspan(static_cast<size_t>(b * kTokens), kTokens));
    for (int64_t t = 0; t < kTokens; ++t) {
      const float* row = logits.data() + t * kVocab;
      double sum = 0;
      for (int64_t v = 0; v < kVocab; ++v) sum += std::exp(double{row[v]});
      want.push_back(
          static_cast<float>(std::log(sum) - row[targets[static_cast<size_t>(b * kTokens + t)]]));
    }
  }
  expect_close(loss, want, 1e-5, "loss");
}

TEST(Engine, BorrowedWeightsMayChange) {
  const TestModel m = random_model(10), n = random_model(11);
  Engine engine(*m.model, *m.weights);
  const auto ids = random_ids(10, 20, kVocab);
  RnnState state = engine.new_state();
  const auto before = copy(engine.prefill(state, ids));
  std::ranges::copy(n.weights->flat(), m.weights->flat().begin());
  state.reset();
  const auto after = copy(engine.prefill(state, ids));
  EXPECT_NE(before, after);
  Engine fresh(*n.model, *n.weights);
  state.reset();
  EXPECT_EQ(after, copy(fresh.prefill(state, ids)));
}

TEST(Engine, KeepsABoundedNumberOfPlans) {
  const TestModel m = random_model(12, 1 + 1, 64);
  Engine engine(*m.model, *m.weights, {.max_plans = 3});
  std::vector<std::vector<float>> first;
  for (int round = 0; round < 2; ++round)
    for (int64_t n = 1; n <= 8; ++n) {
      RnnState state = engine.new_state();
      const auto logits = copy(engine.prefill(state, random_ids(12, n, kVocab)));
      EXPECT_LE(engine.plan_count(), 3u);
      EXPECT_GT(engine.plan_bytes(), 0u);
      if (round == 0) first.push_back(logits);
      EXPECT_EQ(logits, first[static_cast<size_t>(n - 1)]);
    }
}

TEST(Engine, RepeatedCallsAllocateNothing) {
  const TestModel m = random_model(13);
  Engine engine(*m.model, *m.weights);
  RnnState state = engine.new_state();
  const auto ids = random_ids(13, 40, kVocab);
  engine.prefill(state, ids);
  engine.decode(state, std::span(ids).first(1));
  const uint64_t before = arena_allocation_count();
  for (int i = 0; i < 5; ++i) {
    engine.prefill(state, ids);
    engine.decode(state, std::span(ids).first(1));
  }
  EXPECT_EQ(arena_allocation_count(), before);
}

TEST(Engine, MistakesAreExplained) {
  const TestModel m = random_model(14, 2, 64);
  Engine engine(*m.model, *m.weights);
  RnnState two = engine.new_state(2);
  const std::vector<int32_t> three = {1, 2, 3}, none, large = {1, 300}, negative = {-1, 2};
  std::vector<float> loss(2);
  EXPECT_THROW(engine.prefill(two, three), ShapeError);
  EXPECT_THROW(engine.prefill(two, none), ShapeError);
  EXPECT_THROW(engine.decode(two, std::vector<int32_t>{1, 2, 3, 4}), ShapeError);
  EXPECT_THROW(engine.token_loss(two, large, large, loss), ConfigError);
  EXPECT_THROW(engine.token_loss(two, std::vector<int32_t>{1, 2}, three, loss), ShapeError);
  EXPECT_THROW(engine.prefill(two, negative), ConfigError);
  EXPECT_THROW(Engine(*m.model, *m.weights, {.prefill_tokens = 0}), ConfigError);
  EXPECT_THROW(Engine(*m.model, *m.weights, {.dtype = DType::kBF16}), ConfigError);
  try {
    engine.prefill(two, large);
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("token id 300"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("0 to 299"), std::string::npos) << e.what();
  }
}

/// The model whose matrices, the embedding aside, are what `type` can hold of m's.
TestModel packed_model(const TestModel& m, DType type, const std::string& architecture) {
  TestModel p =
      test::make_test_model(3, 128, kVocab, architecture == "rwkv7" ? 64 : 0, architecture);
  const auto wanted = m.model->params().packed_graph_params(type);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto from = m.tensor(wanted[i].name), to = p.tensor(wanted[i].name);
    std::ranges::copy(from, to.begin());
    const int64_t cols = packed_columns(wanted[i].spec);
    if (wanted[i].spec.dtype == DType::kBF16)
      for (float& x : to) x = to_float(to_bf16(x));
    if (wanted[i].spec.dtype == DType::kI8) {
      const int64_t rows = wanted[i].spec.rows();
      for (int64_t r = 0; r < rows; ++r) {
        const auto at = [&](int64_t j) -> float& {
          return to[static_cast<size_t>(wanted[i].transposed ? j * rows + r : r * cols + j)];
        };
        std::vector<float> x;
        std::vector<int8_t> row(4096);  // more than any row here has
        for (int64_t j = 0; j < cols; ++j) x.push_back(at(j));
        pack_row(x.data(), cols, row.data());
        for (int64_t j = 0; j < cols; ++j)
          at(j) = row_scale(row.data(), cols) * static_cast<float>(row[static_cast<size_t>(j)]);
      }
    }
  }
  return p;
}

TEST(Engine, PackedWeightsAreTheModelThatTheyHold) {
  for (const std::string architecture : {"rwkv7", "rwkv4"}) {
    const TestModel m = architecture == "rwkv7" ? random_model(41) : random_rwkv4(41);
    const auto ids = random_ids(41, 41, kVocab);
    const std::span<const int32_t> all(ids);
    Engine plain(*m.model, *m.weights, {.prefill_tokens = 16});
    for (const DType type : {DType::kF32, DType::kBF16, DType::kI8}) {
      SCOPED_TRACE(architecture + dtype_name(type).data());
      const TestModel held = packed_model(m, type, architecture);
      Engine want(*held.model, *held.weights, {.prefill_tokens = 16});
      Engine got(*m.model, *m.weights,
                 {.prefill_tokens = 16, .weights = type, .fixed_weights = true});
      RnnState a = want.new_state(), b = got.new_state(), c = plain.new_state();
      constexpr double tolerance = 1e-5;
      // A piece of 16 tokens, one of 3, and one token.
      expect_close(copy(got.prefill(b, all.first(19))), copy(want.prefill(a, all.first(19))),
                   tolerance, "prefill");
      const auto decoded = copy(got.decode(b, all.subspan(19, 1)));
      expect_close(decoded, copy(want.decode(a, all.subspan(19, 1))), tolerance, "decode");
      plain.prefill(c, all.first(19));
      const auto original = copy(plain.decode(c, all.subspan(19, 1)));
      if (type != DType::kF32) {
        EXPECT_NE(decoded, original);
      }
      expect_close(decoded, original, 0.1, "against f32 weights");
      std::vector<float> loss(20), loss_want(20);
      got.token_loss(b, all.subspan(20, 20), all.subspan(21, 20), loss);
      want.token_loss(a, all.subspan(20, 20), all.subspan(21, 20), loss_want);
      expect_close(loss, loss_want, tolerance, "loss");
    }
  }
}

}  // namespace
}  // namespace rwkv
