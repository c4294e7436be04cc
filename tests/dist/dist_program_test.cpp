// rwkv-train under mpirun: equal bytes, other numbers of ranks, signals, deaths, one clear error.

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "kernels/core/error.h"
#include "model/rwkv.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/checkpoint.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::file_bytes;
using Words = std::vector<std::string>;

class Mpi : public testing::Test {
 protected:
  Mpi() : dir_("dist_program") {
    test::write_token_file(dir_ / "train.h5", 20000, 1);
    test::write_token_file(dir_ / "valid.h5", 3000, 2);
    test::write_bytes(dir_ / "tiny.json",
                      R"({"model": {"n_layer": 2, "n_embd": 64, "vocab_size": 257},
                          "data": {"train": "train.h5", "valid": "valid.h5", "sampler": "shuffle"},
                          "train": {"context": 32, "batch": 2, "steps": 12},
                          "eval": {"every": 5, "batches": 3},
                          "optimizer": {"lr": 1e-3},
                          "limits": {"peak_tflops": 1}})");
    // Each rank leaves its process number: the shell becomes the program.
    test::write_bytes(dir_ / "rank.sh",
                      "echo $$ > pid.${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\nexec \"$@\"\n");
  }

  Words program(const std::string& run, Words more = {}) const {
    Words w = {"/bin/sh",
               "rank.sh",
               RWKV_BINARY_DIR "/bin/rwkv-train",
               "--config",
               "tiny.json",
               "--set",
               "checkpoint.dir=" + run};
    w.insert(w.end(), more.begin(), more.end());
    return w;
  }
  pid_t start(int ranks, const Words& program, const Words& after = {}) {
    Words args = {RWKV_MPIEXEC, RWKV_MPIEXEC_COUNT, std::to_string(ranks)};
    args.insert(args.end(), program.begin(), program.end());
    args.insert(args.end(), after.begin(), after.end());
    const pid_t pid = fork();
    if (pid == 0) {
      if (chdir(dir_.str().c_str()) != 0) _exit(99);
      const int out = open("out", O_CREAT | O_TRUNC | O_WRONLY, 0644);
      const int err = open("err", O_CREAT | O_TRUNC | O_WRONLY, 0644);
      dup2(open("/dev/null", O_RDONLY), 0);
      dup2(out, 1);
      dup2(err, 2);
      std::vector<char*> argv;
      for (auto& a : args) argv.push_back(a.data());
      argv.push_back(nullptr);
      execvp(argv[0], argv.data());
      _exit(98);
    }
    return pid;
  }
  static int wait(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  int run(int ranks, const Words& program, const Words& after = {}) {
    return wait(start(ranks, program, after));
  }
  std::string output() const { return file_bytes(dir_ / "out") + file_bytes(dir_ / "err"); }
  bool says(const std::string& part) const { return output().find(part) != std::string::npos; }
  size_t count(const std::string& part) const {
    const std::string text = output();
    size_t n = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++n;
    return n;
  }
  pid_t rank_pid(int rank) const {
    return static_cast<pid_t>(std::stol(file_bytes(dir_ / str("pid.", rank))));
  }
  /// Waits until the run has logged so many lines; false after a minute.
  bool wait_for_log(const std::string& run, int64_t lines) const {
    const std::string path = dir_ / (run + "/log.jsonl");
    for (int i = 0; i < 6000; ++i) {
      if (fs::exists(path) && std::ranges::count(file_bytes(path), '\n') >= lines) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }
  std::string bytes(const std::string& run, int64_t step) const {
    return file_bytes(checkpoint_path(dir_ / run, step));
  }
  /// Weights and moments of a checkpoint, one after the other.
  std::vector<float> numbers(const std::string& run, int64_t step) const {
    const TrainConfig c = parse_config(file_bytes(dir_ / "tiny.json"), "tiny.json", {});
    const auto model = make_model(c.model);
    std::vector<ParamStore> stores;
    for (int i = 0; i < 3; ++i) stores.emplace_back(Device::kCpu, model->params(), "p");
    read_checkpoint(checkpoint_path(dir_ / run, step),
                    {c.model, model->params(), stores[0], stores[1], stores[2]});
    std::vector<float> all;
    for (const ParamStore& s : stores) all.insert(all.end(), s.flat().begin(), s.flat().end());
    return all;
  }
  static double difference(const std::vector<float>& a, const std::vector<float>& b) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      diff += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
      norm += static_cast<double>(a[i]) * a[i];
    }
    return std::sqrt(diff / norm);
  }

  test::ScratchDir dir_;
};

TEST_F(Mpi, RanksAgreeWithOneAndWithEachOther) {
  ASSERT_EQ(run(1, program("one", {"--set", "train.batch=4"})), 0) << output();
  for (const char* zero : {"0", "1", "2"})
    ASSERT_EQ(run(2, program(str("two", zero), {"--set", str("dist.zero=", zero)})), 0) << output();
  EXPECT_TRUE(says("ranks: 2, MPI")) << output();
  EXPECT_EQ(count("complete after 12 steps"), 1u) << "rank 0 alone reports\n" << output();
  const auto one = numbers("one", 12), two = numbers("two0", 12);
  EXPECT_LE(difference(one, two), 1e-2);  // README of the golden files: changes in f32
  EXPECT_EQ(two, numbers("two1", 12));
  EXPECT_EQ(two, numbers("two2", 12));
  // Loss and validation loss of the log, in its digits.
  const auto losses = [&](const std::string& run) {
    std::vector<double> out;
    std::istringstream in(file_bytes(dir_ / (run + "/log.jsonl")));
    for (std::string line; std::getline(in, line);) {
      for (const std::string key : {"\"loss\":", "\"valid_loss\":"}) {
        const size_t at = line.find(key);
        if (at != std::string::npos && line[at + key.size()] != 'n')
          out.push_back(std::stod(line.substr(at + key.size())));
      }
    }
    return out;
  };
  const auto a = losses("one"), b = losses("two1");
  ASSERT_EQ(a.size(), b.size());
  ASSERT_GE(a.size(), 12u + 3u);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_LE(std::fabs(a[i] - b[i]), 2e-5) << i;
}

TEST_F(Mpi, StopsBySigtermAndResumesBitForBit) {
  const Words slow = {"--set", "train.steps=400", "--set", "dist.zero=1"};
  const pid_t pid = start(2, program("stopped", slow));
  ASSERT_TRUE(wait_for_log("stopped", 5)) << output();
  for (const int rank : {0, 1}) kill(rank_pid(rank), SIGTERM);
  EXPECT_EQ(wait(pid), 0) << output();
  EXPECT_TRUE(says("stopped by SIGTERM after step")) << output();
  const auto files = list_checkpoints(dir_ / "stopped");
  ASSERT_EQ(files.size(), 1u);
  const int64_t step = files[0].step;
  ASSERT_LT(step, 400);
  // To a step soon after it, and without the interruption.
  const std::string end = str("train.exit_tokens=", 400 * 128);
  const Words shorter = {"--set", str("train.steps=", step + 4), "--set", end};
  ASSERT_EQ(run(2, program("stopped", shorter), {"--resume"}), 0) << output();
  ASSERT_EQ(run(2, program("whole", shorter)), 0) << output();
  EXPECT_EQ(numbers("stopped", step + 4), numbers("whole", step + 4));
}

TEST_F(Mpi, OneSignalledRankStopsAll) {
  const pid_t pid = start(2, program("run", {"--set", "train.steps=100000"}));
  ASSERT_TRUE(wait_for_log("run", 3)) << output();
  kill(rank_pid(1), SIGTERM);
  EXPECT_EQ(wait(pid), 0) << output();
  EXPECT_TRUE(says("stopped by SIGTERM")) << output();
}

TEST_F(Mpi, ADeadRankEndsTheRunAndNothingButStepsIsLost) {
  const Words often = {"--set", "checkpoint.every=1", "--set", "train.steps=4000"};
  for (const int victim : {1, 0}) {  // rank 0 writes a checkpoint at nearly any moment
    const std::string name = str("killed", victim);
    const pid_t pid = start(4, program(name, often), {"--set", "train.batch=1"});
    ASSERT_TRUE(wait_for_log(name, 6)) << output();
    const auto begin = std::chrono::steady_clock::now();
    kill(rank_pid(victim), SIGKILL);
    EXPECT_NE(wait(pid), 0);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(60));
    EXPECT_TRUE(says(str("rank ", victim))) << output();
    EXPECT_TRUE(says("signal 9")) << output();
    const auto files = list_checkpoints(dir_ / name);
    ASSERT_FALSE(files.empty());
    const int64_t last = files.back().step;
    EXPECT_GE(last, 4);
    // Half as many ranks with twice the rows go on with the same samples.
    ASSERT_EQ(run(2, program(name, {"--resume", "--set", str("train.steps=", last + 2)})), 0)
        << output();
    EXPECT_TRUE(says(str("resuming from ", name, "/step_"))) << output();
    EXPECT_TRUE(says("the number of ranks changed from 4 to 2")) << output();
    EXPECT_EQ(list_checkpoints(dir_ / name).back().step, last + 2);
  }
}

TEST_F(Mpi, ResumingOnOtherCountsContinuesTheSameCurve) {
  const Words half = {"--set", "train.steps=6", "--set", str("train.exit_tokens=", 12 * 128)};
  const Words full = {"--set", "train.steps=12", "--set", str("train.exit_tokens=", 12 * 128)};
  ASSERT_EQ(run(4, program("moved", half), {"--set", "train.batch=1"}), 0) << output();
  ASSERT_EQ(run(2, program("moved", full), {"--resume"}), 0) << output();
  ASSERT_EQ(run(1, program("whole", full), {"--set", "train.batch=4"}), 0) << output();
  EXPECT_LE(difference(numbers("whole", 12), numbers("moved", 12)), 1e-2);
}

TEST_F(Mpi, DifferencesBetweenRanksAreOneClearError) {
  // Two programs in one MPI world.
  Words second = {":", RWKV_MPIEXEC_COUNT, "1"};
  const Words other = program("run", {"--set", "optimizer.lr=2e-3"});
  second.insert(second.end(), other.begin(), other.end());
  EXPECT_EQ(run(1, program("run"), second), 2) << output();
  EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
  EXPECT_TRUE(says("the configuration (--print-config shows it) of rank 1 differs")) << output();

  // The same files by name, but another validation text in the folder of the second rank.
  fs::create_directory(dir_ / "other");
  for (const char* name : {"train.h5", "tiny.json", "rank.sh"})
    fs::copy_file(dir_ / name, dir_ / (std::string("other/") + name));
  test::write_token_file(dir_ / "other/valid.h5", 3000, 3);
  second = {":", RWKV_MPIEXEC_COUNT, "1", "/bin/sh", "-c", "cd other && exec \"$@\"", "sh"};
  const Words same = program("run");
  second.insert(second.end(), same.begin(), same.end());
  EXPECT_EQ(run(1, same, second), 2) << output();
  EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
  EXPECT_TRUE(says("the validation data of rank 1 differs")) << output();
  fs::remove_all(dir_ / "run");

  EXPECT_EQ(run(2, program("run", {"--set", "data.train=absent.h5"})), 3) << output();
  EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
  EXPECT_EQ(run(2, program("run", {"--set", "no.key=1"})), 2) << output();
  EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
  EXPECT_FALSE(fs::exists(dir_ / "run/log.jsonl"));
}

}  // namespace
}  // namespace rwkv
