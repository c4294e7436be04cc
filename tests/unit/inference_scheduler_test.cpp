// Continuous batching: what a request gets does not depend on who else is there, and nobody waits
// for long.

#include "inference/scheduler.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <optional>
#include <thread>

#include "data/tokenizer/utf8.h"
#include "tests/support/compare.h"
#include "tests/unit/scheduler_test_util.h"

namespace rwkv {
namespace {

using namespace test;  // NOLINT: the tools of these tests

/// A runner whose draws are done by the time that somebody asks for them, as on a GPU. Nothing but
/// finish_draws() is called in between.
class AsideRunner : public SequenceRunner {
 public:
  explicit AsideRunner(SequenceRunner& runner) : r_(runner) {}
  const ModelConfig& config() const override { return r_.config(); }
  int64_t slots() const override { return r_.slots(); }
  int64_t decode_batch() const override { return r_.decode_batch(); }
  int64_t prefill_piece(int64_t left) const override { return r_.prefill_piece(left); }
  bool exact() const override { return r_.exact(); }
  size_t pool_bytes() const override { return r_.pool_bytes(); }
  size_t workspace_bytes() const override { return r_.workspace_bytes(); }
  void reset(int64_t slot) override { idle().reset(slot); }
  void copy(int64_t to, int64_t from) override { idle().copy(to, from); }
  std::span<const StateTensor> layout() const override { return r_.layout(); }
  size_t state_bytes() const override { return r_.state_bytes(); }
  void save(int64_t slot, std::span<std::byte> to) override { idle().save(slot, to); }
  void load(int64_t slot, std::span<const std::byte> from) override { idle().load(slot, from); }
  TensorView prefill(int64_t slot, std::span<const int32_t> ids) override {
    return idle().prefill(slot, ids);
  }
  TensorView decode(std::span<const int64_t> slots, std::span<const int32_t> ids) override {
    return idle().decode(slots, ids);
  }
  void start_draws(std::span<const int64_t> slots, std::span<const int32_t> ids,
                   std::span<const DrawRequest> requests) override {
    idle();
    started_ = true;
    slots_.assign(slots.begin(), slots.end());
    ids_.assign(ids.begin(), ids.end());
    requests_.assign(requests.begin(), requests.end());
  }
  PrefillGroup prefill_group(int64_t n) const override { return r_.prefill_group(n); }
  TensorView prefill_batch(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids) override {
    return idle().prefill_batch(slots, ids);
  }
  void start_prefill_draws(std::span<const int64_t> slots,
                           std::span<const std::span<const int32_t>> ids,
                           std::span<const DrawRequest> requests) override {
    start_draws(slots, {}, requests);
    pieces_.assign(ids.begin(), ids.end());
  }
  std::span<Drawn> finish_draws() override {
    EXPECT_TRUE(started_);
    started_ = false;
    if (!pieces_.empty()) {
      r_.start_prefill_draws(slots_, std::exchange(pieces_, {}), requests_);
      return r_.finish_draws();
    }
    r_.start_draws(slots_, ids_, requests_);
    return r_.finish_draws();
  }
  bool draws_aside() const override { return true; }

 private:
  SequenceRunner& idle() {
    EXPECT_FALSE(started_) << "a call between start_draws and finish_draws";
    return r_;
  }
  SequenceRunner& r_;
  bool started_ = false;
  std::vector<int64_t> slots_;
  std::vector<int32_t> ids_;
  std::vector<std::span<const int32_t>> pieces_;
  std::vector<DrawRequest> requests_;
};

/// Telling of one step while the next one runs changes nothing that anybody gets.
TEST(Scheduler, DrawsAsideGiveTheSame) {
  const auto requests = [] {
    auto all = mixed_requests(24);
    for (size_t i = 0; i < all.size(); ++i) {
      if (i % 4 == 1) all[i].stop = {"a", "7", "\n"};
      if (i % 6 == 2) all[i].stop_tokens = {5, 17, 40, 99, 130};
      if (i % 5 == 3) all[i].top_log_probs = 2;
      if (i % 7 == 4) all[i].keep_state = true;
    }
    return all;
  };
  Service s(random_bytes());
  std::vector<std::vector<Sample>> want;
  std::vector<std::vector<std::byte>> want_states;
  for (auto& r : requests()) {
    const auto n = static_cast<size_t>(r.samples);
    const bool keeps = r.keep_state;
    const auto g = s->submit(std::move(r));
    want.push_back(collect(*g, n));
    if (keeps) want_states.push_back(s->snapshot(g->id())->bytes);
  }
  s.scheduler.reset();
  AsideRunner aside(*s.runner);
  for (const bool together : {false, true}) {
    Scheduler scheduler(aside, s.tokenizer);
    std::vector<std::shared_ptr<Generation>> running;
    std::vector<std::vector<Sample>> got;
    size_t states = 0;
    for (auto& r : requests()) {
      const auto n = static_cast<size_t>(r.samples);
      const bool keeps = r.keep_state;
      running.push_back(scheduler.submit(std::move(r)));
      if (together) continue;
      got.push_back(collect(*running.back(), n));
      if (!keeps) continue;
      EXPECT_EQ(scheduler.snapshot(running.back()->id())->bytes, want_states.at(states));
      ++states;
    }
    for (size_t i = 0; together && i < running.size(); ++i)
      got.push_back(collect(*running[i], want[i].size()));
    for (size_t i = 0; i < want.size(); ++i)
      for (size_t k = 0; k < want[i].size(); ++k) {
        EXPECT_EQ(got[i][k].text, want[i][k].text) << i;
        EXPECT_EQ(got[i][k].tokens, want[i][k].tokens) << i;
        EXPECT_EQ(got[i][k].end, want[i][k].end) << i;
        EXPECT_EQ(got[i][k].log_probs.size(), want[i][k].log_probs.size()) << i;
      }
  }
}

TEST(Scheduler, WhatARequestGetsDoesNotDependOnOthers) {
  const auto requests = mixed_requests(14);
  std::vector<std::vector<Sample>> want;
  Service alone(random_bytes(), 3, {.cache_bytes = 0});
  for (const auto& r : requests) want.push_back(alone.run(r));
  Service busy(random_bytes(), 7);
  for (int round = 0; round < 2; ++round) {  // the second one with states in the cache
    std::vector<std::shared_ptr<Generation>> running;
    for (const auto& r : requests) running.push_back(busy->submit(r));
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto got = collect(*running[i], want[i].size());
      for (size_t s = 0; s < got.size(); ++s) {
        EXPECT_EQ(got[s].text, want[i][s].text) << "request " << i << ", sample " << s;
        EXPECT_EQ(got[s].tokens, want[i][s].tokens);
        EXPECT_EQ(got[s].end, want[i][s].end);
      }
    }
  }
  wait_until([&] { return busy->stats().free_slots == 7; });
  const SchedulerStats stats = busy->stats();
  EXPECT_EQ(stats.accepted, 28U);
  EXPECT_LT(stats.decode_steps, alone->stats().decode_steps * 2);
}

TEST(Scheduler, SamplesAreTheSequencesOfOneSeed) {
  Service service(random_bytes());
  GenerationRequest r{.prompt = bytes("hello"), .samples = 4, .max_tokens = 20};
  r.sampling.seed = 9;
  const auto four = service.run(r);
  r.samples = 1;
  EXPECT_EQ(service.run(r)[0].text, four[0].text);
  EXPECT_NE(four[0].text, four[1].text);
  EXPECT_NE(four[2].text, four[3].text);
  r.samples = 3;
  EXPECT_EQ(service.run(r)[2].text, four[2].text);
}

TEST(Scheduler, EndsWhereItIsAsked) {
  Service service(alphabet_model());
  GenerationRequest greedy{.max_tokens = 40};
  greedy.sampling.temperature = 0;
  const auto with = [&](std::string_view prompt, auto&& change) {
    GenerationRequest r = greedy;
    r.prompt = bytes(prompt);
    change(r);
    return service.run(r)[0];
  };
  Sample s = with("a", [](auto& r) { r.stop = {"hij", "klm"}; });
  EXPECT_EQ(s.text, "bcdefg");
  EXPECT_EQ(s.end, GenerationEnd::kStop);
  EXPECT_EQ(s.tokens, 9);
  s = with("5", [](auto&) {});
  EXPECT_EQ(s.text, "6789");
  EXPECT_EQ(s.end, GenerationEnd::kEnd);
  s = with("5", [](auto& r) { r.stop_at_end_of_document = false, r.max_tokens = 7; });
  EXPECT_EQ(s.text, "6789ab");  // id 0 has no text
  EXPECT_EQ(s.end, GenerationEnd::kLength);
  EXPECT_EQ(s.tokens, 7);
  s = with("a", [](auto& r) { r.stop_tokens = {'e' + 1}; });
  EXPECT_EQ(s.text, "bcd");
  EXPECT_EQ(s.end, GenerationEnd::kEnd);
  s = with("a", [](auto& r) { r.max_tokens = 0; });
  EXPECT_EQ(s.text, "");
  EXPECT_EQ(s.end, GenerationEnd::kLength);
  s = with("a", [](auto& r) { r.sampling.banned_tokens = {'b' + 1}, r.max_tokens = 1; });
  EXPECT_NE(s.text, "b");
  s = with("a", [](auto& r) { r.sampling.logit_bias = {{'x' + 1, 1000.0f}}, r.max_tokens = 3; });
  EXPECT_EQ(s.text, "xxx");
  // What was held back for a stop string that does not come is not lost.
  s = with("a", [](auto& r) { r.stop = {"efX"}, r.max_tokens = 5; });
  EXPECT_EQ(s.text, "bcdef");
}

TEST(Scheduler, LogProbabilitiesComeWithTheirTokens) {
  Service service(alphabet_model());
  GenerationRequest r{.prompt = bytes("a"), .max_tokens = 4, .top_log_probs = 2};
  r.sampling.temperature = 0;
  const Sample s = service.run(r)[0];
  ASSERT_EQ(s.log_probs.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(s.log_probs[i].chosen.token, static_cast<int32_t>('b' + i + 1));
    ASSERT_EQ(s.log_probs[i].top.size(), 2U);
    EXPECT_EQ(s.log_probs[i].top[0].token, s.log_probs[i].chosen.token);
    EXPECT_EQ(s.log_probs[i].top[0].log_prob, s.log_probs[i].chosen.log_prob);
    EXPECT_LE(s.log_probs[i].top[1].log_prob, s.log_probs[i].top[0].log_prob);
    EXPECT_LE(s.log_probs[i].chosen.log_prob, 0);
  }
}

TEST(Scheduler, TextIsNeverSplitInsideACharacter) {
  // The bytes of "é€🚀" over and over, one token each.
  const std::string text = "é€🚀";
  Service service(test::bigram_model([&](int32_t token) {
    const size_t at = text.find(static_cast<char>(token - 1));
    return static_cast<unsigned char>(text[at == std::string::npos ? 0 : (at + 1) % text.size()]) +
           1;
  }));
  GenerationRequest r{.prompt = bytes(" "), .max_tokens = 9};
  r.sampling.temperature = 0;
  const auto g = service->submit(r);
  std::string all;
  while (auto event = g->wait(kPatience)) {
    EXPECT_TRUE(is_valid_utf8(event->text)) << all;
    all += event->text;
    if (event->end) break;
  }
  EXPECT_EQ(all, text);
}

TEST(Scheduler, LimitsTheQueue) {
  FakeRunner runner(1, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {.max_waiting = 2});
  const GenerationRequest forever{.prompt = bytes("x"), .max_tokens = 1 << 30};
  std::vector<std::shared_ptr<Generation>> held = {scheduler.submit(forever)};
  wait_until([&] { return scheduler.stats().decoding == 1; });
  held.push_back(scheduler.submit(forever));
  held.push_back(scheduler.submit(forever));
  try {
    scheduler.submit(forever);
    FAIL() << "accepted";
  } catch (const OverloadedError& e) {
    EXPECT_GE(e.retry_seconds, 1);
    EXPECT_LE(e.retry_seconds, 60);
  }
  EXPECT_EQ(scheduler.stats().refused, 1U);
  EXPECT_EQ(scheduler.stats().waiting, 2);
  // A waiting request can be cancelled, too, and the next in line moves up.
  held[1]->cancel();
  const auto gone = collect(*held[1]);
  EXPECT_EQ(gone[0].end, GenerationEnd::kCancelled);
  EXPECT_EQ(gone[0].tokens, 0);
  held[0]->cancel();
  EXPECT_EQ(collect(*held[0])[0].end, GenerationEnd::kCancelled);
  ASSERT_TRUE(held[2]->wait(kPatience).has_value());
  wait_until([&] { return scheduler.stats().decoding == 1; });
  held[2]->cancel();
  collect(*held[2]);
  wait_until([&] { return scheduler.stats().free_slots == 1; });
}

TEST(Scheduler, DeadlinesEndWhatRunsAndWhatWaits) {
  FakeRunner runner(1, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {});
  GenerationRequest r{.prompt = bytes("x"), .max_tokens = 1 << 30};
  r.deadline = now_seconds() + 0.1;
  const auto runs = scheduler.submit(r), waits = scheduler.submit(r);
  const auto a = collect(*runs)[0], b = collect(*waits)[0];
  EXPECT_EQ(a.end, GenerationEnd::kDeadline);
  EXPECT_GT(a.tokens, 0);
  EXPECT_EQ(b.end, GenerationEnd::kDeadline);
  EXPECT_EQ(b.tokens, 0);
}

TEST(Scheduler, OneSequenceWithoutNumbersDoesNotHurtTheOthers) {
  FakeRunner runner(2, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {});
  const auto good = scheduler.submit({.prompt = bytes("good"), .max_tokens = 500});
  ASSERT_TRUE(good->wait(kPatience).has_value());
  const auto bad = scheduler.submit({.prompt = {FakeRunner::kPoison}, .max_tokens = 5});
  const auto failed = collect(*bad)[0];
  EXPECT_EQ(failed.end, GenerationEnd::kError);
  EXPECT_NE(failed.error.find("logit"), std::string::npos) << failed.error;
  EXPECT_EQ(collect(*good)[0].end, GenerationEnd::kLength);
  EXPECT_EQ(scheduler.failure(), "");
}

TEST(Scheduler, AFailedRunnerEndsEverythingWithItsReason) {
  FakeRunner runner(2, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {});
  const GenerationRequest r{.prompt = bytes("x"), .max_tokens = 1 << 30};
  const auto a = scheduler.submit(r), b = scheduler.submit(r), c = scheduler.submit(r);
  ASSERT_TRUE(a->wait(kPatience).has_value());
  runner.break_down();
  EXPECT_EQ(collect(*a)[0].end, GenerationEnd::kError);
  const auto last = collect(*b)[0];
  EXPECT_EQ(last.end, GenerationEnd::kError);
  EXPECT_NE(last.error.find("broken"), std::string::npos) << last.error;
  EXPECT_TRUE(collect(*c)[0].end.has_value());
  wait_until([&] { return !scheduler.failure().empty(); });
  EXPECT_THROW(scheduler.submit(r), UnavailableError);
  EXPECT_FALSE(scheduler.snapshot(a->id()).has_value());
  EXPECT_EQ(scheduler.drain(kPatience), 0);
}

/// States cannot be saved; `before_draw` runs in the worker, ahead of every draw.
class NoSaveRunner : public AsideRunner {
 public:
  using AsideRunner::AsideRunner;
  void save(int64_t, std::span<std::byte>) override { throw DeviceError("nothing can be saved"); }
  std::span<Drawn> finish_draws() override {
    if (before_draw) before_draw(++draws_);
    return AsideRunner::finish_draws();
  }
  std::function<void(int)> before_draw;

 private:
  int draws_ = 0;
};

/// The runner fails while a round tells of the step before, with a request to be dropped and a
/// question still in hand.
TEST(Scheduler, AFailureWhileTellingLosesNobody) {
  Service s(alphabet_model(), 2);
  s.scheduler.reset();
  NoSaveRunner runner(*s.runner);
  std::shared_ptr<Generation> waits;
  std::atomic<uint64_t> asked = 0;
  std::thread asks;
  std::optional<Scheduler> scheduler;
  runner.before_draw = [&](int draw) {
    // The first request's first two are drawn alone. With the eighth the second request has its
    // six tokens, and the last of them is told at the beginning of the next round.
    if (draw != 8) return;
    waits->cancel();
    asks = std::thread([&] {
      ++asked;
      EXPECT_FALSE(scheduler->snapshot(999).has_value());
    });
    wait_until([&] { return asked == 1; });
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  };
  // The first draw waits until all have been submitted.
  std::mutex starting;
  std::unique_lock hold(starting);
  const auto at_eight = runner.before_draw;
  std::atomic<bool> begun = false;
  runner.before_draw = [&](int draw) {
    begun = true;
    const std::lock_guard go(starting);
    at_eight(draw);
  };
  scheduler.emplace(runner, s.tokenizer, SchedulerOptions{.cache_bytes = 0});
  GenerationRequest r{.prompt = bytes("a"), .max_tokens = 1 << 30};
  r.sampling.temperature = 0;
  r.stop_at_end_of_document = false;
  const auto goes_on = scheduler->submit(r);
  wait_until([&] { return begun.load(); });
  r.max_tokens = 6;
  r.keep_state = true;
  const auto keeps = scheduler->submit(r);
  waits = scheduler->submit(r);
  hold.unlock();
  const Sample a = collect(*goes_on)[0], b = collect(*keeps)[0], c = collect(*waits)[0];
  EXPECT_EQ(a.end, GenerationEnd::kError);
  EXPECT_EQ(a.text, std::string_view("bcdefghijk").substr(0, a.text.size()));
  EXPECT_EQ(a.tokens, std::ssize(a.text));
  EXPECT_EQ(b.end, GenerationEnd::kError);
  EXPECT_NE(b.error.find("nothing can be saved"), std::string::npos) << b.error;
  EXPECT_EQ(c.end, GenerationEnd::kCancelled);
  EXPECT_EQ(scheduler->drain(kPatience), 0);
  const SchedulerStats stats = scheduler->stats();
  EXPECT_EQ(stats.ended[static_cast<size_t>(GenerationEnd::kError)], 2U);
  EXPECT_EQ(stats.ended[static_cast<size_t>(GenerationEnd::kLength)], 0U);
  EXPECT_EQ(stats.free_slots, 2);
  asks.join();
}

TEST(Scheduler, AStateKnowsWhatItHasSeen) {
  FakeRunner runner(1, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {});
  // No token could be drawn.
  const auto none =
      scheduler.submit({.prompt = {3, FakeRunner::kPoison}, .max_tokens = 5, .keep_state = true});
  EXPECT_EQ(collect(*none)[0].end, GenerationEnd::kError);
  EXPECT_EQ(scheduler.snapshot(none->id())->tokens, 2);
  // The second could not: the first was fed.
  GenerationRequest one{.prompt = {3}, .max_tokens = 5, .keep_state = true};
  one.sampling.temperature = 0;
  one.sampling.logit_bias = {{FakeRunner::kPoison, 5000.0f}};
  const auto second = scheduler.submit(one);
  EXPECT_EQ(collect(*second)[0].end, GenerationEnd::kError);
  EXPECT_EQ(scheduler.snapshot(second->id())->tokens, 2);
}

TEST(Scheduler, DrainsAndThenRefuses) {
  FakeRunner runner(2, 16);
  ByteTokenizer tokenizer;
  Scheduler scheduler(runner, tokenizer, {});
  const auto small = scheduler.submit({.prompt = bytes("x"), .max_tokens = 300});
  EXPECT_EQ(scheduler.drain(kPatience), 0);
  EXPECT_EQ(collect(*small)[0].end, GenerationEnd::kLength);
  EXPECT_THROW(scheduler.submit({.prompt = bytes("x")}), UnavailableError);

  Scheduler second(runner, tokenizer, {});
  const auto endless = second.submit({.prompt = bytes("x"), .samples = 2, .max_tokens = 1 << 30});
  ASSERT_TRUE(endless->wait(kPatience).has_value());
  EXPECT_EQ(second.drain(0.05), 2);
  EXPECT_EQ(collect(*endless, 2)[1].end, GenerationEnd::kCancelled);
}

TEST(Scheduler, StatesCanBeLookedAt) {
  Service service(random_bytes(), 2);
  GenerationRequest r{.prompt = bytes("hello"), .max_tokens = 4, .keep_state = true};
  r.sampling.temperature = 0;
  r.stop_at_end_of_document = false;
  const auto g = service->submit(r);
  const Sample s = collect(*g)[0];
  const auto seen = service->snapshot(g->id());
  ASSERT_TRUE(seen.has_value());
  EXPECT_EQ(seen->tokens, 5 + 3);  // the last token was drawn, not fed
  EXPECT_EQ(seen->bytes.size(), service.runner->state_bytes());
  // The same as a state that saw the same ids.
  GenerationRequest again = r;
  again.keep_state = false;
  const auto other = service->submit(again);
  collect(*other);
  EXPECT_FALSE(service->snapshot(other->id()).has_value());
  const auto third = service->submit(r);
  collect(*third);
  EXPECT_EQ(service->snapshot(third->id())->bytes, seen->bytes);
  EXPECT_FALSE(service->snapshot(12345).has_value());
}

TEST(Scheduler, BadRequestsAreNamed) {
  Service service(random_bytes(), 2);
  const auto refused = [&](GenerationRequest r) {
    EXPECT_THROW(service->submit(std::move(r)), ConfigError);
  };
  refused({});
  refused({.prompt = {257}});
  refused({.prompt = {-1}});
  refused({.prompt = {1}, .samples = 3});
  refused({.prompt = {1}, .samples = 0});
  refused({.prompt = {1}, .max_tokens = -1});
  refused({.prompt = {1}, .stop = {""}});
  GenerationRequest hot{.prompt = {1}};
  hot.sampling.temperature = -1;
  refused(hot);
  EXPECT_EQ(service->stats().accepted, 0U);
}

}  // namespace
}  // namespace rwkv
