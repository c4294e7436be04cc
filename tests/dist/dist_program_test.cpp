// rwkv-train under mpirun: equal bytes, one clear error, traces; rwkv-bench scale.

#include <map>
#include <nlohmann/json.hpp>

#include "kernels/core/backend.h"
#include "kernels/core/machine_memory.h"
#include "tests/dist/rank_programs.h"
#include "trainer/memory.h"
#include "trainer/trainer.h"

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

TEST_F(Mpi, RanksThatWereStartedOtherwiseAreNamedBeforeTheyExchangeAnything) {
  struct Case {
    Words first, second;
    std::string what;
  };
  const std::string config = "the configuration (--print-config shows it)";
  std::vector<Case> cases = {
      {{"--set", "train.grad_checkpointing=auto"}, {}, config},
      {{}, {"--set", "train.grad_checkpointing=auto"}, config},
      {{}, {"--resume"}, "the use of --resume"},
      {{}, {"--init", "weights.h5"}, "the file of --init"},
      {{"--trace", "trace.json"}, {}, "the file of --trace"},
      {{}, {"--trace-steps", "1:2"}, "the range of --trace-steps"},
      {{"--print-config"}, {}, "the use of --print-config, --dry-run or --dump-plan"},
  };
  if (backend::has_cuda())  // the GPU is not looked for
    cases.push_back({{}, {"--device", "cuda"}, "the device (--device)"});
  for (const Case& c : cases) {
    Words second = {":", RWKV_MPIEXEC_COUNT, "1"};
    const Words other = program("run", c.second);
    second.insert(second.end(), other.begin(), other.end());
    EXPECT_EQ(wait_at_most(start(1, program("run", c.first), second), 60), 2) << output();
    EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
    EXPECT_TRUE(says(c.what + " of rank 1 differs")) << c.what << "\n" << output();
  }
  EXPECT_FALSE(fs::exists(dir_ / "run"));
  // Without checkpoint.dir the folder has the name of the config's file.
  fs::copy_file(dir_ / "tiny.json", dir_ / "copy.json");
  const auto named = [](const char* file) {
    return Words{"/bin/sh", "rank.sh", RWKV_BINARY_DIR "/bin/rwkv-train", "--config", file};
  };
  Words second = {":", RWKV_MPIEXEC_COUNT, "1"};
  for (const std::string& word : named("copy.json")) second.push_back(word);
  EXPECT_EQ(wait_at_most(start(1, named("tiny.json"), second), 60), 2) << output();
  EXPECT_TRUE(says("the run folder (checkpoint.dir) of rank 1 differs")) << output();
  EXPECT_FALSE(fs::exists(dir_ / "runs"));
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

TEST_F(Mpi, AutomaticRecomputationIsThatOfTheRankThatNeedsMost) {
  const auto fit = [&](int64_t mib) {
    return run(2, program(str("fit", mib),
                          {"--set", "model.n_layer=4", "--set", "model.n_embd=256", "--set",
                           "train.context=128", "--set", "train.batch=8", "--set", "train.steps=1",
                           "--set", "train.grad_checkpointing=auto", "--set",
                           str("limits.memory_mib=", mib)}));
  };
  // Rank 0 has copies for checkpoints besides.
  int64_t some = 0;
  for (const int64_t mib : {166, 186, 206}) {
    ASSERT_EQ(fit(mib), 0) << mib << "\n" << output();
    some += says("of 4 blocks is computed twice") ? 1 : 0;
  }
  EXPECT_GT(some, 0);
}

TEST_F(Mpi, RanksThatDoNotFitTogetherAreRefusedAndNamed) {
  // Each rank alone needs 0.7 of what the machine has.
  const size_t available = available_machine_memory();
  ASSERT_GT(available, 0u);
  const auto config = [&](int64_t batch) {
    TrainConfig c = parse_config(test::file_bytes(dir_ / "tiny.json"), "tiny.json",
                                 {str("train.batch=", batch), "train.context=128"});
    c.ranks = 2;
    return c;
  };
  const auto needs = [&](int64_t batch) {
    const TrainConfig c = config(batch);
    return static_cast<double>(
        total_bytes(TrainStep(c.model, step_options(c, Device::kCpu)).memory()));
  };
  const double each = (needs(2000) - needs(1000)) / 1000;
  const auto batch = static_cast<int64_t>(0.7 * static_cast<double>(available) / each);
  // Were it taken, the trace would end the run before any memory is.
  const Words words = {"--set", str("train.batch=", batch), "--set",   "train.context=128",
                       "--set", "data.sampler=sequential",  "--trace", "nowhere/t.json"};
  EXPECT_EQ(run(2, program("large", words)), 2) << output();
  EXPECT_EQ(count("rwkv-train: error:"), 1u) << output();
  EXPECT_TRUE(says("error: ranks 0, 1 on ")) << output();
  EXPECT_TRUE(says(" together need ")) << output();
  EXPECT_TRUE(says("dist.checkpoint=parallel")) << output();
  EXPECT_FALSE(fs::exists(dir_ / "large"));
  // The batch that is named fits by the same rule.
  const std::string text = output(), before = "fits here is ";
  const size_t at = text.find(before);
  ASSERT_NE(at, std::string::npos) << text;
  const int64_t named = std::stoll(text.substr(at + before.size()));
  EXPECT_LT(named, batch);
  EXPECT_GT(2 * needs(named), 0.8 * static_cast<double>(available));
  EXPECT_LT(2 * needs(named), 1.1 * static_cast<double>(available));
}

TEST_F(Mpi, OneRankPrintsThePlanOfAll) {
  EXPECT_EQ(run(3, program("run"), {"--dry-run"}), 0) << output();
  EXPECT_EQ(count("memory of each rank"), 1u) << output();
  EXPECT_EQ(count("gradients from all ranks"), 1u) << output();
  EXPECT_TRUE(says("192 = 1 micro-batches x 2 sequences x 32 x 3 ranks")) << output();
  EXPECT_EQ(run(2, program("run"), {"--print-config"}), 0) << output();
  EXPECT_EQ(count("train.context"), 1u) << output();
}

/// Spans by process of a trace, which must be valid.
std::map<int, int> spans(const std::string& path) {
  std::map<int, int> out;
  const auto trace = nlohmann::json::parse(test::file_bytes(path));
  for (const auto& e : trace.at("traceEvents")) {
    if (e.at("ph") != "X") continue;
    EXPECT_GE(e.at("ts").get<double>(), 0);
    EXPECT_GE(e.at("dur").get<double>(), 0);
    ++out[e.at("pid").get<int>()];
  }
  return out;
}

TEST_F(Mpi, TracesHoldTheStepsOfEveryRank) {
  ASSERT_EQ(run(2, program("plain")), 0) << output();
  ASSERT_EQ(run(2, program("seen"), {"--trace", "trace.json", "--trace-steps", "4:6"}), 0)
      << output();
  EXPECT_TRUE(says("timelines of steps 4 to 6 are in trace.json")) << output();
  EXPECT_EQ(numbers("plain", 12), numbers("seen", 12)) << "watching changed the run";
  const auto by_rank = spans(dir_ / "trace.json");
  EXPECT_EQ(by_rank.size(), 2u);
  // Embedding, norms, two blocks and the loss forward and backward, four buckets, norm, update.
  for (const auto& [rank, count] : by_rank) EXPECT_GE(count, 3 * 14) << rank;
  EXPECT_EQ(run(2, program("absent", {"--trace", "nowhere/t.json"})), 3) << output();
  EXPECT_TRUE(says("--trace nowhere/t.json: nowhere is no folder")) << output();
  EXPECT_TRUE(list_checkpoints(dir_ / "absent").empty()) << "no step was made";
  EXPECT_EQ(run(2, program("wrong"), {"--trace", "t.json", "--trace-steps", "6:4"}), 2);
  EXPECT_EQ(count("--trace-steps: found '6:4'"), 1u) << output();

  const Words bench = {RWKV_BINARY_DIR "/bin/rwkv-bench",
                       "scale",
                       "--device",
                       "cpu",
                       "--layers",
                       "2",
                       "--width",
                       "64",
                       "--vocab",
                       "96",
                       "--shape",
                       "32x1",
                       "--repeats",
                       "2",
                       "--traced",
                       "2",
                       "--trace",
                       "bench.json",
                       "--trace-svg",
                       "bench.svg",
                       "--json",
                       "scale.json",
                       "--collectives",
                       "--zero",
                       "1",
                       "--zero",
                       "2"};
  ASSERT_EQ(run(2, bench), 0) << output();
  for (const char* zero : {"1", "2"}) {
    EXPECT_EQ(spans(dir_ / str("bench-32x1-zero", zero, ".json")).size(), 2u);
    EXPECT_TRUE(fs::exists(dir_ / str("bench-32x1-zero", zero, ".svg")));
  }
  const auto record = nlohmann::json::parse(test::file_bytes(dir_ / "scale.json"));
  EXPECT_EQ(record.at("rows").size(), 2u);
  for (const auto& row : record.at("rows")) {
    EXPECT_EQ(row.at("timelines").size(), 2u);
    EXPECT_EQ(row.at("profile").at("need_ms").size(), 4u);
  }
  ASSERT_EQ(run(1, {RWKV_BINARY_DIR "/bin/rwkv-bench", "scale", "--simulate", "scale.json"}), 0)
      << output();
  EXPECT_TRUE(says("reduce-scatter")) << output();
}

}  // namespace
}  // namespace rwkv
