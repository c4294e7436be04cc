#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// The last token of every sequence: y[b, 0] = x[b, T-1]. Keeps the head off tokens whose logits
/// nobody reads.
/// in x (B, T, C)   out y (B, 1, C). backward reads: nothing.
extern const Op kLastToken;

}  // namespace rwkv
