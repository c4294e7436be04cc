#pragma once
/// rwkv-bench cpu: decoding and prefill of RWKV-7 on the CPU.

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace CLI {
class App;
}

namespace rwkv::bench {

struct CpuInferenceOptions : CommonOptions {
  std::vector<std::string> weights;  ///< f32, bf16, int8; empty: all
  int64_t layers = 12, width = 768, vocab = 65536;
  int tokens = 64;       ///< decoded in a row per timed run
  int64_t prompt = 512;  ///< of prefill; 0: none
  bool no_zeros = false;
};

void add_cpu_inference_flags(CLI::App* app, CpuInferenceOptions& options);

/// Random weights. Prints tokens per second, bytes of weights and state read per second and their
/// share of the read bandwidth of the same run. Throws ConfigError.
int run_cpu_inference(const CpuInferenceOptions& options);

}  // namespace rwkv::bench
