#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

struct LinearAttrs {
  bool f32_out = false;  ///< y is f32 whatever the type of x; there is no backward then
};

/// y = x W^T, no bias. Attributes may be absent.
/// in x (..., K)   param weight (N, K)   out y (..., N)
/// backward reads: x.
extern const Op kLinear;

}  // namespace rwkv
