#pragma once
/// rwkv-bench scale: training steps on several ranks against one.

#include <cstdint>
#include <string>
#include <vector>

#include "tools/bench/bench.h"

namespace CLI {
class App;
}

namespace rwkv::bench {

struct ScaleOptions : CommonOptions {
  int gpus = 1;  ///< local ranks to start; 1: those of the launcher
  std::string device = "cuda", dtype = "auto";
  int64_t layers = 12, width = 768, vocab = 50304, head_size = 64;
  std::vector<std::string> shapes;  ///< "TOKENSxBATCH" of one rank; empty: 4096x8 and 512x16
  std::vector<int> zero;            ///< stages; empty: 1
  std::string exchange = "f32", grad_checkpointing = "none";
  bool overlap = true;
};

void add_scale_flags(CLI::App* app, ScaleOptions& options);

/// For each shape: a step of each rank alone without a communicator, then of all together, with
/// random tokens and every tensor non-zero. Prints step times, tokens/s, the efficiency (the first
/// rank's time alone over that of all), the exposed communication (what a step takes longer than
/// alone), the time that its exchanges take by themselves, and their bus bandwidth beside that of a
/// large all-reduce in the same call. Returns the exit code.
int run_scale(const ScaleOptions& options);

}  // namespace rwkv::bench
