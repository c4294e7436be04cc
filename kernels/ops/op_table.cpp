// The one list of all ops. Tests and benchmarks walk it.

#include "kernels/ops/elementwise.h"
#include "kernels/ops/embedding.h"
#include "kernels/ops/feed_forward.h"
#include "kernels/ops/key_prepare.h"
#include "kernels/ops/last_token.h"
#include "kernels/ops/layer_norm.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/linear_cross_entropy.h"
#include "kernels/ops/low_rank.h"
#include "kernels/ops/op.h"
#include "kernels/ops/token_shift.h"
#include "kernels/ops/value_residual.h"
#include "kernels/ops/wkv7_output.h"
#include "kernels/wkv/wkv.h"

namespace rwkv {

std::span<const Op* const> all_ops() {
  static constexpr const Op* kOps[] = {
      &kEmbedding,          &kLayerNorm,  &kTokenShift,    &kLinear,      &kLowRank, &kAdd,
      &kSquaredRelu,        &kKeyPrepare, &kValueResidual, &kWkv7,        &kWkv4,    &kWkv7Output,
      &kLinearCrossEntropy, &kLastToken,  &kGate,          &kFeedForward,
  };
  return kOps;
}

}  // namespace rwkv
