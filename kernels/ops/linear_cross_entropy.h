#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

/// Tokens that are handled at a time when the logits are kept. `chunk_tokens` of this value gives
/// bit-equal losses and gradients on the CPU with less memory and one more product.
inline constexpr int64_t kLinearCrossEntropyChunk = 512;

struct LinearCrossEntropyAttrs {
  bool l2wrap = true;  ///< adds s * 1e-4 * m / tokens to the gradient of the largest logit m
  /// 0: the logits are saved for the backward. n > 0: logits exist for n tokens at a time and the
  /// backward computes them again.
  int64_t chunk_tokens = 0;
};

/// Output head, mean cross entropy and L2Wrap in one op: the logits never leave it.
///   logits = x W^T;  loss = mean over all tokens of (logsumexp(logits) - logits[target])
///   dlogits = s * ((softmax - onehot) + [l2wrap] 1e-4 * m at the argmax) / tokens,
/// s = upstream gradient of the loss, argmax = lowest index on ties. The reported loss never
/// contains L2Wrap. Sums of losses are in double.
/// in x (B, T, C), targets (B, T) i32   param weight (V, C)
/// out loss () f32, token_loss (B, T) f32 (no gradient flows through token_loss)
/// saved sum_exp (B, T) = sum of exp(logit - largest logit) [, logits (B, T, V) if chunk_tokens ==
/// 0, V rounded up to a multiple of 64]. Backward reads: x, targets, saved. On the CPU it
/// overwrites the saved logits with their gradient: one backward per forward. On CUDA the forward
/// already leaves the gradient (for s = 1) in their place. A NaN or +inf logit makes the loss NaN.
/// Forward throws ShapeError naming the first target outside [0, V).
/// source: spec rwkv7 2.6, 3.1; kernels/ref/linear_cross_entropy_ref.h
extern const Op kLinearCrossEntropy;

}  // namespace rwkv
