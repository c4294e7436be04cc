// What is left of a run after faults: ranks that are killed at any moment, also while a checkpoint
// is written, signals to one or all of them, and resuming on other numbers of ranks. Under mpirun,
// and with local ranks over TCP as rwkv-train --gpus starts them.

#include <array>

#include "tests/dist/rank_programs.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::Launcher;
using test::Words;

class Faults : public test::RankPrograms, public testing::WithParamInterface<Launcher> {
 protected:
  Faults() : RankPrograms(GetParam()) {}

  /// Until step `steps`; the schedule is that of a long run. Four rows per step, whatever `ranks`.
  Words until(int64_t steps, int ranks, Words more = {}) const {
    Words w = {
        "--set", str("train.steps=", steps),     "--set", str("train.exit_tokens=", kLong * 128),
        "--set", str("train.batch=", 4 / ranks), "--set", "checkpoint.keep_last=1000"};
    w.insert(w.end(), more.begin(), more.end());
    return w;
  }
  pid_t start_long(const std::string& name, int ranks, int64_t checkpoint_every) {
    return start(
        ranks,
        program(name, until(kLong, ranks, {"--set", str("checkpoint.every=", checkpoint_every)})));
  }
  void run_until(int64_t steps, const std::string& name, int ranks, Words more = {}) {
    ASSERT_EQ(run(ranks, program(name, until(steps, ranks, std::move(more)))), 0) << output();
  }
  /// A killed or stopped run, resumed on as many ranks as it had, is the undisturbed run.
  void expect_undisturbed(const std::string& name, int64_t steps, int ranks) {
    const std::string whole = name + ".whole";
    run_until(steps, whole, ranks);
    EXPECT_EQ(numbers(name, steps), numbers(whole, steps));
    EXPECT_EQ(losses(name), losses(whole));
  }
  void expect_close(const std::string& name, const std::string& whole, int64_t steps) const {
    EXPECT_LE(difference(numbers(whole, steps), numbers(name, steps)), 1e-2);
    const Words a = losses(name), b = losses(whole);
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      EXPECT_LE(std::fabs(loss_of(a[i]) - loss_of(b[i])), 2e-5) << a[i] << ", " << b[i];
  }
  int64_t last_checkpoint(const std::string& name) const {
    const auto files = list_checkpoints(dir_ / name);
    return files.empty() ? -1 : files.back().step;
  }
  bool is_unfinished(const std::string& name) const {
    for (const auto& entry : fs::directory_iterator(dir_ / name)) {
      const std::string file = entry.path().filename().string();
      if (file.starts_with("step_") && file.ends_with(".tmp")) return true;
    }
    return false;
  }
  /// The run ends soon, says which rank was killed, and leaves no process.
  void expect_end_by_death(pid_t launcher, int victim, int ranks) {
    const int code = wait_at_most(launcher, 60);
    if (GetParam() == Launcher::kLocal)
      EXPECT_EQ(code, 4) << output();
    else
      EXPECT_NE(code, 0) << "the launcher's code\n" << output();
    EXPECT_TRUE(says(str("rank ", victim))) << output();
    EXPECT_TRUE(says("signal 9")) << output();
    for (int r = 0; r < ranks; ++r) {
      for (int i = 0; i < 1000 && !has_ended(r); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      EXPECT_TRUE(has_ended(r)) << "rank " << r << " lives";
    }
  }

  static constexpr int64_t kLong = 4000;
};

TEST_P(Faults, SigtermOfAllWritesACheckpoint) {
  const pid_t pid = start_long("run", 4, 0);
  ASSERT_TRUE(wait_for_log("run", 5)) << output();
  for (int r = 0; r < 4; ++r) kill(rank_pid(r), SIGTERM);
  if (GetParam() == Launcher::kLocal) kill(pid, SIGTERM);  // it passes it on: the same request
  EXPECT_EQ(wait_at_most(pid, 60), 0) << output();
  EXPECT_TRUE(says("stopped by SIGTERM after step")) << output();
  ASSERT_EQ(list_checkpoints(dir_ / "run").size(), 1u);
  const int64_t step = last_checkpoint("run");
  EXPECT_GE(step, 4);
  ASSERT_LT(step, kLong);
  EXPECT_EQ(step_of(losses("run").back()), step) << "the step of the signal is not lost";
  run_until(step + 4, "run", 4, {"--resume"});
  expect_undisturbed("run", step + 4, 4);
}

TEST_P(Faults, OneSignalledRankStopsAll) {
  const pid_t pid = start_long("run", 2, 0);
  ASSERT_TRUE(wait_for_log("run", 3)) << output();
  kill(rank_pid(1), SIGTERM);
  EXPECT_EQ(wait_at_most(pid, 60), 0) << output();
  EXPECT_TRUE(says("stopped by SIGTERM")) << output();
}

TEST_P(Faults, ADeadRankEndsTheRunAndNothingButStepsIsLost) {
  constexpr int64_t kEvery = 3;
  for (const int victim : {1, 0}) {
    const std::string name = str("killed", victim);
    const pid_t pid = start_long(name, 4, kEvery);
    ASSERT_TRUE(wait_for_log(name, 9)) << output();
    kill(rank_pid(victim), SIGKILL);
    expect_end_by_death(pid, victim, 4);
    const int64_t last = last_checkpoint(name);
    ASSERT_GE(last, 6);
    EXPECT_EQ(last % kEvery, 0);
    EXPECT_LE(step_of(losses(name).back()), last + kEvery) << "what is lost";
    fs::copy(dir_ / name, dir_ / (name + ".two"), fs::copy_options::recursive);

    run_until(last + 5, name, 4, {"--resume"});
    EXPECT_TRUE(says(str("resuming from ", checkpoint_path(name, last)))) << output();
    expect_undisturbed(name, last + 5, 4);
    // Half as many ranks with twice the rows go on with the same samples.
    run_until(last + 5, name + ".two", 2, {"--resume"});
    EXPECT_TRUE(says("the number of ranks changed from 4 to 2")) << output();
    expect_close(name + ".two", name + ".whole", last + 5);
  }
}

TEST_P(Faults, AKillWhileACheckpointIsWrittenLeavesTheOneBefore) {
  // Until a kill has hit: the temporary file is there when rank 0 is dead.
  for (int attempt = 0; attempt < 30; ++attempt) {
    const std::string name = str("cut", attempt);
    const pid_t pid = start_long(name, 2, 1);
    ASSERT_TRUE(wait_for_log(name, 4)) << output();
    for (int i = 0; i < 100000 && !is_unfinished(name); ++i)
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    kill(rank_pid(0), SIGKILL);
    expect_end_by_death(pid, 0, 2);
    if (!is_unfinished(name)) continue;
    const int64_t last = last_checkpoint(name);
    ASSERT_GE(last, 2);
    run_until(last + 3, name, 2, {"--resume"});
    EXPECT_TRUE(says("removed 1 unfinished files of a killed run")) << output();
    EXPECT_TRUE(says(str("resuming from ", checkpoint_path(name, last)))) << output();
    EXPECT_FALSE(is_unfinished(name));
    expect_undisturbed(name, last + 3, 2);
    return;
  }
  FAIL() << "no kill came while a checkpoint was written";
}

TEST_P(Faults, ResumingOnOtherCountsContinuesTheSameCurve) {
  run_until(5, "moved", 4);
  run_until(10, "moved", 2, {"--resume"});
  EXPECT_TRUE(says("the number of ranks changed from 4 to 2")) << output();
  run_until(15, "moved", 4, {"--resume"});
  EXPECT_TRUE(says("the number of ranks changed from 2 to 4")) << output();
  run_until(15, "whole", 1);
  expect_close("moved", "whole", 15);
}

class EarlySignals : public test::RankPrograms {
 protected:
  EarlySignals() : RankPrograms(Launcher::kLocal) {}
  pid_t start_long(const std::string& name, int ranks) {
    return start(ranks, program(name, {"--set", "train.steps=100000"}));
  }
};

// Before its first step a run ends as a single process does, with 128 + signal, and no rank takes
// that for the death of another; from then on it writes a checkpoint.
TEST_F(EarlySignals, EndARunAtAnyMomentOfItsStartWithOneWord) {
  using Seconds = std::chrono::duration<double>;
  const auto begin = std::chrono::steady_clock::now();
  pid_t pid = start_long("first", 4);
  ASSERT_TRUE(wait_for_log("first", 2)) << output();
  const Seconds to_first_step = std::chrono::steady_clock::now() - begin;
  kill(pid, SIGTERM);
  ASSERT_EQ(wait_at_most(pid, 60), 0) << output();

  constexpr int kMoments = 41;
  const Seconds longest = std::max(Seconds(0.08), 1.3 * to_first_step);
  int before_steps = 0, after_steps = 0;
  for (int i = 0; i < kMoments; ++i) {
    const int signal = std::array{SIGTERM, SIGINT, SIGHUP}[static_cast<size_t>(i % 3)];
    const bool all = i % 2 == 1;  // as systemd and SLURM do, or the parent alone
    const int ranks = i % 4 < 2 ? 2 : 4;
    const std::string name = str("run", i);
    for (const char* file : {"out", "err"}) test::write_bytes(dir_ / file, "");
    const auto ignored = ::signal(signal, SIG_DFL);
    pid = start_long(name, ranks);
    ::signal(signal, ignored);
    std::this_thread::sleep_for(longest * i / (kMoments - 1));
    if (all)
      for (const pid_t rank : children_of(pid)) kill(rank, signal);
    kill(pid, signal);
    const int code = wait_at_most(pid, 60);
    const std::string what =
        str(ranks, " ranks, signal ", signal, all ? " to all" : "", ", moment ", i, "\n", output());
    EXPECT_FALSE(says("error")) << what;
    EXPECT_FALSE(says(" is gone")) << what;
    const auto checkpoints = list_checkpoints(dir_ / name);
    if (code == 0) {
      ++after_steps;
      EXPECT_TRUE(says(str("stopped by SIG", sigabbrev_np(signal), " after step"))) << what;
      EXPECT_EQ(count("interrupted"), 0u) << what;
      ASSERT_EQ(checkpoints.size(), 1u) << what;
      EXPECT_GE(checkpoints[0].step, 1) << what;
    } else if (code == 128 + signal) {
      ++before_steps;
      EXPECT_EQ(count("local_train: interrupted"), 1u) << what;
      EXPECT_TRUE(checkpoints.empty()) << what;
    } else {
      EXPECT_EQ(code, -signal) << what;  // the program had not begun
      EXPECT_EQ(output(), "") << what;
    }
  }
  EXPECT_GT(before_steps, 0);
  EXPECT_GT(after_steps, 0);
}

std::string name_of(const testing::TestParamInfo<Launcher>& info) {
  return info.param == Launcher::kMpi ? "Mpi" : "Local";
}
INSTANTIATE_TEST_SUITE_P(Local, Faults, testing::Values(Launcher::kLocal), name_of);
#ifdef RWKV_FAULTS_WITH_MPI
INSTANTIATE_TEST_SUITE_P(Mpi, Faults, testing::Values(Launcher::kMpi), name_of);
#endif

}  // namespace
}  // namespace rwkv
