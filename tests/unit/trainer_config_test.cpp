// Reading configs: defaults, files, --set, origins, and the errors people make.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/core/error.h"
#include "trainer/config.h"

namespace rwkv {
namespace {

const std::string kModel = R"("model": {"n_layer": 2, "n_embd": 64, "vocab_size": 300})";

TrainConfig parse(const std::string& body, const std::vector<std::string>& settings = {}) {
  return parse_config("{" + kModel + (body.empty() ? "" : ", " + body) + "}", "dir/small.json",
                      settings);
}

std::string error_of(const std::string& text, const std::vector<std::string>& settings = {}) {
  try {
    parse_config(text, "small.json", settings);
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "no error";
}

void expect_all(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& p : parts)
    EXPECT_NE(text.find(p), std::string::npos) << "'" << p << "' is missing in: " << text;
}

TEST(Config, DefaultsFileAndSettings) {
  const TrainConfig c = parse(R"("train": {"batch": 3, "context": 16}, "optimizer": {"lr": 1e-3})",
                              {"train.batch=5", "optimizer.schedule=wsd", "sample.prompt=12",
                               "data.train=\"a b.h5\"", "train.l2wrap=false"});
  EXPECT_EQ(c.name, "small");
  EXPECT_EQ(c.train.batch, 5);
  EXPECT_EQ(c.train.context, 16);
  EXPECT_EQ(c.train.micro_batches, 1);
  EXPECT_DOUBLE_EQ(c.optimizer.lr, 1e-3);
  EXPECT_EQ(c.optimizer.schedule, "wsd");
  EXPECT_EQ(c.sample.prompt, "12") << "a bare number is text where text is wanted";
  EXPECT_EQ(c.data.train, "a b.h5");
  EXPECT_FALSE(c.train.l2wrap);
  EXPECT_EQ(c.model.n_layer, 2);
  EXPECT_EQ(c.tokens_per_step(), 80);
  EXPECT_EQ(c.run_dir(), "runs/small");
  EXPECT_TRUE(c.set_by_user("train.batch"));
  EXPECT_FALSE(c.set_by_user("train.context"));
}

TEST(Config, Rwkv4HasDefaultsOfItsOwn) {
  const std::string model =
      R"("model": {"architecture": "rwkv4", "n_layer": 2, "n_embd": 64, "vocab_size": 300})";
  const TrainConfig c = parse_config("{" + model + "}", "small.json", {"train.steps=9"});
  EXPECT_EQ(c.optimizer.schedule, "exponential");
  EXPECT_EQ(c.optimizer.eps, 1e-8);
  EXPECT_EQ(c.optimizer.weight_decay, 0);
  EXPECT_EQ(c.optimizer.lr_final, 1e-5);
  EXPECT_EQ(c.schedule(0).warmup_start, 0.2);
  EXPECT_EQ(c.origin.at("optimizer.eps"), "default of rwkv4");
  // What a file or --set says stays.
  const TrainConfig own =
      parse_config("{" + model + R"(, "optimizer": {"eps": 1e-6}})", "small.json",
                   {"optimizer.schedule=cosine", "kernels.wkv4=serial"});
  EXPECT_EQ(own.optimizer.eps, 1e-6);
  EXPECT_EQ(own.optimizer.schedule, "cosine");
  EXPECT_EQ(own.wkv(), "serial");
  // Read back from what a checkpoint stores.
  const TrainConfig again = parse_config(config_json(c), "small.json", {});
  EXPECT_EQ(config_json(again), config_json(c));
  EXPECT_EQ(parse("").optimizer.eps, 1e-18);
}

TEST(Config, LaterSettingsWin) {
  EXPECT_EQ(parse("", {"train.batch=2", "train.batch=7"}).train.batch, 7);
}

TEST(Config, WholeNumbersMayBeWrittenAsPowers) {
  EXPECT_EQ(parse("", {"train.exit_tokens=1e6"}).train.exit_tokens, 1000000);
}

TEST(Config, UnknownKeysNameTheNearest) {
  const std::string body = "{" + kModel;
  expect_all(error_of(body + R"(, "train": {"contxt": 5}})"),
             {"small.json", "train.contxt", "'train.context'"});
  expect_all(error_of(body + R"(, "optimiser": {"lr": 1}})"), {"optimiser", "'optimizer'"});
  expect_all(error_of(body + R"(, "trian": {"steps": 1}})"), {"trian", "'train'"});
  expect_all(error_of(body + R"(, "train": {"lr": 1}})"), {"train.lr", "'optimizer.lr'"});
  expect_all(error_of(body + "}", {"evl.every=3"}), {"--set", "evl.every", "'eval.every'"});
  expect_all(error_of(body + "}", {"model.n_layers=3"}), {"model.n_layers", "'model.n_layer'"});
  expect_all(error_of(R"({"model": {"n_layr": 2}})"), {"n_layr", "n_layer"});
}

TEST(Config, MoreTokensThanCanBeCountedAreRefused) {
  const auto steps = parse("", {"train.steps=9e15", "train.context=1024"});
  EXPECT_THROW(steps.schedule(0), ConfigError);
  EXPECT_THROW(parse("", {"train.epochs=1e9"}).schedule(int64_t{1} << 40), ConfigError);
}

TEST(Config, WrongTypesAndRangesNameKeyFoundAndExpected) {
  const std::string ok = "{" + kModel + "}";
  expect_all(error_of(ok, {"train.batch=abc"}), {"train.batch", "\"abc\"", "integer"});
  expect_all(error_of(ok, {"train.batch=0"}), {"train.batch", "0", "1"});
  expect_all(error_of(ok, {"train.batch=2.5"}), {"train.batch", "2.5", "integer"});
  expect_all(error_of(ok, {"train.l2wrap=1"}), {"train.l2wrap", "true or false"});
  expect_all(error_of(ok, {"optimizer.beta1=1"}), {"optimizer.beta1", "0.999999"});
  expect_all(error_of(ok, {"optimizer.schedule=cos"}), {"\"cos\"", "\"cosine\"", "\"wsd\""});
  expect_all(error_of(ok, {"optimizer.lr=0"}), {"optimizer.lr", "positive"});
  expect_all(error_of("{" + kModel + R"(, "data": {"train": 5}})"), {"data.train", "5", "string"});
  expect_all(error_of("{" + kModel + R"(, "train": 5})"), {"train", "5", "object"});
  expect_all(error_of(ok, {"train=5"}), {"section"});
  expect_all(error_of(ok, {"train.batch"}), {"key=value"});
  expect_all(error_of(R"({"model": {"n_layer": "two"}})"), {"n_layer", "integer"});
  expect_all(error_of(R"({"model": 7})"), {"model", "7"});
  expect_all(error_of("{}"), {"no model", "0.1b"});
  expect_all(error_of("{\"model\": "), {"small.json", "JSON"});
  expect_all(error_of("[1]"), {"array", "object"});
}

TEST(Config, ModelByNameAndOverridden) {
  const TrainConfig c = parse_config(R"({"model": "1.5b"})", "x.json", {"model.n_layer=3"});
  EXPECT_EQ(c.model.n_embd, 2048);
  EXPECT_EQ(c.model.rank_w, 96);
  EXPECT_EQ(c.model.n_layer, 3);
  bool from_file = false, from_set = false;
  for (const auto& e : config_entries(c)) {
    from_file |= e.key == "model.n_embd" && e.origin.find("1.5b.json") != std::string::npos;
    from_set |= e.key == "model.n_layer" && e.origin == "--set" && e.value == "3";
  }
  EXPECT_TRUE(from_file);
  EXPECT_TRUE(from_set);
  expect_all(error_of(R"({"model": "9b"})"), {"'9b'", "0.1b, 0.4b, 1.5b, 2.9b, 7.2b"});
}

TEST(Config, PrintedTableShowsValueAndOrigin) {
  const std::string table = print_config(parse(R"("train": {"batch": 3})", {"optimizer.lr=0.25"}));
  std::istringstream in(table);
  int found = 0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    std::string key, value, origin;
    fields >> key >> value >> origin;
    if (key == "train.batch") found += value == "3" && origin == "file";
    if (key == "optimizer.lr") found += value == "0.25" && origin == "--set";
    if (key == "optimizer.beta2") found += value == "0.99" && origin == "default";
  }
  EXPECT_EQ(found, 3) << table;
}

TEST(Config, JsonRoundTripKeepsEverything) {
  const TrainConfig a = parse(R"("optimizer": {"lr": 0.1, "eps": 1e-18})",
                              {"train.seed=123456789", "sample.prompt=\"\\n\""});
  const TrainConfig b = parse_config(config_json(a), "again.json", {});
  EXPECT_EQ(config_json(a), config_json(b));
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(b.optimizer.lr, 0.1);
  EXPECT_EQ(b.sample.prompt, "\n");
}

TEST(Config, EndOfTheRun) {
  // 4 x 8 tokens per step.
  const std::vector<std::string> base = {"train.batch=4", "train.context=8"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), base.begin(), base.end());
    return parse("", more);
  };
  EXPECT_EQ(with({"train.steps=10"}).total_steps(0), 10);
  EXPECT_EQ(with({"train.steps=10"}).schedule(0).exit_tokens, 320);
  EXPECT_EQ(with({"train.exit_tokens=321"}).total_steps(0), 11);
  // Both: the tokens shape the schedule, the steps end the run.
  const TrainConfig both = with({"train.steps=3", "train.exit_tokens=3200"});
  EXPECT_EQ(both.total_steps(0), 3);
  EXPECT_EQ(both.schedule(0).exit_tokens, 3200);
  const TrainConfig epochs = with({"train.epochs=1.5"});
  EXPECT_EQ(epochs.total_steps(640), 30);
  EXPECT_EQ(epochs.schedule(640).exit_tokens, 960);
  EXPECT_EQ(with({"train.epochs=1", "train.steps=5"}).total_steps(640), 5);
  EXPECT_EQ(with({"train.epochs=1", "train.steps=50"}).total_steps(640), 20);
  EXPECT_THROW(with({}).total_steps(640), ConfigError);
}

TEST(Config, WarmUpFactorFollowsTheArchitecture) {
  EXPECT_DOUBLE_EQ(parse("", {"train.steps=9"}).schedule(0).warmup_start, 0.01);
  EXPECT_DOUBLE_EQ(
      parse("", {"train.steps=9", "optimizer.warmup_start=0.5"}).schedule(0).warmup_start, 0.5);
}

TEST(Config, DocumentationListsEveryKey) {
  std::ifstream in(std::string(RWKV_SOURCE_DIR) + "/docs/training.md");
  ASSERT_TRUE(in.good());
  std::stringstream text;
  text << in.rdbuf();
  for (const auto& e : config_entries(parse("")))
    EXPECT_NE(text.str().find("`" + e.key + "`"), std::string::npos) << e.key;
}

}  // namespace
}  // namespace rwkv
