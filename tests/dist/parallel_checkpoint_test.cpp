// dist.checkpoint=parallel: the same numbers as in one file, any number of ranks before and after,
// damage and kills. Under mpirun, and with local ranks over TCP.

#include "tests/dist/rank_programs.h"
#include "trainer/shard_checkpoint.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::file_bytes;
using test::Launcher;
using test::Words;
using test::write_bytes;

class ParallelCheckpoint : public test::RankPrograms, public testing::WithParamInterface<Launcher> {
 protected:
  ParallelCheckpoint() : RankPrograms(GetParam()) {}

  /// Four rows per step, whatever `ranks`; the schedule is that of a long run.
  Words until(int64_t steps, int ranks, const std::string& form, Words more = {}) const {
    Words w = {"--set", str("train.steps=", steps),     "--set", "train.exit_tokens=512000",
               "--set", str("train.batch=", 4 / ranks), "--set", "checkpoint.keep_last=1000",
               "--set", "dist.checkpoint=" + form};
    w.insert(w.end(), more.begin(), more.end());
    return w;
  }
  void run_until(int64_t steps, const std::string& name, int ranks, const std::string& form,
                 Words more = {}) {
    ASSERT_EQ(run(ranks, program(name, until(steps, ranks, form, std::move(more)))), 0) << output();
  }
  std::string folder(const std::string& name, int64_t step) const {
    return shard_checkpoint_path(dir_ / name, step);
  }
  void copy(const std::string& from, const std::string& to) const {
    fs::copy(dir_ / from, dir_ / to, fs::copy_options::recursive);
  }
};

TEST_P(ParallelCheckpoint, HoldsTheNumbersOfOneFileWhateverIsDivided) {
  run_until(6, "file", 4, "gathered");
  const auto numbers_of_file = numbers("file", 6);
  std::string bytes;
  for (const char* zero : {"0", "1", "2"}) {
    const std::string name = str("zero", zero);
    run_until(6, name, 4, "parallel", {"--set", str("dist.zero=", zero)});
    ASSERT_TRUE(fs::is_directory(folder(name, 6))) << output();
    EXPECT_EQ(list_checkpoints(dir_ / name).size(), 1u);
    EXPECT_EQ(numbers(name, 6), numbers_of_file) << zero;
    const std::string part = file_bytes(folder(name, 6) + "/rank_0002.h5");
    if (bytes.empty()) bytes = part;
    EXPECT_EQ(part, bytes) << zero;
  }
}

TEST_P(ParallelCheckpoint, ResumesBitForBitInEitherFormAndOnOtherRanks) {
  run_until(10, "whole", 2, "gathered");
  const auto end = numbers("whole", 10);
  run_until(4, "apart", 2, "parallel");
  copy("apart", "four");
  copy("apart", "one");
  // The same number: parallel to parallel, to gathered, and back.
  run_until(7, "apart", 2, "parallel", {"--resume"});
  EXPECT_TRUE(says("resuming from apart/step_00000004.shards")) << output();
  run_until(8, "apart", 2, "gathered", {"--resume"});
  EXPECT_TRUE(says("resuming from apart/step_00000007.shards")) << output();
  run_until(10, "apart", 2, "parallel", {"--resume"});
  EXPECT_TRUE(says("resuming from apart/step_00000008.h5")) << output();
  EXPECT_EQ(numbers("apart", 10), end);
  // Others: with as many rows per step the curve goes on.
  run_until(10, "four", 4, "parallel", {"--resume"});
  EXPECT_TRUE(says("the number of ranks changed from 2 to 4")) << output();
  EXPECT_LE(difference(end, numbers("four", 10)), 1e-2);
  run_until(10, "one", 1, "parallel", {"--resume"});
  EXPECT_LE(difference(end, numbers("one", 10)), 1e-2);
  EXPECT_TRUE(fs::is_regular_file(checkpoint_path(dir_ / "one", 10))) << "one rank writes one file";
  // Four ranks that load the files of two go on as four that load one file.
  run_until(4, "again", 2, "gathered");
  run_until(10, "again", 4, "parallel", {"--resume"});
  EXPECT_EQ(numbers("four", 10), numbers("again", 10));
}

TEST_P(ParallelCheckpoint, DamagedOnesAreNamedAndTheOneBeforeIsTaken) {
  run_until(6, "run", 4, "parallel", {"--set", "checkpoint.every=3"});
  ASSERT_EQ(list_checkpoints(dir_ / "run").size(), 2u);
  for (const char* name : {"missing", "cut", "mixed", "all"}) copy("run", name);
  fs::remove(folder("missing", 6) + "/rank_0003.h5");
  const std::string part = folder("cut", 6) + "/rank_0001.h5";
  write_bytes(part, file_bytes(part).substr(0, file_bytes(part).size() / 2));
  write_bytes(folder("mixed", 6) + "/rank_0002.h5",
              file_bytes(folder("mixed", 3) + "/rank_0002.h5"));
  for (const auto& [name, file] :
       {std::pair{"missing", "rank_0003.h5"}, {"cut", "rank_0001.h5"}, {"mixed", "rank_0002.h5"}}) {
    for (const int ranks : {4, 2}) {
      const std::string copied = str(name, ranks);
      copy(name, copied);
      run_until(7, copied, ranks, "parallel", {"--resume"});
      EXPECT_TRUE(says("skipping a damaged checkpoint")) << output();
      EXPECT_TRUE(says(file)) << output();
      EXPECT_TRUE(says(str("resuming from ", copied, "/step_00000003.shards"))) << output();
      EXPECT_TRUE(fs::is_directory(folder(copied, 6) + ".damaged"));
    }
  }
  for (const int64_t step : {3, 6}) fs::remove(folder("all", step) + "/rank_0000.h5");
  EXPECT_EQ(run(4, program("all", until(7, 4, "parallel", {"--resume"}))), 3) << output();
  EXPECT_TRUE(says("none of its 2 checkpoints can be loaded")) << output();
  EXPECT_EQ(count("rwkv-train: error:") + count("local_train: error:"), 1u) << output();
}

TEST_P(ParallelCheckpoint, AFullDiskOfOneRankIsOneErrorAndLeavesTheOldOne) {
  if (GetParam() != Launcher::kMpi) GTEST_SKIP() << "the ranks of --gpus share their limits";
  run_until(3, "run", 2, "parallel");
  // Only rank 1 cannot write as much; SIGXFSZ is left aside, so that write() fails.
  write_bytes(dir_ / "rank.sh",
              "[ \"${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" = 1 ] && trap '' XFSZ && ulimit -f 100\n"
              "exec \"$@\"\n");
  EXPECT_EQ(run(2, program("run", until(5, 2, "parallel", {"--resume"}))), 3) << output();
  EXPECT_TRUE(says("rank_0001.h5")) << output();
  EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
  const auto left = list_checkpoints(dir_ / "run");
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ(left[0].step, 3);
  EXPECT_NO_THROW(check_checkpoint_files(left[0].path));
  EXPECT_FALSE(fs::exists(folder("run", 5) + ".tmp"));
}

TEST_P(ParallelCheckpoint, ARunFolderThatIsNotSharedIsRefusedBeforeTheFirstStep) {
  if (GetParam() != Launcher::kMpi) GTEST_SKIP() << "the ranks of --gpus share their folder";
  fs::create_directory(dir_ / "other");
  for (const char* name : {"train.h5", "valid.h5", "tiny.json"})
    fs::copy_file(dir_ / name, dir_ / (std::string("other/") + name));
  // Rank 1 writes to a folder of the same name; the second time it finds there what was left.
  write_bytes(dir_ / "rank.sh",
              "[ \"${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" = 1 ] && cd other\nexec \"$@\"\n");
  for (const bool leftover : {false, true}) {
    if (leftover) fs::create_directories(dir_ / "other/run/step_ranks.tmp");
    EXPECT_EQ(run(2, program("run", until(5, 2, "parallel"))), 3) << output();
    EXPECT_TRUE(says(leftover ? "rank 1 wrote" : "writing the part of rank 1")) << output();
    EXPECT_TRUE(says("a run folder that all ranks share")) << output();
    EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
    EXPECT_FALSE(fs::exists(dir_ / "run/log.jsonl")) << "no step was made";
    EXPECT_FALSE(fs::exists(dir_ / "run/step_ranks.tmp"));
  }
  run_until(5, "run", 2, "gathered");
}

TEST_P(ParallelCheckpoint, AReplacementThatWasInterruptedIsUndone) {
  run_until(4, "run", 2, "parallel");
  fs::rename(folder("run", 4), folder("run", 4) + ".replaced");
  EXPECT_EQ(run(2, program("run", until(6, 2, "parallel"))), 2) << "without --resume";
  EXPECT_TRUE(says("already holds checkpoints up to step 4")) << output();
  fs::rename(folder("run", 4), folder("run", 4) + ".replaced");
  run_until(6, "run", 2, "parallel", {"--resume"});
  EXPECT_TRUE(says("restored 1 checkpoints that a killed run was replacing")) << output();
  EXPECT_TRUE(says("resuming from run/step_00000004.shards")) << output();
}

TEST_P(ParallelCheckpoint, AKillWhileOneIsWrittenLeavesTheOneBefore) {
  for (int attempt = 0; attempt < 30; ++attempt) {
    const std::string name = str("cut", attempt);
    const int victim = attempt % 2;
    const pid_t pid =
        start(2, program(name, until(4000, 2, "parallel", {"--set", "checkpoint.every=1"})));
    ASSERT_TRUE(wait_for_log(name, 4)) << output();
    const auto unfinished = [&] {
      std::error_code ec;
      for (const auto& entry : fs::directory_iterator(dir_ / name, ec))
        if (entry.path().string().ends_with(".shards.tmp")) return true;
      return false;
    };
    for (int i = 0; i < 100000 && !unfinished(); ++i)
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    kill(rank_pid(victim), SIGKILL);
    EXPECT_NE(wait_at_most(pid, 60), 0);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < 1000 && !has_ended(r); ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (!unfinished()) continue;
    const auto files = list_checkpoints(dir_ / name);
    ASSERT_GE(files.size(), 2u);
    for (const CheckpointFile& f : files) EXPECT_NO_THROW(check_checkpoint_files(f.path));
    const int64_t last = files.back().step;
    run_until(last + 2, name, 2, "parallel", {"--resume"});
    EXPECT_TRUE(says("unfinished files of a killed run")) << output();
    EXPECT_TRUE(says(str("resuming from ", name, "/step_"))) << output();
    EXPECT_FALSE(unfinished());
    run_until(last + 2, name + ".whole", 2, "gathered");
    EXPECT_EQ(numbers(name, last + 2), numbers(name + ".whole", last + 2));
    return;
  }
  FAIL() << "no kill came while a checkpoint was written";
}

std::string name_of(const testing::TestParamInfo<Launcher>& info) {
  return info.param == Launcher::kMpi ? "Mpi" : "Local";
}
#ifdef RWKV_FAULTS_WITH_MPI
INSTANTIATE_TEST_SUITE_P(Mpi, ParallelCheckpoint, testing::Values(Launcher::kMpi), name_of);
#endif
INSTANTIATE_TEST_SUITE_P(Local, ParallelCheckpoint, testing::Values(Launcher::kLocal), name_of);

}  // namespace
}  // namespace rwkv
