#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

struct LinearAttrs {
  bool f32_out = false;  ///< y is f32 whatever the type of x; there is no backward then
  /// The weight is stored (K, N): on the CPU rows whose input is zero in all tokens (at most four:
  /// few_rows.h) are not read. CPU only; there is no backward then.
  bool transposed = false;
};

/// y = x W^T, no bias, or y = residual + x W^T: rounded once, and one pass less over memory.
/// Attributes may be absent.
/// in x (..., K), optional residual (..., N)   param weight (N, K)   out y (..., N)
/// On the CPU the weight of an f32 x may be packed (kernels/core/packed_rows.h); there is no
/// backward then. backward reads: x.
extern const Op kLinear;

}  // namespace rwkv
