#pragma once
/// rwkv-bench step: whole training steps of a model, and one taken apart.

#include <cstdint>
#include <string>

#include "tools/bench/bench.h"

namespace rwkv::bench {

struct StepOptions : CommonOptions {
  std::string device = "cpu", dtype = "auto";
  std::string architecture = "rwkv7";  ///< or "rwkv4"
  int64_t layers = 12, width = 768;
  int64_t vocab = 0;       ///< 0: 50304, RWKV-4 50277, as the Pile models have
  int64_t head_size = 64;  ///< RWKV-7
  int64_t batch = 1, tokens = 512, micro_batches = 1;
  int64_t loss_chunk_tokens = 0;
  std::string wkv = "auto";
  std::string grad_checkpointing = "none";
  std::string gemm = "measured";
  bool launch_graphs = true;
  int lanes = 0;
  double peak_tflops =
      0;  ///< 0: data sheet on CUDA (bf16 989, f32 67), Eigen's measured rate on the CPU
};

/// Trains on random tokens, new ones in every step, with every tensor non-zero: copy of the batch,
/// forward, backward, clipping, AdamW, loss read back. Prints the median step time, tokens/s,
/// model-flops utilisation, and the memory by arena; then, from steps with every op timed (without
/// launch graphs), the time by op and the share and rate of the matrix products.
/// Returns the exit code.
int run_step(const StepOptions& options);

}  // namespace rwkv::bench
