#pragma once
/// What rwkv-bench wkv --arch rwkv4 found: printed, written as a JSON record, read back, drawn.

#include <string>
#include <vector>

#include "kernels/wkv/wkv.h"
#include "tools/bench/report.h"
#include "tools/bench/wkv4_problem.h"

namespace rwkv::bench {

/// One variant on one shape.
struct Wkv4Row {
  std::string variant;  ///< full name
  std::string family;   ///< "serial", "scan", ...
  DType dtype = DType::kF32;
  Wkv4Rates rates = Wkv4Rates::kModel;
  int64_t batch = 1, tokens = 1, channels = 1;
  Timing forward, backward, both;  ///< both: sums of one run each
  int repeats = 0;
  double saved_bytes = 0;  ///< what the forward leaves for the backward
  double replaced = -1;    ///< share of the work that fell back to the recurrence; -1: cannot
  bool chosen = false;     ///< auto takes this variant here
  /// Least traffic (spec rwkv4 7): k, v, y; with the backward k, v, y, dy, dk, dv besides.
  double forward_bytes() const { return 3 * vector_bytes(); }
  double both_bytes() const { return 9 * vector_bytes(); }
  double vector_bytes() const {
    return static_cast<double>(batch * tokens * channels) * static_cast<double>(dtype_bytes(dtype));
  }
};

struct Wkv4VariantErrors {
  std::string variant;
  Wkv4Errors errors;
};

struct Wkv4Report {
  Environment env;
  Device device = Device::kCpu;
  double copy_bytes_per_s = 0;
  double limit_s = 0;  ///< points that were expected to take longer are in `left_out`
  std::vector<Wkv4Row> rows;
  std::vector<Wkv4VariantErrors> errors;
  std::vector<std::string> left_out;  ///< and why
  std::vector<std::string> failures;  ///< what was not timed though it should have been, and why
};

/// The row of a shape (heads = channels) with its timings.
Wkv4Row wkv4_row(const WkvKernel& kernel, const WkvShape& shape, Wkv4Rates rates,
                 const std::vector<double>& forward, const std::vector<double>& backward);

void print_wkv4_head(const Wkv4Report& report, int repeats);
/// The rows from `first` on, all of one shape, a line per variant and type.
void print_wkv4_shape(const Wkv4Report& report, size_t first);
void print_wkv4_errors(const Wkv4Report& report);
/// Per type, batch and width: from which length on scan takes less time than serial, the largest
/// ratio of the two and where, and how much time auto's choice took beyond the better of both.
void print_wkv4_summary(const Wkv4Report& report);

void write_wkv4_json(const std::string& path, const Wkv4Report& report);
/// Whether the text is a record of this benchmark. Not JSON: false.
bool is_wkv4_json(const std::string& text);
/// Enough of a record to draw and to summarise it. Throws ConfigError naming `path`.
Wkv4Report parse_wkv4_json(const std::string& text, const std::string& path);

/// Time against sequence length, both axes logarithmic, a line per variant, bars from the fastest
/// to the slowest run, and what memory traffic alone would take: a picture per width and type, in
/// it a row (forward, forward + backward) per batch. Where there are several the files are called
/// FILE-d32-bf16.png and so on. `path`: see write_plot.
void plot_wkv4(const std::string& path, const Wkv4Report& report);

}  // namespace rwkv::bench
