// The engine on a GPU against the engine on the CPU and the golden model: logits, states, losses,
// generation and evaluation, in f32 and in bf16. Skipped without a GPU.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "inference/evaluate.h"
#include "inference/generate.h"
#include "kernels/core/bf16.h"
#include "kernels/core/memory.h"
#include "tests/golden/golden_util.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using golden::rel;
using test::random_ids;
using test::random_model;
using test::TestModel;

constexpr int64_t kVocab = 300;
/// rel, of logits: golden/README.md. States differ as logits do. Single rows of logits are not
/// averaged over tokens: twice that in bf16 (seen: 2.9e-2).
constexpr double kF32 = 5e-6, kBf16 = 3e-2, kBf16Row = 6e-2;

EngineOptions on_gpu(DType dtype, int64_t prefill_tokens = 256) {
  return {.prefill_tokens = prefill_tokens, .device = Device::kCuda, .dtype = dtype};
}

double limit(DType dtype) {
  return dtype == DType::kF32 ? kF32 : kBf16;
}
double row_limit(DType dtype) {
  return dtype == DType::kF32 ? kF32 : kBf16Row;
}

class CudaEngine : public testing::TestWithParam<DType> {
 protected:
  static bool have_gpu() {
    try {
      const Context ctx(Device::kCuda);
      return true;
    } catch (const DeviceError&) {
      return false;
    }
  }
  void SetUp() override {
    static const bool gpu = have_gpu();
    if (!gpu) GTEST_SKIP() << "no GPU";
  }
};

INSTANTIATE_TEST_SUITE_P(Type, CudaEngine, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& type) { return std::string(dtype_name(type.param)); });

std::vector<float> values(const TensorView& v) {
  return {v.f32(), v.f32() + v.numel()};
}

/// All tensors of a state as f32, in host memory.
std::vector<float> values(Engine& engine, const RnnState& state) {
  std::vector<float> all;
  for (size_t i = 0; i < state.specs().size(); ++i) {
    const auto n = static_cast<size_t>(state[i].numel());
    if (state[i].spec.dtype == DType::kF32) {
      std::vector<float> part(n);
      copy(engine.context(), TensorView(part.data(), state[i].spec), state[i]);
      all.insert(all.end(), part.begin(), part.end());
    } else {
      std::vector<BF16> part(n);
      copy(engine.context(), TensorView(part.data(), state[i].spec), state[i]);
      for (const BF16 x : part) all.push_back(to_float(x));
    }
  }
  return all;
}

std::vector<float> all_logits(Engine& engine, RnnState& state, std::span<const int32_t> ids) {
  const auto batch = static_cast<size_t>(state.specs()[0].spec[0]), n = ids.size() / batch;
  std::vector<float> out(ids.size() * kVocab);
  engine.all_logits(state, ids, [&](int64_t first, const TensorView& logits) {
    ASSERT_EQ(logits.spec.dtype, DType::kF32);
    const auto piece = static_cast<size_t>(logits.dim(1) * kVocab);
    for (size_t b = 0; b < batch; ++b)
      std::copy_n(
          logits.f32() + b * piece, piece,
          out.begin() + static_cast<int64_t>((b * n + static_cast<size_t>(first)) * kVocab));
  });
  return out;
}

void report(const std::string& what, double error) {
  std::printf("  %s: %.2e\n", what.c_str(), error);
}

TEST_P(CudaEngine, GoldenModel) {
  Hdf5File file = Hdf5File::open(golden::path("rwkv7_tiny.h5"));
  const auto model = make_model(golden::model_config(file));
  ParamStore weights(Device::kCpu, model->params(), "weights");
  golden::load_params(file, "weights", *model, weights);
  const auto x = file.read<int32_t>("tokens/x"), y = file.read<int32_t>("tokens/y");
  const auto want = file.read<double>("logits");
  ASSERT_EQ(model->config().vocab_size, kVocab);
  const int64_t batch = golden::scalar(file, "config/B");
  Engine host(*model, weights);
  RnnState host_state = host.new_state(batch);
  const auto host_logits = all_logits(host, host_state, x);
  for (const int64_t piece : {1, 7, 256}) {
    Engine engine(*model, weights, on_gpu(GetParam(), piece));
    RnnState state = engine.new_state(batch);
    const auto got = all_logits(engine, state, x);
    report(str("logits in pieces of ", piece), rel(want, got));
    EXPECT_LE(rel(want, got), limit(GetParam())) << piece;
    EXPECT_LE(rel(host_logits, got), limit(GetParam())) << piece;
    const double states = rel(values(host, host_state), values(engine, state));
    report(str("states in pieces of ", piece), states);
    EXPECT_LE(states, limit(GetParam())) << piece;

    state.reset();
    std::vector<float> loss(x.size());
    engine.token_loss(state, x, y, loss);
    double sum = 0;
    for (const float l : loss) sum += l;
    const double mean = sum / static_cast<double>(loss.size());
    report(str("loss in pieces of ", piece), std::fabs(mean - file.read_scalar<double>("loss")));
    EXPECT_LE(std::fabs(mean - file.read_scalar<double>("loss")),
              GetParam() == DType::kF32 ? 5e-6 : 5e-3);
  }
}

TEST_P(CudaEngine, PrefillIsDecodeForAnyLength) {
  const TestModel m = random_model(3);
  Engine host(*m.model, *m.weights), engine(*m.model, *m.weights, on_gpu(GetParam()));
  double worst = 0;
  for (const int64_t n : {1, 2, 15, 16, 17, 31, 33, 255, 256, 257}) {
    SCOPED_TRACE(n);
    const auto ids = random_ids(static_cast<uint64_t>(n), n, kVocab);
    RnnState host_state = host.new_state();
    const auto want = all_logits(host, host_state, ids);
    const std::span<const float> last = std::span(want).last(kVocab);
    RnnState stepped = engine.new_state();
    std::vector<float> decoded;
    for (const int32_t id : ids) {
      const auto row = values(engine.decode(stepped, {&id, 1}));
      decoded.insert(decoded.end(), row.begin(), row.end());
    }
    worst = std::max(worst, rel(want, decoded));
    EXPECT_LE(rel(want, decoded), row_limit(GetParam()));
    for (const int64_t piece : {256, 100, 7}) {
      SCOPED_TRACE(piece);
      Engine pieces(*m.model, *m.weights, on_gpu(GetParam(), piece));
      RnnState state = pieces.new_state();
      const TensorView logits = pieces.prefill(state, ids);
      EXPECT_EQ(logits.spec, (TensorSpec{1, kVocab}));
      EXPECT_EQ(logits.device, Device::kCpu);
      worst = std::max(worst, rel(last, values(logits)));
      EXPECT_LE(rel(last, values(logits)), row_limit(GetParam()));
      const auto state_values = values(pieces, state);
      EXPECT_LE(rel(values(host, host_state), state_values), row_limit(GetParam()));
      EXPECT_LE(rel(values(engine, stepped), state_values), row_limit(GetParam()));
    }
  }
  report("worst logits", worst);
}

TEST_P(CudaEngine, OneLongSequenceAndEveryVariant) {
  const TestModel m = random_model(4);
  const auto ids = random_ids(4, 1500, kVocab);
  Engine host(*m.model, *m.weights);
  RnnState host_state = host.new_state();
  const auto want = all_logits(host, host_state, ids);
  for (const char* wkv : {"auto", "serial", "chunk"}) {
    if (GetParam() == DType::kF32 && std::string(wkv) == "chunk") continue;  // bf16 only
    EngineOptions o = on_gpu(GetParam(), 1300);
    o.wkv = wkv;
    Engine engine(*m.model, *m.weights, o);
    RnnState state = engine.new_state();
    const auto got = all_logits(engine, state, ids);
    report(wkv, rel(want, got));
    EXPECT_LE(rel(want, got), limit(GetParam())) << wkv;
    EXPECT_LE(rel(values(host, host_state), values(engine, state)), limit(GetParam())) << wkv;
  }
  EngineOptions nonsense = on_gpu(GetParam());
  nonsense.wkv = "nonsense";
  EXPECT_THROW(Engine(*m.model, *m.weights, nonsense), ConfigError);
}

TEST_P(CudaEngine, EveryHeadSize) {
  for (const int64_t head_size : {32, 128}) {
    const TestModel m = random_model(15, 2, 256, kVocab, head_size);
    const auto ids = random_ids(15, 60, kVocab);
    Engine host(*m.model, *m.weights);
    RnnState host_state = host.new_state();
    const auto want = all_logits(host, host_state, ids);
    for (const int64_t piece : {1, 40}) {
      Engine engine(*m.model, *m.weights, on_gpu(GetParam(), piece));
      RnnState state = engine.new_state();
      const auto got = all_logits(engine, state, ids);
      report(str("head size ", head_size, " in pieces of ", piece), rel(want, got));
      EXPECT_LE(rel(want, got), limit(GetParam())) << head_size << ", pieces of " << piece;
      EXPECT_LE(rel(values(host, host_state), values(engine, state)), limit(GetParam()));
    }
  }
}

TEST_P(CudaEngine, RunsAreBitEqualAndSequencesIndependent) {
  const TestModel m = random_model(6);
  constexpr int64_t kBatch = 3, kTokens = 37;
  const auto run = [&](Engine& engine, const std::vector<int32_t>& ids) {
    RnnState state = engine.new_state(kBatch);
    auto out = values(engine.prefill(state, ids));
    const std::vector<int32_t> next = {ids[0], ids[kTokens], ids[2 * kTokens]};
    const auto decoded = values(engine.decode(state, next));
    out.insert(out.end(), decoded.begin(), decoded.end());
    return out;
  };
  const auto ids = random_ids(60, kBatch * kTokens, kVocab);
  Engine engine(*m.model, *m.weights, on_gpu(GetParam(), 24));
  const auto first = run(engine, ids);
  EXPECT_EQ(run(engine, ids), first);
  Engine again(*m.model, *m.weights, on_gpu(GetParam(), 24));
  EXPECT_EQ(run(again, ids), first);
  for (int64_t b = 0; b < kBatch; ++b) {
    auto other = random_ids(61, kBatch * kTokens, kVocab);
    std::copy_n(ids.begin() + b * kTokens, kTokens, other.begin() + b * kTokens);
    const auto with_others = run(engine, other);
    for (const bool second : {false, true}) {
      const auto at = static_cast<size_t>((second ? kBatch : 0) + b) * kVocab;
      EXPECT_TRUE(std::ranges::equal(std::span(first).subspan(at, kVocab),
                                     std::span(with_others).subspan(at, kVocab)))
          << b;
    }
  }
}

TEST_P(CudaEngine, StatesContinueForkAndReset) {
  const TestModel m = random_model(5);
  Engine engine(*m.model, *m.weights, on_gpu(GetParam(), 32));
  const auto ids = random_ids(5, 90, kVocab);
  const std::span<const int32_t> all(ids);
  RnnState state = engine.new_state();
  EXPECT_EQ(state.device(), Device::kCuda);
  const auto fresh = values(engine.prefill(state, all.first(41)));
  RnnState fork = state.clone();
  const auto rest = all_logits(engine, state, all.subspan(41));
  EXPECT_EQ(all_logits(engine, fork, all.subspan(41)), rest);
  EXPECT_EQ(values(engine, fork), values(engine, state));
  state.reset();
  for (const float x : values(engine, state)) ASSERT_EQ(x, 0);
  EXPECT_EQ(values(engine.prefill(state, all.first(41))), fresh);
}

/// Rounding the logits to bf16 would make ties of close ones.
TEST_P(CudaEngine, LogitsAreF32) {
  const TestModel m = random_model(7);
  Engine engine(*m.model, *m.weights, on_gpu(GetParam()));
  RnnState state = engine.new_state();
  const auto logits = values(engine.prefill(state, random_ids(7, 20, kVocab)));
  const auto coarse =
      std::ranges::count_if(logits, [](float x) { return to_float(to_bf16(x)) == x; });
  EXPECT_LE(coarse, kVocab / 10);
}

TEST_P(CudaEngine, PlansAreBoundedAndCallsAllocateNothing) {
  const TestModel m = random_model(12, 2);
  EngineOptions o = on_gpu(GetParam());
  o.max_plans = 3;
  Engine engine(*m.model, *m.weights, o);
  std::vector<std::vector<float>> first;
  for (int round = 0; round < 2; ++round)
    for (int64_t n = 1; n <= 6; ++n) {
      RnnState state = engine.new_state();
      const auto logits = values(engine.prefill(state, random_ids(12, n, kVocab)));
      EXPECT_LE(engine.plan_count(), 3u);
      if (round == 0) first.push_back(logits);
      EXPECT_EQ(logits, first[static_cast<size_t>(n - 1)]);
    }
  RnnState state = engine.new_state();
  const auto ids = random_ids(13, 40, kVocab);
  uint64_t before = 0;
  for (int i = 0; i < 5; ++i) {
    engine.prefill(state, ids);
    engine.decode(state, std::span(ids).first(1));
    if (i == 0) before = arena_allocation_count();
  }
  EXPECT_EQ(arena_allocation_count(), before);
}

TEST_P(CudaEngine, GreedyGenerationIsTheCpus) {
  const GenerateOptions greedy{.sampling = {.temperature = 0}, .max_tokens = 60};
  const ByteTokenizer bytes;
  if (GetParam() == DType::kF32) {
    const TestModel m = random_model(20, 3, 128, 257);
    Engine host(*m.model, *m.weights), engine(*m.model, *m.weights, on_gpu(DType::kF32));
    for (const char* prompt : {"", "a", "to be continued by any model that cares"}) {
      const auto ids = prompt_ids(bytes, prompt);
      EXPECT_EQ(generate(engine, &bytes, ids, greedy).ids, generate(host, &bytes, ids, greedy).ids);
    }
  }
  const TestModel m = test::bigram_model(test::alphabet);
  Engine engine(*m.model, *m.weights, on_gpu(GetParam()));
  const Generated g = generate(engine, &bytes, bytes.encode("xa"), greedy);
  EXPECT_EQ(g.text.substr(0, 28), "bcdefghijklmnopqrstuvwxyz\nab");
  EXPECT_EQ(g.decoded_tokens, 59);
}

TEST_P(CudaEngine, LossOfAStreamIsTheCpus) {
  const TestModel m = random_model(23, 2, 128, 257);
  constexpr int64_t kCount = 5000, kCtx = 520;
  const auto ids = random_ids(23, kCount, 257);
  const auto read = [&](int64_t begin, std::span<int32_t> out) {
    std::copy_n(ids.begin() + begin, out.size(), out.begin());
  };
  const ByteTokenizer bytes;
  Engine host(*m.model, *m.weights), engine(*m.model, *m.weights, on_gpu(GetParam(), 512));
  const LossSum want = evaluate_loss(host, kCount, read, kCtx, &bytes);
  const double tolerance = GetParam() == DType::kF32 ? 1e-6 : 2e-3;
  for (const int64_t batch : {1, 8, 64}) {
    const LossSum got = evaluate_loss(engine, kCount, read, kCtx, &bytes, {}, batch);
    EXPECT_EQ(got.tokens, want.tokens);
    EXPECT_EQ(got.bytes, want.bytes);
    report(str("mean loss, batch ", batch), std::fabs(got.mean() - want.mean()));
    EXPECT_LE(std::fabs(got.mean() - want.mean()), tolerance * want.mean()) << batch;
  }
}

TEST_P(CudaEngine, LambadaAndTasksAreTheCpus) {
  const TestModel m = random_model(24, 2, 128, 257);
  Engine host(*m.model, *m.weights), engine(*m.model, *m.weights, on_gpu(GetParam()));
  const ByteTokenizer bytes;
  std::vector<std::string> texts;
  for (const int32_t seed : {1, 2, 3, 4, 5, 6, 7, 8})
    texts.push_back(str("some text of the number ", seed, seed % 3 == 0 ? " it ends" : " end"));
  const LambadaResult want = evaluate_lambada(host, bytes, texts, 4);
  const LambadaResult got = evaluate_lambada(engine, bytes, texts, 4);
  EXPECT_EQ(got.texts, want.texts);
  report("nats of LAMBADA, relative", std::fabs(got.nats - want.nats) / want.nats);
  EXPECT_LE(std::fabs(got.nats - want.nats), (GetParam() == DType::kF32 ? 1e-5 : 1e-2) * want.nats);
  if (GetParam() == DType::kF32) {
    EXPECT_EQ(got.correct, want.correct);
  }

  const TestModel letters = test::bigram_model(test::alphabet);
  Engine speller(*letters.model, *letters.weights, on_gpu(GetParam()));
  const std::vector<TaskProblem> problems = {
      {"letters", "w", "xyz\n"}, {"letters", "v", "wyz"}, {"digits", "7", "89"}};
  const auto outcomes = evaluate_tasks(speller, bytes, problems, 2);
  EXPECT_TRUE(outcomes[0].correct);
  EXPECT_FALSE(outcomes[1].correct);
  EXPECT_TRUE(outcomes[2].correct);
}

TEST_P(CudaEngine, MistakesAreExplained) {
  const TestModel m = random_model(14, 2, 64);
  Engine engine(*m.model, *m.weights, on_gpu(GetParam()));
  RnnState two = engine.new_state(2);
  EXPECT_THROW(engine.prefill(two, std::vector<int32_t>{1, 300}), ConfigError);
  EXPECT_THROW(engine.prefill(two, std::vector<int32_t>{1, 2, 3}), ShapeError);
}

}  // namespace
}  // namespace rwkv
