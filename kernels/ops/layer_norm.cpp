#include "kernels/ops/layer_norm.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "layer_norm";
  checks::counts(call, op, 1, 1, 2, 2);
  checks::attrs(op, call);
  const TensorSpec& x = call.in[0];
  checks::any_rank(op, "x", x);
  checks::shape(op, "weight", call.param[0], {x.last()}, "one value per channel of x");
  checks::shape(op, "bias", call.param[1], {x.last()}, "one value per channel of x");
  call.out = {x};
  call.saved = {TensorSpec({x.rows()}), TensorSpec({x.rows()})};
  call.workspace_bytes = std::max(cpu::partial_bytes(x.rows(), 2 * x.last()),
                                  cuda::whole_row_partial_bytes(x.rows(), x.last(), 2));
}

}  // namespace

constinit const Op kLayerNorm = {
    .name = "layer_norm",
    .infer = infer,
    .backward_reads_in = 0b1,
    .backward_reads_out = 0,
    .forward = {cpu::layer_norm_forward, cuda::layer_norm_forward},
    .backward = {cpu::layer_norm_backward, cuda::layer_norm_backward},
};

}  // namespace rwkv
