#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// out = x + y.   in x, y of one shape   out likewise. backward reads: nothing.
extern const Op kAdd;

/// out = max(x, 0)^2.   in x   out likewise. backward reads: x. source: spec rwkv7 2.5, 3.2
extern const Op kSquaredRelu;

/// out = sigmoid(r) x [+ residual].   in r, x [, residual] of one shape   out likewise.
/// backward reads: r, x. source: spec rwkv4 2, 4.4
extern const Op kGate;

}  // namespace rwkv
