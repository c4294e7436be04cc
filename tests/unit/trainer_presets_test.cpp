// The configs that are shipped: they load by name, and their models have the published sizes.

#include <gtest/gtest.h>

#include <filesystem>

#include "model/rwkv.h"
#include "trainer/config.h"
#include "trainer/dry_run.h"

namespace rwkv {
namespace {

TEST(Presets, PileIsTheReferenceRecipe) {
  const TrainConfig c = load_config("pile169m", {});
  EXPECT_EQ(c.name, "pile169m");
  const ParameterCount n = count_parameters(c.model);
  EXPECT_EQ(n.total, 167688192);
  EXPECT_EQ(n.used, 167638272);
  EXPECT_EQ(c.tokens_per_step(), 8 * 30 * 4096);
  EXPECT_EQ(c.train.context, 4096);
  EXPECT_EQ(c.train.exit_tokens, 332115325534);
  EXPECT_EQ(c.train.grad_checkpointing, "block");
  EXPECT_EQ(c.data.sampler, "prime");
  EXPECT_DOUBLE_EQ(c.optimizer.lr, 8e-4);
  EXPECT_DOUBLE_EQ(c.optimizer.lr_final, 3e-5);
  EXPECT_DOUBLE_EQ(c.optimizer.weight_decay, 0.1);
  EXPECT_EQ(c.optimizer.warmup, 10);
  EXPECT_EQ(c.model.rank_g, 128);
}

TEST(Presets, Rwkv4PileIsTheReferenceRecipe) {
  const TrainConfig c = load_config("rwkv4-pile169m", {});
  EXPECT_EQ(c.model.architecture, "rwkv4");
  const ParameterCount n = count_parameters(c.model);
  EXPECT_EQ(n.total, 169342464);
  EXPECT_EQ(n.used, 169342464);
  EXPECT_EQ(make_model(c.model)->params().numel(), 169342464);
  EXPECT_EQ(c.train.context, 1024);
  EXPECT_DOUBLE_EQ(c.optimizer.lr, 6e-4);
  EXPECT_DOUBLE_EQ(c.optimizer.lr_final, 1e-5);
  EXPECT_DOUBLE_EQ(c.optimizer.eps, 1e-8);
  EXPECT_DOUBLE_EQ(c.optimizer.weight_decay, 0);
  EXPECT_EQ(c.schedule(0).kind, ScheduleKind::kExponential);
  EXPECT_DOUBLE_EQ(c.schedule(0).warmup_start, 0.2);
}

TEST(Presets, MiniPileIsTheDemo) {
  const TrainConfig c = load_config("minipile", {});
  const ParameterCount n = count_parameters(c.model);
  EXPECT_EQ(n.total, 191084544);
  EXPECT_EQ(n.used, 191034624);
  EXPECT_EQ(c.tokens_per_step(), 16 * 512);
  EXPECT_EQ(c.train.exit_tokens, 1498226207);
  EXPECT_DOUBLE_EQ(c.optimizer.weight_decay, 0.001);
}

TEST(Presets, QuickstartIsSmall) {
  EXPECT_LE(count_parameters(load_config("quickstart", {}).model).used, 1100000);
}

struct Released {
  const char* name;
  int64_t layers, width, w, a, v, g;
};

TEST(Presets, ModelFilesHaveTheReleasedSizes) {
  for (const Released r :
       {Released{"0.1b", 12, 768, 64, 64, 32, 128}, Released{"0.4b", 24, 1024, 64, 64, 32, 128},
        Released{"1.5b", 24, 2048, 96, 96, 64, 256}, Released{"2.9b", 32, 2560, 96, 96, 64, 320},
        Released{"7.2b", 32, 4096, 128, 128, 96, 480}}) {
    const TrainConfig c =
        parse_config(std::string("{\"model\": \"") + r.name + "\"}", "x.json", {});
    const ModelConfig& m = c.model;
    EXPECT_EQ(m.n_layer, r.layers) << r.name;
    EXPECT_EQ(m.n_embd, r.width) << r.name;
    EXPECT_EQ(m.vocab_size, 65536) << r.name;
    EXPECT_EQ(m.head_size, 64) << r.name;
    EXPECT_EQ(m.rank_w, r.w) << r.name;
    EXPECT_EQ(m.rank_a, r.a) << r.name;
    EXPECT_EQ(m.rank_v, r.v) << r.name;
    EXPECT_EQ(m.rank_g, r.g) << r.name;
    const int64_t d = r.width, ranks = r.w + r.a + r.v + r.g;
    const int64_t total = 2 * 65536 * d + 4 * d + r.layers * (19 * d + 12 * d * d + 2 * d * ranks);
    EXPECT_EQ(count_parameters(m).total, total) << r.name;
    EXPECT_EQ(count_parameters(m).used, total - d - 2 * d * r.v) << r.name;
  }
}

TEST(Presets, EveryFileLoadsAndPlans) {
  int files = 0;
  const std::string dir = std::string(RWKV_SOURCE_DIR) + "/configs";
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    if (entry.path().extension() != ".json") continue;
    ++files;
    const TrainConfig c = load_config(entry.path().stem().string(), {});
    const std::string report = dry_run_report(c, Device::kCpu);
    for (const char* part : {"parameters", "unused", "tokens per step", "activations", "plan"})
      EXPECT_NE(report.find(part), std::string::npos) << entry.path() << "\n" << report;
  }
  EXPECT_GE(files, 4);
}

TEST(Presets, DryRunSaysWhenItDoesNotFit) {
  const TrainConfig c = load_config("minipile", {"limits.memory_mib=100"});
  const std::string report = dry_run_report(c, Device::kCpu);
  EXPECT_NE(report.find("NO: only 100.0 MiB"), std::string::npos) << report;
}

TEST(Presets, BareNamesThatDoNotExistListWhatThereIs) {
  try {
    load_config("pile170m", {});
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_NE(std::string(e.what()).find("pile169m"), std::string::npos) << e.what();
  }
  EXPECT_THROW(load_config("no/such/file.json", {}), ConfigError);
}

}  // namespace
}  // namespace rwkv
