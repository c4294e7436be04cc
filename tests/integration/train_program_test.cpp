// rwkv-train as people run it: exit codes, messages, signals, where configs are found.

#include <gtest/gtest.h>
#include <signal.h>
#include <cstdlib>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/binidx.h"
#include "tests/integration/half_gnuplot.h"
#include "tests/integration/program.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::file_bytes;

class Program : public testing::Test {
 protected:
  Program() : dir_("train_program") {
    test::write_token_file(dir_ / "train.h5", 20000, 1);
    test::write_bytes(dir_ / "tiny.json",
                      R"({"model": {"n_layer": 2, "n_embd": 64, "vocab_size": 257},
                          "data": {"train": "train.h5", "sampler": "shuffle"},
                          "train": {"context": 32, "batch": 2, "steps": 10},
                          "optimizer": {"lr": 1e-3},
                          "limits": {"peak_tflops": 1},
                          "checkpoint": {"dir": "run"}})");
  }

  /// Starts the program in the scratch folder, its output going to files there.
  pid_t start(std::vector<std::string> args, const std::string& program = "") {
    args.insert(args.begin(),
                program.empty() ? std::string(RWKV_BINARY_DIR) + "/bin/rwkv-train" : program);
    return test::start_program(dir_.str(), args);
  }
  /// Exit code, or -signal.
  static int wait(pid_t pid) { return test::wait_for(pid); }
  int run(std::vector<std::string> args, const std::string& program = "") {
    return wait(start(std::move(args), program));
  }
  std::string out() const { return file_bytes(dir_ / "out"); }
  std::string err() const { return file_bytes(dir_ / "err"); }
  bool out_has(const std::string& part) const { return out().find(part) != std::string::npos; }
  bool err_has(const std::string& part) const { return err().find(part) != std::string::npos; }
  /// Waits for the log to have so many lines; false after a minute.
  bool wait_for_log(size_t lines) const {
    for (int i = 0; i < 6000; ++i) {
      if (fs::exists(dir_ / "run/log.jsonl")) {
        const std::string text = file_bytes(dir_ / "run/log.jsonl");
        if (static_cast<size_t>(std::ranges::count(text, '\n')) >= lines) return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  test::ScratchDir dir_;
};

TEST_F(Program, TrainsAndPrintsPlainLines) {
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "log.print_every=5"}), 0) << err();
  EXPECT_TRUE(out_has("step 5/10  loss ")) << out();
  EXPECT_TRUE(out_has("step 10/10  loss ")) << out();
  EXPECT_TRUE(out_has("complete after 10 steps")) << out();
  EXPECT_EQ(out().find('\r'), std::string::npos) << "no terminal, no live line";
  EXPECT_EQ(err(), "");
  EXPECT_EQ(list_checkpoints(dir_ / "run").size(), 1u);
}

TEST_F(Program, TakesTheReferencesSettingsOnBinidxData) {
  write_binidx(*TokenFile::open(dir_ / "train.h5"), dir_ / "data");
  const std::vector<std::string> good = {"--preset",      "rwkv-lm",
                                         "--data_file",   "data",
                                         "--ctx_len",     "32",
                                         "--vocab_size",  "257",
                                         "--n_layer",     "2",
                                         "--n_embd",      "64",
                                         "--micro_bsz",   "2",
                                         "--proj_dir",    "run",
                                         "--lr_init",     "1e-3",
                                         "--train_stage", "3",
                                         "--grad_cp",     "1",
                                         "--set",         "my_exit_tokens=640",
                                         "--set",         "limits.peak_tflops=1",
                                         "--set",         "data.tokenizer=bytes"};
  EXPECT_EQ(run(good), 0) << err();
  EXPECT_TRUE(out_has("my_exit_tokens  640")) << out();
  EXPECT_TRUE(out_has("complete after 10 steps")) << out();
  EXPECT_EQ(run(good), 0) << "train_stage 3 resumes: " << err();
  EXPECT_TRUE(out_has("resuming from")) << out();
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), good.begin(), good.end());
    return run(more);
  };
  EXPECT_EQ(with({"--magic_prime", "613"}), 2);
  EXPECT_TRUE(err_has("for this data and context it is 617")) << err();
  EXPECT_EQ(with({"--micro_bzs", "4"}), 2);
  EXPECT_TRUE(err_has("did you mean micro_bsz")) << err();
  EXPECT_EQ(with({"--config", "tiny.json"}), 2);
  EXPECT_EQ(with({"--accelerator", "cpu", "--device", "cuda"}), 2);
  EXPECT_TRUE(err_has("--accelerator says cpu")) << err();
  fs::resize_file(dir_ / "data.bin", 30001);
  EXPECT_EQ(run(good), 3);
  EXPECT_TRUE(err_has("data.bin")) << err();
  fs::remove(dir_ / "data.idx");
  EXPECT_EQ(run(good), 3);
  EXPECT_TRUE(err_has("opening data.idx: No such file")) << err();
  fs::remove(dir_ / "data.bin");
  EXPECT_EQ(run(good), 3);
  EXPECT_TRUE(err_has("no binidx data data.bin and data.idx")) << err();
}

TEST_F(Program, ExitCodesAndMessages) {
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "train.btch=2"}), 2);
  EXPECT_TRUE(err_has("did you mean 'train.batch'?")) << err();
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "stepz=2"}), 2);
  EXPECT_TRUE(err_has("did you mean 'train.steps'?")) << err();
  for (const char* far : {"foo=1", "model.foo=1", "name=x"}) {
    EXPECT_EQ(run({"--config", "tiny.json", "--set", far}), 2);
    EXPECT_TRUE(err_has("unknown key '")) << err();
    EXPECT_FALSE(err_has("did you mean")) << err();
  }
  EXPECT_EQ(run({"--config", "nowhere"}), 2);
  EXPECT_TRUE(err_has("pile169m")) << err();
  EXPECT_EQ(run({"--no-such-flag"}), 2);
  EXPECT_EQ(run({}), 2);
  EXPECT_TRUE(err_has("--config")) << err();
  EXPECT_EQ(run({"--config", "tiny.json", "--wkv", "nonsense"}), 2);
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "data.train=none.h5"}), 3);
  EXPECT_TRUE(err_has("none.h5")) << err();
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "data.train=tiny.json"}), 3);
  EXPECT_TRUE(err_has("rwkv-data tokenize")) << err();
  EXPECT_EQ(run({"--config", "tiny.json", "--lr-min", "3"}), 2);
  EXPECT_TRUE(err_has("--find-lr")) << err();
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "limits.memory_mib=1"}), 2);
  EXPECT_TRUE(err_has("activations")) << err();
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "checkpoint.dir=/proc/run"}), 3) << err();
  EXPECT_FALSE(fs::exists(dir_ / "run"));
  // Without CUDA in the build, or with no GPU to be seen: a device error either way.
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  EXPECT_EQ(run({"--config", "tiny.json", "--device", "cuda"}), 4) << err();
  EXPECT_TRUE(err_has("--device cpu")) << err();
  unsetenv("CUDA_VISIBLE_DEVICES");
  EXPECT_EQ(run({"--help"}), 0);
  EXPECT_TRUE(out_has("--resume")) << out();
}

TEST_F(Program, ALearningRateTestThatEndsTooEarlySuggestsNothing) {
  const std::vector<std::string> test = {"--config", "tiny.json",  "--find-lr", "--lr-min",
                                         "1e-6",     "--lr-steps", "20",        "--lr-max"};
  const auto up_to = [&](const char* most) {
    std::vector<std::string> args = test;
    args.emplace_back(most);
    return run(args);
  };
  EXPECT_EQ(up_to("1e-3"), 0) << err();
  EXPECT_TRUE(out_has("larger --lr-max")) << out();
  EXPECT_FALSE(out_has("try optimizer.lr")) << out();
  EXPECT_EQ(up_to("10"), 0) << err();
  EXPECT_TRUE(out_has("try optimizer.lr")) << out();
}

TEST_F(Program, ALearningRateTestIsToldAlsoWhenItsPictureIsCutOff) {
  const test::HalfGnuplot gnuplot(dir_);
  EXPECT_EQ(run({"--config", "tiny.json", "--find-lr", "--lr-steps", "8", "--lr-max", "1e-3"}), 3);
  EXPECT_TRUE(out_has("find_lr.json")) << out();
  EXPECT_TRUE(err_has("find_lr.png: found 4 bytes that are no whole PNG")) << err();
  EXPECT_TRUE(fs::exists(dir_ / "run/find_lr.json"));
  for (const auto& file : fs::directory_iterator(dir_ / "run"))
    EXPECT_EQ(file.path().filename().string().find("png"), std::string::npos) << file.path();
}

TEST_F(Program, ProcessesOfSrunThatCannotMeetAreToldSo) {
  setenv("SLURM_STEP_NUM_TASKS", "4", 1);
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "train.steps=1"}), 0) << err();
  EXPECT_TRUE(err_has("srun started 4 processes")) << err();
  setenv("SLURM_STEP_NUM_TASKS", "1", 1);
  EXPECT_EQ(run({"--config", "tiny.json", "--resume", "--set", "train.steps=2"}), 0);
  EXPECT_EQ(err(), "");
  unsetenv("SLURM_STEP_NUM_TASKS");
}

TEST_F(Program, PrintConfigDryRunAndDumpPlanStartNothing) {
  EXPECT_EQ(run({"--config", "tiny.json", "--print-config", "--set", "train.batch=3"}), 0);
  EXPECT_TRUE(out_has("train.batch")) << out();
  EXPECT_TRUE(out_has("--set")) << out();
  EXPECT_EQ(run({"--config", "pile169m", "--dry-run", "--set", "limits.memory_mib=1000"}), 0);
  EXPECT_TRUE(out_has("167,638,272")) << out();
  EXPECT_TRUE(out_has("167,688,192")) << out();
  EXPECT_TRUE(out_has("983,040")) << out();
  EXPECT_TRUE(out_has("cpu, f32")) << out();
  EXPECT_TRUE(out_has("NO: only 1000.0 MiB")) << out();
  EXPECT_EQ(run({"--config", "tiny.json", "--dump-plan"}), 0);
  EXPECT_TRUE(out_has("blocks.1")) << out();
  EXPECT_TRUE(out_has("MiB") || out_has("KiB")) << out();
  EXPECT_FALSE(fs::exists(dir_ / "run"));
}

TEST_F(Program, TerminationSignalsStopAfterACheckpoint) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    fs::remove_all(dir_ / "run");
    const pid_t pid = start({"--config", "tiny.json", "--set", "train.steps=1000000"});
    ASSERT_TRUE(wait_for_log(4)) << out() << err();
    kill(pid, signal);
    EXPECT_EQ(wait(pid), 0) << err();
    EXPECT_TRUE(out_has(str("stopped by SIG", sigabbrev_np(signal)))) << out();
    const auto files = list_checkpoints(dir_ / "run");
    ASSERT_EQ(files.size(), 1u);
    const int64_t step = files[0].step;
    EXPECT_EQ(read_checkpoint_state(files[0].path).step, step);
    // It goes on from there, the log being continued.
    EXPECT_EQ(run({"--config", "tiny.json", "--resume", "--set",
                   "train.steps=" + std::to_string(step + 2)}),
              0)
        << err();
    EXPECT_TRUE(out_has("resuming from")) << out();
    int64_t next = 1;
    std::istringstream in(file_bytes(dir_ / "run/log.jsonl"));
    for (std::string line; std::getline(in, line);) {
      const auto j = nlohmann::json::parse(line);
      if (j["type"] == "step") {
        EXPECT_EQ(j["step"], next++);
      }
    }
    EXPECT_EQ(next, step + 3);
  }
}

TEST_F(Program, FullDiskIsExitCode3AndLeavesTheOldCheckpoint) {
  EXPECT_EQ(run({"--config", "tiny.json", "--set", "train.steps=3"}), 0) << err();
  const std::string path = checkpoint_path(dir_ / "run", 3), before = file_bytes(path);
  // A limit on file sizes stands in for a full disk; the log stays below it. (HDF5 leaks what it
  // could not write, which a sanitizer build would report with an exit code of its own.)
  EXPECT_EQ(run({"-c", "export ASAN_OPTIONS=detect_leaks=0; ulimit -f 200; exec " +
                           std::string(RWKV_BINARY_DIR) +
                           "/bin/rwkv-train --config tiny.json --resume --set train.steps=6"},
                "/bin/sh"),
            3)
      << out();
  EXPECT_TRUE(err_has("step_00000006.h5")) << err();
  EXPECT_EQ(file_bytes(path), before);
  EXPECT_EQ(list_checkpoints(dir_ / "run").size(), 1u);
  for (const auto& entry : fs::directory_iterator(dir_ / "run"))
    EXPECT_NE(entry.path().extension(), ".tmp") << entry.path();
  EXPECT_EQ(run({"--config", "tiny.json", "--resume", "--set", "train.steps=6"}), 0) << err();
}

TEST_F(Program, InstalledConfigsAreFoundFromAnywhere) {
  // A prefix of its own: the program looks beside itself, not at the current folder only.
  fs::create_directories(dir_ / "prefix/bin");
  fs::create_directories(dir_ / "prefix/share/greylag/configs/model");
  const std::string program = dir_ / "prefix/bin/rwkv-train";
  fs::copy_file(std::string(RWKV_BINARY_DIR) + "/bin/rwkv-train", program);
  test::write_bytes(dir_ / "prefix/share/greylag/configs/mine.json",
                    R"({"model": "own", "train": {"steps": 1}})");
  test::write_bytes(dir_ / "prefix/share/greylag/configs/model/own.json",
                    R"({"n_layer": 3, "n_embd": 96, "vocab_size": 99, "head_size": 32})");
  EXPECT_EQ(run({"--config", "mine", "--dry-run"}, program), 0) << err();
  EXPECT_TRUE(out_has("L3 D96 V99")) << out();
}

TEST_F(Program, SmokePrintsTheSecondEpochsTime) {
  EXPECT_EQ(run({"--config", "tiny.json", "--smoke", "--set", "train.steps=6", "--set",
                 "train.context=64"}),
            0)
      << err();
  EXPECT_TRUE(out_has("second epoch ")) << out();
  EXPECT_TRUE(out_has("ms/step (mean of 3 steps)")) << out();
  EXPECT_FALSE(fs::exists(dir_ / "run"));
}

}  // namespace
}  // namespace rwkv
