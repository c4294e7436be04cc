// The runner over the decoding kernels: what every SequenceRunner keeps. Skipped without a GPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "inference/decode_runner.h"
#include "inference/scheduler.h"
#include "inference/state_file.h"
#include "tests/unit/data_test_util.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::random_ids;
using test::random_model;
using test::TestModel;

constexpr int64_t kVocab = 300;

class CudaDecodeRunner : public testing::Test {
 protected:
  void SetUp() override {
    try {
      const Context ctx(Device::kCuda);
    } catch (const DeviceError&) {
      GTEST_SKIP() << "no GPU";
    }
  }
};

std::vector<float> row(const TensorView& logits, int64_t i) {
  return {logits.f32() + i * kVocab, logits.f32() + (i + 1) * kVocab};
}

double relative(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const auto w = static_cast<double>(want[i]);
    error += std::pow(static_cast<double>(got[i]) - w, 2);
    norm += w * w;
  }
  return std::sqrt(error / norm);
}

TEST_F(CudaDecodeRunner, PrefillByStepsAndInParallelAgree) {
  const TestModel m = random_model(1);
  for (const DType type : {DType::kF32, DType::kF16})
    for (const bool half : {false, true}) {
      Context ctx(Device::kCuda);
      DecodeModel model(ctx, *m.model, *m.weights, {.dtype = type, .half_state = half, .slots = 3});
      const DecodeRunnerOptions options{.prefill_tokens = 64, .least_parallel = 16};
      Engine engine(*m.model, *m.weights, decode_engine_options(model, options));
      const auto fast = make_decode_runner(model, m.model->config(), &engine, options);
      const auto ids = random_ids(3, 96, kVocab);
      const std::span all(ids);
      fast->prefill(0, all.first(64));  // in parallel
      fast->prefill(0, all.subspan(64, 8));
      fast->prefill(0, all.subspan(72, 8));
      const auto got = row(fast->prefill(0, all.subspan(80, 16)), 0);
      const auto next = row(fast->decode(std::vector<int64_t>{0}, std::vector<int32_t>{5}), 0);
      const auto slow = make_decode_runner(model, m.model->config(), nullptr, options);
      slow->prefill(1, all.first(64));
      const auto want = row(slow->prefill(1, all.subspan(64, 32)), 0);
      const auto want_next = row(slow->decode(std::vector<int64_t>{1}, std::vector<int32_t>{5}), 0);
      const double limit = type == DType::kF32 ? half ? 1e-2 : 1e-5 : 6e-2;
      std::printf("  %s, %s state: parallel prefill against steps %.2e, the next token %.2e\n",
                  std::string(dtype_name(type)).c_str(), half ? "f16" : "f32", relative(got, want),
                  relative(next, want_next));
      EXPECT_LE(relative(got, want), limit);
      EXPECT_LE(relative(next, want_next), limit);
    }
}

TEST_F(CudaDecodeRunner, PrefillOnTheSameWeights) {
  const TestModel m = random_model(5);
  for (const DType type : {DType::kF16, DType::kBF16})
    for (const bool half : {false, true}) {
      Context ctx(Device::kCuda);
      DecodeModel model(ctx, *m.model, *m.weights,
                        {.dtype = type, .half_state = half, .slots = 3, .prefill = true});
      const auto fast =
          make_decode_runner(model, m.model->config(), nullptr, {.prefill_tokens = 64});
      const auto slow = make_decode_runner(model, m.model->config(), nullptr,
                                           {.prefill_tokens = 64, .least_parallel = 1 << 20});
      const auto ids = random_ids(3, 99, kVocab);
      const auto feed = [&](SequenceRunner& runner, int64_t slot) {
        std::vector<float> last;
        for (size_t at = 0; at < ids.size();) {
          const auto n =
              static_cast<size_t>(runner.prefill_piece(static_cast<int64_t>(ids.size() - at)));
          last = row(runner.prefill(slot, std::span(ids).subspan(at, n)), 0);
          at += n;
        }
        return last;
      };
      const auto got = feed(*fast, 0), want = feed(*slow, 1);
      const auto next = row(fast->decode(std::vector<int64_t>{0}, std::vector<int32_t>{5}), 0);
      const auto want_next = row(slow->decode(std::vector<int64_t>{1}, std::vector<int32_t>{5}), 0);
      std::printf("  %s, %s state: prefill on the same weights against steps %.2e, next %.2e\n",
                  std::string(dtype_name(type)).c_str(), half ? "f16" : "f32", relative(got, want),
                  relative(next, want_next));
      EXPECT_LE(relative(got, want), 6e-2);
      EXPECT_LE(relative(next, want_next), 6e-2);
    }
}

/// Prompts side by side: the bits of logits and state that each gets alone, whoever else is there.
TEST_F(CudaDecodeRunner, PromptsShareCalls) {
  const TestModel m = random_model(8);
  constexpr int64_t kSlots = 20, kPrompts = 60;
  for (const bool exact : {true, false}) {
    Context ctx(Device::kCuda);
    DecodeModel model(ctx, *m.model, *m.weights,
                      {.half_state = exact, .slots = kSlots, .prefill = true});
    const auto runner =
        make_decode_runner(model, m.model->config(), nullptr,
                           {.prefill_tokens = 128, .shared_rows = 128, .exact = exact});
    EXPECT_EQ(runner->prefill_group(1).batch, 8);
    EXPECT_EQ(runner->prefill_group(16).group, runner->prefill_group(1).group);
    EXPECT_EQ(runner->prefill_group(17).batch, 4);
    EXPECT_EQ(runner->prefill_group(100).batch, 1);
    std::vector<std::vector<int32_t>> prompts;
    for (uint64_t i = 0; i < kPrompts; ++i)
      prompts.push_back(random_ids(i, 1 + static_cast<int64_t>(i * 7 % 64), kVocab));
    const auto state = [&](int64_t slot) {
      std::vector<std::byte> bytes(runner->state_bytes());
      runner->save(slot, bytes);
      return bytes;
    };
    std::vector<std::vector<float>> want;
    std::vector<std::vector<std::byte>> want_states;
    for (const auto& p : prompts) {
      ASSERT_EQ(runner->prefill_piece(std::ssize(p)), std::ssize(p));
      runner->reset(3);
      want.push_back(row(runner->prefill(3, p), 0));
      want_states.push_back(state(3));
    }
    double most = 0;
    for (const size_t stride : {size_t{1}, size_t{7}}) {
      std::vector<char> done(kPrompts);
      for (size_t first = 0; first < kPrompts; ++first) {
        if (done[first]) continue;
        const auto group = runner->prefill_group(std::ssize(prompts[first]));
        std::vector<size_t> which;
        for (size_t k = 0; k < kPrompts && std::ssize(which) < group.batch; ++k) {
          const size_t i = (first + k * stride) % kPrompts;
          if (done[i] || runner->prefill_group(std::ssize(prompts[i])).group != group.group)
            continue;
          done[i] = 1;
          which.push_back(i);
        }
        std::vector<int64_t> slots;
        std::vector<std::span<const int32_t>> ids;
        for (const size_t i : which) {
          slots.push_back((7 * std::ssize(slots) + 5) % kSlots);
          ids.push_back(prompts[i]);
        }
        for (const int64_t s : slots) runner->reset(s);
        const TensorView logits = runner->prefill_batch(slots, ids);
        for (size_t i = 0; i < which.size(); ++i) {
          const auto got = row(logits, static_cast<int64_t>(i));
          if (exact) {
            EXPECT_EQ(std::memcmp(got.data(), want[which[i]].data(), got.size() * sizeof(float)), 0)
                << which[i];
            EXPECT_EQ(state(slots[i]), want_states[which[i]]) << which[i];
          }
          most = std::max(most, relative(got, want[which[i]]));
        }
      }
    }
    std::printf("  prompts side by side against alone, %s: %.2e\n", exact ? "exact" : "fast", most);
    EXPECT_LE(most, exact ? 0 : 2e-2);
    // Any mixture, in one call.
    std::vector<int64_t> slots;
    std::vector<std::span<const int32_t>> ids;
    for (int64_t s = kSlots - 1; s >= 0; --s) {
      ids.push_back(prompts[slots.size()]);
      slots.push_back(s);
      runner->reset(s);
    }
    const TensorView logits = runner->prefill_batch(slots, ids);
    for (size_t i = 0; i < slots.size(); ++i)
      EXPECT_LE(relative(row(logits, static_cast<int64_t>(i)), want[i]), exact ? 0 : 2e-2) << i;
    const std::vector<int64_t> twice = {2, 2};
    EXPECT_THROW(runner->prefill_batch(twice, std::span(ids).first(2)), ConfigError);
    EXPECT_THROW(runner->prefill_batch(twice, std::span(ids).first(1)), ShapeError);
  }
}

/// The whole way: requests together and alone, on the decoding kernels.
TEST_F(CudaDecodeRunner, RequestsTogetherAndAlone) {
  const TestModel m = random_model(9, 3, 128, 257);
  const ByteTokenizer tokenizer;
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights,
                    {.slots = 24, .buckets = {8, 16, 24}, .prefill = true});
  const auto runner = make_decode_runner(model, m.model->config(), nullptr,
                                         {.prefill_tokens = 64, .shared_rows = 64});
  const auto request = [](uint64_t i) {
    GenerationRequest r{.prompt = random_ids(i, 1 + static_cast<int64_t>(i * 11 % 150), 257),
                        .max_tokens = 4 + static_cast<int64_t>(i % 9)};
    r.sampling.seed = i;
    r.sampling.temperature = i % 4 == 0 ? 0 : 1;
    r.samples = i % 6 == 5 ? 3 : 1;
    if (i % 3 == 0) {
      r.prompt.insert(r.prompt.begin(), 40, 7);
      r.shared = {40};
    }
    r.stop_at_end_of_document = false;
    return r;
  };
  const auto collect = [](Generation& g, int64_t samples) {
    std::vector<std::string> texts(static_cast<size_t>(samples));
    while (samples > 0) {
      const auto event = g.wait(60);
      if (!event) return std::vector<std::string>{"nothing came"};
      texts[static_cast<size_t>(event->sample)] += event->text + event->error;
      if (event->end) --samples;
    }
    return texts;
  };
  constexpr uint64_t kCount = 48;
  std::vector<std::vector<std::string>> want;
  {
    Scheduler scheduler(*runner, tokenizer, {.cache_bytes = 0});
    for (uint64_t i = 0; i < kCount; ++i)
      want.push_back(collect(*scheduler.submit(request(i)), request(i).samples));
  }
  Scheduler scheduler(*runner, tokenizer, {});
  std::vector<std::shared_ptr<Generation>> running;
  for (uint64_t i = 0; i < kCount; ++i) running.push_back(scheduler.submit(request(i)));
  for (uint64_t i = 0; i < kCount; ++i)
    EXPECT_EQ(collect(*running[i], request(i).samples), want[i]) << i;
  const SchedulerStats stats = scheduler.stats();
  std::printf("  %llu pieces of prompts in %llu calls\n",
              static_cast<unsigned long long>(stats.prefill_pieces),
              static_cast<unsigned long long>(stats.prefill_calls));
  EXPECT_LT(stats.prefill_calls, stats.prefill_pieces);
}

TEST_F(CudaDecodeRunner, NeighboursChangeNothing) {
  const TestModel m = random_model(2);
  struct Mode {
    std::vector<int64_t> buckets;
    bool vendor, exact, is_exact;
  };
  for (const Mode& mode : {Mode{{}, false, true, true}, Mode{{4}, false, true, true},
                           Mode{{1, 2, 8}, false, true, true}, Mode{{2, 8}, false, false, false},
                           Mode{{8}, true, true, true}, Mode{{2, 8}, true, true, false}}) {
    Context ctx(Device::kCuda);
    DecodeModel model(ctx, *m.model, *m.weights,
                      {.slots = 12, .buckets = mode.buckets, .vendor = mode.vendor});
    const auto runner =
        make_decode_runner(model, m.model->config(), nullptr, {.exact = mode.exact});
    EXPECT_EQ(runner->exact(), mode.is_exact);
    const auto run = [&](const std::vector<int64_t>& slots, size_t which) {
      for (const int64_t s : slots) runner->reset(s);
      std::vector<float> mine;
      for (int step = 0; step < 5; ++step) {
        std::vector<int32_t> ids;
        for (size_t i = 0; i < slots.size(); ++i)
          ids.push_back(i == which ? 7 + step : static_cast<int32_t>(11 * i) + step);
        const auto logits = row(runner->decode(slots, ids), static_cast<int64_t>(which));
        mine.insert(mine.end(), logits.begin(), logits.end());
      }
      return mine;
    };
    const auto want = run({4}, 0);
    for (const auto& [slots, which] : std::vector<std::pair<std::vector<int64_t>, size_t>>{
             {{3, 9}, 1}, {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 6}}) {
      const auto got = run(slots, which);
      if (runner->exact()) {
        EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0);
      }
      EXPECT_LE(relative(got, want), 2e-2);
    }
  }
}

/// What is drawn on the device is what the CPU draws from the same logits.
TEST_F(CudaDecodeRunner, DrawsAreThoseOfTheCpu) {
  const TestModel m = random_model(3);
  for (const std::vector<int64_t>& buckets : {std::vector<int64_t>{}, std::vector<int64_t>{4}}) {
    Context ctx(Device::kCuda);
    DecodeModel model(ctx, *m.model, *m.weights, {.slots = 12, .buckets = buckets});
    const auto runner = make_decode_runner(model, m.model->config(), nullptr);
    ASSERT_TRUE(runner->draws_aside());
    const std::vector<int64_t> here = {3, 0, 5, 1, 2}, there = {10, 9, 8, 7, 6};
    std::vector<TokenSampler> a, b;
    for (size_t i = 0; i < here.size(); ++i) {
      SamplingOptions o{.temperature = i == 1 ? 0 : 0.9, .top_p = i == 2 ? 0.6 : 1, .seed = 5 + i};
      if (i >= 3) o.frequency_penalty = 0.5, o.repetition_penalty = 1.3, o.penalty_decay = 0.99;
      a.emplace_back(o);
      b.emplace_back(o);
    }
    std::vector<int32_t> ids(here.size(), 17);
    DrawScratch scratch;
    for (int step = 0; step < 20; ++step) {
      std::vector<DrawRequest> requests;
      for (size_t i = 0; i < here.size(); ++i)
        requests.push_back(
            {.sampler = &a[i], .id = i + 1, .vocab = 290, .top_log_probs = i % 2 == 0 ? 4 : -1});
      runner->start_draws(here, ids, requests);
      const std::span<Drawn> got = runner->finish_draws();
      ASSERT_EQ(got.size(), here.size());
      const TensorView logits = runner->decode(there, ids);
      for (size_t i = 0; i < here.size(); ++i) {
        requests[i].sampler = &b[i];
        const auto from = row(logits, static_cast<int64_t>(i));
        const Drawn want = draw(requests[i], from, scratch);
        EXPECT_EQ(got[i].token, want.token) << step << " " << i;
        ASSERT_EQ(got[i].log_probs.has_value(), want.log_probs.has_value());
        if (want.log_probs) {
          EXPECT_EQ(got[i].log_probs->chosen.log_prob, want.log_probs->chosen.log_prob);
          EXPECT_EQ(got[i].log_probs->top.size(), want.log_probs->top.size());
        }
        ids[i] = want.token;
      }
    }
  }
}

/// First tokens, of some of the prompts in a call.
TEST_F(CudaDecodeRunner, FirstDrawsAreThoseOfTheCpu) {
  const TestModel m = random_model(3);
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights, {.slots = 24, .buckets = {8}, .prefill = true});
  const auto runner = make_decode_runner(model, m.model->config(), nullptr,
                                         {.prefill_tokens = 128, .shared_rows = 128});
  for (const size_t count : {size_t{1}, size_t{8}, size_t{11}}) {  // 11: more than a call takes
    std::vector<std::vector<int32_t>> prompts;
    std::vector<std::span<const int32_t>> ids;
    std::vector<int64_t> here, there;
    std::vector<TokenSampler> a, b;
    for (size_t i = 0; i < count; ++i) {
      prompts.push_back(random_ids(i, 1 + static_cast<int64_t>(i), kVocab));
      here.push_back(static_cast<int64_t>(i));
      there.push_back(static_cast<int64_t>(23 - i));
      SamplingOptions o{.temperature = i == 1 ? 0 : 0.9, .top_p = i == 2 ? 0.6 : 1, .seed = 5 + i};
      if (i >= 3) o.repetition_penalty = 1.3;
      a.emplace_back(o);
      b.emplace_back(o);
      a.back().see(prompts.back());
      b.back().see(prompts.back());
      runner->reset(here.back());
      runner->reset(there.back());
    }
    ids.assign(prompts.begin(), prompts.end());
    std::vector<DrawRequest> requests(count);
    for (size_t i = 0; i < count; ++i)
      if (i % 4 != 1 || count == 1)  // the prompts of others go on
        requests[i] = {
            .sampler = &a[i], .id = 1 + i, .vocab = 290, .top_log_probs = i % 2 ? 3 : -1};
    runner->start_prefill_draws(here, ids, requests);
    const std::span<Drawn> got = runner->finish_draws();
    ASSERT_EQ(got.size(), count);
    const TensorView logits = runner->prefill_batch(there, ids);
    DrawScratch scratch;
    for (size_t i = 0; i < count; ++i) {
      if (requests[i].sampler == nullptr) {
        EXPECT_EQ(got[i].token, -1);
        continue;
      }
      requests[i].sampler = &b[i];
      const Drawn want = draw(requests[i], row(logits, static_cast<int64_t>(i)), scratch);
      EXPECT_EQ(got[i].token, want.token) << count << " " << i;
      ASSERT_EQ(got[i].log_probs.has_value(), want.log_probs.has_value());
      if (want.log_probs) {
        EXPECT_EQ(got[i].log_probs->chosen.log_prob, want.log_probs->chosen.log_prob);
      }
    }
  }
}

TEST_F(CudaDecodeRunner, StatesMoveAndErrorsAreTold) {
  const TestModel m = random_model(4);
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights, {.slots = 4, .buckets = {4}});
  const auto runner = make_decode_runner(model, m.model->config(), nullptr);
  const auto ids = random_ids(1, 8, kVocab);
  runner->prefill(0, ids);
  std::vector<std::byte> saved(runner->state_bytes());
  runner->save(0, saved);
  runner->copy(2, 0);
  const std::vector<int64_t> slots = {0, 2, 1};
  runner->load(1, saved);
  const TensorView logits = runner->decode(slots, std::vector<int32_t>{9, 9, 9});
  EXPECT_EQ(row(logits, 0), row(logits, 1));
  EXPECT_EQ(row(logits, 0), row(logits, 2));
  runner->reset(1);
  const auto fresh = row(runner->decode(std::vector<int64_t>{1}, std::vector<int32_t>{9}), 0);
  const auto untouched = row(runner->decode(std::vector<int64_t>{3}, std::vector<int32_t>{9}), 0);
  EXPECT_EQ(fresh, untouched);
  EXPECT_THROW(runner->decode(std::vector<int64_t>{4}, std::vector<int32_t>{1}), ConfigError);
  EXPECT_THROW(runner->decode(std::vector<int64_t>{1, 1}, std::vector<int32_t>{1, 1}), ConfigError);
  EXPECT_THROW(runner->decode(std::vector<int64_t>{1}, std::vector<int32_t>{300}), ConfigError);
  EXPECT_THROW(runner->decode(std::vector<int64_t>{1}, std::vector<int32_t>{1, 2}), ShapeError);
  EXPECT_THROW(runner->prefill(0, std::span(ids).first(3)), ConfigError);
  EXPECT_THROW(runner->save(0, std::span(saved).first(8)), ShapeError);
}

TEST_F(CudaDecodeRunner, StateFilesGoToTheCpuAndBack) {
  const test::TempDir dir;
  const TestModel m = random_model(6);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const bool half : {false, true}) {
      Context ctx(Device::kCuda);
      DecodeModel model(ctx, *m.model, *m.weights, {.dtype = type, .half_state = half, .slots = 3});
      const auto runner =
          make_decode_runner(model, m.model->config(), nullptr, {.least_parallel = 1 << 20});
      const auto ids = random_ids(3, 32, kVocab);
      runner->prefill(1, ids);
      write_state_file(dir.file("s"), *runner, 1, 32);
      EXPECT_EQ(read_state_file(dir.file("s"), *runner, 2), 32);
      const auto want = row(runner->decode(std::vector<int64_t>{1}, std::vector<int32_t>{5}), 0);
      EXPECT_EQ(row(runner->decode(std::vector<int64_t>{2}, std::vector<int32_t>{5}), 0), want);
      Engine engine(*m.model, *m.weights);
      RnnState state = engine.new_state();
      EXPECT_EQ(read_state_file(dir.file("s"), engine, state), 32);
      const auto next = row(engine.decode(state, std::vector<int32_t>{5}), 0);
      const double limit = type == DType::kF32 ? half ? 1e-2 : 1e-5 : 6e-2;
      EXPECT_LE(relative(want, next), limit) << dtype_name(type) << " " << half;
      // Back: what the CPU read, it writes, and the GPU goes on from that.
      write_state_file(dir.file("t"), engine, state, 33);
      EXPECT_EQ(read_state_file(dir.file("t"), *runner, 0), 33);
      const auto after = row(engine.decode(state, std::vector<int32_t>{6}), 0);
      EXPECT_LE(
          relative(row(runner->decode(std::vector<int64_t>{0}, std::vector<int32_t>{6}), 0), after),
          limit)
          << dtype_name(type) << " " << half;
    }
}

}  // namespace
}  // namespace rwkv
