#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// y = max(x W1^T, 0)^2 W2^T, or residual + that: the channel mix between token shift and gate. One
/// op, because the products can apply the activation and its derivative where they write.
/// in x (..., K), optional residual (..., N)   param W1 (H, K), W2 (N, H)   out y (..., N)
/// saved hidden = max(x W1^T, 0)^2 (rows, H); the derivative is taken from it as 2 sqrt(hidden), so
/// that the values before the activation are not kept. A CUDA backward may overwrite it.
/// backward reads: x, saved. source: spec rwkv7 2.5, 3.2, rwkv4 2
extern const Op kFeedForward;

}  // namespace rwkv
