#pragma once
/// Parts of the WKV registry that the ops, the tests and rwkv-bench share.

#include <string>
#include <string_view>

#include "kernels/wkv/wkv.h"

namespace rwkv {

/// Why `kernel` cannot run the call, or "" if it can.
std::string wkv_misfit(const WkvKernel& kernel, std::string_view op, Device device, DType io,
                       const WkvShape& shape);

/// What "auto" takes for a shape and by which measurement: one line.
std::string explain_wkv_auto(std::string_view op, Device device, DType io, const WkvShape& shape);

/// Operations of the plain recurrence, the yardstick for every variant (spec rwkv7 4.5): 9 N^2 per
/// token and head forward, 24 N^2 backward. A variant may do more or less work than that.
double wkv7_forward_flops(const WkvShape& shape);
double wkv7_backward_flops(const WkvShape& shape);
/// The same of WKV-4 (spec rwkv4 7): 12 per token and channel forward, 35 backward; exponentials
/// and divisions count as 1.
double wkv4_forward_flops(const WkvShape& shape);
double wkv4_backward_flops(const WkvShape& shape);

}  // namespace rwkv
