#pragma once
/// rwkv-bench decode: tokens per second of the kernels made for decoding.

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace CLI {
class App;
}

namespace rwkv::bench {

struct DecodeBenchOptions : CommonOptions {
  std::vector<std::string> sizes;  ///< 0.1B, 1.5B, 7.2B
  std::vector<int64_t> batches;
  std::string dtype = "f16", state = "f16";
  bool no_skip = false;  ///< also rows of zero activations are read
  bool stages = false;   ///< where the time goes, by stage
  int tokens = 64;       ///< steps in a row per timed run
  int splits = 0, slice = 0, nap = -1, ring = 0, flight = -1, stream_value = -1, plans = 8;
  bool exact = false;       ///< one sequence by the kernels of batches, too
  bool vendor = false;      ///< batches: cuBLASLt's products
  bool plan_times = false;  ///< prints what was tried
};

void add_decode_flags(CLI::App* app, DecodeBenchOptions& options);

/// Random weights of the sizes of public models, made on the GPU. Prints tokens/s, bytes read per
/// second and their share of the copy bandwidth of the same run. Throws ConfigError, DeviceError.
int run_decode(const DecodeBenchOptions& options);

}  // namespace rwkv::bench
