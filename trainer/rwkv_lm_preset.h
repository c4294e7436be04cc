#pragma once
/// `--preset rwkv-lm`: the settings of the reference trainer's command line (RWKV-LM, RWKV-7,
/// train.py) as a configuration of ours.

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace rwkv {

struct RwkvLmPreset {
  std::string config_json;  ///< for parse_config
  std::string init_file;    ///< load_model: weights to start from; empty: none
  bool resume = false;      ///< train_stage 2 or 3: from the newest checkpoint, if there is one
  std::string device;       ///< accelerator: "cpu" or "cuda"; empty: not said
  std::string report;       ///< a table: each setting, its value and what it became
};

using RwkvLmSetting = std::pair<std::string, std::string>;  ///< "micro_bsz", "16"

/// "--micro_bsz 16" and "--micro_bsz=16", as words of a command line. Throws ConfigError.
std::vector<RwkvLmSetting> parse_rwkv_lm_words(std::span<const std::string> words);

/// What is not given has the reference's default. Settings that cannot matter here (kernel,
/// strategy, ...) are named in the report as such. Throws ConfigError for unknown settings (naming
/// the nearest known one), for values the reference would refuse or that contradict each other, and
/// for options that this trainer does not have; if the data is there, also for a wrong magic_prime,
/// naming the right one. IoError for damaged data.
RwkvLmPreset map_rwkv_lm(const std::vector<RwkvLmSetting>& settings);

}  // namespace rwkv
