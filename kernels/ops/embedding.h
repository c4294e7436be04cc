#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// Row gather: y[b, t] = weight[token[b, t]].
/// in tokens (B, T) i32   param weight (V, C)   out y (B, T, C)
/// backward reads: tokens. Deterministic: rows of one token are added in (b, t) order.
/// Forward throws ShapeError naming the first token outside [0, V).
extern const Op kEmbedding;

}  // namespace rwkv
