// --preset rwkv-lm: the reference's own command line, and what it refuses.

#include <gtest/gtest.h>

#include <sstream>

#include "data/binidx.h"
#include "kernels/core/error.h"
#include "tests/unit/trainer_test_util.h"
#include "trainer/config.h"
#include "trainer/rwkv_lm_preset.h"

namespace rwkv {
namespace {

using Settings = std::vector<RwkvLmSetting>;

/// The smallest that is accepted, with `more` behind; a name that comes twice is replaced.
Settings with(const Settings& more, const std::string& data = "data/absent") {
  Settings s = {{"data_file", data}, {"vocab_size", "257"}, {"my_exit_tokens", "1000000"}};
  for (const auto& [name, value] : more) {
    std::erase_if(s, [&, n = name](const auto& old) { return old.first == n; });
    if (value != "-") s.emplace_back(name, value);
  }
  return s;
}

TrainConfig config_of(const RwkvLmPreset& p) {
  return parse_config(p.config_json, "preset rwkv-lm", {});
}

void expect_refused(const Settings& settings, const std::vector<std::string>& parts) {
  try {
    map_rwkv_lm(settings);
    ADD_FAILURE() << "accepted; expected: " << parts.front();
  } catch (const ConfigError& e) {
    for (const auto& p : parts)
      EXPECT_NE(std::string(e.what()).find(p), std::string::npos)
          << p << " is missing: " << e.what();
  }
}

/// As it stands in the reference's demo-training-run.sh, with a data file that is not there.
constexpr const char* kDemo =
    "--load_model 0 --wandb Test --proj_dir out/L12-D768-x070 --my_testing x070 --ctx_len 512 "
    "--train_stage 3 --epoch_count 999999 --epoch_begin 0 --data_file data/absent "
    "--my_exit_tokens 1498226207 --magic_prime 2926181 --num_nodes 1 --micro_bsz 16 --n_layer 12 "
    "--n_embd 768 --kernel @rwkv3 --lr_init 6e-4 --lr_final 6e-5 --warmup_steps 10 --beta1 0.9 "
    "--beta2 0.99 --adam_eps 1e-18 --data_type binidx --vocab_size 65536 --weight_decay 0.001 "
    "--epoch_save 10 --head_size 64 --head_chunk 0 --accelerator gpu --devices 1 --precision bf16 "
    "--strategy deepspeed_stage_2 --grad_cp 1 --enable_progress_bar True";

TEST(RwkvLm, TheReferencesCommandLine) {
  std::vector<std::string> words;
  std::istringstream in(kDemo);
  for (std::string w; in >> w;) words.push_back(w);
  const RwkvLmPreset p = map_rwkv_lm(parse_rwkv_lm_words(words));
  EXPECT_TRUE(p.resume);
  EXPECT_EQ(p.init_file, "");
  EXPECT_EQ(p.device, "cuda");
  for (const char* part : {"micro_bsz", "train.batch = 16", "kernel", "@rwkv3"})
    EXPECT_NE(p.report.find(part), std::string::npos) << part << "\n" << p.report;
  const TrainConfig c = config_of(p);
  EXPECT_EQ(c.model.n_layer, 12);
  EXPECT_EQ(c.model.n_embd, 768);
  EXPECT_EQ(c.model.vocab_size, 65536);
  EXPECT_EQ(c.model.head_size, 64);
  EXPECT_EQ(c.data.train, "data/absent");
  EXPECT_EQ(c.data.sampler, "prime");
  EXPECT_EQ(c.data.magic_prime, 2926181);
  EXPECT_EQ(c.train.context, 512);
  EXPECT_EQ(c.train.batch, 16);
  EXPECT_EQ(c.train.micro_batches, 1);
  EXPECT_EQ(c.train.exit_tokens, 1498226207);
  EXPECT_EQ(c.train.grad_checkpointing, "block");
  EXPECT_EQ(c.train.clip, 1);
  EXPECT_EQ(c.optimizer.lr, 6e-4);
  EXPECT_EQ(c.optimizer.lr_final, 6e-5);
  EXPECT_EQ(c.optimizer.schedule, "cosine");
  EXPECT_EQ(c.optimizer.warmup, 10);
  EXPECT_EQ(c.optimizer.eps, 1e-18);
  EXPECT_EQ(c.optimizer.weight_decay, 0.001);
  EXPECT_EQ(c.kernels.dtype, "auto");
  EXPECT_EQ(c.checkpoint.dir, "out/L12-D768-x070");
  EXPECT_EQ(c.checkpoint.every, 25200) << "10 mini-epochs of 2520 steps";
  EXPECT_EQ(c.origin.at("train.batch"), "preset rwkv-lm");
}

TEST(RwkvLm, DefaultsAreTheReferences) {
  const RwkvLmPreset p = map_rwkv_lm(with({}));
  EXPECT_FALSE(p.resume);
  EXPECT_EQ(p.device, "");
  const TrainConfig c = config_of(p);
  EXPECT_EQ(c.train.batch, 12);
  EXPECT_EQ(c.train.context, 1024);
  EXPECT_EQ(c.model.n_layer, 6);
  EXPECT_EQ(c.model.n_embd, 512);
  EXPECT_EQ(c.optimizer.lr_final, 1e-5);
  EXPECT_EQ(c.optimizer.warmup, 0);
  EXPECT_EQ(c.optimizer.weight_decay, 0);
  EXPECT_EQ(c.checkpoint.dir, "out");
  EXPECT_EQ(c.checkpoint.every, 5 * 3360);
}

TEST(RwkvLm, RanksBecomeMicroBatchesAndWeightsInit) {
  const RwkvLmPreset p = map_rwkv_lm(with({{"devices", "4"},
                                           {"num_nodes", "2"},
                                           {"micro_bsz", "10"},
                                           {"load_model", "base.pth"},
                                           {"head_chunk", "4096"},
                                           {"random_seed", "7"},
                                           {"head_size_a", "32"},
                                           {"accelerator", "cpu"}}));
  const TrainConfig c = config_of(p);
  EXPECT_EQ(c.train.batch, 10);
  EXPECT_EQ(c.train.micro_batches, 8);
  EXPECT_EQ(c.train.loss_chunk_tokens, 4096);
  EXPECT_EQ(c.train.seed, 7);
  EXPECT_EQ(c.model.head_size, 32);
  EXPECT_EQ(p.init_file, "base.pth");
  EXPECT_EQ(p.device, "cpu");
}

TEST(RwkvLm, RefusesUnknownAndContradictoryOnes) {
  expect_refused(with({{"micro_bs", "16"}}), {"micro_bs ", "micro_bsz"});
  expect_refused(with({{"micro_bsz", "0"}}), {"micro_bsz is 0"});
  expect_refused(with({{"micro_bsz", "sixteen"}}), {"micro_bsz is sixteen", "integer"});
  expect_refused(with({{"micro_bsz", "17"}}), {"40320", "16", "18"});
  expect_refused(with({{"micro_bsz", "15"}, {"devices", "11"}}), {"devices", "is 11"});
  expect_refused(with({{"micro_bsz", "13"}, {"devices", "8"}}), {"on 8 devices", "12 and 14"});
  expect_refused(with({{"lr_init", "-1"}}), {"lr_init is -1"});
  expect_refused(with({{"lr_final", "nan"}}), {"lr_final is nan"});
  expect_refused(with({{"vocab_size", "-"}}), {"vocab_size", "65536"});
  expect_refused(with({{"data_file", "-"}}), {"data_file"});
  expect_refused(with({{"data_type", "utf-8"}}), {"data_type is utf-8"});
  expect_refused(with({{"my_exit_tokens", "-"}}), {"my_exit_tokens"});
  expect_refused(with({{"my_exit_tokens", "-5"}}), {"my_exit_tokens is -5"});
  expect_refused(with({{"my_testing", "x060"}}), {"x060", "x070"});
  expect_refused(with({{"dim_att", "256"}}), {"dim_att is 256"});
  expect_refused(with({{"dim_ffn", "1792"}}), {"dim_ffn is 1792", "2048"});
  expect_refused(with({{"train_stage", "1"}}), {"train_stage is 1"});
  expect_refused(with({{"epoch_begin", "3"}}), {"epoch_begin is 3", "train_stage 3"});
  expect_refused(with({{"precision", "fp16"}}), {"precision is fp16"});
  expect_refused(with({{"accumulate_grad_batches", "2"}}), {"accumulate_grad_batches is 2"});
  expect_refused(with({{"grad_cp", "2"}}), {"grad_cp is 2"});
  expect_refused(with({{"my_pile_stage", "3"}, {"train_stage", "2"}}), {"my_pile_stage"});
  Settings twice = with({{"ctx_len", "512"}});
  twice.emplace_back("ctx_len", "1024");
  expect_refused(twice, {"ctx_len is given twice, as 512 and as 1024"});
  EXPECT_NO_THROW(map_rwkv_lm(with({{"epoch_begin", "3"}, {"train_stage", "3"}})));
  EXPECT_NO_THROW(map_rwkv_lm(with({{"dim_ffn", "2048"}, {"dim_att", "512"}})));
}

TEST(RwkvLm, WordsOfTheCommandLine) {
  EXPECT_EQ(parse_rwkv_lm_words(std::vector<std::string>{"--a", "1", "--b=x=y", "--c", "-1"}),
            (Settings{{"a", "1"}, {"b", "x=y"}, {"c", "-1"}}));
  for (const auto& bad : std::vector<std::vector<std::string>>{
           {"16"}, {"--a"}, {"--a", "--b", "1"}, {"--"}, {"-a", "1"}})
    EXPECT_THROW(parse_rwkv_lm_words(bad), ConfigError) << bad.front();
}

TEST(RwkvLm, TellsTheRightMagicPrime) {
  const test::ScratchDir dir("rwkv_lm");
  test::write_token_file(dir / "a.h5", 31138, 1);
  write_binidx(*TokenFile::open(dir / "a.h5"), dir / "a");
  const std::string data = dir / "a";
  const auto c = config_of(map_rwkv_lm(with({{"ctx_len", "64"}}, data)));
  EXPECT_EQ(c.data.magic_prime, 479);
  EXPECT_NO_THROW(map_rwkv_lm(with({{"ctx_len", "64"}, {"magic_prime", "467"}}, data)));
  expect_refused(with({{"ctx_len", "64"}, {"magic_prime", "478"}}, data), {"478", "it is 479"});
  expect_refused(with({{"ctx_len", "128"}, {"magic_prime", "479"}}, data), {"479", "it is 239"});
  expect_refused(with({{"ctx_len", "64"}, {"my_exit_tokens", "0"}}, data), {"31138"});
}

}  // namespace
}  // namespace rwkv
