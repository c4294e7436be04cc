#pragma once
// What the tests of the scheduler share.

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "inference/scheduler.h"
#include "kernels/core/trace.h"
#include "tests/unit/inference_fake_runner.h"
#include "tests/unit/inference_model.h"

namespace rwkv::test {

inline constexpr double kPatience = 60;  // seconds, far beyond what anything here takes

inline std::vector<int32_t> bytes(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 1);
  return ids;
}

struct Sample {
  std::string text, error;
  int64_t tokens = 0;
  std::vector<LogProbs> log_probs;
  std::optional<GenerationEnd> end;
};

/// Everything until all samples have ended.
inline std::vector<Sample> collect(Generation& g, size_t samples = 1) {
  std::vector<Sample> all(samples);
  for (size_t open = samples; open > 0;) {
    auto event = g.wait(kPatience);
    if (!event) {
      ADD_FAILURE() << "nothing came";
      return all;
    }
    Sample& s = all.at(static_cast<size_t>(event->sample));
    EXPECT_FALSE(s.end.has_value()) << "an event after the end";
    s.text += event->text;
    s.tokens += event->tokens;
    for (auto& p : event->log_probs) s.log_probs.push_back(std::move(p));
    s.error = event->error;
    s.end = event->end;
    if (event->end) --open;
  }
  return all;
}

inline void wait_until(const std::function<bool()>& done) {
  const double limit = now_seconds() + kPatience;
  while (!done()) {
    ASSERT_LE(now_seconds(), limit) << "nothing happened";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// A model with bytes as tokens behind a scheduler.
struct Service {
  TestModel model;
  ByteTokenizer tokenizer;
  EngineRunnerOptions runner_options;
  std::optional<Engine> engine;
  std::unique_ptr<SequenceRunner> runner;
  std::optional<Scheduler> scheduler;

  explicit Service(TestModel m, int64_t slots = 8, SchedulerOptions o = {})
      : model(std::move(m)), runner_options{.slots = slots, .prefill_tokens = 16} {
    engine.emplace(*model.model, *model.weights, runner_engine_options({}, runner_options));
    runner = make_engine_runner(*engine, runner_options);
    scheduler.emplace(*runner, tokenizer, o);
  }
  Scheduler* operator->() { return &*scheduler; }
  std::vector<Sample> run(GenerationRequest r) {
    const auto n = static_cast<size_t>(r.samples);
    return collect(*scheduler->submit(std::move(r)), n);
  }
};

inline TestModel random_bytes() {
  return random_model(30, 2, 64, 257);
}
inline TestModel alphabet_model() {
  return bigram_model(alphabet);
}

inline std::vector<GenerationRequest> mixed_requests(int count) {
  std::vector<GenerationRequest> all;
  for (int i = 0; i < count; ++i) {
    GenerationRequest r{.prompt = random_ids(static_cast<uint64_t>(i), 1 + 7 * i % 60, 257),
                        .max_tokens = 5 + i % 17};
    r.sampling.seed = static_cast<uint64_t>(i) % 5;
    r.sampling.temperature = i % 4 == 0 ? 0 : 1;
    if (i % 3 == 1) r.sampling.top_p = 0.7;
    if (i % 5 == 2) r.sampling.frequency_penalty = 0.4;
    r.samples = 1 + i % 3;
    r.stop_at_end_of_document = i % 2 == 0;
    all.push_back(r);
  }
  return all;
}

}  // namespace rwkv::test
