#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

struct Wkv7OutputAttrs {
  int64_t head_size = 64;
  float eps = 64e-5f;  ///< constant, also for other head sizes (spec rwkv7 2.2)
};

/// What follows the WKV-7: group norm per head, bonus of the current token, output gate.
///   o = GroupNorm(y) * weight + bias (H groups of N channels);  beta = sum_j r_j k_j r_k[h, j]
///   out = (o + beta * v) * gate
/// in y, r, k, v, gate (B, T, C)   param weight (C), bias (C), r_k (H, N)   out (B, T, C)
/// saved mean, rstd (B, T, H) f32. backward reads: all inputs, saved.
/// N from 1 to 256, C a multiple of it (ConfigError otherwise).
/// source: spec rwkv7 2.2, 3.1, 3.3; kernels/ref/wkv7_output_ref.h
extern const Op kWkv7Output;

}  // namespace rwkv
