// rwkv-train under mpirun: equal bytes, one clear error.

#include "tests/dist/rank_programs.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using test::Words;
using Mpi = test::RankPrograms;

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
  const auto a = losses("one"), b = losses("two1");
  ASSERT_EQ(a.size(), b.size());
  ASSERT_GE(a.size(), 12u + 3u);
  for (size_t i = 0; i < a.size(); ++i)
    EXPECT_LE(std::fabs(loss_of(a[i]) - loss_of(b[i])), 2e-5) << a[i];
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
