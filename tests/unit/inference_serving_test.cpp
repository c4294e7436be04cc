// What serving a model takes, and models without a file.

#include "inference/serving.h"

#include <gtest/gtest.h>

#include <cmath>

#include "inference/random_model.h"
#include "kernels/core/error.h"
#include "model/public_sizes.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

TEST(PublicSizes, HaveTheParametersOfTheirNames) {
  for (const std::string_view size : public_model_sizes()) {
    const ModelConfig c = public_model_config(size);
    const double said = std::stod(std::string(size)) * 1e9;
    const auto found = static_cast<double>(count_parameters(c).used);
    // 0.1B has 0.19, half of it in the vocabulary.
    if (size != "0.1B") {
      EXPECT_LE(std::fabs(found - said) / said, 0.13) << size << ": " << found;
    }
    EXPECT_TRUE(decode_kernels_take(c)) << size;
  }
  EXPECT_EQ(count_parameters(public_model_config("0.1B")).used / 1000000, 191);
  EXPECT_THROW(public_model_config("8B"), ConfigError);
}

TEST(ServingSize, IsWhatIsAllocated) {
  const test::TestModel m = test::random_model(3);
  for (const DType weights : {DType::kF32, DType::kBF16}) {
    ServingOptions o;
    o.engine.weights = weights;
    o.runner.slots = 5;
    const ServingSize size = serving_size(m.model->config(), o);
    const auto serving = make_serving(*m.model, *m.weights, o);
    EXPECT_EQ(serving->runner().state_bytes(), size.state);
    // Arenas are aligned.
    EXPECT_LE(serving->runner().pool_bytes() - size.states, 4096U);
    EXPECT_GT(size.weights, static_cast<size_t>(m.model->params().numel()) * sizeof(float));
  }
}

/// The formulas of docs/serving.md.
TEST(ServingSize, FollowsTheFormulas) {
  for (const std::string_view name : public_model_sizes()) {
    const ModelConfig c = public_model_config(name);
    for (const DType type : {DType::kF16, DType::kF32})
      for (const bool half : {false, true}) {
        ServingOptions o{.decode_kernels = true, .weights = type, .half_state = half};
        o.runner.slots = 100;
        const ServingSize s = serving_size(c, o);
        const auto l = static_cast<double>(c.n_layer), d = static_cast<double>(c.n_embd),
                   f = static_cast<double>(c.dim_ffn), v = static_cast<double>(c.vocab_size),
                   r = static_cast<double>(c.rank_w + c.rank_a + c.rank_v + c.rank_g);
        const double w = type == DType::kF16 ? 2 : 4, state = half ? 2 : 4;
        double weights = w * (l * (4 * d * d + 2 * d * f + 2 * d * r) + 2 * v * d) + 76 * l * d;
        if (type == DType::kF16) weights += 2 * l * (d * f + d * r);
        const auto near = [&](size_t got, double want, double share) {
          EXPECT_LE(std::fabs(static_cast<double>(got) / want - 1), share)
              << name << ": " << got << ", by the formula " << want;
        };
        near(s.weights, weights, 0.01);  // low-rank widths are padded
        near(s.states, 101 * (l * (2 * d * w + 64 * d * state + d) + 4), 1e-9);
        near(s.logits, 4 * 100 * v, 1e-9);
        EXPECT_EQ(s.prefill > 0, type == DType::kF32);
        EXPECT_EQ(s.all(), s.weights + s.prefill + s.states + s.logits);
      }
  }
}

TEST(Serving, WithoutAGpuTheDecodingKernelsSaySo) {
  const test::TestModel m = test::random_model(3, 2, 64, 100, 32);
  EXPECT_THROW(make_serving(*m.model, *m.weights, {.decode_kernels = true}), ConfigError);
}

TEST(RandomModel, HasLogitsOfDeviationOne) {
  ModelConfig c = public_model_config("0.1B");
  c.n_layer = 3;
  c.n_embd = 128;
  c.dim_ffn = 0;
  c.vocab_size = 500;
  c.finish();
  const LoadedModel m = random_model(c, 1);
  Engine engine(*m.model, *m.weights);
  RnnState state = engine.new_state();
  const TensorView logits = engine.prefill(state, test::random_ids(1, 20, 500));
  double squares = 0;
  for (int64_t i = 0; i < 500; ++i) squares += std::pow(static_cast<double>(logits.f32()[i]), 2);
  const double deviation = std::sqrt(squares / 500);
  EXPECT_GE(deviation, 0.3);
  EXPECT_LE(deviation, 3);
  EXPECT_NE(random_model(c, 2).weights->flat()[100], m.weights->flat()[100]);
}

}  // namespace
}  // namespace rwkv
