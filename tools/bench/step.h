#pragma once
/// rwkv-bench step: one training step of a model, taken apart.

#include <cstdint>
#include <string>

#include "tools/bench/bench.h"

namespace rwkv::bench {

struct StepOptions : CommonOptions {
  int64_t layers = 12, width = 768, vocab = 50304, head_size = 64;
  int64_t batch = 1, tokens = 512;
  std::string wkv = "auto";
  std::string grad_checkpointing = "none";
};

/// Trains on random tokens with every tensor non-zero: forward, backward, clipping, AdamW. Prints
/// the median step time, tokens/s, model-flops utilisation (plan's flops over time over the
/// measured GEMM rate), the time by op, the share and the rate of the matrix products against
/// Eigen's own 1024^3 product measured in the same run, and the memory by arena. Returns the exit
/// code.
int run_step(const StepOptions& options);

}  // namespace rwkv::bench
