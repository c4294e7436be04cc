#include "kernels/ops/value_residual.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "value_residual";
  checks::counts(call, op, 3, 3, 0, 0);
  const TensorSpec& v0 = call.in[0];
  checks::rank(op, "v0", v0, 3);
  checks::same(op, "v_first", call.in[1], "v0", v0);
  checks::same(op, "nu_logit", call.in[2], "v0", v0);
  call.out = {v0};
}

}  // namespace

constinit const Op kValueResidual = {
    .name = "value_residual",
    .infer = infer,
    .backward_reads_in = 0b111,
    .backward_reads_out = 0,
    .forward = {cpu::value_residual_forward, cuda::value_residual_forward},
    .backward = {cpu::value_residual_backward, cuda::value_residual_backward},
};

}  // namespace rwkv
