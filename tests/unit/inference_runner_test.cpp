// The pool of sequences over an Engine: results are those of a sequence alone, bit for bit. Made
// for the CPU and, with RWKV_TEST_CUDA, for the GPU, where every test runs in f32 and in bf16.

#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "inference/sequence_runner.h"
#include "kernels/core/parallel.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::bit_equal;
using test::random_ids;
using test::TestModel;

constexpr int64_t kVocab = 300;

using Row = std::vector<float>;

Row row(const TensorView& logits, int64_t i) {
  const float* p = logits.f32() + i * logits.last();
  return {p, p + logits.last()};
}

testing::AssertionResult same(const Row& got, const Row& want, const std::string& what) {
  return bit_equal(std::span<const float>(got), std::span<const float>(want), what);
}

struct Pool {
  TestModel model;
  EngineRunnerOptions options;
  std::optional<Engine> engine;
  std::unique_ptr<SequenceRunner> runner;

  Pool(TestModel m, EngineRunnerOptions o, EngineOptions e = {})
      : model(std::move(m)), options(std::move(o)) {
    engine.emplace(*model.model, *model.weights, runner_engine_options(e, options));
    runner = make_engine_runner(*engine, options);
  }
  SequenceRunner* operator->() const { return runner.get(); }
};

std::vector<std::byte> saved(SequenceRunner& runner, int64_t slot) {
  std::vector<std::byte> bytes(runner.state_bytes());
  runner.save(slot, bytes);
  return bytes;
}

struct Variant {
  const char* architecture;
  DType dtype;
  DType weights = DType::kF32;
};

class Runner : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }
  static EngineOptions on_device() {
    const bool cpu = test::kTestDevice == Device::kCpu;
    return {.device = test::kTestDevice,
            .dtype = GetParam().dtype,
            .weights = GetParam().weights,
            .fixed_weights = cpu};
  }
  static TestModel model(uint64_t seed, int64_t width = 128) {
    return test::random_model(seed, 3, width, kVocab, 0, GetParam().architecture);
  }
};
#ifdef RWKV_TEST_CUDA
INSTANTIATE_TEST_SUITE_P(Cuda, Runner,
                         testing::Values(Variant{"rwkv7", DType::kF32},
                                         Variant{"rwkv4", DType::kF32},
                                         Variant{"rwkv7", DType::kBF16},
                                         Variant{"rwkv4", DType::kBF16}));
#else
INSTANTIATE_TEST_SUITE_P(Cpu, Runner,
                         testing::Values(Variant{"rwkv7", DType::kF32},
                                         Variant{"rwkv4", DType::kF32},
                                         Variant{"rwkv7", DType::kF32, DType::kI8},
                                         Variant{"rwkv4", DType::kF32, DType::kBF16}));
#endif

/// Feeds `ids` to a slot in the runner's own pieces.
Row feed(SequenceRunner& runner, int64_t slot, std::span<const int32_t> ids) {
  Row last;
  while (!ids.empty()) {
    const auto n = static_cast<size_t>(runner.prefill_piece(std::ssize(ids)));
    last = row(runner.prefill(slot, ids.first(n)), 0);
    ids = ids.subspan(n);
  }
  return last;
}

TEST_P(Runner, SequencesDoNotNoticeTheirNeighbours) {
  constexpr int64_t kSlots = 11, kSteps = 12;
  // 192: not a multiple of what vector loops take at once in every product.
  for (const int64_t width : {128, 192}) {
    Pool alone(model(5, width), {.slots = 1}, on_device());
    Pool many(model(5, width), {.slots = kSlots}, on_device());
    EXPECT_TRUE(many->exact());
    std::vector<std::vector<int32_t>> prompt, fed;
    std::vector<std::vector<Row>> want;
    std::vector<std::vector<std::byte>> states;
    for (int64_t s = 0; s < kSlots; ++s) {
      prompt.push_back(random_ids(static_cast<uint64_t>(100 + s), 1 + 13 * s, kVocab));
      fed.push_back(random_ids(static_cast<uint64_t>(200 + s), kSteps, kVocab));
      alone->reset(0);
      std::vector<Row> rows = {feed(*alone.runner, 0, prompt.back())};
      for (const int32_t id : fed.back()) {
        const int64_t slot = 0;
        rows.push_back(row(alone->decode({&slot, 1}, {&id, 1}), 0));
      }
      want.push_back(std::move(rows));
      states.push_back(saved(*alone.runner, 0));
    }
    // Sequences join late, leave early, and stand in other orders and batch sizes every step.
    std::vector<int64_t> done(kSlots, -1);
    Rng rng(17, hash_name("joins"));
    int64_t running = kSlots;
    while (running > 0) {
      std::vector<int64_t> slots;
      std::vector<int32_t> ids;
      for (int64_t s = 0; s < kSlots; ++s) {
        auto& n = done[static_cast<size_t>(s)];
        if (n >= kSteps || rng.next_u64() % 3 == 0) continue;
        if (n < 0) {
          const Row got = feed(*many.runner, s, prompt[static_cast<size_t>(s)]);
          EXPECT_TRUE(same(got, want[static_cast<size_t>(s)][0], str("prefill of ", s)));
          n = 0;
          continue;
        }
        slots.insert(
            slots.begin() + static_cast<std::ptrdiff_t>(rng.next_u64() % (slots.size() + 1)), s);
      }
      if (slots.empty()) continue;
      for (const int64_t s : slots)
        ids.push_back(
            fed[static_cast<size_t>(s)][static_cast<size_t>(done[static_cast<size_t>(s)])]);
      const TensorView logits = many->decode(slots, ids);
      ASSERT_EQ(logits.spec, (TensorSpec{std::ssize(slots), kVocab}));
      for (size_t i = 0; i < slots.size(); ++i) {
        const auto s = static_cast<size_t>(slots[i]);
        const auto step = static_cast<size_t>(++done[s]);
        EXPECT_TRUE(same(
            row(logits, static_cast<int64_t>(i)), want[s][step],
            str("width ", width, ", sequence ", s, ", step ", step, ", one of ", slots.size())));
        if (done[s] == kSteps) --running;
      }
    }
    for (int64_t s = 0; s < kSlots; ++s)
      EXPECT_EQ(saved(*many.runner, s), states[static_cast<size_t>(s)]) << s;
  }
}

TEST_P(Runner, ThreadsChangeNothing) {
  Pool pool(model(6), {.slots = 7}, on_device());
  const std::vector<int64_t> slots = {0, 1, 2, 3, 4, 5, 6};
  const auto ids = random_ids(3, 7, kVocab), prompt = random_ids(4, 70, kVocab);
  std::vector<Row> first;
  const int before = num_threads();
  for (const int threads : {1, 2, 3}) {
    set_num_threads(threads);
    for (const int64_t s : slots) pool->reset(s);
    Row all = feed(*pool.runner, 2, prompt);
    const TensorView logits = pool->decode(slots, ids);
    all.insert(all.end(), logits.f32(), logits.f32() + logits.numel());
    first.push_back(all);
  }
  set_num_threads(before);
  EXPECT_TRUE(same(first[1], first[0], "2 threads"));
  EXPECT_TRUE(same(first[2], first[0], "3 threads"));
}

TEST_P(Runner, StatesAreForkedSavedAndResetExactly) {
  Pool pool(model(7), {.slots = 4}, on_device());
  const auto prompt = random_ids(8, 21, kVocab), more = random_ids(9, 8, kVocab);
  const auto go_on = [&](int64_t slot) { return feed(*pool.runner, slot, more); };
  const auto fresh = saved(*pool.runner, 3);
  feed(*pool.runner, 0, prompt);
  const auto bytes = saved(*pool.runner, 0);
  EXPECT_NE(bytes, fresh);
  pool->copy(2, 0);
  const Row want = go_on(0);
  EXPECT_TRUE(same(go_on(2), want, "fork"));
  pool->load(1, bytes);
  EXPECT_TRUE(same(go_on(1), want, "loaded"));
  // Forks go separate ways.
  EXPECT_EQ(saved(*pool.runner, 2), saved(*pool.runner, 1));
  feed(*pool.runner, 2, more);
  EXPECT_NE(saved(*pool.runner, 2), saved(*pool.runner, 1));
  pool->reset(0);
  EXPECT_EQ(saved(*pool.runner, 0), fresh);
  feed(*pool.runner, 0, prompt);
  EXPECT_EQ(saved(*pool.runner, 0), bytes);

  size_t end = 0;
  for (const auto& t : pool->layout()) {
    EXPECT_EQ(t.offset, end) << t.name;
    EXPECT_EQ(t.spec.dim[0], 1) << t.name;
    end += t.spec.bytes();
  }
  EXPECT_EQ(end, pool->state_bytes());
}

TEST_P(Runner, PiecesAreBoundedAndCoverAnyLength) {
  Pool pool(model(8), {.slots = 1, .prefill_tokens = 64}, on_device());
  for (int64_t left = 1; left <= 300; ++left) {
    const int64_t n = pool->prefill_piece(left);
    EXPECT_GE(n, 1);
    EXPECT_LE(n, std::min<int64_t>(left, 64));
  }
  EXPECT_EQ(pool->prefill_piece(64), 64);
  // Every piece length has its plan and keeps it: serving all lengths makes no others.
  for (int64_t n = 1; n < 130; ++n) feed(*pool.runner, 0, random_ids(1, n, kVocab));
  const size_t plans = pool.engine->plan_count();
  EXPECT_LE(plans, 7U);
  for (int64_t n = 1; n < 130; ++n) feed(*pool.runner, 0, random_ids(2, n, kVocab));
  EXPECT_EQ(pool.engine->plan_count(), plans);
}

TEST_P(Runner, CloseToTheEngineWithOtherBuckets) {
  // Larger buckets are faster and may round differently, and say so.
  Pool exact(model(9), {.slots = 9}, on_device());
  Pool fast(model(9), {.slots = 9, .buckets = {1, 4, 16}}, on_device());
  EXPECT_FALSE(fast->exact());
  EXPECT_EQ(fast->decode_batch(), 16);
  const std::vector<int64_t> slots = {8, 7, 6, 5, 4, 3, 2, 1, 0};
  for (int step = 0; step < 5; ++step) {
    const auto ids = random_ids(static_cast<uint64_t>(step), 9, kVocab);
    const TensorView a = exact->decode(slots, ids), b = fast->decode(slots, ids);
    EXPECT_TRUE(test::matches(std::span<const float>(b.f32(), static_cast<size_t>(b.numel())),
                              std::span<const float>(a.f32(), static_cast<size_t>(a.numel())),
                              test::Tolerance::all(GetParam().dtype == DType::kF32 ? 1e-4 : 3e-2),
                              {.what = "logits"}));
  }
}

/// Any number of pieces in a call, of any lengths: exact runners give what each gets alone, others
/// give that up to rounding.
TEST_P(Runner, PromptsSideBySide) {
  constexpr int64_t kSlots = 9;
  Pool alone(model(9), {.slots = kSlots, .prefill_tokens = 32}, on_device());
  Pool fast(model(9), {.slots = kSlots, .buckets = {1, 2, 4, 8}, .prefill_tokens = 32},
            on_device());
  EXPECT_EQ(alone->prefill_group(4).batch, 1);
  if (fast.engine->options().device == Device::kCpu) {
    EXPECT_EQ(fast->prefill_group(4).batch, 8);
    EXPECT_EQ(fast->prefill_group(16).batch, 2);
    EXPECT_EQ(fast->prefill_group(32).batch, 1);
  }
  Pool exact(model(9), {.slots = kSlots, .prefill_tokens = 32}, on_device());
  const std::vector<int64_t> slots = {8, 0, 3, 7, 1, 2, 6, 5, 4};
  const auto limit = test::Tolerance::all(GetParam().dtype == DType::kF32 ? 1e-4 : 3e-2);
  // The second round goes on from the states that the first one left.
  for (const int64_t n : {8, 1, 4, 32}) {
    std::vector<std::vector<int32_t>> ids;
    for (uint64_t i = 0; i < slots.size(); ++i) ids.push_back(random_ids(20 + i, n, kVocab));
    if (n == 8) ids[4].resize(2);  // one of another length
    const std::vector<std::span<const int32_t>> pieces(ids.begin(), ids.end());
    const TensorView together = fast->prefill_batch(slots, pieces);
    const TensorView one_by_one = exact->prefill_batch(slots, pieces);
    ASSERT_EQ(together.dim(0), kSlots);
    for (size_t i = 0; i < slots.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      const Row want = row(alone->prefill(at, ids[i]), 0), got = row(together, at);
      EXPECT_TRUE(same(row(one_by_one, at), want, "one by one")) << n << " " << i;
      EXPECT_TRUE(test::matches(std::span<const float>(got), std::span<const float>(want), limit,
                                {.what = "logits of prompts side by side"}));
    }
  }
  const std::vector<int32_t> one = {1};
  const std::vector<std::span<const int32_t>> twice(2, one);
  EXPECT_THROW(fast->prefill_batch(std::vector<int64_t>{0, 0}, twice), ConfigError);
  EXPECT_THROW(fast->prefill_batch(std::vector<int64_t>{0}, twice), ShapeError);
  EXPECT_THROW(fast->prefill_batch({}, {}), ShapeError);
}

TEST_P(Runner, MistakesTouchNothing) {
  Pool pool(model(10), {.slots = 2, .prefill_tokens = 16}, on_device());
  const std::vector<int64_t> both = {0, 1}, twice = {1, 1}, outside = {0, 2};
  const std::vector<int32_t> good = {1, 2}, bad = {1, kVocab};
  const auto before = saved(*pool.runner, 0);
  EXPECT_THROW(pool->decode(both, bad), ConfigError);
  EXPECT_THROW(pool->decode(twice, good), ConfigError);
  EXPECT_THROW(pool->decode(outside, good), ConfigError);
  EXPECT_THROW(pool->decode({}, {}), ShapeError);
  EXPECT_THROW(pool->decode(both, {good.data(), 1}), ShapeError);
  EXPECT_THROW(pool->prefill(2, good), ConfigError);
  EXPECT_THROW(pool->prefill(0, bad), ConfigError);
  EXPECT_THROW(pool->prefill(0, random_ids(1, 3, kVocab)), ConfigError);
  EXPECT_THROW(pool->prefill(0, random_ids(1, 32, kVocab)), ConfigError);
  EXPECT_THROW(pool->prefill(0, {}), ConfigError);
  EXPECT_THROW(pool->reset(-1), ConfigError);
  EXPECT_THROW(pool->copy(0, 2), ConfigError);
  std::vector<std::byte> small(pool->state_bytes() - 1);
  EXPECT_THROW(pool->save(0, small), ShapeError);
  EXPECT_THROW(pool->load(0, small), ShapeError);
  EXPECT_EQ(saved(*pool.runner, 0), before);
  EXPECT_NO_THROW(pool->decode(both, good));

  EXPECT_THROW(make_engine_runner(*pool.engine, {.slots = 0}), ConfigError);
  EXPECT_THROW(make_engine_runner(*pool.engine, {.buckets = {2, 2}}), ConfigError);
  EXPECT_THROW(make_engine_runner(*pool.engine, {.prefill_tokens = 48}), ConfigError);
  EngineOptions small_options = on_device();
  small_options.prefill_tokens = 8;
  Engine small_engine(*pool.model.model, *pool.model.weights, small_options);
  EXPECT_THROW(make_engine_runner(small_engine, {.prefill_tokens = 16}), ConfigError);
}

#ifndef RWKV_TEST_CUDA
TEST(RunnerStates, BinarySixteenStatesKeepTheirCounter) {
  // The dither depends on the number of tokens seen, which is a part of the state.
  const EngineOptions engine{.wkv = "fp16-dithered"};
  Pool alone(test::random_model(11), {.slots = 1}, engine);
  Pool many(test::random_model(11), {.slots = 3}, engine);
  const auto prompt = random_ids(12, 9, kVocab), other = random_ids(13, 4, kVocab);
  const Row want = feed(*alone.runner, 0, prompt);
  feed(*many.runner, 1, other);
  EXPECT_TRUE(same(feed(*many.runner, 0, prompt), want, "prefill"));
  many->copy(2, 0);
  const int32_t id = 5;
  const std::vector<int64_t> slots = {1, 2};
  const std::vector<int32_t> ids = {7, id};
  const int64_t zero = 0;
  const Row next = row(alone->decode({&zero, 1}, {&id, 1}), 0);
  EXPECT_TRUE(same(row(many->decode(slots, ids), 1), next, "decode of a fork"));
}
#endif

}  // namespace
}  // namespace rwkv
