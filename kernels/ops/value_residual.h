#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// v = v0 + (v_first - v0) * sigmoid(nu_logit): layers after the first look back at layer 0's
/// value.
/// in v0, v_first, nu_logit (B, T, C)   out v likewise
/// backward reads: all inputs.
/// source: spec rwkv7 2.2, 3.3; kernels/ref/value_residual_ref.h
extern const Op kValueResidual;

}  // namespace rwkv
