// The JSON log, the terminal line, memory figures, validation windows, the learning-rate test.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "data/binidx.h"
#include "kernels/core/error.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/data_source.h"
#include "trainer/lr_range.h"
#include "trainer/memory.h"
#include "trainer/metrics.h"

namespace rwkv {
namespace {

using test::file_bytes;
using test::ScratchDir;
using test::small_config;
using test::write_token_file;

std::vector<nlohmann::json> lines_of(const std::string& path) {
  std::vector<nlohmann::json> out;
  std::istringstream in(file_bytes(path));
  for (std::string line; std::getline(in, line);) out.push_back(nlohmann::json::parse(line));
  return out;
}

StepRecord record(int64_t step, double loss) {
  StepRecord r;
  r.step = step;
  r.total_steps = 100;
  r.tokens = 64 * step;
  r.loss = loss;
  r.finite = std::isfinite(loss);
  return r;
}

TEST(JsonLog, OneObjectPerLineAndNonFiniteAsNull) {
  const ScratchDir dir("log");
  {
    JsonLog log(dir / "log.jsonl", -1);
    log.run({.parameters = 5, .wkv = "x"}, small_config("t.h5", dir.str()));
    log.step(record(1, 2.5));
    log.step(record(2, std::numeric_limits<double>::quiet_NaN()));
    log.valid(2, 1.75);
    log.sample(2, "caf\xc3\xa9 \xff \"quoted\"\n");
    log.end(2, "complete");
  }
  const auto lines = lines_of(dir / "log.jsonl");
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[0]["type"], "run");
  EXPECT_EQ(lines[0]["config"]["train"]["context"], 32);
  EXPECT_EQ(lines[1]["loss"], 2.5);
  EXPECT_FALSE(lines[1].contains("nonfinite"));
  EXPECT_TRUE(lines[2]["loss"].is_null());
  EXPECT_EQ(lines[2]["nonfinite"], true);
  EXPECT_EQ(lines[3]["valid_loss"], 1.75);
  EXPECT_NE(lines[4]["text"].get<std::string>().find("\"quoted\""), std::string::npos);
  EXPECT_EQ(lines[5]["reason"], "complete");
}

TEST(JsonLog, ResumingKeepsEachStepOnce) {
  const ScratchDir dir("log");
  {
    JsonLog log(dir / "log.jsonl", -1);
    log.run({}, small_config("t.h5", dir.str()));
    for (int64_t n = 1; n <= 9; ++n) log.step(record(n, 1));
    log.valid(6, 1);
    log.valid(8, 1);
  }
  // A killed run may leave half a line.
  test::write_bytes(dir / "log.jsonl", file_bytes(dir / "log.jsonl") + "{\"type\":\"step\",\"st");
  {
    JsonLog log(dir / "log.jsonl", 6);
    EXPECT_FALSE(log.empty());
    log.resume(6, "step_00000006.h5");
    for (int64_t n = 7; n <= 10; ++n) log.step(record(n, 2));
  }
  std::vector<int64_t> steps;
  int valid = 0;
  for (const auto& j : lines_of(dir / "log.jsonl")) {
    if (j["type"] == "step") steps.push_back(j["step"]);
    valid += j["type"] == "valid";
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(valid, 1);
}

TEST(JsonLog, UnwritableIsAnIoError) {
  EXPECT_THROW(JsonLog("/proc/log.jsonl", -1), IoError);
}

TEST(StatusLine, ShowsWhatMatters) {
  StepRecord r = record(12, 3.25);
  r.valid_loss = 3.5;
  r.grad_norm = 0.75;
  r.lr = 6e-4;
  r.tokens_per_s = 12345;
  r.mfu = 0.42;
  r.memory_bytes = size_t{3} << 30;
  r.eta_s = 75;
  const std::string line = format_step(r);
  for (const char* part : {"step 12/100", "loss 3.25", "valid 3.5", "grad 0.75", "lr 0.0006",
                           "12.3k tok/s", "mfu 42%", "GiB", "1 min 15 s"})
    EXPECT_NE(line.find(part), std::string::npos) << part << " in: " << line;
  EXPECT_EQ(format_count(950), "950");
  EXPECT_EQ(format_count(167688192), "167.7M");
  EXPECT_EQ(format_duration(4.24), "4.2 s");
  EXPECT_EQ(format_duration(3 * 3600 + 125), "3 h 2 min");
}

TEST(Memory, RefusalNamesTheThreeLargest) {
  const std::vector<MemoryItem> items = {{"activations", size_t{3} << 30},
                                         {"optimizer moments", size_t{2} << 30},
                                         {"parameters", size_t{1} << 30},
                                         {"workspace", 1000}};
  EXPECT_NO_THROW(require_memory(items, total_bytes(items)));
  EXPECT_NO_THROW(require_memory(items, 0)) << "unknown: try";
  try {
    require_memory(items, total_bytes(items) - 1);
    FAIL();
  } catch (const ConfigError& e) {
    const std::string what = e.what();
    for (const char* part : {"activations 3.0", "optimizer moments 2.0", "parameters 1.0"})
      EXPECT_NE(what.find(part), std::string::npos) << what;
    EXPECT_EQ(what.find("workspace"), std::string::npos) << what;
  }
  EXPECT_GT(available_memory(), size_t{1} << 20);
  EXPECT_GT(resident_memory(), size_t{1} << 20);
  EXPECT_EQ(memory_limit(7), size_t{7} << 20);
}

TEST(TrainData, IdentityFollowsTheContent) {
  const ScratchDir dir("data");
  write_token_file(dir / "a.h5", 5000, 1);
  write_token_file(dir / "b.h5", 5000, 2);
  std::filesystem::copy_file(dir / "a.h5", dir / "copy.h5");
  const TrainConfig c = small_config("", dir.str());
  const TrainData a = open_train_data(dir / "a.h5", c);
  EXPECT_EQ(a.hash, open_train_data(dir / "copy.h5", c).hash);
  EXPECT_NE(a.hash, open_train_data(dir / "b.h5", c).hash);
  EXPECT_EQ(a.blob.name, "bytes");
  EXPECT_EQ(a.source->size(), 5000);
  EXPECT_THROW(open_train_data("", c), ConfigError);
  EXPECT_THROW(open_train_data(dir / "none.h5", c), IoError);
  TrainConfig narrow = c;
  narrow.model.vocab_size = 256;
  EXPECT_THROW(open_train_data(dir / "a.h5", narrow), ConfigError);
  EXPECT_GT(open_train_data("synthetic", c).source->size(), c.tokens_per_step());
}

TEST(TrainData, BinidxGivesTheBatchesOfTheTokenFile) {
  const ScratchDir dir("binidx");
  write_token_file(dir / "a.h5", 5000, 1);
  write_binidx(*TokenFile::open(dir / "a.h5"), dir / "a");
  TrainConfig c = small_config("", dir.str(), {"data.sampler=prime"});
  const TrainData hdf5 = open_train_data(dir / "a.h5", c), binidx = open_train_data(dir / "a", c);
  EXPECT_EQ(binidx.source->size(), 5000);
  EXPECT_EQ(binidx.tokenizer, nullptr);
  EXPECT_TRUE(binidx.blob.name.empty());
  const auto from_hdf5 = make_loader(hdf5, c, 3), from_binidx = make_loader(binidx, c, 3);
  for (int i = 0; i < 5; ++i) {
    const Batch& expected = from_hdf5->next();
    const Batch& found = from_binidx->next();
    EXPECT_EQ(found.x, expected.x);
    EXPECT_EQ(found.y, expected.y);
  }
  // With a tokenizer it can be sampled from, and is still the same data.
  c.data.tokenizer = "bytes";
  const TrainData named = open_train_data(dir / "a.bin", c);
  EXPECT_EQ(named.blob.name, "bytes");
  EXPECT_EQ(named.hash, binidx.hash);
  EXPECT_THROW(open_train_data(dir / "a.h5", c), ConfigError) << "it has its own";
  c.data.tokenizer = dir / "none.txt";
  EXPECT_THROW(open_train_data(dir / "a", c), IoError);

  EXPECT_TRUE(train_data_exists(dir / "a"));
  EXPECT_TRUE(train_data_exists(dir / "a.h5"));
  EXPECT_FALSE(train_data_exists(dir / "b"));
  c.data.magic_prime = magic_prime(5000, 32);
  EXPECT_NO_THROW(train_sampler(binidx, c));
  c.data.magic_prime += 2;
  EXPECT_THROW(train_sampler(binidx, c), ConfigError);
}

TEST(ValidationSet, WindowsAreFixedDistinctAndInside) {
  std::vector<int32_t> ids(1000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const auto source = std::make_shared<MemoryTokens>(ids, 1000);
  std::vector<int32_t> x(3 * 10), y(3 * 10);
  ValidationSet some(source, 3, 10, 4);
  EXPECT_EQ(some.batches(), 4);
  std::vector<int32_t> starts;
  for (int64_t i = 0; i < some.batches(); ++i) {
    some.fill(i, x, y);
    for (size_t k = 0; k < x.size(); ++k) EXPECT_EQ(y[k], x[k] + 1);
    for (size_t b = 0; b < 3; ++b) starts.push_back(x[b * 10]);
  }
  EXPECT_TRUE(std::ranges::is_sorted(starts));
  EXPECT_EQ(std::ranges::adjacent_find(starts), starts.end()) << "a window came twice";
  EXPECT_EQ(starts.front(), 0);
  EXPECT_GT(starts.back(), 800) << "not spread over the file";
  // 99 windows make 33 batches, whatever is asked for.
  EXPECT_EQ(ValidationSet(source, 3, 10, 1000).batches(), 33);
  // Less than one batch: windows repeat.
  ValidationSet few(std::make_shared<MemoryTokens>(ids, 1000), 3, 600, 5);
  EXPECT_EQ(few.batches(), 1);
  std::vector<int32_t> wide(3 * 600), wide_y(3 * 600);
  few.fill(0, wide, wide_y);
  EXPECT_EQ(wide[0], wide[600]);
  EXPECT_THROW(ValidationSet(source, 1, 1000, 1), ConfigError);
}

TEST(LrRange, FindsTheValley) {
  LrRangeResult r;
  for (int i = 0; i < 60; ++i) {
    // Falls fastest at 1e-3, is lowest at 1e-2, rises afterwards.
    const double x = -6 + i * 0.1, lr = std::pow(10, x);
    const double loss = 3 - 1 / (1 + std::exp(-4 * (x + 3))) + (x > -2 ? (x + 2) * (x + 2) : 0);
    r.points.push_back({lr, loss, loss});
  }
  judge_lr_range(r);
  EXPECT_NEAR(std::log10(r.steepest), -3, 0.3);
  EXPECT_NEAR(std::log10(r.lowest), -2, 0.3);
  EXPECT_DOUBLE_EQ(r.suggestion, r.lowest / 10);
  EXPECT_TRUE(r.fell);
  EXPECT_TRUE(r.rose);
  LrRangeResult falling;
  for (int i = 0; i < 20; ++i) falling.points.push_back({1e-3 * (i + 1), 30.0 - i, 30.0 - i});
  judge_lr_range(falling);
  EXPECT_TRUE(falling.fell);
  EXPECT_FALSE(falling.rose);
  LrRangeResult rising;
  for (int i = 0; i < 20; ++i) rising.points.push_back({1e-3 * (i + 1), 1.0 + i, 1.0 + i});
  judge_lr_range(rising);
  EXPECT_FALSE(rising.fell);
  LrRangeResult nothing;
  EXPECT_THROW(judge_lr_range(nothing), NonFiniteError);
}

}  // namespace
}  // namespace rwkv
