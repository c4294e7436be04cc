#pragma once
/// Subcommands of rwkv-bench. Each has an options struct, a function that adds its flags to a CLI11
/// command, and a run function; rwkv_bench.cpp only parses and dispatches.

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"

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
  std::string architecture = "rwkv7";  ///< or "rwkv4"
  std::string device = "cpu";
  /// Of the vectors; empty: f32 on the CPU; on CUDA bf16, for RWKV-4 both. RWKV-4: may be a list.
  std::vector<std::string> dtypes;
  std::vector<std::string> variants;  ///< names or families; empty: all that fit
  /// "B,T,H,N", RWKV-4 "B,T,C"; empty: a list per device
  std::vector<std::string> shapes;
  std::string lengths;  ///< "FIRST:LAST": T of each shape is FIRST, 2 FIRST, ...
  double seconds = 2;   ///< about this long per variant and shape, 3 runs at least
  double limit = 0;     ///< RWKV-4: seconds of one run from which on a point is left out; 0: 0.1, 1
  std::string from;     ///< draw this JSON record instead of measuring
  bool decode = false;  ///< time single tokens of many sequences (wkv_fp16.h)
  bool state_error = false;  ///< errors of binary16 states (wkv_fp16.h)
  int64_t steps = 16384;     ///< of state_error
};

/// Times WKV variants against each other; checks each against the double reference first.
/// Returns the exit code. Throws ConfigError, DeviceError.
int run_wkv(const WkvOptions& options);
/// The part for RWKV-4.
int run_wkv4(const WkvOptions& options);

/// The lengths of --lengths; empty text: none. Throws ConfigError.
std::vector<int64_t> parse_lengths(const std::string& text);
/// --device. Throws ConfigError.
Device parse_device(const std::string& name);
/// --dtype: of each of these; empty: `otherwise`. Throws ConfigError, also for bf16 on the CPU.
std::vector<DType> parse_dtypes(const std::vector<std::string>& names, Device device,
                                const std::vector<DType>& otherwise);

}  // namespace rwkv::bench
