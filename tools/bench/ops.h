#pragma once
/// rwkv-bench ops: every op by itself.

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace rwkv::bench {

struct OpsOptions : CommonOptions {
  std::string device = "cpu";
  std::string dtype;              ///< empty: f32 on the CPU, bf16 on CUDA
  std::vector<std::string> ops;   ///< parts of case names; empty: all
  int64_t batch = 0, tokens = 0;  ///< 0: the device's own
  int64_t width = 768, head_size = 64, vocab = 50304;
};

/// Walks the benchmark cases of kernels/cases: forward and backward (all gradients written) with
/// median time, bytes that an ideal kernel moves per second and their share of the copy bandwidth,
/// flops and their share of the measured matrix product, both rates taken in the same run; on CUDA
/// also the gradient norm and AdamW. Correctness is the tests' business: they run the same case
/// objects. Returns the exit code.
int run_ops(const OpsOptions& options);

}  // namespace rwkv::bench
