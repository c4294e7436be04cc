#include "kernels/ops/feed_forward.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "feed_forward";
  checks::counts(call, op, 1, 2, 2, 2);
  const TensorSpec &x = call.in[0], &w1 = call.param[0], &w2 = call.param[1];
  checks::any_rank(op, "x", x);
  checks::rank(op, "W1", w1, 2);
  checks::shape(op, "W1", w1, {w1[0], x.last()}, "stored (hidden, in), in = last dimension of x",
                x.dtype);
  checks::rank(op, "W2", w2, 2);
  checks::shape(op, "W2", w2, {w2[0], w1[0]}, "stored (out, hidden), hidden as in W1", x.dtype);
  TensorSpec out = x;
  out.dim[static_cast<size_t>(out.rank - 1)] = w2[0];
  call.out = {out};
  call.saved = {TensorSpec({x.rows(), w1[0]}, x.dtype)};
  if (call.in.size() == 2) checks::same(op, "residual", call.in[1], "y", out);
  call.workspace_bytes = cuda::feed_forward_bytes(x.rows(), w1[0], x.dtype);
}

double forward_flops(const ShapeCall& call) {
  return 2.0 * static_cast<double>(call.in[0].rows()) *
         static_cast<double>(call.param[0].numel() + call.param[1].numel());
}

double backward_flops(const ShapeCall& call) {
  return 2.0 * forward_flops(call);
}

}  // namespace

constinit const Op kFeedForward = {
    .name = "feed_forward",
    .infer = infer,
    .backward_reads_in = 0b1,
    .backward_reads_out = 0,
    .forward = {cpu::feed_forward_forward, cuda::feed_forward_forward},
    .backward = {cpu::feed_forward_backward, cuda::feed_forward_backward},
    .forward_flops = forward_flops,
    .backward_flops = backward_flops,
    .passes_gradient = 0b10,
    .backward_uses_up_saved = true,
};

}  // namespace rwkv
