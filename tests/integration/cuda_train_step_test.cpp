// The training step on a GPU: what goes to the device and back, steps that are left out, what a
// step allocates and waits for, and the memory it takes. Skipped without a GPU.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>

#include "kernels/core/backend.h"
#include "kernels/core/bf16.h"
#include "kernels/core/gemm.h"
#include "kernels/core/memory.h"
#include "kernels/core/rng.h"
#include "kernels/ops/feed_forward.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "trainer/device_params.h"
#include "trainer/memory.h"
#include "trainer/train_step.h"

namespace rwkv {
namespace {

ModelConfig small_model() {
  ModelConfig c;
  c.n_layer = 2;
  c.n_embd = 128;
  c.vocab_size = 301;
  c.finish();
  return c;
}

TrainStepOptions options(DType dtype) {
  TrainStepOptions o;
  o.batch = 2;
  o.tokens = 70;
  o.device = Device::kCuda;
  o.dtype = dtype;
  o.measure_gemms = false;  // takes time, and two steps could choose differently
  o.optimizer.weight_decay = 0.1;
  return o;
}

/// Batch number n of random ids.
void fill(std::span<int32_t> tokens, std::span<int32_t> targets, int64_t vocab, uint64_t n) {
  const Rng rng(11, hash_name("batch"), n);
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(rng.below(2 * i, static_cast<uint64_t>(vocab)));
    targets[i] = static_cast<int32_t>(rng.below(2 * i + 1, static_cast<uint64_t>(vocab)));
  }
}

/// Ready to run. `like`: takes its algorithms for matrix products from there.
std::unique_ptr<TrainStep> started(const ModelConfig& model, const TrainStepOptions& o,
                                   TrainStep* like = nullptr) {
  auto step = std::make_unique<TrainStep>(model, o);
  step->allocate();
  if (like != nullptr) {
    EXPECT_GT(import_gemm_algorithms(step->context(), export_gemm_algorithms(like->context())), 0u);
  }
  step->model().init_params(step->values(), {.seed = 3});
  // Behind the initial zeros most gradients are zero: give every tensor some.
  const Rng rng(5, hash_name("noise"));
  uint64_t draw = 0;
  for (const TensorView& v : step->values().views())
    for (int64_t i = 0; i < v.numel(); ++i, ++draw)
      if (v.f32()[i] == 0) v.f32()[i] = 0.01f * static_cast<float>(rng.normal(draw));
  step->upload();
  step->prepare();
  return step;
}

TrainStep::Result one_step(TrainStep& step, uint64_t n) {
  for (int64_t m = 0; m < step.options().micro_batches; ++m) {
    fill(step.tokens(), step.targets(), step.model().config().vocab_size,
         10 * n + static_cast<uint64_t>(m));
    step.accumulate(m);
  }
  return step.finish(1e-3);
}

/// Parameters and moments as they are on the device now.
struct Held {
  std::vector<float> values, m, v;
  bool operator==(const Held&) const = default;
};
Held held(TrainStep& step) {
  step.download();
  const auto all = [](ParamStore& s) {
    return std::vector<float>(s.flat().begin(), s.flat().end());
  };
  return {all(step.values()), all(step.optimizer().m()), all(step.optimizer().v())};
}

class CudaStep : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }
};
INSTANTIATE_TEST_SUITE_P(Types, CudaStep, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& i) { return std::string(dtype_name(i.param)); });

TEST_P(CudaStep, UploadAndDownloadKeepEveryBit) {
  const auto model = make_model(small_model());
  const ParamRegistry& params = model->params();
  ParamStore values(Device::kCpu, params, "p"), m(Device::kCpu, params, "m"),
      v(Device::kCpu, params, "v");
  const float special[] = {-0.0f,
                           1e-40f,
                           3.4e38f,
                           std::numeric_limits<float>::infinity(),
                           1.00390625f,  // halfway between two bf16 numbers, rounds down to even
                           1.01171875f,  // halfway, rounds up to even
                           -1.01171875f,
                           1.003906369f,  // just above halfway
                           std::bit_cast<float>(0x7f7fffffu)};
  for (size_t i = 0; i < params.size(); ++i) {
    const auto id = static_cast<ParamId>(i);
    const Rng rng(1, hash_name("round trip"), i);
    for (int64_t k = 0; k < values[id].numel(); ++k) {
      const auto u = static_cast<uint64_t>(k);
      values[id].f32()[k] =
          u < std::size(special) ? special[u] : static_cast<float>(rng.normal(3 * u));
      m[id].f32()[k] = static_cast<float>(rng.normal(3 * u + 1));
      v[id].f32()[k] = static_cast<float>(std::fabs(rng.normal(3 * u + 2)));
    }
  }
  Context ctx(Device::kCuda);
  DeviceParams device(ctx, params, GetParam(), {}, {});
  device.upload(ctx, values, m, v);
  ParamStore back[3];
  for (ParamStore& s : back) s = ParamStore(Device::kCpu, params, "back");
  device.download(ctx, back[0], back[1], back[2]);
  const auto expect_equal = [](const ParamStore& got, const ParamStore& want, const char* what) {
    EXPECT_TRUE(test::bit_equal(std::span<const float>(got.flat()),
                                std::span<const float>(want.flat()), what));
  };
  expect_equal(back[0], values, "parameters");
  expect_equal(back[1], m, "first moments");
  expect_equal(back[2], v, "second moments");
  // What the kernels read: the same, or rounded to nearest even.
  size_t halves = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const TensorView on_device = device.values()[i], host = values[static_cast<ParamId>(i)];
    const auto n = static_cast<size_t>(host.numel());
    if (on_device.spec.dtype == DType::kF32) {
      std::vector<float> got(n);
      copy(ctx, TensorView(got.data(), on_device.spec), on_device);
      EXPECT_TRUE(test::bit_equal(std::span<const float>(got),
                                  std::span<const float>(host.f32(), n), params.specs()[i].name));
    } else {
      ++halves;
      std::vector<BF16> got(n);
      copy(ctx, TensorView(got.data(), on_device.spec), on_device);
      for (size_t k = 0; k < n; ++k)
        ASSERT_EQ(got[k].bits, to_bf16(host.f32()[k]).bits) << params.specs()[i].name << " " << k;
    }
  }
  EXPECT_EQ(halves > 0, GetParam() == DType::kBF16);
}

TEST_P(CudaStep, BadIdsLeaveTheUpdateOut) {
  const auto a = started(small_model(), options(GetParam()));
  const auto b = started(small_model(), options(GetParam()));
  for (uint64_t n = 0; n < 2; ++n) {
    EXPECT_TRUE(one_step(*a, n).finite);
    EXPECT_TRUE(one_step(*b, n).finite);
  }
  const Held before = held(*a);
  for (const int32_t bad : {-1, 301, std::numeric_limits<int32_t>::max()})
    for (const bool target : {false, true}) {
      fill(a->tokens(), a->targets(), 301, 77);
      (target ? a->targets() : a->tokens())[9] = bad;
      a->accumulate(0);
      const auto r = a->finish(1e-3);
      EXPECT_FALSE(r.finite);
      EXPECT_TRUE(std::isnan(r.loss));
      EXPECT_TRUE(std::isnan(r.grad_norm));
      EXPECT_EQ(a->optimizer().updates(), 2);
      EXPECT_TRUE(held(*a) == before) << "an update was made with id " << bad;
    }
  // And it leaves nothing behind: the next step is that of a run without the bad ones.
  const auto next = one_step(*a, 2), want = one_step(*b, 2);
  EXPECT_EQ(next.loss, want.loss);
  EXPECT_EQ(next.grad_norm, want.grad_norm);
  EXPECT_TRUE(held(*a) == held(*b));
  EXPECT_FALSE(held(*a) == before);
}

TEST_P(CudaStep, BrokenWeightsLeaveTheUpdateOut) {
  const auto step = started(small_model(), options(GetParam()));
  one_step(*step, 0);
  const Held good = held(*step);
  const auto restore = [&] {
    std::ranges::copy(good.values, step->values().flat().begin());
    std::ranges::copy(good.m, step->optimizer().m().flat().begin());
    std::ranges::copy(good.v, step->optimizer().v().flat().begin());
    step->optimizer().set_updates(1);
    step->upload();
  };
  for (const char* name : {"head.weight", "blocks.1.att.w0", "blocks.0.ffn.key.weight"})
    for (const float poison :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      SCOPED_TRACE(str(name, " ", poison));
      restore();
      const auto id = step->model().params().find(name);
      ASSERT_TRUE(id.has_value());
      step->values()[*id].f32()[3] = poison;
      step->upload();
      const Held before = held(*step);
      EXPECT_FALSE(one_step(*step, 1).finite);
      EXPECT_EQ(step->optimizer().updates(), 1);
      const Held after = held(*step);
      EXPECT_TRUE(test::bit_equal(std::span<const float>(after.values),
                                  std::span<const float>(before.values), "parameters"));
      EXPECT_EQ(after.m, before.m);
      EXPECT_EQ(after.v, before.v);
      // With the good weights back it goes on.
      restore();
      EXPECT_TRUE(one_step(*step, 1).finite);
    }
}

TEST_P(CudaStep, StepsAllocateNothingAndWaitForNumbersOnly) {
  TrainStepOptions o = options(GetParam());
  o.micro_batches = 3;
  o.eval = true;
  const auto step = started(small_model(), o);
  const auto whole = [&](uint64_t n) {
    one_step(*step, n);
    fill(step->eval_tokens(), step->eval_targets(), 301, n);
    step->evaluate();
  };
  for (uint64_t n = 0; n < 4; ++n) whole(n);
  const uint64_t arenas = arena_allocation_count();
  const uint64_t waits = step->context().synchronizations();
  const size_t free = backend::cuda_memory().free;
  for (uint64_t n = 4; n < 10; ++n) whole(n);
  EXPECT_EQ(arena_allocation_count(), arenas);
  EXPECT_EQ(backend::cuda_memory().free, free);
  // For loss and norm of the step together, and for the validation loss.
  const uint64_t per_step = (step->context().synchronizations() - waits) / 6;
  std::printf("%llu waits per step of 3 micro-batches with one validation batch\n",
              static_cast<unsigned long long>(per_step));
  EXPECT_LE(per_step, 2u);
  EXPECT_GE(per_step, 1u);
}

TEST_P(CudaStep, TakesNoMoreMemoryThanItSays) {
  ModelConfig c;
  c.n_layer = 4;
  c.n_embd = 768;
  c.vocab_size = 8192;
  c.finish();
  TrainStepOptions o = options(GetParam());
  o.batch = 8;
  o.tokens = 512;
  o.eval = true;
  o.measure_gemms = true;
  const size_t before = backend::cuda_memory().free;
  const auto step = started(c, o);
  for (uint64_t n = 0; n < 3; ++n) one_step(*step, n);
  fill(step->eval_tokens(), step->eval_targets(), 8192, 0);
  step->evaluate();
  const size_t taken = before - backend::cuda_memory().free;
  const size_t said = total_bytes(step->memory()), named = said - kDeviceOverheadBytes;
  std::printf("said %s, taken %s: %.1f MiB besides the named buffers\n", format_bytes(said).c_str(),
              format_bytes(taken).c_str(),
              (static_cast<double>(taken) - static_cast<double>(named)) / (1 << 20));
  EXPECT_LE(taken, said);
  EXPECT_GE(taken, named);
}

/// Every part of a step at its smallest, launch by launch: what tools/gpu/sanitize.sh looks at.
TEST_P(CudaStep, SmallStepsLearn) {
  TrainStepOptions o = options(GetParam());
  o.batch = 1;
  o.tokens = 70;
  o.micro_batches = 2;
  o.grad_checkpointing = GradCheckpointing::kBlock;
  o.loss_chunk_tokens = 30;
  o.eval = true;
  o.measure_gemms = o.launch_graphs = false;
  const auto step = started(small_model(), o);
  const double first = one_step(*step, 0).loss, second = one_step(*step, 0).loss;
  EXPECT_LT(second, first);
  fill(step->eval_tokens(), step->eval_targets(), 301, 0);
  EXPECT_LT(step->evaluate(), second);  // on the first of the two micro-batches
}

/// Wide enough for cuBLASLt's large tiles, with products that it might split along k.
TEST_P(CudaStep, WideModelsGiveTheSameBitsAgain) {
  ModelConfig c;
  c.n_layer = 2;
  c.n_embd = 768;
  c.vocab_size = 5003;
  c.finish();
  TrainStepOptions o = options(GetParam());
  o.batch = 4;
  o.tokens = 500;
  o.measure_gemms = true;
  const auto run = [&](TrainStep& step) {
    std::vector<double> numbers;
    for (uint64_t n = 0; n < 3; ++n) {
      const auto r = one_step(step, n);
      numbers.push_back(r.loss);
      numbers.push_back(r.grad_norm);
    }
    return std::make_pair(numbers, held(step));
  };
  const auto a = started(c, o), b = started(c, o, a.get());
  const auto first = run(*a), again = run(*b);
  EXPECT_EQ(first.first, again.first);
  EXPECT_TRUE(first.second == again.second);
}

bool has_op(const TrainStep& step, const Op& op) {
  return std::ranges::any_of(step.plan().steps(), [&](const PlanStep& s) {
    return step.graph().nodes()[static_cast<size_t>(s.node)].op == &op;
  });
}

/// Recorded launches and single ones, lanes, recomputation; products as cuBLASLt proposes, and as
/// measured. `o`: sizes. drift: how far other algorithms of products may go in a few steps.
void expect_same_bits(const ModelConfig& model, TrainStepOptions o, double drift = 1) {
  const DType dtype = o.dtype;
  for (const auto checkpointing : {GradCheckpointing::kNone, GradCheckpointing::kBlock}) {
    o.measure_gemms = false;
    o.micro_batches = 2;
    o.eval = true;
    o.grad_checkpointing = checkpointing;
    std::vector<std::unique_ptr<TrainStep>> steps;
    for (const int lanes : {1, 4, 3})
      for (const bool graphs : {false, true}) {
        o.lanes = lanes;
        o.launch_graphs = graphs;
        steps.push_back(started(model, o));
      }
    o.measure_gemms = true;
    const auto measured = started(model, o);
    EXPECT_EQ(has_op(*measured, kFeedForward), dtype == DType::kBF16 && o.batch * o.tokens >= 4096);
    for (uint64_t n = 0; n < 4; ++n) {
      const auto want = one_step(*steps[0], n), other = one_step(*measured, n);
      fill(steps[0]->eval_tokens(), steps[0]->eval_targets(), 301, 50 + n);
      const double valid = steps[0]->evaluate();
      for (const auto& step : steps) {
        if (step == steps[0]) continue;
        SCOPED_TRACE(str("step ", n, ", ", step->options().lanes, " lanes, graphs ",
                         step->options().launch_graphs));
        const auto got = one_step(*step, n);
        EXPECT_EQ(got.loss, want.loss);
        EXPECT_EQ(got.grad_norm, want.grad_norm);
        fill(step->eval_tokens(), step->eval_targets(), 301, 50 + n);
        EXPECT_EQ(step->evaluate(), valid);
      }
      const double tolerance = (n == 0 ? 1 : drift) * (dtype == DType::kF32 ? 1e-5 : 1e-2);
      EXPECT_LE(std::fabs(want.loss - other.loss), tolerance);
      EXPECT_LE(std::fabs(want.grad_norm / other.grad_norm - 1), 10 * tolerance);
    }
    const Held want = held(*steps[0]);
    for (const auto& step : steps) EXPECT_TRUE(held(*step) == want) << step->options().lanes;
  }
}

TEST_P(CudaStep, GraphsAndLanesDoNotChangeBits) {
  TrainStepOptions o = options(GetParam());
  o.tokens = 300;
  expect_same_bits(small_model(), o);
}

/// With the channel mix as one op, which takes 4096 tokens in bf16; several tiles for each cluster
/// of blocks, and rings of loads that go around.
TEST_P(CudaStep, GraphsAndLanesDoNotChangeBitsOfFusedChannelMixes) {
  if (GetParam() != DType::kBF16) GTEST_SKIP() << "one op in bf16 only";
  ModelConfig c = small_model();
  c.n_embd = 384;
  c.dim_ffn = 0;
  c.rank_w = c.rank_a = c.rank_v = c.rank_g = 0;
  c.finish();
  TrainStepOptions o = options(GetParam());
  o.batch = 4;
  o.tokens = 1030;
  expect_same_bits(c, o, 10);
}

/// RWKV-4 with so many tokens that its scan passes on sums from group to group of tiles, in both
/// directions.
TEST_P(CudaStep, GraphsAndLanesDoNotChangeBitsOfLongRwkv4) {
  ModelConfig c;
  c.architecture = "rwkv4";
  c.n_layer = 2;
  c.n_embd = 96;
  c.vocab_size = 301;
  c.finish();
  TrainStepOptions o = options(GetParam());
  o.batch = 1;
  o.tokens = 4500;
  for (const char* wkv : {"scan", "cumsum"}) {
    SCOPED_TRACE(wkv);
    o.wkv = wkv;
    expect_same_bits(c, o, 10);
  }
}

}  // namespace
}  // namespace rwkv
