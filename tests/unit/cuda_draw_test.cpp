// Draws on a GPU: the same tokens and log-probabilities as on the CPU, exactly. Skipped without a
// GPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "inference/device_sampler.h"
#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "kernels/core/trace.h"

namespace rwkv {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class CudaDraw : public testing::Test {
 protected:
  void SetUp() override {
    try {
      const Context ctx(Device::kCuda);
    } catch (const DeviceError&) {
      GTEST_SKIP() << "no GPU";
    }
  }
};

/// Rows of many kinds: peaked, flat, all equal, many ties, far apart, tiny differences, with holes.
std::vector<float> make_row(int kind, uint64_t seed, int64_t vocab) {
  const Rng rng(seed, hash_name("rows"));
  std::vector<float> x(static_cast<size_t>(vocab));
  for (size_t i = 0; i < x.size(); ++i) {
    const auto n = static_cast<float>(rng.normal(i));
    switch (kind % 8) {
      case 0:
        x[i] = 3 * n;
        break;
      case 1:
        x[i] = 0.01f * n;
        break;
      case 2:
        x[i] = 1.5f;
        break;
      case 3:
        x[i] = static_cast<float>(rng.below(i, 5));
        break;
      case 4:
        x[i] = 40 * n;
        break;
      case 5:
        x[i] = 1e-6f * n - 0.0f;
        break;
      case 6:
        x[i] = rng.below(i + x.size(), 3) == 0 ? -kInf : std::round(8 * n) / 4;
        break;
      default:
        x[i] = i % 977 == 5 ? 12 + 0.001f * n : n - 9;
    }
  }
  if (kind % 8 == 6) x[x.size() / 2] = 1;  // never all -inf
  return x;
}

SamplingOptions make_options(size_t i, int64_t vocab) {
  const auto id = [&](size_t n) { return static_cast<int32_t>(n % static_cast<size_t>(vocab)); };
  SamplingOptions o{.seed = 77 + i};
  const double top_p[] = {1, 0.85, 0.3, 0.999, 1e-9}, temperature[] = {1, 0.7, 0, 2.5, 1e-3};
  const int64_t top_k[] = {0, 0, 50, 1, 3000};
  const double min_p[] = {0, 0, 0.05, 1};
  o.top_p = top_p[i % 5];
  o.temperature = temperature[i / 3 % 5];
  o.top_k = top_k[i / 7 % 5];
  o.min_p = min_p[i / 11 % 4];
  if (i % 2 == 1) {
    o.presence_penalty = 0.4;
    o.frequency_penalty = 0.3;
    o.penalty_decay = i % 4 == 1 ? 0.996 : 1;
  }
  if (i % 3 == 1) o.repetition_penalty = 1.2;
  if (i % 6 == 2) o.uncounted_tokens = {id(3), id(4)};
  if (i % 5 == 3) o.logit_bias = {{id(7), 2.5f}, {id(90001), -4.0f}, {id(7), 0.25f}, {-3, 1.0f}};
  if (i % 5 >= 3 && vocab > 8) o.banned_tokens = {id(1), id(vocab > 50 ? 33 : 2), 900000};
  return o;
}

TEST_F(CudaDraw, ChoosesWhatTheCpuChooses) {
  constexpr int64_t kRows = 40;
  constexpr int kSteps = 12;
  Context ctx(Device::kCuda);
  int64_t draws = 0, different = 0, with_list = 0;
  for (const int64_t vocab : {1, 5, 300, 8192, 8193, 50277, 65535, 65536}) {
    DeviceSampler device(ctx, kRows, vocab);
    const Arena arena(Device::kCuda, align_up(static_cast<size_t>(kRows * vocab) * 4), "logits");
    const TensorView logits = arena.at(0, TensorSpec({kRows, vocab}));
    std::vector<TokenSampler> here, there;
    std::vector<int64_t> slots, tops;
    for (int64_t r = 0; r < kRows; ++r) {
      const auto i = static_cast<size_t>(r);
      const SamplingOptions o = make_options(i, vocab);
      here.emplace_back(o, i);
      there.emplace_back(o, i);
      const std::vector<int32_t> prompt = {2, 5, static_cast<int32_t>(r), 70000};
      here.back().see(prompt);
      there.back().see(prompt);
      slots.push_back((r * 7) % kRows);
      tops.push_back(r % 4 == 1 ? 20 : r % 4 == 2 ? 3 : r % 8 == 3 ? 0 : -1);
    }
    DrawScratch scratch;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<float> host;
      std::vector<DrawRequest> requests;
      for (int64_t r = 0; r < kRows; ++r) {
        const auto i = static_cast<size_t>(r);
        const auto row =
            make_row(static_cast<int>(r + step), i + 1000 * static_cast<size_t>(step % 3), vocab);
        host.insert(host.end(), row.begin(), row.end());
        requests.push_back({.sampler = &there[i],
                            .id = i + 1,
                            .vocab = r % 9 == 4 ? std::max<int64_t>(vocab - 3, 1) : 0,
                            .top_log_probs = tops[i]});
      }
      copy(ctx, logits, TensorView(host.data(), logits.spec));
      // In two parts, as a runner with a small bucket does.
      const std::span all_slots(slots);
      const std::span all(requests);
      device.queue(all_slots.first(15), all.first(15), logits.f32());
      device.queue(all_slots.subspan(15), all.subspan(15), logits.f32() + 15 * vocab);
      const auto got = device.finish();
      ASSERT_EQ(std::ssize(got), kRows);
      for (int64_t r = 0; r < kRows; ++r) {
        const auto i = static_cast<size_t>(r);
        DrawRequest request = requests[i];
        request.sampler = &here[i];
        const auto v = static_cast<size_t>(vocab);
        const Drawn want = draw(request, std::span(host).subspan(i * v, v), scratch);
        ++draws;
        with_list += !here[i].adjustments().empty();
        ASSERT_EQ(got[i].error, want.error) << "vocab " << vocab << " row " << r;
        if (got[i].token != want.token) {
          ++different;
          std::printf("  vocab %lld row %lld step %d: %d, on the CPU %d\n",
                      static_cast<long long>(vocab), static_cast<long long>(r), step, got[i].token,
                      want.token);
          // Go on from the same history.
          there[i] = here[i];
          requests[i].id += 1000;
          continue;
        }
        ASSERT_EQ(got[i].log_probs.has_value(), want.log_probs.has_value());
        if (!want.log_probs) continue;
        EXPECT_EQ(got[i].log_probs->chosen.log_prob, want.log_probs->chosen.log_prob);
        ASSERT_EQ(got[i].log_probs->top.size(), want.log_probs->top.size());
        for (size_t k = 0; k < want.log_probs->top.size(); ++k) {
          EXPECT_EQ(got[i].log_probs->top[k].token, want.log_probs->top[k].token) << r << " " << k;
          EXPECT_EQ(got[i].log_probs->top[k].log_prob, want.log_probs->top[k].log_prob);
        }
      }
    }
  }
  std::printf("  %lld draws, %lld with penalties or biases: %lld differ\n",
              static_cast<long long>(draws), static_cast<long long>(with_list),
              static_cast<long long>(different));
  EXPECT_EQ(different, 0);
}

TEST_F(CudaDraw, BadLogitsAreNamed) {
  Context ctx(Device::kCuda);
  constexpr int64_t kVocab = 20000;
  DeviceSampler device(ctx, 5, kVocab);
  std::vector<float> host(5 * kVocab, 1.0f);
  host[11111] = std::numeric_limits<float>::quiet_NaN();
  host[kVocab + 3] = kInf;
  host[kVocab + 1999] = -std::numeric_limits<float>::quiet_NaN();
  std::fill_n(host.begin() + 2 * kVocab, kVocab, -kInf);
  host[3 * kVocab + 7] = std::numeric_limits<float>::quiet_NaN();  // banned
  const Arena arena(Device::kCuda, align_up(host.size() * 4), "logits");
  const TensorView logits = arena.at(0, TensorSpec({5, kVocab}));
  copy(ctx, logits, TensorView(host.data(), logits.spec));
  std::vector<TokenSampler> samplers(5, TokenSampler({}));
  samplers[3] = TokenSampler({.banned_tokens = {7}});
  std::vector<DrawRequest> requests;
  for (size_t i = 0; i < 5; ++i) requests.push_back({.sampler = &samplers[i], .id = i + 1});
  device.queue(std::vector<int64_t>{0, 1, 2, 3, 4}, requests, logits.f32());
  const auto got = device.finish();
  EXPECT_NE(got[0].error.find("token 11111 is nan"), std::string::npos) << got[0].error;
  EXPECT_NE(got[1].error.find("token 3 is inf"), std::string::npos) << got[1].error;
  EXPECT_EQ(got[2].error, sample::no_logit(kVocab));
  EXPECT_EQ(got[3].error, "");
  EXPECT_EQ(got[4].error, "");
  EXPECT_EQ(samplers[0].position(), 0);
  EXPECT_EQ(samplers[4].position(), 1);
}

/// Lists that do not fit are drawn on the host, and come back when a new sampler takes the slot.
TEST_F(CudaDraw, VeryLongListsAreDrawnOnTheHost) {
  Context ctx(Device::kCuda);
  constexpr int64_t kVocab = 30000;
  DeviceSampler device(ctx, 3, kVocab);
  const auto row = make_row(0, 5, kVocab);
  const Arena arena(Device::kCuda, align_up(row.size() * 4 * 3), "logits");
  const TensorView logits = arena.at(0, TensorSpec({3, kVocab}));
  std::vector<int32_t> long_prompt(6000), short_prompt(4000);
  for (size_t i = 0; i < 6000; ++i) long_prompt[i] = static_cast<int32_t>(3 * i);
  for (size_t i = 0; i < 4000; ++i) short_prompt[i] = static_cast<int32_t>(2 * i);
  const SamplingOptions o{.repetition_penalty = 1.5, .seed = 9};
  std::vector<TokenSampler> here(3, TokenSampler(o)), there = here;
  here[0].see(long_prompt), there[0].see(long_prompt);
  here[1].see(short_prompt), there[1].see(short_prompt);
  DrawScratch scratch;
  for (int step = 0; step < 200; ++step) {
    for (int64_t i = 0; i < 3; ++i)
      copy(ctx, logits.slice(i, i + 1),
           TensorView(const_cast<float*>(row.data()), TensorSpec({1, kVocab})));
    std::vector<DrawRequest> requests;
    for (size_t i = 0; i < 3; ++i) requests.push_back({.sampler = &there[i], .id = i + 1});
    device.queue(std::vector<int64_t>{2, 0, 1}, requests, logits.f32());
    const auto got = device.finish();
    for (size_t i = 0; i < 3; ++i) {
      requests[i].sampler = &here[i];
      ASSERT_EQ(got[i].token, draw(requests[i], row, scratch).token) << step << " " << i;
    }
  }
}

/// One request with a long list costs what it costs; many of them share all threads.
TEST_F(CudaDraw, LongListsShareAllThreads) {
  if (num_threads() < 4) GTEST_SKIP() << "fewer than four threads";
  Context ctx(Device::kCuda);
  constexpr int64_t kVocab = 65536, kRows = 32;
  DeviceSampler device(ctx, kRows, kVocab);
  const auto row = make_row(0, 5, kVocab);
  const Arena arena(Device::kCuda, align_up(row.size() * 4 * kRows), "logits");
  const TensorView logits = arena.at(0, TensorSpec({kRows, kVocab}));
  std::vector<int32_t> prompt(6000);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(10 * i);
  std::vector<TokenSampler> here(kRows, TokenSampler({.top_p = 0.9, .repetition_penalty = 1.5}));
  for (TokenSampler& s : here) s.see(prompt);
  std::vector<TokenSampler> there = here;
  std::vector<int64_t> slots;
  std::vector<DrawRequest> requests;
  for (size_t i = 0; i < kRows; ++i) {
    requests.push_back({.sampler = &there[i], .id = i + 1});
    slots.push_back(static_cast<int64_t>(i));
  }
  // In turns: other work on the machine meets both.
  DrawScratch scratch;
  double together = kInf, one_by_one = kInf;
  for (int step = 0; step < 12; ++step) {
    for (int64_t i = 0; i < kRows; ++i)
      copy(ctx, logits.slice(i, i + 1),
           TensorView(const_cast<float*>(row.data()), TensorSpec({1, kVocab})));
    device.queue(slots, requests, logits.f32());
    ctx.synchronize("logits");
    const double a = now_seconds();
    const auto got = device.finish();
    const double b = now_seconds();
    for (size_t i = 0; i < kRows; ++i)
      ASSERT_EQ(got[i].token, draw({.sampler = &here[i]}, row, scratch).token);
    together = std::min(together, b - a);
    one_by_one = std::min(one_by_one, now_seconds() - b);
  }
  std::printf("  %lld draws with 6000 adjustments: %.2f ms, one by one %.2f ms\n",
              static_cast<long long>(kRows), 1e3 * together, 1e3 * one_by_one);
  EXPECT_LE(together, one_by_one / 1.7);
}

/// Times, printed.
TEST_F(CudaDraw, Times) {
  constexpr int64_t kVocab = 65536;
  Context ctx(Device::kCuda);
  for (const int64_t n : {1, 32, 256, 960}) {
    DeviceSampler device(ctx, n, kVocab);
    const Arena arena(Device::kCuda, align_up(static_cast<size_t>(n * kVocab) * 4), "logits");
    const TensorView logits = arena.at(0, TensorSpec({n, kVocab}));
    const auto row = make_row(0, 3, kVocab);
    for (int64_t i = 0; i < n; ++i)
      copy(ctx, logits.slice(i, i + 1),
           TensorView(const_cast<float*>(row.data()), TensorSpec({1, kVocab})));
    for (const auto& [name, options] : std::vector<std::pair<const char*, SamplingOptions>>{
             {"greedy", {.temperature = 0}},
             {"plain", {}},
             {"top_p 0.85", {.top_p = 0.85}},
             {"top_k 50, top_p 0.9, T 0.8", {.temperature = 0.8, .top_p = 0.9, .top_k = 50}},
             {"presence, frequency, top_p",
              {.top_p = 0.85,
              .presence_penalty = 0.4,
              .frequency_penalty = 0.4,
              .penalty_decay = 0.996}}}) {
      std::vector<TokenSampler> samplers(static_cast<size_t>(n), TokenSampler(options));
      std::vector<DrawRequest> requests;
      std::vector<int64_t> slots;
      for (size_t i = 0; i < samplers.size(); ++i) {
        requests.push_back({.sampler = &samplers[i], .id = i + 1});
        slots.push_back(static_cast<int64_t>(i));
      }
      double queued = 0, waited = 0, counted = 0;
      constexpr int kSteps = 50;
      for (int step = -5; step < kSteps; ++step) {
        const double a = now_seconds();
        device.queue(slots, requests, logits.f32());
        const double b = now_seconds();
        ctx.synchronize("times");
        const double c = now_seconds();
        device.finish();
        if (step < 0) continue;
        queued += b - a, waited += c - b, counted += now_seconds() - c;
      }
      std::printf(
          "  %4lld rows, %-28s host before %6.1f us, device after %6.1f, host after %6.1f\n",
          static_cast<long long>(n), name, 1e6 * queued / kSteps, 1e6 * waited / kSteps,
          1e6 * counted / kSteps);
    }
  }
}

}  // namespace
}  // namespace rwkv
