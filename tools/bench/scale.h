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
  std::string model;  ///< a public size; empty: layers, width and vocab
  int64_t layers = 12, width = 768, vocab = 50304, head_size = 64;
  std::vector<std::string> shapes;  ///< "TOKENSxBATCH" of one rank; empty: 4096x8 and 512x16
  std::vector<int> zero;            ///< stages; empty: 1
  std::string exchange = "f32", grad_checkpointing = "none";
  int64_t recompute_blocks = 0, parcel = -1;  ///< parcel: see dist.parcel
  bool overlap = true, copy_engines = true, alone = true, collectives = false;
  int traced = 4;                     ///< steps whose timeline is taken
  std::string trace, svg;             ///< files; empty: none
  std::vector<std::string> simulate;  ///< records to predict from; nothing is measured then
};

void add_scale_flags(CLI::App* app, ScaleOptions& options);

/// For each shape: a step of each rank alone without a communicator, then of all together, with
/// random tokens and every tensor non-zero. Prints step times, tokens/s, model FLOPs utilisation,
/// the efficiency (the first rank's time alone over that of all), memory planned and used, the
/// exposed communication by the timelines of some more steps, and what the exchanges take by
/// themselves. Returns the exit code.
int run_scale(const ScaleOptions& options);

}  // namespace rwkv::bench
