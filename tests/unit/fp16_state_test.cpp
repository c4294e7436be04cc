// A model whose WKV state is binary16: the token counter travels with the state, and training with
// that forward.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "inference/engine.h"
#include "model/graph/plan.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::random_ids;
using test::random_model;
using test::TestModel;

constexpr int64_t kVocab = 300;

std::vector<std::byte> bytes_of(const RnnState& s) {
  std::vector<std::byte> all;
  for (size_t i = 0; i < s.specs().size(); ++i) {
    const auto* p = static_cast<const std::byte*>(s[i].data);
    all.insert(all.end(), p, p + s[i].bytes());
  }
  return all;
}

void restore(RnnState& s, const std::vector<std::byte>& bytes) {
  size_t at = 0;
  for (size_t i = 0; i < s.specs().size(); ++i) {
    std::memcpy(s[i].data, bytes.data() + at, s[i].bytes());
    at += s[i].bytes();
  }
}

std::vector<float> values(const TensorView& v) {
  return {v.f32(), v.f32() + v.numel()};
}

double distance(const std::vector<float>& got, const std::vector<float>& want) {
  double diff = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    diff += std::pow(double{got[i]} - double{want[i]}, 2);
    norm += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(diff / norm);
}

/// Values so large that rows of the WKV states need exponents. Without the bonus, which would hide
/// what comes out of the states: their norm is of order one.
TestModel large_model(uint64_t seed) {
  TestModel m = random_model(seed);
  for (const ParamSpec& p : m.model->params().specs())
    for (float& x : m.tensor(p.name))
      x *= p.name.ends_with("att.value.weight") ? 16384 : p.name.ends_with("att.r_k") ? 0 : 1;
  return m;
}

/// The largest exponent of all layers.
int largest_exponent(const RnnState& s) {
  int most = 0;
  for (size_t i = 0; i < s.specs().size(); ++i)
    if (s.specs()[i].name.ends_with(".wkv_exponent"))
      for (int64_t k = 0; k < s[i].numel(); ++k) most = std::max<int>(most, s[i].as<int8_t>()[k]);
  return most;
}

TEST(Fp16State, OnlyVariantsThatCountHaveACounter) {
  const TestModel m = random_model(21);
  const size_t plain = m.model->state_specs(2).size();
  EXPECT_EQ(m.model->state_specs(2, DType::kF32, "auto").size(), plain);
  EXPECT_EQ(m.model->state_specs(2, DType::kF32, "serial").size(), plain);
  for (const char* wkv : {"fp16-dithered", "fp16-plain", "wkv7.cpu.fp16-dithered"}) {
    const auto specs = m.model->state_specs(2, DType::kF32, wkv);
    const auto layers = static_cast<size_t>(m.model->config().n_layer);
    ASSERT_EQ(specs.size(), plain + layers + 1) << wkv;
    EXPECT_EQ(specs[1].spec.dtype, DType::kF16);
    EXPECT_EQ(specs[2].name, "blocks.0.att.wkv_exponent");
    EXPECT_EQ(specs[2].spec, TensorSpec({2, m.model->config().n_head(), 64}, DType::kI8));
    EXPECT_EQ(specs.back().name, "elapsed");
    EXPECT_EQ(specs.back().spec, TensorSpec({2}, DType::kI32));
  }
}

TEST(Fp16State, ResumedAndMovedSequencesGiveTheSameBits) {
  const TestModel m = random_model(22);
  const auto ids = random_ids(22, 60, kVocab);
  const std::span<const int32_t> all(ids);
  for (const char* wkv : {"fp16-dithered", "fp16-plain"}) {
    SCOPED_TRACE(wkv);
    const bool dithered = wkv == std::string("fp16-dithered");
    Engine engine(*m.model, *m.weights, {.wkv = wkv, .prefill_tokens = 16});
    RnnState state = engine.new_state();
    engine.prefill(state, all.first(41));
    for (int t = 41; t < 44; ++t) engine.decode(state, all.subspan(static_cast<size_t>(t), 1));
    const TensorView counter = state[state.specs().size() - 1];
    EXPECT_EQ(counter.as<int32_t>()[0], 44);

    const std::vector<std::byte> stored = bytes_of(state);
    RnnState fork = state.clone();
    const auto want = values(engine.prefill(state, all.subspan(44)));
    const std::vector<std::byte> end = bytes_of(state);
    EXPECT_EQ(values(engine.prefill(fork, all.subspan(44))), want);
    EXPECT_EQ(bytes_of(fork), end);

    // In another engine, from the stored bytes.
    Engine other(*m.model, *m.weights, {.wkv = wkv, .prefill_tokens = 16});
    RnnState moved = other.new_state();
    restore(moved, stored);
    EXPECT_EQ(values(other.prefill(moved, all.subspan(44))), want);
    EXPECT_EQ(bytes_of(moved), end);

    // Without its counter the sequence meets other dither, which plain rounding does not have.
    restore(moved, stored);
    moved[moved.specs().size() - 1].as<int32_t>()[0] = 0;
    EXPECT_EQ(values(other.prefill(moved, all.subspan(44))) == want, !dithered);

    state.reset();
    EXPECT_EQ(counter.as<int32_t>()[0], 0);
  }
}

TEST(Fp16State, ExponentsTravelWithTheState) {
  const TestModel m = large_model(27);
  const auto ids = random_ids(27, 90, kVocab);
  const std::span<const int32_t> all(ids);
  for (const char* wkv : {"fp16-dithered", "fp16-plain"}) {
    SCOPED_TRACE(wkv);
    Engine engine(*m.model, *m.weights, {.wkv = wkv, .prefill_tokens = 20});
    Engine serial(*m.model, *m.weights, {.wkv = "serial"});
    RnnState state = engine.new_state(), of_serial = serial.new_state();
    engine.prefill(state, all.first(41));
    for (int t = 41; t < 60; ++t) engine.decode(state, all.subspan(static_cast<size_t>(t), 1));
    EXPECT_GE(largest_exponent(state), 8);
    const std::vector<std::byte> stored = bytes_of(state);
    const auto want = values(engine.prefill(state, all.subspan(60)));
    const std::vector<std::byte> end = bytes_of(state);

    // In one piece, and from the stored bytes in another engine.
    Engine other(*m.model, *m.weights, {.wkv = wkv, .prefill_tokens = 90});
    RnnState moved = other.new_state();
    restore(moved, stored);
    EXPECT_EQ(values(other.prefill(moved, all.subspan(60))), want);
    EXPECT_EQ(bytes_of(moved), end);
    moved.reset();
    EXPECT_EQ(largest_exponent(moved), 0);
    const auto whole = values(other.prefill(moved, all));
    EXPECT_LE(distance(whole, want), 1e-2);  // products of more rows round in other places

    // Near the f32 state; far from it without the exponents.
    serial.prefill(of_serial, all.first(60));
    const auto f32 = values(serial.prefill(of_serial, all.subspan(60)));
    const double error = distance(want, f32);
    EXPECT_LE(error, 3e-2);
    restore(moved, stored);
    for (size_t i = 0; i < moved.specs().size(); ++i)
      if (moved.specs()[i].name.ends_with(".wkv_exponent"))
        std::memset(moved[i].data, 0, moved[i].bytes());
    const double without = distance(values(other.prefill(moved, all.subspan(60))), f32);
    EXPECT_GE(without, 3 * error);
    std::printf("%s: largest exponent %d; logits off by %.1e, without exponents %.1e\n", wkv,
                largest_exponent(state), error, without);
  }
}

TEST(Fp16State, CountersAreOfTheirSequences) {
  const TestModel m = random_model(23);
  Engine engine(*m.model, *m.weights, {.wkv = "fp16-dithered"});
  const auto ids = random_ids(23, 24, kVocab);
  RnnState state = engine.new_state(2);
  int32_t* elapsed = state[state.specs().size() - 1].as<int32_t>();
  elapsed[1] = 1000;
  engine.prefill(state, ids);
  EXPECT_EQ(elapsed[0], 12);
  EXPECT_EQ(elapsed[1], 1012);
}

struct LossAndGradients {
  float loss;
  std::vector<float> grads;
};

/// state: from states and counters of zero that are inputs, and what they end as is an output.
LossAndGradients train_step(const TestModel& m, const std::string& wkv, GradCheckpointing how,
                            bool state = false) {
  constexpr int64_t kTokens = 40;
  const auto x = random_ids(24, 2 * kTokens, kVocab), y = random_ids(25, 2 * kTokens, kVocab);
  Context ctx;
  const Graph graph = m.model->build({.batch = 2, .tokens = kTokens, .state = state, .wkv = wkv});
  Plan plan = Plan::build(graph, {.grad_checkpointing = how});
  ParamStore grads(Device::kCpu, m.model->params(), "gradients");
  plan.bind(ctx, m.weights->views(), grads.views());
  std::memcpy(plan.input("tokens").data, x.data(), x.size() * 4);
  std::memcpy(plan.input("targets").data, y.data(), y.size() * 4);
  if (state)
    for (const auto& s : m.model->state_specs(2, DType::kF32, wkv)) {
      const TensorView view = plan.input(s.name);
      EXPECT_EQ(s.initial, 0);
      std::memset(view.data, 0, view.bytes());
    }
  plan.forward(ctx);
  plan.backward(ctx, 1.0f, true);
  LossAndGradients r{plan.output("loss").f32()[0], {}};
  for (const TensorView& g : grads.views())
    r.grads.insert(r.grads.end(), g.f32(), g.f32() + g.numel());
  return r;
}

// The straight-through gradients are those of a forward with little rounding, nearly; and blocks
// that are computed again meet the same dither.
TEST(Fp16State, TrainsLikeAnF32State) {
  const TestModel m = random_model(24);
  const auto want = train_step(m, "serial", GradCheckpointing::kNone);
  for (const char* wkv : {"fp16-dithered", "fp16-plain"}) {
    const auto got = train_step(m, wkv, GradCheckpointing::kNone);
    const auto again = train_step(m, wkv, GradCheckpointing::kBlock);
    EXPECT_EQ(got.loss, again.loss);
    EXPECT_EQ(got.grads, again.grads);
    EXPECT_NE(got.loss, want.loss);
    EXPECT_LE(std::fabs(got.loss - want.loss), 1e-3 * std::fabs(want.loss));
    const double error = distance(got.grads, want.grads);
    EXPECT_LE(error, 2e-2);
    std::printf("%s: loss %.6f, f32 state %.6f; gradients differ by %.1e\n", wkv, got.loss,
                want.loss, error);
  }
}

// The forward without states has exponents too: it is the one that an engine runs.
TEST(Fp16State, TrainsWithExponents) {
  const TestModel m = large_model(28);
  const auto want = train_step(m, "serial", GradCheckpointing::kNone);
  const auto got = train_step(m, "fp16-dithered", GradCheckpointing::kNone),
             with_states = train_step(m, "fp16-dithered", GradCheckpointing::kBlock, true);
  EXPECT_EQ(got.loss, with_states.loss);
  EXPECT_EQ(got.grads, with_states.grads);
  EXPECT_LE(std::fabs(got.loss - want.loss), 1e-3 * std::fabs(want.loss));
  EXPECT_LE(distance(got.grads, want.grads), 5e-2);
}

// Binary16 states take part in the backward, with gradients in f32.
TEST(Fp16State, TrainsWithStatesAsInputs) {
  const TestModel m = random_model(26);
  for (const char* wkv : {"fp16-dithered", "fp16-plain"})
    for (const auto how : {GradCheckpointing::kNone, GradCheckpointing::kBlock}) {
      const auto want = train_step(m, wkv, how), got = train_step(m, wkv, how, true);
      EXPECT_EQ(got.loss, want.loss);
      EXPECT_EQ(got.grads, want.grads);
    }
}

}  // namespace
}  // namespace rwkv
