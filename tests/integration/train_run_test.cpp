// Whole runs in this process: learning, resuming, determinism, non-finite numbers, folders.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "data/sampler.h"
#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"
#include "trainer/data_source.h"
#include "trainer/dry_run.h"
#include "trainer/lr_range.h"
#include "trainer/memory.h"
#include "trainer/smoke.h"
#include "trainer/trainer.h"

namespace rwkv {
namespace {

using test::file_bytes;
using test::small_config;

class TrainRun : public testing::Test {
 protected:
  TrainRun() : dir_("train_run") {
    test::write_token_file(dir_ / "train.h5", 20000, 1);
    test::write_token_file(dir_ / "valid.h5", 3000, 2);
    quiet_.quiet = true;
  }
  TrainConfig config(const std::string& run, std::vector<std::string> settings = {}) const {
    return small_config(dir_ / "train.h5", dir_ / run, std::move(settings));
  }
  std::string final_bytes(const std::string& run, int64_t step = 40) const {
    return file_bytes(checkpoint_path(dir_ / run, step));
  }
  std::vector<nlohmann::json> log_of(const std::string& run) const {
    std::vector<nlohmann::json> out;
    std::istringstream in(file_bytes(dir_ / run + "/log.jsonl"));
    for (std::string line; std::getline(in, line);) out.push_back(nlohmann::json::parse(line));
    return out;
  }
  /// Losses by step as the log has them, with bit-exact values.
  std::vector<double> losses_of(const std::string& run) const {
    std::vector<double> out;
    for (const auto& j : log_of(run))
      if (j["type"] == "step") {
        EXPECT_EQ(j["step"], out.size() + 1);
        out.push_back(j["loss"].is_null() ? -1 : j["loss"].get<double>());
      }
    return out;
  }
  /// Weights after `steps` steps, loaded from the run's checkpoint.
  std::vector<float> weights_of(const TrainConfig& c, int64_t step) const {
    const auto model = make_model(c.model);
    ParamStore values(Device::kCpu, model->params(), "p");
    read_initial_weights(checkpoint_path(c.run_dir(), step), c.model, model->params(), values);
    return {values.flat().begin(), values.flat().end()};
  }

  test::ScratchDir dir_;
  TrainerOptions quiet_;
};

/// Stands for a SIGKILL at a chosen moment: nothing of the run's own ending happens.
struct Killed {};

TEST_F(TrainRun, LearnsAndLogs) {
  const TrainConfig c =
      config("a", {"train.batch=4", "eval.every=20", "eval.batches=4", "optimizer.lr=5e-3",
                   "data.valid=\"" + (dir_ / "valid.h5") + "\""});
  const RunResult r = run_training(c, quiet_);
  EXPECT_EQ(r.steps, 40);
  EXPECT_EQ(r.stopped_by, "");
  EXPECT_EQ(r.last_checkpoint, checkpoint_path(dir_ / "a", 40));
  const auto losses = losses_of("a");
  ASSERT_EQ(losses.size(), 40u);
  EXPECT_NEAR(losses.front(), std::log(257.0), 0.3);
  EXPECT_LT(losses.back(), losses.front() - 2);
  const auto log = log_of("a");
  EXPECT_EQ(log.front()["type"], "run");
  EXPECT_EQ(log.back()["reason"], "complete");
  double valid = 0;
  for (const auto& j : log)
    if (j["type"] == "valid") valid = j["valid_loss"];
  EXPECT_EQ(valid, r.valid_loss);
  EXPECT_NEAR(valid, losses.back(), 1.0);
  const TrainerState s = read_checkpoint_state(r.last_checkpoint);
  EXPECT_EQ(s.samples, 160);
  EXPECT_EQ(s.tokens, 40 * 4 * 32);
  EXPECT_EQ(s.best_valid_loss, valid);
}

TEST_F(TrainRun, OverfitsOneBatch) {
  const TrainConfig c = config("a", {"optimizer.schedule=constant", "optimizer.lr=5e-3"});
  TrainStep step(c.model, step_options(c, Device::kCpu));
  step.allocate();
  step.model().init_params(step.values(), {});
  const TrainData data = open_train_data(c.data.train, c);
  const auto loader = make_loader(data, c, 0);
  const Batch& batch = loader->next();
  std::ranges::copy(batch.x, step.tokens().begin());
  std::ranges::copy(batch.y, step.targets().begin());
  double loss = 0;
  for (int n = 0; n < 150; ++n) {
    step.accumulate(0);
    loss = step.finish(5e-3).loss;
  }
  EXPECT_LT(loss, 0.05);
}

TEST_F(TrainRun, KilledAndResumedEqualsUndisturbed) {
  const std::vector<std::string> settings = {"eval.every=10", "checkpoint.every=5",
                                             "data.valid=\"" + (dir_ / "valid.h5") + "\""};
  run_training(config("whole", settings), quiet_);
  // Dies in step 18, 17 steps being done and the last checkpoint two steps old.
  TrainerOptions dies = quiet_;
  dies.on_gradients = [](int64_t step, ParamStore&) {
    if (step == 18) throw Killed{};
  };
  EXPECT_THROW(run_training(config("broken", settings), dies), Killed);
  TrainerOptions resume = quiet_;
  resume.resume = true;
  run_training(config("broken", settings), resume);
  EXPECT_EQ(losses_of("whole"), losses_of("broken"));
  EXPECT_EQ(final_bytes("whole"), final_bytes("broken"));
}

TEST_F(TrainRun, Rwkv4LearnsResumesAndStartsFromTheRate) {
  const std::vector<std::string> settings = {
      R"(model={"architecture": "rwkv4", "n_layer": 2, "n_embd": 64, "vocab_size": 257})",
      "optimizer.lr=5e-3",
      "train.batch=4",
      "checkpoint.every=5",
      "sample.every=20",
      "sample.tokens=5"};
  run_training(config("whole", settings), quiet_);
  TrainerOptions dies = quiet_;
  dies.on_gradients = [](int64_t step, ParamStore&) {
    if (step == 18) throw Killed{};
  };
  EXPECT_THROW(run_training(config("broken", settings), dies), Killed);
  TrainerOptions resume = quiet_;
  resume.resume = true;
  run_training(config("broken", settings), resume);
  const auto losses = losses_of("whole");
  EXPECT_EQ(losses, losses_of("broken"));
  EXPECT_EQ(final_bytes("whole"), final_bytes("broken"));
  EXPECT_NEAR(losses.front(), std::log(257.0), 0.3);
  EXPECT_LT(losses.back(), losses.front() - 2);
  // The embedding starts in the range of the learning rate.
  const auto c = config("whole", settings);
  EXPECT_EQ(init_options(c).lr, 5e-3);
  EXPECT_EQ(step_options(c, Device::kCpu).optimizer.eps, 1e-8);
  // Recomputing blocks changes no bit.
  auto block = settings;
  block.push_back("train.grad_checkpointing=block");
  run_training(config("block", block), quiet_);
  EXPECT_EQ(losses, losses_of("block"));
}

TEST_F(TrainRun, ResumeFallsBackToTheNewestGoodCheckpoint) {
  const std::vector<std::string> settings = {"checkpoint.every=10", "checkpoint.keep_last=9"};
  run_training(config("a", settings), quiet_);
  const std::string wanted = final_bytes("a");
  for (const int64_t step : {30, 40}) {
    const std::string path = checkpoint_path(dir_ / "a", step);
    test::write_bytes(path, file_bytes(path).substr(0, 70000));
  }
  TrainerOptions resume;  // not quiet: it has to say so
  resume.resume = true;
  testing::internal::CaptureStdout();
  run_training(config("a", settings), resume);
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_NE(said.find("skipping a damaged checkpoint"), std::string::npos) << said;
  EXPECT_NE(said.find("step_00000040.h5"), std::string::npos) << said;
  EXPECT_NE(said.find("resuming from " + checkpoint_path(dir_ / "a", 20)), std::string::npos);
  EXPECT_EQ(final_bytes("a"), wanted);
}

TEST_F(TrainRun, DamagedCheckpointsAreNotKeptInPlaceOfGoodOnes) {
  run_training(config("a", {"train.steps=20", "checkpoint.every=10", "checkpoint.keep_last=9"}),
               quiet_);
  const std::string newest = checkpoint_path(dir_ / "a", 20);
  test::write_bytes(newest, file_bytes(newest).substr(0, 70000));
  TrainerOptions resume = quiet_;
  resume.resume = true;
  // Killed before step 20: what it wrote since must still be there, although 20 is a larger number.
  resume.on_gradients = [](int64_t step, ParamStore&) {
    if (step == 15) throw Killed{};
  };
  const std::vector<std::string> settings = {"checkpoint.every=2", "checkpoint.keep_last=1"};
  EXPECT_THROW(run_training(config("a", settings), resume), Killed);
  const auto files = list_checkpoints(dir_ / "a");
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].step, 14);
  EXPECT_TRUE(std::filesystem::exists(newest + ".damaged"));
  resume.on_gradients = nullptr;
  EXPECT_EQ(run_training(config("a", settings), resume).steps, 40);
}

TEST_F(TrainRun, ATraceThatCannotBeWrittenDoesNotEndTheRun) {
  TrainerOptions traced;
  const std::string folder = dir_ / "traces";
  traced.trace = folder + "/t.json";
  EXPECT_THROW(run_training(config("a", {"train.steps=6"}), traced), IoError);
  std::filesystem::create_directory(folder);
  traced.on_gradients = [&](int64_t, ParamStore&) { std::filesystem::remove(folder); };
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_training(config("a", {"train.steps=6"}), traced).steps, 6);
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_NE(said.find("timelines of steps 3 to 5 are lost: "), std::string::npos) << said;
  EXPECT_EQ(list_checkpoints(dir_ / "a").back().step, 6);
}

TEST_F(TrainRun, NothingIsOverwrittenWithoutResume) {
  run_training(config("a", {"train.steps=3"}), quiet_);
  const std::string before = final_bytes("a", 3);
  EXPECT_THROW(run_training(config("a", {"train.steps=5"}), quiet_), ConfigError);
  EXPECT_EQ(final_bytes("a", 3), before);
  EXPECT_EQ(losses_of("a").size(), 3u);
}

TEST_F(TrainRun, ResumingAnotherRunIsRefused) {
  run_training(config("a", {"train.steps=3"}), quiet_);
  TrainerOptions resume = quiet_;
  resume.resume = true;
  for (const char* other :
       {"model.n_layer=3", "train.seed=2", "data.sampler=sequential", "data.train=synthetic"})
    EXPECT_THROW(run_training(config("a", {other}), resume), ConfigError) << other;
  // More steps are no other run.
  EXPECT_EQ(run_training(config("a", {"train.steps=5"}), resume).steps, 5);
}

TEST_F(TrainRun, ResumingKeepsTheMagicPrime) {
  const auto prime_run = [&](const std::string& prime, int steps) {
    return config("p", {"data.sampler=prime", "data.magic_prime=" + prime,
                        "train.steps=" + std::to_string(steps)});
  };
  const int64_t tokens = open_train_data(config("p").data.train, config("p")).source->size();
  const std::string largest = std::to_string(magic_prime(tokens, 32));
  // The prime below it that the reference would take too.
  const std::string other = std::to_string(magic_prime(magic_prime(tokens, 32) * 32, 32));
  ASSERT_NE(other, largest);
  run_training(prime_run("0", 2), quiet_);
  TrainerOptions resume = quiet_;
  resume.resume = true;
  EXPECT_THROW(run_training(prime_run(other, 4), resume), ConfigError);
  EXPECT_EQ(run_training(prime_run(largest, 4), resume).steps, 4) << "0 means this one";
  run_training(config("q", {"data.sampler=prime", "data.magic_prime=" + other, "train.steps=1"}),
               quiet_);
}

TEST_F(TrainRun, ResumeOfAnEmptyFolderStarts) {
  TrainerOptions resume = quiet_;
  resume.resume = true;
  EXPECT_EQ(run_training(config("a", {"train.steps=2"}), resume).steps, 2);
}

TEST_F(TrainRun, BitEqualAgainAndOverThreadsAndCheckpointing) {
  const int threads = num_threads();
  run_training(config("a"), quiet_);
  run_training(config("b"), quiet_);
  set_num_threads(1);
  run_training(config("one"), quiet_);
  set_num_threads(2);
  run_training(config("two"), quiet_);
  set_num_threads(threads);
  EXPECT_EQ(final_bytes("a"), final_bytes("b"));
  EXPECT_EQ(final_bytes("one"), final_bytes("two"));
  EXPECT_EQ(final_bytes("a"), final_bytes("one"));
  run_training(config("block", {"train.grad_checkpointing=block"}), quiet_);
  EXPECT_EQ(losses_of("a"), losses_of("block"));
  EXPECT_EQ(weights_of(config("a"), 40), weights_of(config("block"), 40));
}

TEST_F(TrainRun, MicroBatchesMatchOneBatch) {
  // Few steps: afterwards rounding has taken the runs apart, Adam being what it is.
  const TrainConfig one = config("one", {"train.batch=4", "train.steps=5"});
  const TrainConfig four =
      config("four", {"train.batch=1", "train.micro_batches=4", "train.steps=5"});
  run_training(one, quiet_);
  run_training(four, quiet_);
  const auto a = losses_of("one"), b = losses_of("four");
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(std::abs(a[i] - b[i]), 1e-4) << i;
  std::vector<double> norms[2];
  for (int k = 0; k < 2; ++k)
    for (const auto& j : log_of(k == 0 ? "one" : "four"))
      if (j["type"] == "step") norms[k].push_back(j["grad_norm"]);
  ASSERT_EQ(norms[0].size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_LE(std::abs(norms[0][i] / norms[1][i] - 1), 1e-3) << i;
  EXPECT_EQ(read_checkpoint_state(checkpoint_path(dir_ / "four", 5)).samples, 20);
}

TEST_F(TrainRun, NonFiniteStepsAreSkippedAndLogged) {
  TrainerOptions options = quiet_;
  options.on_gradients = [](int64_t step, ParamStore& grads) {
    if (step == 3 || step == 4) grads.flat()[10] = std::numeric_limits<float>::quiet_NaN();
  };
  const RunResult r =
      run_training(config("a", {"train.steps=6", "train.max_nonfinite=3"}), options);
  EXPECT_EQ(r.steps, 6);
  const TrainerState s = read_checkpoint_state(r.last_checkpoint);
  EXPECT_EQ(s.updates, 4);
  EXPECT_EQ(s.nonfinite_total, 2);
  EXPECT_EQ(s.nonfinite_in_a_row, 0);
  int marked = 0;
  for (const auto& j : log_of("a"))
    if (j.contains("nonfinite")) {
      ++marked;
      EXPECT_TRUE(j["step"] == 3 || j["step"] == 4);
      EXPECT_TRUE(j["grad_norm"].is_null());
    }
  EXPECT_EQ(marked, 2);
  for (const float x : weights_of(config("a"), 6)) ASSERT_TRUE(std::isfinite(x));
}

TEST_F(TrainRun, NonFiniteInARowStopsWithTheLastGoodCheckpointNamed) {
  TrainerOptions options = quiet_;
  options.on_gradients = [](int64_t step, ParamStore& grads) {
    if (step >= 8) grads.flat()[0] = std::numeric_limits<float>::infinity();
  };
  try {
    run_training(config("a", {"checkpoint.every=5", "train.max_nonfinite=4"}), options);
    FAIL();
  } catch (const NonFiniteError& e) {
    EXPECT_EQ(e.exit_code(), 5);
    const std::string what = e.what();
    EXPECT_NE(what.find("step 11"), std::string::npos) << what;
    EXPECT_NE(what.find("checkpoint: " + checkpoint_path(dir_ / "a", 5)), std::string::npos)
        << what;
  }
  EXPECT_EQ(log_of("a").back()["reason"], "non-finite");
  // None of step 10, which lies within the row.
  EXPECT_EQ(list_checkpoints(dir_ / "a").size(), 1u);
}

TEST_F(TrainRun, CheckpointsOfExplodedWeightsAreNotCalledGood) {
  // The update of step 7 breaks the weights; its checkpoint is the newest one.
  TrainerOptions options = quiet_;
  options.on_gradients = [](int64_t step, ParamStore& grads) {
    if (step >= 8) grads.flat()[0] = std::numeric_limits<float>::infinity();
  };
  try {
    run_training(config("a", {"checkpoint.every=1", "train.max_nonfinite=4"}), options);
    FAIL();
  } catch (const NonFiniteError& e) {
    const std::string what = e.what();
    EXPECT_NE(what.find("good checkpoint: " + checkpoint_path(dir_ / "a", 6)), std::string::npos)
        << what;
    EXPECT_NE(what.find("broken: " + checkpoint_path(dir_ / "a", 7)), std::string::npos) << what;
  }
}

TEST_F(TrainRun, RefusesWhatDoesNotFit) {
  EXPECT_THROW(run_training(config("a", {"limits.memory_mib=1"}), quiet_), ConfigError);
  EXPECT_FALSE(std::filesystem::exists(dir_ / "a"));
}

TEST_F(TrainRun, InitTakesWeightsOnly) {
  run_training(config("a", {"train.steps=5"}), quiet_);
  TrainerOptions init = quiet_;
  init.init_file = checkpoint_path(dir_ / "a", 5);
  init.on_gradients = [](int64_t, ParamStore&) { throw Killed{}; };
  EXPECT_THROW(run_training(config("b"), init), Killed);
  init.on_gradients = nullptr;
  run_training(config("b", {"train.steps=1", "optimizer.lr=1e-9", "optimizer.lr_final=1e-9"}),
               init);
  const auto a = weights_of(config("a"), 5), b = weights_of(config("b"), 1);
  ASSERT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(off <= worst)) worst = off;  // a NaN stays
  }
  EXPECT_LE(worst, 1e-6);
  EXPECT_EQ(read_checkpoint_state(checkpoint_path(dir_ / "b", 1)).updates, 1);
}

TEST_F(TrainRun, SampleCallbackSeesTheModelAndItsTextIsLogged) {
  TrainerOptions options = quiet_;
  int calls = 0;
  options.sample = [&](const SampleRequest& r) {
    ++calls;
    EXPECT_EQ(r.tokens, 7);
    EXPECT_EQ(r.prompt, "red");
    EXPECT_EQ(r.tokenizer.name(), "bytes");
    EXPECT_EQ(r.values.flat().size(), static_cast<size_t>(r.model.params().flat_elements()));
    return std::string("red text");
  };
  run_training(
      config("a", {"train.steps=5", "sample.every=2", "sample.prompt=red", "sample.tokens=7"}),
      options);
  EXPECT_EQ(calls, 3);  // steps 2, 4 and the last
  int logged = 0;
  for (const auto& j : log_of("a")) logged += j["type"] == "sample" && j["text"] == "red text";
  EXPECT_EQ(logged, 3);
}

TEST_F(TrainRun, SmokeRunsWithoutDataAndWritesNothing) {
  const TrainConfig c = smoke_config(parse_config(
      R"({"model": {"n_layer": 2, "n_embd": 64, "vocab_size": 100}, "data": {"train": "none.h5"}})",
      "x.json", {"train.context=16", "train.steps=8"}));
  EXPECT_EQ(c.train.batch, 2);
  const SmokeResult r = run_smoke(c, quiet_);
  EXPECT_EQ(r.steps_per_epoch, 4);
  EXPECT_GT(r.minimum_ms, 0);
  EXPECT_LE(r.minimum_ms, r.median_ms);
  EXPECT_LE(r.median_ms, r.maximum_ms);
  EXPECT_LE(r.minimum_ms, r.second_epoch_ms);
  EXPECT_LE(r.second_epoch_ms, 1.01 * r.maximum_ms);
  EXPECT_NEAR(r.first_loss, std::log(100.0), 0.3);
  EXPECT_FALSE(std::filesystem::exists(c.run_dir()));
  // The same values given from outside change nothing.
  const auto model = make_model(c.model);
  ParamStore values(Device::kCpu, model->params(), "initial values");
  model->init_params(values, init_options(c));
  EXPECT_EQ(run_smoke(c, quiet_, values.flat()).last_loss, r.last_loss);
  EXPECT_THROW(run_smoke(c, quiet_, values.flat().first(100)), ConfigError);
  const TrainConfig full = smoke_config(
      parse_config(R"({"model": {"n_layer": 2, "n_embd": 64, "vocab_size": 100}})", "x.json", {}));
  EXPECT_EQ(full.train.context, 1024);
  EXPECT_EQ(full.train.steps, 100);
}

TEST_F(TrainRun, AutomaticRecomputationHoldsWhateverTrains) {
  const std::vector<std::string> large = {"train.context=64", "train.batch=16", "eval.every=0",
                                          "train.steps=4"};
  const TrainConfig all = config("auto", large);
  const auto needs = [&](const TrainConfig& c) {
    return total_bytes(TrainStep(c.model, step_options(c, Device::kCpu)).memory());
  };
  TrainConfig block = all;
  block.train.grad_checkpointing = "block";
  const auto limit = static_cast<int64_t>((needs(all) + needs(block)) / 2 >> 20);
  ASSERT_LT(static_cast<size_t>(limit) << 20, needs(all));
  ASSERT_GT(static_cast<size_t>(limit) << 20, needs(block));
  TrainConfig c = all;
  c.limits.memory_mib = limit;
  EXPECT_THROW(run_smoke(c, quiet_), ConfigError);
  EXPECT_EQ(dump_plan(c, Device::kCpu).find("recompute"), std::string::npos);
  c.train.grad_checkpointing = "auto";
  EXPECT_EQ(run_smoke(c, quiet_).last_loss, run_smoke(all, quiet_).last_loss);
  EXPECT_EQ(find_lr(c, quiet_, {.lr_min = 1e-5, .lr_max = 1e-3, .steps = 8}).points.size(), 8u);
  EXPECT_NE(dump_plan(c, Device::kCpu).find("recompute"), std::string::npos);
}

TEST_F(TrainRun, LearningRateTestWritesItsCurve) {
  const LrRangeResult r =
      find_lr(config("lr", {"train.batch=4"}), quiet_, {.lr_min = 1e-5, .lr_max = 10, .steps = 60});
  EXPECT_GE(r.points.size(), 20u);
  EXPECT_GT(r.lowest, 1e-4);
  EXPECT_LT(r.lowest, 5);
  const auto j = nlohmann::json::parse(file_bytes(r.json_path));
  EXPECT_EQ(j["points"].size(), r.points.size());
  EXPECT_EQ(j["suggestion"].get<double>(), r.suggestion);
  if (!r.picture_path.empty()) {
    EXPECT_EQ(file_bytes(r.picture_path).substr(1, 3), "PNG");
  }
}

}  // namespace
}  // namespace rwkv
