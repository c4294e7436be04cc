#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

struct TokenShiftAttrs {
  /// false (RWKV-7): y_c = h + (p - h) * mix_c;  true (RWKV-4): y_c = p + (h - p) * mix_c,
  /// where p[b, t] = h[b, t-1] and p[b, 0] = prev[b], or zero without `prev`.
  bool weights_current = false;
};

/// Token shift with all its mixes in one pass; nothing leaks between the rows of a batch.
/// in h (B, T, C) [, prev (B, C)]   param mix_0 .. mix_{n-1}, each (1, 1, C), n = 1 .. 6
/// out y_0 .. y_{n-1} like h [, last (B, C) = h[:, T-1], present iff prev is]
/// backward reads: h, prev. The gradients of `last` and `prev` flow.
/// source: spec rwkv7 2.2, 2.5, 3.2; rwkv4 2; kernels/ref/token_shift_ref.h
extern const Op kTokenShift;

}  // namespace rwkv
