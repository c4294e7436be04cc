// A model whose WKV state is binary16, on a GPU: states that are cloned, stored and moved, the
// engine on the CPU, and the loss under several variants. Skipped without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "inference/compare.h"
#include "kernels/core/memory.h"
#include "tests/support/device.h"
#include "tests/unit/inference_model.h"

namespace rwkv {
namespace {

using test::random_ids;
using test::random_model;
using test::TestModel;

constexpr int64_t kVocab = 300;

std::vector<std::vector<std::byte>> fetch(Engine& engine, const RnnState& s) {
  std::vector<std::vector<std::byte>> all;
  for (size_t i = 0; i < s.specs().size(); ++i) {
    std::vector<std::byte> bytes(s[i].bytes());
    copy(engine.context(), TensorView(bytes.data(), s[i].spec), s[i]);
    all.push_back(std::move(bytes));
  }
  engine.context().synchronize("test");
  return all;
}

void send(Engine& engine, RnnState& s, std::vector<std::vector<std::byte>>& bytes) {
  for (size_t i = 0; i < s.specs().size(); ++i)
    copy(engine.context(), s[i], TensorView(bytes[i].data(), s[i].spec));
  engine.context().synchronize("test");
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

class CudaFp16State : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (!test::have_gpu()) GTEST_SKIP() << "no GPU";
  }
  EngineOptions options(const std::string& wkv) const {
    return {.wkv = wkv, .prefill_tokens = 16, .device = Device::kCuda, .dtype = GetParam()};
  }
};

TEST_P(CudaFp16State, ResumedAndMovedSequencesGiveTheSameBits) {
  const TestModel m = random_model(22);
  const auto ids = random_ids(22, 60, kVocab);
  const std::span<const int32_t> all(ids);
  Engine cpu(*m.model, *m.weights, {.wkv = "fp16-dithered", .prefill_tokens = 16});
  RnnState cpu_state = cpu.new_state();
  for (const char* wkv : {"fp16-dithered", "fp16-plain"}) {
    SCOPED_TRACE(wkv);
    const bool dithered = wkv == std::string("fp16-dithered");
    Engine engine(*m.model, *m.weights, options(wkv));
    RnnState state = engine.new_state();
    engine.prefill(state, all.first(41));
    for (int t = 41; t < 44; ++t) engine.decode(state, all.subspan(static_cast<size_t>(t), 1));
    auto stored = fetch(engine, state);
    int32_t counter = 0;
    std::memcpy(&counter, stored.back().data(), 4);
    EXPECT_EQ(counter, 44);
    EXPECT_EQ(state[1].spec.dtype, DType::kF16);

    RnnState fork = state.clone();
    const auto want = values(engine.prefill(state, all.subspan(44)));
    const auto end = fetch(engine, state);
    EXPECT_EQ(values(engine.prefill(fork, all.subspan(44))), want);
    EXPECT_EQ(fetch(engine, fork), end);
    Engine other(*m.model, *m.weights, options(wkv));
    RnnState moved = other.new_state();
    send(other, moved, stored);
    EXPECT_EQ(values(other.prefill(moved, all.subspan(44))), want);
    EXPECT_EQ(fetch(other, moved), end);
    // Without its counter the sequence meets other dither, which plain rounding does not have.
    stored.back().assign(stored.back().size(), std::byte{0});
    send(other, moved, stored);
    EXPECT_EQ(values(other.prefill(moved, all.subspan(44))) == want, !dithered);

    if (!dithered) continue;
    cpu.prefill(cpu_state, all.first(44));
    const double error = distance(want, values(cpu.prefill(cpu_state, all.subspan(44))));
    EXPECT_LE(error, GetParam() == DType::kF32 ? 5e-3 : 6e-2);
    std::printf("logits differ from the CPU's by %.1e\n", error);
  }
}

// Values so large that rows of the states need exponents, without the bonus that would hide them.
TEST_P(CudaFp16State, ExponentsTravelWithTheState) {
  const TestModel m = random_model(27);
  for (const ParamSpec& p : m.model->params().specs())
    for (float& x : m.tensor(p.name))
      x *= p.name.ends_with("att.value.weight") ? 16384 : p.name.ends_with("att.r_k") ? 0 : 1;
  const auto ids = random_ids(27, 90, kVocab);
  const std::span<const int32_t> all(ids);
  Engine engine(*m.model, *m.weights, options("fp16-dithered"));
  RnnState state = engine.new_state();
  engine.prefill(state, all.first(41));
  for (int t = 41; t < 60; ++t) engine.decode(state, all.subspan(static_cast<size_t>(t), 1));
  auto stored = fetch(engine, state);
  ASSERT_EQ(state.specs()[2].name, "blocks.0.att.wkv_exponent");
  EXPECT_GE(static_cast<int>(*std::ranges::max_element(stored[2])), 8);
  RnnState fork = state.clone();
  const auto want = values(engine.prefill(state, all.subspan(60)));
  const auto end = fetch(engine, state);
  EXPECT_EQ(values(engine.prefill(fork, all.subspan(60))), want);
  EXPECT_EQ(fetch(engine, fork), end);
  Engine other(*m.model, *m.weights, options("fp16-dithered"));
  RnnState moved = other.new_state();
  send(other, moved, stored);
  EXPECT_EQ(values(other.prefill(moved, all.subspan(60))), want);
  EXPECT_EQ(fetch(other, moved), end);
  Engine cpu(*m.model, *m.weights, {.wkv = "fp16-dithered"});
  RnnState cpu_state = cpu.new_state();
  cpu.prefill(cpu_state, all.first(60));
  const double error = distance(want, values(cpu.prefill(cpu_state, all.subspan(60))));
  EXPECT_LE(error, GetParam() == DType::kF32 ? 5e-3 : 6e-2);
  std::printf("logits differ from the CPU's by %.1e\n", error);
}

TEST_P(CudaFp16State, LossesUnderSeveralVariants) {
  const TestModel m = random_model(31);
  const auto ids = random_ids(31, 400, kVocab);
  const auto read = [&](int64_t begin, std::span<int32_t> out) {
    std::copy_n(ids.begin() + begin, out.size(), out.begin());
  };
  const WkvComparison got = compare_wkv(*m.model, *m.weights, options("auto"), 400, read,
                                        {.contexts = {33, 99}, .batch_tokens = 200});
  EXPECT_EQ(got.tokens, 396);
  for (const WkvComparison::Row& row : got.rows)
    for (size_t v = 1; v < 3; ++v) {
      EXPECT_NE(row.difference[v], 0);
      EXPECT_LE(std::fabs(row.difference[v]), 1e-2);
    }
}

INSTANTIATE_TEST_SUITE_P(Type, CudaFp16State, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& type) { return std::string(dtype_name(type.param)); });

}  // namespace
}  // namespace rwkv
