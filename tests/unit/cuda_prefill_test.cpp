// Prompts in the parallel form on the decoding weights, against the engine in f32. Skipped without
// a GPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <tuple>

#include "inference/decode_prefill.h"
#include "inference/engine.h"
#include "kernels/core/memory.h"
#include "tests/unit/quick_model.h"

namespace rwkv {
namespace {

using test::quick_model;
using test::random_ids;
using test::TestModel;

using Ids = std::vector<int32_t>;
using Logits = std::vector<float>;

/// Largest absolute difference of logits of O(1).
double limit(DType dtype) {
  return dtype == DType::kF16 ? 2e-2 : 1e-1;
}

/// Decays from next to nothing to the fastest, and keys and values of different sizes, as trained
/// models have them.
TestModel wide_model(int64_t layers, int64_t width, int64_t vocab, uint64_t seed) {
  TestModel m = quick_model(layers, width, vocab, seed);
  for (int64_t l = 0; l < layers; ++l) {
    const std::span<float> w0 = m.tensor("blocks." + std::to_string(l) + ".att.w0");
    for (size_t i = 0; i < w0.size(); ++i)
      w0[i] = -7.0f + 13.0f * static_cast<float>(i % 64) / 63.0f;
  }
  return m;
}

Logits on_host(Context& ctx, const TensorView& v) {
  Logits host(static_cast<size_t>(v.numel()));
  copy(ctx, TensorView(host.data(), v.spec), v);
  return host;
}

Logits row(const Logits& all, size_t i, int64_t vocab) {
  return {all.begin() + static_cast<int64_t>(i) * vocab,
          all.begin() + static_cast<int64_t>(i + 1) * vocab};
}

double worst(std::span<const float> got, std::span<const float> want) {
  EXPECT_EQ(got.size(), want.size());
  double most = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (std::isnan(e)) return e;
    most = std::max(most, e);
  }
  return most;
}

double deviation(std::span<const float> x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum / static_cast<double>(x.size()));
}

/// Logits after the prompt and after each of `more`, by the engine in f32.
std::vector<Logits> by_engine(const TestModel& m, const Ids& prompt, const Ids& more) {
  Engine engine(*m.model, *m.weights,
                {.wkv = "serial", .prefill_tokens = 1024, .device = Device::kCuda});
  RnnState state = engine.new_state();
  std::vector<Logits> all;
  const auto keep = [&](const TensorView& v) { all.emplace_back(v.f32(), v.f32() + v.numel()); };
  keep(engine.prefill(state, prompt));
  for (const int32_t id : more) keep(engine.decode(state, {&id, 1}));
  return all;
}

Logits prefill_one(DecodeModel& model, DecodePrefill& prefill, int64_t slot,
                   std::span<const int32_t> ids) {
  for (size_t at = 0; at < ids.size();) {
    const auto n = static_cast<size_t>(prefill.piece(static_cast<int64_t>(ids.size() - at)));
    const std::span<const int32_t> now = ids.subspan(at, n);
    prefill.run({&slot, 1}, {&now, 1});
    at += n;
  }
  return on_host(model.context(), prefill.logits());
}

class CudaPrefill : public testing::Test {
 protected:
  void SetUp() override {
    try {
      const Context ctx(Device::kCuda);
    } catch (const DeviceError&) {
      GTEST_SKIP() << "no GPU";
    }
  }

  /// Prompts in one piece and in several, then some tokens by the decoding kernel.
  static void compare(const char* name, const TestModel& m, const std::vector<int64_t>& lengths,
                      const std::vector<int64_t>& pieces) {
    const auto vocab = m.model->config().vocab_size;
    const Ids more = random_ids(8, 4, vocab);
    for (const int64_t n : lengths) {
      const Ids ids = random_ids(7, n, vocab);
      const auto want = by_engine(m, ids, more);
      for (const DType type : {DType::kF16, DType::kBF16})
        for (const bool half : {false, true})
          for (const int64_t piece : pieces) {
            Context ctx(Device::kCuda);
            DecodeModel model(ctx, *m.model, *m.weights,
                              {.dtype = type, .half_state = half, .slots = 2, .prefill = true});
            DecodePrefill prefill(model, {.tokens = piece});
            const double first = worst(prefill_one(model, prefill, 1, ids), want[0]);
            double next = 0;
            for (size_t i = 0; i < more.size(); ++i) {
              model.step(1, more[i]);
              const double e = worst(on_host(ctx, model.logits()), want[i + 1]);
              next = std::isnan(e) || e > next ? e : next;
            }
            std::printf(
                "  %s, %lld tokens in pieces of %lld, %s, %s state: worst %.2e, then decoding "
                "%.2e (limit %.1e), deviation %.2f\n",
                name, static_cast<long long>(n), static_cast<long long>(piece),
                std::string(dtype_name(type)).c_str(), half ? "f16" : "f32", first, next,
                limit(type), deviation(want[0]));
            std::fflush(stdout);
            EXPECT_LE(first, limit(type));
            // A state in f16 costs as much again with every token that it is rounded at.
            EXPECT_LE(next, half ? 2 * limit(type) : limit(type));
            EXPECT_GE(deviation(want[0]), 0.4);
          }
    }
  }
};

TEST_F(CudaPrefill, TinyModels) {
  compare("L3 D128", quick_model(3, 128, 300, 1), {1, 2, 16, 37, 300}, {16, 512});
  compare("L2 D64", quick_model(2, 64, 300, 2), {1, 100}, {64});
  compare("L3 D320", wide_model(3, 320, 300, 3), {77}, {48, 96});
}

TEST_F(CudaPrefill, Width768) {
  compare("L12 D768", quick_model(12, 768, 2048, 4), {1000}, {1024, 256});
  compare("L12 D768, wide decays", wide_model(12, 768, 2048, 5), {1000}, {1024});
}

TEST_F(CudaPrefill, Width2048And4096) {
  compare("L2 D2048", wide_model(2, 2048, 1024, 6), {500}, {512});
  compare("L2 D4096", wide_model(2, 4096, 1024, 7), {1100}, {2048});
}

// Values so large that rows of the binary16 states need exponents, without the bonus that would
// hide what comes out of the states. Between pieces the states lie in the slot.
TEST_F(CudaPrefill, ExponentsOfRows) {
  const TestModel m = quick_model(3, 128, 300, 12);
  for (const ParamSpec& p : m.model->params().specs())
    for (float& x : m.tensor(p.name))
      x *= p.name.ends_with("att.value.weight") ? 1 << 18 : p.name.ends_with("att.r_k") ? 0 : 1;
  const Ids ids = random_ids(7, 60, 300), more = random_ids(8, 4, 300);
  const auto want = by_engine(m, ids, more);
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights,
                    {.dtype = DType::kBF16, .slots = 2, .prefill = true});
  DecodePrefill prefill(model, {.tokens = 16});
  const double first = worst(prefill_one(model, prefill, 1, ids), want[0]);
  std::vector<int8_t> exponents(static_cast<size_t>(model.exponents_of(1).numel()));
  copy(ctx, TensorView(exponents.data(), model.exponents_of(1).spec), model.exponents_of(1));
  EXPECT_GE(static_cast<int>(*std::ranges::max_element(exponents)), 8);
  double next = 0;
  for (size_t i = 0; i < more.size(); ++i) {
    model.step(1, more[i]);
    const double e = worst(on_host(ctx, model.logits()), want[i + 1]);
    next = std::isnan(e) || e > next ? e : next;
  }
  std::printf("  exponents up to %d: worst %.2e, then decoding %.2e\n",
              static_cast<int>(*std::ranges::max_element(exponents)), first, next);
  EXPECT_LE(first, limit(DType::kBF16));
  EXPECT_LE(next, 2 * limit(DType::kBF16));
}

TEST_F(CudaPrefill, SequencesSideBySide) {
  constexpr int64_t kVocab = 300;
  const TestModel m = wide_model(3, 256, kVocab, 9);
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights, {.slots = 6, .prefill = true});
  DecodePrefill prefill(model, {.tokens = 256, .batch = 4});
  const std::vector<Ids> ids = {
      random_ids(1, 130, kVocab), random_ids(2, 3, kVocab), random_ids(3, 192, kVocab), {}};
  const std::vector<std::span<const int32_t>> each(ids.begin(), ids.end());
  const std::vector<int64_t> slots = {4, 0, 2, 5};
  // The sequence without tokens keeps the state it has.
  const Ids before = random_ids(4, 20, kVocab);
  prefill_one(model, prefill, 5, before);
  const auto state = [&] {  // bits
    const TensorView all = model.wkv_of(5);
    const TensorSpec bytes({static_cast<int64_t>(all.bytes())}, DType::kI8);
    std::vector<char> host(all.bytes());
    copy(ctx, TensorView(host.data(), bytes), TensorView(all.data, bytes, Device::kCuda));
    return host;
  };
  const auto kept = state();
  prefill.run(slots, each);
  const Logits got = on_host(ctx, prefill.logits());
  EXPECT_EQ(state(), kept);
  const auto next = [&](int64_t slot) {
    model.step(slot, 11);
    return on_host(ctx, model.logits());
  };
  const Logits next4 = next(4), next5 = next(5);
  // In other places, with other neighbours: the same bits.
  const std::vector<Ids> others = {{}, ids[2], random_ids(9, 170, kVocab), ids[0]};
  const std::vector<std::span<const int32_t>> mixed(others.begin(), others.end());
  for (int64_t s = 0; s < 6; ++s) model.reset(s);
  prefill.run(std::vector<int64_t>{3, 1, 0, 5}, mixed);
  const Logits again = on_host(ctx, prefill.logits());
  const auto same = [&](size_t one, size_t other) {
    const Logits x = row(got, one, kVocab), y = row(again, other, kVocab);
    return std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
  };
  EXPECT_TRUE(same(2, 1));
  EXPECT_TRUE(same(0, 3));
  EXPECT_EQ(next(5), next4);
  // Alone, but in a call of the same size.
  for (const size_t i : {size_t{0}, size_t{2}}) {
    model.reset(3);
    const std::vector<std::span<const int32_t>> one = {ids[i]};
    prefill.run(std::vector<int64_t>{3}, one, 4);
    const Logits x = row(on_host(ctx, prefill.logits()), 0, kVocab), y = row(got, i, kVocab);
    EXPECT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0) << i;
  }
  // Alone.
  for (size_t i = 0; i < 3; ++i) {
    model.reset(1);
    EXPECT_LE(worst(prefill_one(model, prefill, 1, ids[i]), row(got, i, kVocab)),
              limit(DType::kF16))
        << i;
  }
  model.reset(1);
  prefill_one(model, prefill, 1, before);
  EXPECT_LE(worst(next(1), next5), limit(DType::kF16));
}

TEST_F(CudaPrefill, Losses) {
  constexpr int64_t kVocab = 300;
  const TestModel m = wide_model(3, 128, kVocab, 10);
  const Ids ids = random_ids(3, 150, kVocab);
  Engine engine(*m.model, *m.weights, {.wkv = "serial", .device = Device::kCuda});
  RnnState state = engine.new_state();
  std::vector<float> want(ids.size() - 1);
  engine.token_loss(state, std::span(ids).first(want.size()), std::span(ids).subspan(1), want);
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights, {.slots = 2, .prefill = true});
  DecodePrefill prefill(model, {.tokens = 64, .losses = true});
  const auto got = prefill.losses(1, ids);
  ASSERT_EQ(got.size(), want.size());
  std::printf("  losses: worst %.2e\n", worst(got, want));
  EXPECT_LE(worst(got, want), 2 * limit(DType::kF16));
  EXPECT_GE(deviation(want), 1.0);
}

TEST_F(CudaPrefill, PiecesAndErrors) {
  const TestModel m = quick_model(2, 128, 300, 11);
  Context ctx(Device::kCuda);
  DecodeModel model(ctx, *m.model, *m.weights, {.slots = 2, .prefill = true});
  DecodePrefill prefill(model, {.tokens = 2048});
  const auto padded = [&](int64_t n) { return prefill.padded(n); };
  EXPECT_EQ(padded(1), 16);
  EXPECT_EQ(padded(33), 48);
  EXPECT_EQ(padded(1025), 1536);
  EXPECT_EQ(padded(2000), 2048);
  for (const int64_t left : {1, 15, 16, 17, 100, 700, 1030, 1500, 1540, 2047, 2048, 2049, 9999}) {
    const int64_t n = prefill.piece(left);
    EXPECT_TRUE(n >= 1 && n <= left && n <= 2048) << left;
    EXPECT_EQ(prefill.piece(n), n) << left;
  }
  EXPECT_EQ(prefill.piece(1030), 1024);
  EXPECT_EQ(prefill.piece(1500), 1500);
  const Ids ids = random_ids(1, 8, 300), wrong = {1, 300};
  const std::vector<std::span<const int32_t>> one = {ids}, two = {ids, ids}, bad = {wrong};
  const std::vector<int64_t> first = {0}, outside = {2}, both = {0, 1};
  EXPECT_THROW(prefill.run(outside, one), ConfigError);
  EXPECT_THROW(prefill.run(first, two), ShapeError);
  EXPECT_THROW(prefill.run(both, two), ShapeError);
  EXPECT_THROW(prefill.run(first, bad), ConfigError);
  EXPECT_THROW(prefill.losses(0, ids), ConfigError);
  EXPECT_THROW(DecodePrefill(model, {.tokens = 100}), ConfigError);
  EXPECT_THROW(DecodePrefill(model, {.tokens = 64, .rows = 32}), ConfigError);
  EXPECT_THROW(prefill.run(first, one, 2), ShapeError);
  DecodePrefill several(model, {.tokens = 64, .batch = 4, .rows = 64});
  EXPECT_THROW(several.run(first, one, 5), ShapeError);
  EXPECT_NO_THROW(several.run(first, one, 4));
  const Ids longer = random_ids(1, 17, 300);
  const std::vector<std::span<const int32_t>> long_one = {longer};
  EXPECT_THROW(several.run(first, long_one, 3), ShapeError);
  EXPECT_NO_THROW(several.run(first, long_one, 2));
  ctx.synchronize("prompts");
  DecodeModel plain(ctx, *m.model, *m.weights, {});
  EXPECT_THROW(DecodePrefill(plain, {}), ConfigError);
  EXPECT_THROW(DecodeModel(ctx, *m.model, *m.weights, {.dtype = DType::kF32, .prefill = true}),
               ConfigError);
}

}  // namespace
}  // namespace rwkv
