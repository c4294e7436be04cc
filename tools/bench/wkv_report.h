#pragma once
/// What rwkv-bench wkv found: printed, written as a JSON record, read back from one, drawn.

#include <string>
#include <vector>

#include "kernels/wkv/wkv.h"
#include "tools/bench/report.h"
#include "tools/bench/wkv_problem.h"

namespace rwkv::bench {

/// One phase of one variant on one shape.
struct WkvRow {
  std::string variant;
  std::string phase;  ///< "forward", "backward", "both" (their sum); "step" for a single token
  WkvShape shape;
  Timing time;
  int repeats = 0;
  double flops = 0;        ///< of the plain recurrence (kernels/wkv/registry.h)
  double bound_bytes = 0;  ///< least traffic (spec rwkv7 4.5)
  double saved_bytes = 0;  ///< what the forward leaves for the backward
};

struct WkvVariantErrors {
  std::string variant;
  WkvShape shape;  ///< the one being timed
  WkvErrors errors;
};

struct WkvReport {
  Environment env;
  Device device = Device::kCpu;
  DType dtype = DType::kF32;
  double copy_bytes_per_s = 0;
  double gemm_flops_per_s = 0;  ///< of an 8192^3 product of `dtype` on CUDA; 0 on the CPU
  std::vector<WkvRow> rows;
  std::vector<WkvVariantErrors> errors;
  std::vector<std::string> choices;   ///< what auto takes, per shape
  std::vector<std::string> failures;  ///< what was not timed, and why
};

std::string wkv_shape_name(const WkvShape& shape);

/// Rows of a shape from its timings: a single token has only forward times.
std::vector<WkvRow> wkv_rows(const WkvKernel& kernel, const WkvShape& shape, double saved_bytes,
                             const std::vector<double>& forward,
                             const std::vector<double>& backward);

void print_wkv_head(const WkvReport& report, int repeats);
/// Rows and errors from these indices on.
void print_wkv_rows(const WkvReport& report, size_t first_row, size_t first_error);

void write_wkv_json(const std::string& path, const WkvReport& report);
/// Enough of a record to draw it. Throws ConfigError naming `path`.
WkvReport parse_wkv_json(const std::string& text, const std::string& path);

/// Time against sequence length, both axes logarithmic, a line per variant, error bars from the
/// fastest to the slowest run; a row of pictures (forward, forward + backward) per combination of
/// batch, heads and head size. `path`: see write_plot.
void plot_wkv(const std::string& path, const WkvReport& report);

}  // namespace rwkv::bench
