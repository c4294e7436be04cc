#include "kernels/ops/linear.h"

#include "kernels/core/packed_rows.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

/// (..., K) with its last dimension replaced by n.
TensorSpec with_last(TensorSpec spec, int64_t n) {
  spec.dim[static_cast<size_t>(spec.rank - 1)] = n;
  return spec;
}

void infer(ShapeCall& call) {
  constexpr std::string_view op = "linear";
  checks::counts(call, op, 1, 2, 1, 1);
  const TensorSpec &x = call.in[0], &weight = call.param[0];
  checks::any_rank(op, "x", x);
  const LinearAttrs attrs = call.attrs == nullptr ? LinearAttrs{} : call.attr<LinearAttrs>();
  if (attrs.transposed) {
    const int64_t n = weight.rank == 2 ? packed_columns(weight) : 1;
    checks::weight(op, "weight", weight, x.last(), n, "stored (in, out), in = last dimension of x",
                   x.dtype);
    call.out = {with_last(x, n)};
  } else {
    checks::weight(op, "weight", weight, weight[0], x.last(),
                   "stored (out, in), in = last dimension of x", x.dtype);
    call.out = {with_last(x, weight[0])};
  }
  if (attrs.f32_out) call.out[0].dtype = DType::kF32;
  if (call.in.size() == 2) checks::same(op, "residual", call.in[1], "y", call.out[0]);
}

double forward_flops(const ShapeCall& call) {
  return 2.0 * static_cast<double>(call.in[0].rows()) * static_cast<double>(call.param[0].numel());
}

double backward_flops(const ShapeCall& call) {
  return 2.0 * forward_flops(call);
}

}  // namespace

constinit const Op kLinear = {
    .name = "linear",
    .infer = infer,
    .backward_reads_in = 0b1,
    .backward_reads_out = 0,
    .forward = {cpu::linear_forward, cuda::linear_forward},
    .backward = {cpu::linear_backward, cuda::linear_backward},
    .forward_flops = forward_flops,
    .backward_flops = backward_flops,
    .backward_splits = [](const void*) { return true; },
    .passes_gradient = 0b10,
};

}  // namespace rwkv
