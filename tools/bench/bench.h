#pragma once
/// Subcommands of rwkv-bench. Each has an options struct, a function that adds its flags to a CLI11
/// command, and a run function; rwkv_bench.cpp only parses and dispatches.

#include <string>
#include <vector>

namespace rwkv::bench {

/// Flags that every subcommand has.
struct CommonOptions {
  int threads = 0;   ///< 0: as many as the process may use
  int repeats = 15;  ///< timed runs per row, after one untimed run
  std::string json;  ///< write the rows to this file too
  std::string plot;  ///< FILE.gp: a gnuplot script; FILE.png: that, run as well
};

struct WkvOptions : CommonOptions {
  bool list = false;
  std::string device = "cpu";
  std::string dtype;                  ///< of the vectors; empty: f32 on the CPU, bf16 on CUDA
  std::vector<std::string> variants;  ///< names or families; empty: all that fit
  std::vector<std::string> shapes;    ///< "B,T,H,N"; empty: a list per device
  std::string lengths;                ///< "FIRST:LAST": T of each shape is FIRST, 2 FIRST, ...
  double seconds = 2;                 ///< about this long per variant and shape, 3 runs at least
  std::string from;                   ///< draw this JSON record instead of measuring
};

/// Times WKV variants against each other; checks each against the double reference first.
/// Returns the exit code.
int run_wkv(const WkvOptions& options);

}  // namespace rwkv::bench
