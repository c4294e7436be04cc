#include "kernels/ops/low_rank.h"

#include "kernels/core/packed_rows.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "low_rank";
  checks::counts(call, op, 1, 1, 2, 3);
  checks::attrs(op, call);
  const TensorSpec &x = call.in[0], &w1 = call.param[0], &w2 = call.param[1];
  checks::any_rank(op, "x", x);
  const int64_t rows = x.rows(), rank = packed_columns(w1), n = packed_columns(w2);
  checks::weight(op, "W1", w1, x.last(), rank, "stored (in, rank), in = last dimension of x",
                 x.dtype);
  checks::weight(op, "W2", w2, rank, n, "stored (rank, out), rank as in W1", x.dtype);
  TensorSpec out = x;
  out.dim[static_cast<size_t>(out.rank - 1)] = n;
  call.out = {out};
  const bool biased = call.param.size() == 3;
  call.saved = {TensorSpec({rows, rank + (biased ? cuda::kLowRankExtra : 0)}, x.dtype)};
  call.workspace_bytes = align_up(static_cast<size_t>(rows * rank) * sizeof(float));
  if (biased) {
    checks::shape(op, "bias", call.param[2], {1, 1, n}, "one value per output channel");
    call.workspace_bytes += cpu::partial_bytes(rows, n);
  }
  call.workspace_bytes =
      std::max(call.workspace_bytes, cuda::low_rank_bytes(rows, rank, n, x.dtype, biased));
}

double forward_flops(const ShapeCall& call) {
  return 2.0 * static_cast<double>(call.in[0].rows()) *
         static_cast<double>(call.param[0].numel() + call.param[1].numel());
}

double backward_flops(const ShapeCall& call) {
  return 2.0 * forward_flops(call);
}

}  // namespace

constinit const Op kLowRank = {
    .name = "low_rank",
    .infer = infer,
    .backward_reads_in = 0b1,
    .backward_reads_out = 0,
    .forward = {cpu::low_rank_forward, cuda::low_rank_forward},
    .backward = {cpu::low_rank_backward, cuda::low_rank_backward},
    .forward_flops = forward_flops,
    .backward_flops = backward_flops,
};

}  // namespace rwkv
