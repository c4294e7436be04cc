#pragma once
/// What rwkv-eval wkv-compare prints and draws.

#include <string>

#include "inference/compare.h"
#include "tools/eval_report.h"

namespace rwkv {

Report wkv_compare_report(const WkvComparison& result);

/// The difference by position, as a gnuplot script (FILE.gp) or a picture (FILE.png).
void plot_wkv_comparison(const std::string& path, const WkvComparison& result);

}  // namespace rwkv
