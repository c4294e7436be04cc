// Whole training runs on a GPU: equal runs write equal files, resumed ones too, and checkpoints
// move between CPU and GPU. Skipped without a GPU.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "tests/support/device.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"
#include "trainer/trainer.h"

namespace rwkv {
namespace {

using test::file_bytes;
using Settings = std::vector<std::string>;

class CudaRun : public testing::Test {
 protected:
  CudaRun() : dir_("cuda_train_run") {
    test::write_token_file(dir_ / "train.h5", 40000, 1);
    test::write_token_file(dir_ / "valid.h5", 5000, 2);
    use_cache(kept_choices());
    gpu_.quiet = cpu_.quiet = true;
    gpu_.device = Device::kCuda;
  }
  ~CudaRun() override { unsetenv("RWKV_CACHE_DIR"); }
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }
  /// Where choices of matrix product algorithms are kept between runs.
  static void use_cache(const std::string& folder) { setenv("RWKV_CACHE_DIR", folder.c_str(), 1); }
  /// Empty when this program starts: what earlier ones measured must not matter.
  static std::string kept_choices() {
    static const test::ScratchDir dir("cuda_gemm_choices");
    return dir.str();
  }

  /// Long enough for WKV segments; a vocabulary that no vector width divides.
  TrainConfig config(const std::string& run, const Settings& settings = {}) const {
    Settings all = {"model.n_embd=128",   "model.head_size=64",
                    "train.context=288",  "train.steps=20",
                    "eval.every=10",      "eval.batches=2",
                    "checkpoint.every=5", "data.valid=\"" + (dir_ / "valid.h5") + "\""};
    all.insert(all.end(), settings.begin(), settings.end());
    return test::small_config(dir_ / "train.h5", dir_ / run, all);
  }
  std::string final_bytes(const std::string& run, int64_t step = 20) const {
    return file_bytes(checkpoint_path(dir_ / run, step));
  }
  std::vector<double> losses_of(const std::string& run) const {
    std::vector<double> out;
    std::istringstream in(file_bytes(dir_ / run + "/log.jsonl"));
    for (std::string line; std::getline(in, line);) {
      const auto j = nlohmann::json::parse(line);
      if (j["type"] == "step") out.push_back(j["loss"].is_null() ? NAN : j["loss"].get<double>());
    }
    return out;
  }
  std::vector<float> weights_of(const TrainConfig& c, int64_t step) const {
    const auto model = make_model(c.model);
    ParamStore values(Device::kCpu, model->params(), "p");
    read_initial_weights(checkpoint_path(c.run_dir(), step), c.model, model->params(), values);
    return {values.flat().begin(), values.flat().end()};
  }
  static double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
    if (a.size() != b.size()) return NAN;
    double worst = 0;
    for (size_t i = 0; i < a.size(); ++i)
      if (!(std::fabs(a[i] - b[i]) <= worst)) worst = std::fabs(a[i] - b[i]);
    return worst;
  }

  test::ScratchDir dir_;
  TrainerOptions gpu_, cpu_;
};

/// Stands for a SIGKILL at a chosen moment.
struct Killed {};

/// Every type with every way of cutting a step up.
struct Way {
  const char* name;
  Settings settings;
};
const std::vector<Way>& ways() {
  static const std::vector<Way> list = [] {
    std::vector<Way> w;
    for (const char* dtype : {"f32", "bf16"}) {
      const std::string d = std::string("kernels.dtype=") + dtype;
      w.push_back({dtype[0] == 'f' ? "f32" : "bf16", {d}});
      w.push_back({dtype[0] == 'f' ? "f32_block" : "bf16_block",
                   {d, "train.grad_checkpointing=block", "train.loss_chunk_tokens=100"}});
      w.push_back({dtype[0] == 'f' ? "f32_micro" : "bf16_micro", {d, "train.micro_batches=3"}});
    }
    w.push_back({"bf16_fp16_dithered", {"kernels.dtype=bf16", "kernels.wkv7=fp16-dithered"}});
    return w;
  }();
  return list;
}
class CudaWays : public CudaRun, public testing::WithParamInterface<Way> {};
INSTANTIATE_TEST_SUITE_P(All, CudaWays, testing::ValuesIn(ways()),
                         [](const auto& i) { return std::string(i.param.name); });

TEST_P(CudaWays, RerunsAndResumedRunsAreByteEqual) {
  const Settings& s = GetParam().settings;
  run_training(config("a", s), gpu_);
  run_training(config("b", s), gpu_);
  EXPECT_EQ(losses_of("a"), losses_of("b"));
  EXPECT_EQ(final_bytes("a"), final_bytes("b"));
  // Dies in step 13, two steps after a checkpoint.
  TrainerOptions dies = gpu_;
  dies.on_gradients = [](int64_t step, ParamStore&) {
    if (step == 13) throw Killed{};
  };
  EXPECT_THROW(run_training(config("broken", s), dies), Killed);
  EXPECT_EQ(list_checkpoints(dir_ / "broken").back().step, 10);
  // The choices of matrix product algorithms come from the checkpoint: no cache is there.
  use_cache(dir_ / "empty");
  TrainerOptions resume = gpu_;
  resume.resume = true;
  run_training(config("broken", s), resume);
  EXPECT_EQ(losses_of("a"), losses_of("broken"));
  EXPECT_EQ(final_bytes("a"), final_bytes("broken"));
  const auto losses = losses_of("a");
  ASSERT_EQ(losses.size(), 20u);
  EXPECT_LT(losses.back(), losses.front() - 1) << "it does not learn";
}

TEST_F(CudaRun, A16BitStateTrainsLikeAnF32State) {
  for (const char* wkv : {"serial", "fp16-dithered", "fp16-plain"})
    run_training(config(wkv, {"kernels.dtype=f32", std::string("kernels.wkv7=") + wkv}), gpu_);
  const auto want = losses_of("serial");
  for (const char* wkv : {"fp16-dithered", "fp16-plain"}) {
    const double worst = largest_difference(losses_of(wkv), want);
    std::printf("%s: losses of 20 steps differ from an f32 state's by at most %.1e\n", wkv, worst);
    EXPECT_GT(worst, 0);
    // Without dither, slow decays stand still (seen: 1.8e-2, with it 8e-4).
    EXPECT_LE(worst, std::string(wkv) == "fp16-plain" ? 0.1 : 5e-3);
  }
}

TEST_F(CudaRun, RecomputationDoesNotChangeBits) {
  for (const char* dtype : {"f32", "bf16"}) {
    const std::string d = std::string("kernels.dtype=") + dtype;
    const std::string one = std::string("none_") + dtype, other = std::string("block_") + dtype;
    const std::string steps = "train.steps=10";
    run_training(config(one, {d, steps}), gpu_);
    run_training(config(other, {d, steps, "train.grad_checkpointing=block"}), gpu_);
    EXPECT_EQ(losses_of(one), losses_of(other)) << dtype;
    EXPECT_TRUE(weights_of(config(one), 10) == weights_of(config(other), 10)) << dtype;
  }
}

TEST_F(CudaRun, LanesAndLaunchGraphsDoNotChangeBits) {
  for (const char* dtype : {"f32", "bf16"}) {
    const auto run = [&](const std::string& name, Settings s) {
      s.insert(s.end(),
               {std::string("kernels.dtype=") + dtype, "train.micro_batches=2", "train.steps=10"});
      const TrainConfig c = config(name + dtype, s);
      run_training(c, gpu_);
      return std::make_pair(losses_of(name + dtype), weights_of(c, 10));
    };
    const auto want = run("one", {"kernels.lanes=1"});
    EXPECT_EQ(want.first.size(), 10u);
    EXPECT_TRUE(run("four", {"kernels.lanes=4"}) == want) << dtype;
    EXPECT_TRUE(run("plain", {"kernels.lanes=1", "kernels.launch_graphs=false"}) == want) << dtype;
    EXPECT_TRUE(run("plain4", {"kernels.lanes=4", "kernels.launch_graphs=false"}) == want) << dtype;
  }
}

TEST_F(CudaRun, MicroBatchesMatchOneBatch) {
  // Few steps: afterwards rounding has taken the runs apart, Adam being what it is.
  const Settings base = {"kernels.dtype=f32", "train.steps=5"};
  Settings one = base, three = base;
  one.push_back("train.batch=6");
  three.insert(three.end(), {"train.batch=2", "train.micro_batches=3"});
  run_training(config("one", one), gpu_);
  run_training(config("three", three), gpu_);
  EXPECT_LE(largest_difference(losses_of("one"), losses_of("three")), 1e-4);
}

TEST_F(CudaRun, CheckpointsMoveBetweenCpuAndGpu) {
  const Settings f32 = {"kernels.dtype=f32", "train.context=96"};
  run_training(config("cpu", f32), cpu_);
  run_training(config("gpu", f32), gpu_);
  const auto cpu = losses_of("cpu"), gpu = losses_of("gpu");
  ASSERT_EQ(cpu.size(), 20u);
  TrainerOptions resume_gpu = gpu_, resume_cpu = cpu_;
  resume_gpu.resume = resume_cpu.resume = true;
  // The schedule must be that of the whole run, so the first half is cut off, not shortened.
  const auto dies_in_twelve = [](int64_t step, ParamStore&) {
    if (step == 12) throw Killed{};
  };
  TrainerOptions half_cpu = cpu_, half_gpu = gpu_;
  half_cpu.on_gradients = half_gpu.on_gradients = dies_in_twelve;
  EXPECT_THROW(run_training(config("cpu_gpu", f32), half_cpu), Killed);
  run_training(config("cpu_gpu", f32), resume_gpu);
  EXPECT_THROW(run_training(config("gpu_cpu", f32), half_gpu), Killed);
  run_training(config("gpu_cpu", f32), resume_cpu);
  const auto cpu_gpu = losses_of("cpu_gpu"), gpu_cpu = losses_of("gpu_cpu");
  ASSERT_EQ(cpu_gpu.size(), 20u);
  ASSERT_EQ(gpu_cpu.size(), 20u);
  std::printf("f32 losses: cpu against gpu %.1e, cpu then gpu %.1e, gpu then cpu %.1e\n",
              largest_difference(cpu, gpu), largest_difference(cpu, cpu_gpu),
              largest_difference(gpu, gpu_cpu));
  // The first step after the move sees the very weights and moments of the other device.
  EXPECT_LE(std::fabs(cpu_gpu[10] - cpu[10]), 5e-6);
  EXPECT_LE(std::fabs(gpu_cpu[10] - gpu[10]), 5e-6);
  EXPECT_LE(std::fabs(cpu_gpu[11] - cpu[11]), 2e-5);
  EXPECT_LE(std::fabs(gpu_cpu[11] - gpu[11]), 2e-5);
  // Later on rounding shows more: Adam makes full steps where gradients are next to zero.
  EXPECT_LE(largest_difference(cpu, gpu), 1e-4);
  EXPECT_LE(largest_difference(cpu, cpu_gpu), 1e-4);
  EXPECT_LE(largest_difference(gpu, gpu_cpu), 1e-4);
}

TEST_F(CudaRun, Bf16CheckpointsContinueOnTheCpu) {
  const Settings bf16 = {"kernels.dtype=bf16"}, f32 = {"kernels.dtype=f32"};
  run_training(config("gpu", bf16), gpu_);
  TrainerOptions half = gpu_, resume = cpu_;
  half.on_gradients = [](int64_t step, ParamStore&) {
    if (step == 12) throw Killed{};
  };
  resume.resume = true;
  EXPECT_THROW(run_training(config("moved", bf16), half), Killed);
  run_training(config("moved", f32), resume);
  const auto gpu = losses_of("gpu"), moved = losses_of("moved");
  ASSERT_EQ(moved.size(), 20u);
  std::printf("bf16 on the GPU, then f32 on the CPU: losses differ by %.1e\n",
              largest_difference(gpu, moved));
  EXPECT_LE(largest_difference(gpu, moved), 1e-2);
}

TEST_F(CudaRun, RefusesWhatDoesNotFitBeforeAllocating) {
  const size_t before = backend::cuda_memory().free;
  EXPECT_THROW(run_training(config("a", {"limits.memory_mib=1"}), gpu_), ConfigError);
  try {
    run_training(config("a", {"train.context=8192", "train.batch=32768"}), gpu_);
    FAIL() << "it fitted";
  } catch (const DeviceError& e) {
    EXPECT_EQ(e.exit_code(), 4);
    const std::string what = e.what();
    for (const char* part : {"on the GPU the run needs", "activations", "are free", "train.batch",
                             "train.grad_checkpointing=block", "train.micro_batches"})
      EXPECT_NE(what.find(part), std::string::npos) << what;
  }
  EXPECT_FALSE(std::filesystem::exists(dir_ / "a"));
  EXPECT_EQ(backend::cuda_memory().free, before);
}

}  // namespace
}  // namespace rwkv
