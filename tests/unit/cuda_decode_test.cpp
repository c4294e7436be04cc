// The decoding kernels against the graph that training uses, on the GPU. Skipped without one.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <tuple>

#include "inference/decode_model.h"
#include "inference/engine.h"
#include "kernels/core/memory.h"
#include "tests/unit/quick_model.h"

namespace rwkv {
namespace {

using test::quick_model;
using test::random_ids;
using test::TestModel;

/// Largest absolute difference of logits of O(1).
double limit(DType dtype) {
  return dtype == DType::kF32 ? 1e-4 : dtype == DType::kF16 ? 2e-2 : 1e-1;
}

std::vector<float> on_host(Context& ctx, const TensorView& v) {
  std::vector<float> host(static_cast<size_t>(v.numel()));
  copy(ctx, TensorView(host.data(), v.spec), v);
  return host;
}

std::vector<float> decode(Context& ctx, DecodeModel& decoder, int64_t slot,
                          std::span<const int32_t> ids) {
  std::vector<float> all;
  for (const int32_t id : ids) {
    decoder.step(slot, id);
    const auto row = on_host(ctx, decoder.logits());
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

std::vector<float> by_engine(const TestModel& m, const std::string& wkv,
                             std::span<const int32_t> ids) {
  Engine engine(*m.model, *m.weights, {.wkv = wkv, .device = Device::kCuda});
  RnnState state = engine.new_state();
  std::vector<float> all;
  for (const int32_t id : ids) {
    const TensorView logits = engine.decode(state, {&id, 1});
    all.insert(all.end(), logits.f32(), logits.f32() + logits.numel());
  }
  return all;
}

double worst(std::span<const float> got, std::span<const float> want) {
  double most = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::fabs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (std::isnan(e)) return e;
    most = std::max(most, e);
  }
  return most;
}

/// The larger one; NaN if one of them is.
double larger(double a, double b) {
  return std::isnan(a) || a >= b ? a : b;
}

/// What a binary16 state itself costs: its rounding turns on the last bits of what comes in, so two
/// correct implementations differ by as much as one of them does from an f32 state.
double state_noise(const TestModel& m, std::span<const int32_t> ids, std::span<const float> half) {
  return worst(half, by_engine(m, "serial", ids));
}

double deviation(std::span<const float> x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum / static_cast<double>(x.size()));
}

class CudaDecode : public testing::Test {
 protected:
  void SetUp() override {
    try {
      const Context ctx(Device::kCuda);
    } catch (const DeviceError&) {
      GTEST_SKIP() << "no GPU";
    }
  }

  static void compare(const TestModel& m, int64_t tokens, const std::vector<DType>& types) {
    const auto vocab = m.model->config().vocab_size;
    const auto ids = random_ids(7, tokens, vocab);
    for (const bool half : {false, true}) {
      const auto want = by_engine(m, half ? "fp16-dithered" : "serial", ids);
      const double noise = half ? state_noise(m, ids, want) : 0;
      for (const DType type : types) {
        const double allowed = limit(type) + noise;
        Context ctx(Device::kCuda);
        DecodeModel decoder(ctx, *m.model, *m.weights,
                            {.dtype = type, .half_state = half, .slots = 2});
        const auto got = decode(ctx, decoder, 1, ids);
        const double error = worst(got, want);
        std::printf("  L%lld D%lld %s, %s state: worst %.2e (limit %.1e), deviation %.2f\n",
                    static_cast<long long>(m.model->config().n_layer),
                    static_cast<long long>(m.model->config().n_embd),
                    std::string(dtype_name(type)).c_str(), half ? "f16" : "f32", error, allowed,
                    deviation(want));
        std::fflush(stdout);
        EXPECT_LE(error, allowed);
        EXPECT_GE(deviation(want), 0.5);

        // The other slot, without the rows that are zero left out, and a copied state.
        DecodeModel other(
            ctx, *m.model, *m.weights,
            {.dtype = type, .half_state = half, .slots = 3, .skip = false, .nap = 100, .ring = 2});
        EXPECT_LE(worst(decode(ctx, other, 0, ids), want), allowed);
        other.reset(2);
        const size_t cut = ids.size() / 2;
        const auto first = decode(ctx, other, 2, std::span(ids).first(cut));
        other.copy_state(1, 2);
        decode(ctx, other, 2, std::span(ids).first(2));
        auto rest = decode(ctx, other, 1, std::span(ids).subspan(cut));
        auto all = first;
        all.insert(all.end(), rest.begin(), rest.end());
        other.reset(0);
        const auto again = decode(ctx, other, 0, ids);
        ASSERT_EQ(all.size(), again.size());
        EXPECT_EQ(std::memcmp(all.data(), again.data(), all.size() * sizeof(float)), 0);
      }
    }
  }
};

TEST_F(CudaDecode, TinyModels) {
  for (const int64_t width : {64, 128, 320})
    compare(quick_model(3, width, 300, static_cast<uint64_t>(width)), 12,
            {DType::kF32, DType::kF16, DType::kBF16});
}

TEST_F(CudaDecode, Width768) {
  compare(quick_model(12, 768, 8192, 1), 16, {DType::kF32, DType::kF16, DType::kBF16});
}

TEST_F(CudaDecode, Width2048And4096) {
  compare(quick_model(2, 2048, 2048, 2), 6, {DType::kF32, DType::kF16});
  compare(quick_model(2, 4096, 2048, 3), 6, {DType::kF32, DType::kF16});
}

// Widths that fill neither the threads nor a row's warps, for every number of channels per thread.
TEST_F(CudaDecode, UnevenWidths) {
  compare(quick_model(2, 192, 300, 12), 4, {DType::kF16});
  compare(quick_model(2, 1088, 300, 13), 4, {DType::kF16, DType::kF32});
  compare(quick_model(2, 2112, 300, 14), 4, {DType::kF16, DType::kF32});
}

TEST_F(CudaDecode, SplitsAndSlices) {
  const TestModel m = quick_model(3, 768, 512, 4);
  const auto ids = random_ids(9, 8, 512);
  const auto want = by_engine(m, "serial", ids);
  for (const auto& [splits, slice] :
       std::vector<std::pair<int, int>>{{1, 8}, {4, 32}, {3, 32}, {8, 64}, {8, 256}}) {
    Context ctx(Device::kCuda);
    DecodeModel decoder(ctx, *m.model, *m.weights,
                        {.half_state = false, .splits = splits, .slice = slice});
    EXPECT_LE(worst(decode(ctx, decoder, 0, ids), want), limit(DType::kF16))
        << splits << " " << slice;
  }
}

/// Tokens of several sequences, step by step in one bucket: logits (sequence, step, vocab).
std::vector<std::vector<float>> decode_batch(Context& ctx, DecodeModel& decoder,
                                             const std::vector<int64_t>& slots,
                                             const std::vector<std::vector<int32_t>>& ids) {
  std::vector<std::vector<float>> all(ids.size());
  for (size_t t = 0; t < ids[0].size(); ++t) {
    std::vector<int32_t> tokens;
    for (const auto& s : ids) tokens.push_back(s[t]);
    decoder.step_batch(slots, tokens);
    const auto logits = on_host(ctx, decoder.batch_logits());
    const auto vocab = static_cast<size_t>(decoder.layout().shape.vocab);
    for (size_t i = 0; i < ids.size(); ++i)
      all[i].insert(all[i].end(), logits.begin() + static_cast<int64_t>(i * vocab),
                    logits.begin() + static_cast<int64_t>((i + 1) * vocab));
  }
  return all;
}

TEST_F(CudaDecode, BatchesAreTheGraph) {
  for (const auto& [layers, width, vocab] :
       std::vector<std::tuple<int64_t, int64_t, int64_t>>{{3, 128, 300}, {12, 768, 2048}}) {
    const TestModel m = quick_model(layers, width, vocab, 6);
    std::vector<std::vector<int32_t>> ids;
    for (uint64_t s = 0; s < 5; ++s) ids.push_back(random_ids(100 + s, 8, vocab));
    for (const bool half : {false, true}) {
      std::vector<std::vector<float>> want;
      double noise = 0;
      for (const auto& s : ids) {
        want.push_back(by_engine(m, half ? "fp16-dithered" : "serial", s));
        if (half) noise = larger(noise, state_noise(m, s, want.back()));
      }
      for (const auto& [type, own] :
           {std::pair{DType::kF16, true}, std::pair{DType::kF16, false},
            std::pair{DType::kBF16, true}, std::pair{DType::kBF16, false}}) {
        const double allowed = limit(type) + noise;
        Context ctx(Device::kCuda);
        DecodeModel decoder(
            ctx, *m.model, *m.weights,
            {.dtype = type, .half_state = half, .slots = 8, .buckets = {4, 8, 80}, .vendor = !own});
        const auto got = decode_batch(ctx, decoder, {0, 1, 2, 3, 4}, ids);  // bucket 8
        double error = 0;
        for (size_t i = 0; i < ids.size(); ++i) error = larger(error, worst(got[i], want[i]));
        std::printf("  batch, L%lld D%lld %s, %s state, products %s: worst %.2e (limit %.1e)\n",
                    static_cast<long long>(layers), static_cast<long long>(width),
                    std::string(dtype_name(type)).c_str(), half ? "f16" : "f32",
                    own ? "ours" : "cuBLASLt", error, allowed);
        std::fflush(stdout);
        EXPECT_LE(error, allowed);
        // Another place, other slots, other neighbours, more of them: the same bits.
        for (int64_t s = 0; s < 8; ++s) decoder.reset(s);
        const std::vector<std::vector<int32_t>> others = {
            random_ids(50, 8, vocab), ids[2], random_ids(51, 8, vocab),
            random_ids(52, 8, vocab), ids[0], ids[1],
            random_ids(53, 8, vocab)};
        const auto again = decode_batch(ctx, decoder, {7, 6, 5, 4, 3, 2, 1}, others);
        const auto same = [&](size_t one, size_t other) {
          return std::memcmp(got[one].data(), again[other].data(),
                             got[one].size() * sizeof(float)) == 0;
        };
        EXPECT_TRUE(same(2, 1) && same(0, 4) && same(1, 5));
        // Another bucket, and the kernel for one sequence going on from a batch's state.
        decoder.reset(0);
        std::vector<float> mixed;
        for (size_t t = 0; t < 8; ++t) {
          if (t % 2 == 0) {
            decoder.step(0, ids[0][t]);
            const auto row = on_host(ctx, decoder.logits());
            mixed.insert(mixed.end(), row.begin(), row.end());
          } else {
            const auto row = decode_batch(ctx, decoder, {0}, {{ids[0][t]}});
            mixed.insert(mixed.end(), row[0].begin(), row[0].end());
          }
        }
        EXPECT_LE(worst(mixed, want[0]), allowed);
      }
    }
  }
}

TEST_F(CudaDecode, LargeBuckets) {
  const TestModel m = quick_model(2, 256, 300, 8);
  const auto ids = random_ids(5, 6, 300);
  const auto want = by_engine(m, "fp16-dithered", ids);
  const double allowed = limit(DType::kF16) + state_noise(m, ids, want);
  for (const bool own : {false, true}) {
    Context ctx(Device::kCuda);
    DecodeModel decoder(ctx, *m.model, *m.weights,
                        {.slots = 200, .buckets = {200}, .vendor = !own});
    std::vector<int64_t> slots;
    for (int64_t s = 0; s < 130; ++s) slots.push_back((s * 7) % 200);
    const std::vector<std::vector<int32_t>> all(slots.size(), ids);
    const auto got = decode_batch(ctx, decoder, slots, all);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(std::memcmp(got[0].data(), got[i].data(), got[0].size() * sizeof(float)), 0) << i;
      EXPECT_LE(worst(got[i], want), allowed) << i;
    }
  }
}

/// All of a slot's state, as bytes.
std::vector<std::byte> state_of(Context& ctx, DecodeModel& decoder, int64_t slot) {
  std::vector<std::byte> all;
  for (const TensorView& v : {decoder.shift_of(slot), decoder.wkv_of(slot),
                              decoder.exponents_of(slot), decoder.elapsed_of(slot)}) {
    std::vector<std::byte> part(v.bytes());
    copy(ctx, TensorView(part.data(), v.spec), v);
    ctx.synchronize("state");
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

TEST_F(CudaDecode, NeitherBucketNorPlaceChangesABit) {
  struct Size {
    int64_t layers, width;
    DType type;
    bool half;
  };
  for (const Size& size : {Size{3, 128, DType::kF16, true}, Size{3, 320, DType::kBF16, false},
                           Size{3, 768, DType::kF16, true}, Size{2, 2048, DType::kF16, false},
                           Size{2, 4096, DType::kF16, true}}) {
    constexpr int64_t kVocab = 520, kSlots = 1030, kTokens = 4;
    const TestModel m = quick_model(size.layers, size.width, kVocab, 11);
    Context ctx(Device::kCuda);
    DecodeModel decoder(ctx, *m.model, *m.weights,
                        {.dtype = size.type,
                         .half_state = size.half,
                         .slots = kSlots,
                         .buckets = {1, 2, 4, 8, 16, 32, 64, 128, 256, 320, 512, 960, 1024}});
    const auto ids = random_ids(3, kTokens, kVocab);
    std::vector<float> want;
    std::vector<std::byte> want_state;
    int wrong = 0;
    // Sequences in the call, and the row of the one that is looked at.
    for (const auto& [sequences, row] : std::vector<std::pair<int64_t, int64_t>>{{1, 0},
                                                                                 {2, 1},
                                                                                 {3, 0},
                                                                                 {7, 4},
                                                                                 {16, 15},
                                                                                 {27, 9},
                                                                                 {64, 63},
                                                                                 {100, 50},
                                                                                 {128, 1},
                                                                                 {200, 199},
                                                                                 {300, 170},
                                                                                 {500, 499},
                                                                                 {960, 800},
                                                                                 {961, 960},
                                                                                 {1024, 3}}) {
      std::vector<int64_t> slots;
      std::vector<std::vector<int32_t>> all;
      for (int64_t i = 0; i < sequences; ++i) {
        slots.push_back((i * 37 + sequences) % kSlots);
        all.push_back(i == row ? ids : random_ids(100 + static_cast<uint64_t>(i), kTokens, kVocab));
      }
      const int64_t slot = slots[static_cast<size_t>(row)];
      decoder.reset(slot);
      const auto got = decode_batch(ctx, decoder, slots, all)[static_cast<size_t>(row)];
      const auto state = state_of(ctx, decoder, slot);
      if (want.empty()) {
        want = got;
        want_state = state;
      }
      ASSERT_EQ(got.size(), want.size());
      const bool same = std::memcmp(got.data(), want.data(), want.size() * sizeof(float)) == 0 &&
                        state == want_state;
      EXPECT_TRUE(same) << "width " << size.width << ", " << sequences << " sequences, row " << row
                        << ", logits differ by " << worst(got, want);
      wrong += same ? 0 : 1;
    }
    EXPECT_GE(deviation(want), 0.5);
    std::printf("  L%lld D%lld %s: %d of 15 differ\n", static_cast<long long>(size.layers),
                static_cast<long long>(size.width), std::string(dtype_name(size.type)).c_str(),
                wrong);
    std::fflush(stdout);
  }
}

// Values so large that rows of the binary16 states need exponents, without the bonus that would
// hide what comes out of the states.
TEST_F(CudaDecode, ExponentsOfRows) {
  const TestModel m = quick_model(3, 128, 300, 10);
  for (const ParamSpec& p : m.model->params().specs())
    for (float& x : m.tensor(p.name))
      x *= p.name.ends_with("att.value.weight") ? 1 << 18 : p.name.ends_with("att.r_k") ? 0 : 1;
  const auto ids = random_ids(11, 40, 300);
  const auto want = by_engine(m, "fp16-dithered", ids);
  const double noise = state_noise(m, ids, want);
  const auto largest = [](Context& ctx, const DecodeModel& decoder, int64_t slot) {
    const TensorView v = decoder.exponents_of(slot);
    std::vector<int8_t> host(static_cast<size_t>(v.numel()));
    copy(ctx, TensorView(host.data(), v.spec), v);
    return static_cast<int>(*std::ranges::max_element(host));
  };
  for (const DType type : {DType::kF32, DType::kBF16}) {
    Context ctx(Device::kCuda);
    DecodeOptions options{.dtype = type, .slots = 3};
    if (type == DType::kBF16) options.buckets = {2};
    DecodeModel decoder(ctx, *m.model, *m.weights, options);
    const double allowed = limit(type) + noise;
    const auto got = decode(ctx, decoder, 1, ids);
    EXPECT_LE(worst(got, want), allowed);
    EXPECT_GE(largest(ctx, decoder, 1), 8);
    EXPECT_EQ(largest(ctx, decoder, 2), 0);
    std::printf("  exponents up to %d, %s: worst %.2e (limit %.1e)\n", largest(ctx, decoder, 1),
                std::string(dtype_name(type)).c_str(), worst(got, want), allowed);
    // A fork goes on with the same bits, and as a batch.
    decoder.reset(1);
    EXPECT_EQ(largest(ctx, decoder, 1), 0);
    const auto first = decode(ctx, decoder, 1, std::span(ids).first(25));
    decoder.copy_state(2, 1);
    auto all = first;
    const auto rest = decode(ctx, decoder, 2, std::span(ids).subspan(25));
    all.insert(all.end(), rest.begin(), rest.end());
    EXPECT_EQ(std::memcmp(all.data(), got.data(), all.size() * sizeof(float)), 0);
    if (type != DType::kBF16) continue;
    decoder.reset(0);
    const auto batch = decode_batch(ctx, decoder, {0, 1}, {ids, ids});
    EXPECT_LE(worst(batch[0], want), allowed);
    EXPECT_GE(largest(ctx, decoder, 0), 8);
  }
}

TEST_F(CudaDecode, RefusesWhatItCannotDo) {
  Context ctx(Device::kCuda);
  const TestModel m = quick_model(2, 128, 300, 5);
  EXPECT_THROW(DecodeModel(ctx, *m.model, *m.weights, {.dtype = DType::kI8}), ConfigError);
  EXPECT_THROW(DecodeModel(ctx, *m.model, *m.weights, {.slots = 0}), ConfigError);
  DecodeModel decoder(ctx, *m.model, *m.weights, {});
  EXPECT_THROW(decoder.step(1, 0), ConfigError);
  EXPECT_THROW(decoder.step(0, 300), ConfigError);
  const std::vector<int64_t> slots = {0, 0, 0};
  const std::vector<int32_t> tokens = {1, 2, 3};
  EXPECT_THROW(decoder.step_batch(slots, tokens), ConfigError);
  EXPECT_THROW(decoder.step_batch(slots, std::span(tokens).first(2)), ShapeError);
  EXPECT_THROW(DecodeModel(ctx, *m.model, *m.weights, {.buckets = {4, 2}}), ConfigError);
  EXPECT_THROW(DecodeModel(ctx, *m.model, *m.weights, {.dtype = DType::kF32, .buckets = {4}}),
               ConfigError);
  const TestModel four = test::random_rwkv4(1);
  EXPECT_THROW(DecodeModel(ctx, *four.model, *four.weights, {}), ConfigError);
}

}  // namespace
}  // namespace rwkv
