#pragma once
#include "kernels/ops/op.h"

namespace rwkv {

enum class Activation : uint8_t { kNone, kTanh, kSigmoid };

struct LowRankAttrs {
  Activation inner = Activation::kNone;  ///< applied between the two products
};

/// Low-rank ("LoRA") map: y = act(x W1) W2 [+ bias]. Weights are stored (in, rank), (rank, out).
/// On the CPU both may be packed (kernels/core/packed_rows.h); there is no backward then.
/// in x (..., K)   param W1 (K, R), W2 (R, N) [, bias (1, 1, N)]   out y (..., N)
/// saved hidden = act(x W1) (rows, R); with a bias there is room for eight more columns, in which
/// the CUDA kernels carry it through the second product
/// backward reads: x, saved. source: spec rwkv7 2.2, 3.3; kernels/ref/low_rank_ref.h
extern const Op kLowRank;

}  // namespace rwkv
