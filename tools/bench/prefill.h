#pragma once
/// rwkv-bench prefill: tokens per second of prompts in the parallel form, on a GPU.

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace CLI {
class App;
}

namespace rwkv::bench {

struct PrefillBenchOptions : CommonOptions {
  std::vector<std::string> sizes;   ///< 0.1B, 1.5B, 7.2B
  std::vector<std::string> models;  ///< files
  std::vector<int64_t> tokens;
  int64_t batch = 1;
  int64_t piece = 4096;  ///< the longest part of a prompt that is worked on at once
  std::string dtype = "f16", state = "f16";
  std::string text;     ///< with models: the loss of this file
  std::string vocab;    ///< with models: find_tokenizer
  bool stages = false;  ///< where the time goes, by stage
};

void add_prefill_flags(CLI::App* app, PrefillBenchOptions& options);

/// Prints tokens/s, TFLOP/s and their share of a large product's rate in the same run. Throws
/// ConfigError, IoError, DeviceError.
int run_prefill(const PrefillBenchOptions& options);

}  // namespace rwkv::bench
