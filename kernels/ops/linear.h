#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// y = x W^T, no bias.
/// in x (..., K)   param weight (N, K)   out y (..., N)
/// backward reads: x.
extern const Op kLinear;

}  // namespace rwkv
