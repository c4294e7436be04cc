#pragma once
/// Numbers to and from tensors of either device, and how far they are from a reference.

#include <cstdint>
#include <vector>

#include "kernels/core/context.h"

namespace rwkv::bench {

/// Fills a tensor (f32 or bf16; the CPU has f32 only) with `values`, rounded to its type, repeated
/// until it is full.
void fill_values(Context& ctx, const TensorView& view, const std::vector<float>& values);

/// The elements of a tensor, or its last `most` elements. Waits.
std::vector<double> read_values(Context& ctx, const TensorView& view, int64_t most = INT64_MAX);

/// 2-norm of the difference over that of `want`; NaN if anything is.
double relative_error(const std::vector<double>& got, const std::vector<double>& want);

/// worst = max(worst, error), where NaN is larger than everything.
void raise_error(double& worst, double error);

}  // namespace rwkv::bench
