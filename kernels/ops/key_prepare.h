#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

struct KeyPrepareAttrs {
  int64_t head_size = 64;
};

/// Key normalisation and the WKV-7 vectors k, a, b, per head of N = head_size channels:
///   u = k0 * k_k;  z = u / max(|u|_2, 1e-12);  iclr = sigmoid(iclr_logit)
///   k = k0 * (1 + (iclr - 1) * k_a);  a = -z;  b = z * iclr
/// in k0, iclr_logit (B, T, C)   param k_k, k_a (1, 1, C)   out k, a, b (B, T, C)
/// backward reads: k0, iclr_logit. N from 1 to 256, C a multiple of it (ConfigError otherwise).
/// Below the floor of 1e-12 the norm is a constant: du = dz / 1e-12 (spec rwkv7 3.3).
/// source: spec rwkv7 2.2, 3.3; kernels/ref/key_prepare_ref.h
extern const Op kKeyPrepare;

}  // namespace rwkv
