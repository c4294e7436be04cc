// rwkv-bench as people run it, for WKV-4 and training times: what its records and pictures hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/wkv/wkv.h"
#include "tests/integration/half_gnuplot.h"
#include "tests/integration/program.h"
#include "tests/unit/trainer_test_util.h"

namespace rwkv {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class BenchProgram : public testing::Test {
 protected:
  BenchProgram() : dir_("bench_program") {}

  /// Runs rwkv-bench in the scratch folder; its exit code, or -signal.
  int run(std::vector<std::string> args) {
    args.insert(args.begin(), std::string(RWKV_BINARY_DIR) + "/bin/rwkv-bench");
    return test::wait_for(test::start_program(dir_.str(), args));
  }
  std::string text(const std::string& name) const { return test::file_bytes(dir_ / name); }
  json record(const std::string& name) const { return json::parse(text(name)); }
  static bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }

  test::ScratchDir dir_;
};

std::vector<std::string> cpu_variants(std::string_view op) {
  std::vector<std::string> names;
  for (const WkvKernel* k : all_wkv_kernels())
    if (k->op == op && k->device == Device::kCpu && k->state == DType::kF32)
      names.emplace_back(k->name);
  return names;
}

TEST_F(BenchProgram, Wkv4RecordHoldsEveryVariantAndLength) {
  ASSERT_EQ(run({"wkv", "--arch", "rwkv4", "--shape", "1,1,32", "--shape", "2,1,48", "--lengths",
                 "64:256", "--repeats", "3", "--json", "r.json", "--plot", "p.gp"}),
            0)
      << text("out") << text("err");
  const json r = record("r.json");
  EXPECT_EQ(r["failures"].size(), 0u);
  EXPECT_EQ(r["left_out"].size(), 0u);
  EXPECT_GT(r["copy_bytes_per_second"].get<double>(), 0);
  std::map<std::pair<int, int>, std::set<std::string>> seen;  // by width and length
  std::map<std::pair<int, int>, int> chosen;
  for (const json& row : r["rows"]) {
    const std::pair<int, int> at{row["channels"], row["tokens"]};
    const std::string name = row["variant"];
    EXPECT_TRUE(seen[at].insert(name).second) << name;
    chosen[at] += row.value("auto", false);
    const bool naive = has(name, "naive"), sums = has(name, ".cumsum.");
    EXPECT_EQ(row["rates"], naive ? "slow" : "model") << name;
    EXPECT_EQ(row.contains("replaced_share"), sums) << name;
    // Rates of a model: too fast for sums in some channels, not in all.
    if (sums) {
      EXPECT_GT(row["replaced_share"].get<double>(), 0.05);
      EXPECT_LT(row["replaced_share"].get<double>(), 0.95);
    }
    for (const char* phase : {"forward_s", "backward_s", "both_s"}) {
      const double median = row[phase][0], least = row[phase][1], most = row[phase][2];
      EXPECT_GT(least, 0) << name << " " << phase;
      EXPECT_LE(least, median) << name << " " << phase;
      EXPECT_LE(median, most * 1.0001) << name << " " << phase;
    }
    const double bytes = 9.0 * 4 * row["batch"].get<double>() * at.first * at.second;
    EXPECT_NEAR(row["share_of_bound"].get<double>() * r["copy_bytes_per_second"].get<double>() *
                    row["both_s"][0].get<double>(),
                bytes, 1e-3 * bytes);
  }
  ASSERT_EQ(seen.size(), 6u);
  const std::vector<std::string> all = cpu_variants("wkv4");
  for (const auto& [at, names] : seen) {
    EXPECT_EQ(names, std::set<std::string>(all.begin(), all.end())) << at.second << " tokens";
    EXPECT_EQ(chosen[at], 1) << at.second << " tokens";
  }
  ASSERT_EQ(r["relative_errors"].size(), all.size());
  for (const json& e : r["relative_errors"])
    for (const char* what : {"y", "a/b", "dk", "dv", "da0", "db0", "dtau", "du"}) {
      EXPECT_GT(e[what].get<double>(), 1e-9) << e["variant"] << " " << what;
      EXPECT_LE(e[what].get<double>(), 1e-5) << e["variant"] << " " << what;
    }
  // Half a picture is an error, and goes; the script stays.
  {
    const test::HalfGnuplot gnuplot(dir_);
    EXPECT_EQ(run({"wkv", "--from", "r.json", "--plot", "h.png"}), 3);
  }
  EXPECT_TRUE(has(text("err"), "h-d32.png: found 4 bytes that are no whole PNG")) << text("err");
  EXPECT_TRUE(fs::exists(dir_ / "h-d32.gp"));
  EXPECT_FALSE(fs::exists(dir_ / "h-d32.png"));
  // A picture per width, axes labelled; the record draws the same ones.
  ASSERT_EQ(run({"wkv", "--from", "r.json", "--plot", "q.gp"}), 0) << text("err");
  for (const std::string width : {"32", "48"}) {
    const std::string p = text("p-d" + width + ".gp"), q = text("q-d" + width + ".gp");
    for (const char* part :
         {"set logscale x", "set logscale y", "set xlabel 'sequence length (tokens)'",
          "set ylabel 'time (ms)'", "forward + backward", "title 'scan'", "byte bound"})
      EXPECT_TRUE(has(p, part)) << part;
    EXPECT_EQ(std::ranges::count(p, '\n'), std::ranges::count(q, '\n'));
  }
  EXPECT_TRUE(has(text("out"), "serial / scan at most")) << text("out");
}

TEST_F(BenchProgram, Wkv4LeavesOutWhatTakesTooLongAndNamesIt) {
  ASSERT_EQ(run({"wkv", "--arch", "rwkv4", "--shape", "1,1,32", "--lengths", "64:256", "--repeats",
                 "1", "--variant", "scan", "--limit", "1e-9", "--json", "r.json"}),
            0)
      << text("err");
  const json r = record("r.json");
  ASSERT_EQ(r["rows"].size(), 1u);  // of the first length nothing is known beforehand
  EXPECT_EQ(r["rows"][0]["tokens"], 64);
  ASSERT_EQ(r["left_out"].size(), 2u);
  EXPECT_TRUE(has(r["left_out"][1], "wkv4.cpu.scan.f32 at B 1, T 256, d 32"));
}

TEST_F(BenchProgram, WrongUse) {
  EXPECT_EQ(run({"wkv", "--arch", "rwkv5"}), 2);
  EXPECT_TRUE(has(text("err"), "rwkv7 or rwkv4")) << text("err");
  EXPECT_EQ(run({"wkv", "--arch", "rwkv4", "--shape", "1,64,2,32"}), 2);
  EXPECT_TRUE(has(text("err"), "B,T,C")) << text("err");
  EXPECT_EQ(run({"wkv", "--arch", "rwkv4", "--dtype", "bf16"}), 2);
  EXPECT_EQ(run({"wkv", "--dtype", "f32", "--dtype", "f32"}), 2);
  EXPECT_EQ(run({"wkv", "--arch", "rwkv4", "--lengths", "64"}), 2);
  EXPECT_EQ(run({"step", "--arch", "rwkv5"}), 2);
  EXPECT_EQ(run({"train-times", "--config", "pile169m", "--shape", "16"}), 2);
  EXPECT_TRUE(has(text("err"), "B,T")) << text("err");
  test::write_bytes(dir_ / "other.json", R"({"benchmark": "ops"})");
  const auto fails = [&](std::vector<std::string> args, int code, const std::string& message) {
    EXPECT_EQ(run(std::move(args)), code) << message;
    const std::string said = text("err");
    EXPECT_TRUE(has(said, "rwkv-bench: error: ")) << said;
    EXPECT_TRUE(has(said, message)) << said;
    EXPECT_FALSE(has(said, "json.exception")) << said;
    EXPECT_EQ(std::ranges::count(said, '\n'), 1) << said;
  };
  // More ranks than GPUs, if there are any: one of them speaks for all.
  const int without = run({"scale", "--gpus", "17"});
  EXPECT_TRUE(without == 2 || without == 4) << without;
  fails({"scale", "--gpus", "17"}, without, without == 2 ? "has no NCCL" : "GPUs");
  test::write_bytes(dir_ / "binary.json", "\xff\xfe{");
  test::write_bytes(dir_ / "list.json", "[1]");
  for (const char* file : {"other.json", "binary.json", "list.json"}) {
    fails({"wkv", "--from", file, "--plot", "x.gp"}, 3, file);
    fails({"train-times", "--from", file, "--plot", "x.gp"}, 3, file);
  }
  fails({"foo"}, 2, "no command 'foo'; there are wkv, ops");
  fails({"wkv", "--foo"}, 2, "--foo");
  fails({"wkv", "--variant", "foo"}, 2, "'foo' gives none");
  fails({"wkv", "--json", "none/r.json"}, 3, "none does not exist");
  fails({"wkv", "--plot", "p.xyz"}, 2, "FILE.png");
  EXPECT_EQ(run({"--version"}), 0);
  EXPECT_TRUE(text("out").starts_with("rwkv-bench 0.")) << text("out");
  const std::string full =
      str("'", RWKV_BINARY_DIR, "/bin/rwkv-bench' wkv --list >/dev/full 2>/dev/null");
  EXPECT_EQ(WEXITSTATUS(std::system(full.c_str())), 3);
  EXPECT_EQ(run({"wkv", "--arch", "rwkv4", "--list", "--shape", "1,1024,256"}), 0);
  EXPECT_TRUE(has(text("out"), "wkv4.cpu.cumsum-naive.f32")) << text("out");
  EXPECT_TRUE(has(text("out"), "auto takes")) << text("out");
  EXPECT_FALSE(has(text("out"), "wkv7")) << text("out");
}

TEST_F(BenchProgram, StepOfRwkv4) {
  ASSERT_EQ(run({"step", "--arch", "rwkv4", "--layers", "2", "--width", "64", "--vocab", "100",
                 "--tokens", "32", "--batch", "2", "--repeats", "2", "--json", "s.json"}),
            0)
      << text("err");
  const json s = record("s.json");
  constexpr double L = 2, D = 64, V = 100, tokens = 64;
  const double inner = L * (13 * D * D + 11 * D) + 4 * D;  // spec rwkv4 1
  EXPECT_DOUBLE_EQ(s["flops"].get<double>(), tokens * (6 * inner + 6 * V * D + 47 * D * L));
  EXPECT_DOUBLE_EQ(s["tokens_per_s"].get<double>() * s["step_ms"].get<double>(), 1e3 * tokens);
  EXPECT_TRUE(s["ops"].contains("wkv4 backward")) << s["ops"];
  EXPECT_EQ(s["architecture"], "rwkv4");
}

TEST_F(BenchProgram, TrainTimesOfBothArchitectures) {
  const std::vector<std::string> tiny{
      "train-times",     "--config", "rwkv4-pile169m",      "--config",
      "pile169m",        "--set",    "model.n_layer=2",     "--set",
      "model.n_embd=64", "--set",    "model.vocab_size=50", "--set",
      "train.steps=4"};
  auto args = tiny;
  args.insert(args.end(), {"--json", "t.json", "--plot", "t.gp"});
  ASSERT_EQ(run(args), 0) << text("out") << text("err");
  const json t = record("t.json");
  std::set<std::string> seen;
  std::map<std::string, double> first_loss;
  for (const json& row : t["rows"]) {
    const std::string name = row["variant"];
    seen.insert(name);
    EXPECT_EQ(row["batch"], 2);
    EXPECT_EQ(row["context"], 1024);
    EXPECT_EQ(row["steps_per_epoch"], 2);
    EXPECT_GT(row["minimum_ms"].get<double>(), 0);
    EXPECT_GE(row["ms_per_step"].get<double>(), row["minimum_ms"].get<double>());
    EXPECT_LE(row["ms_per_step"].get<double>(), 1.01 * row["maximum_ms"].get<double>());
    EXPECT_GT(row["memory_bytes"].get<double>(), 0);
    // Every variant computes the same training.
    const double loss = row["first_loss"];
    const auto [it, fresh] = first_loss.emplace(row["architecture"], loss);
    EXPECT_NEAR(loss, it->second, 1e-4) << name;
    EXPECT_NEAR(loss, std::log(50.0), 0.5) << name;
  }
  std::set<std::string> want;
  for (const char* op : {"wkv4", "wkv7"})
    for (const std::string& name : cpu_variants(op))
      if (!has(name, "naive")) want.insert(name);  // refuses the decays of a model
  EXPECT_EQ(seen, want);
  EXPECT_TRUE(has(text("out"), "refuses")) << text("out");
  EXPECT_EQ(t["published_on_a_laptop_gpu"].size(), 7u);
  const std::string gp = text("t.gp");
  for (const char* part : {"ms per training step", "published, not our measurement", "jax parallel",
                           "batch 2, context 1024"})
    EXPECT_TRUE(has(gp, part)) << part;
  EXPECT_FALSE(has(gp, "tensorflow serial")) << "2000 ms flatten the rest";

  // Other shapes: tokens per second, and nothing published to compare with.
  args = tiny;
  args.insert(args.end(), {"--shape", "4,32", "--shape", "2,64", "--variant", "serial", "--variant",
                           "chunk", "--json", "u.json", "--plot", "u.gp"});
  ASSERT_EQ(run(args), 0) << text("out") << text("err");
  const json u = record("u.json");
  EXPECT_EQ(u["rows"].size(), 6u);  // rwkv4 has no chunk
  ASSERT_EQ(run({"train-times", "--from", "u.json", "--plot", "v.gp"}), 0) << text("err");
  const std::string rates = text("v.gp");
  EXPECT_TRUE(has(rates, "thousand tokens per second")) << rates;
  EXPECT_TRUE(has(rates, "B4 T32 serial")) << rates;
  EXPECT_FALSE(has(rates, "published")) << rates;
}

}  // namespace
}  // namespace rwkv
