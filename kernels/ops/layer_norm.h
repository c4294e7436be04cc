#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

struct LayerNormAttrs {
  float eps = 1e-5f;
};

/// Normalises each row of x over its C channels, then scales and shifts.
///   y = (x - mean) * rstd * weight + bias,   rstd = 1 / sqrt(var + eps), biased variance
/// in x (..., C)   param weight (C), bias (C)   out y like x   saved mean, rstd (rows) f32
/// backward reads: x, saved. attrs LayerNormAttrs.
/// source: Ba et al. 2016, eq. 3-4; spec rwkv7 2.1, 3.1; kernels/ref/layer_norm_ref.h
extern const Op kLayerNorm;

}  // namespace rwkv
