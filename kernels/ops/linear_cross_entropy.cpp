#include "kernels/ops/linear_cross_entropy.h"

#include <algorithm>

#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "linear_cross_entropy";
  checks::counts(call, op, 2, 2, 1, 1);
  checks::attrs(op, call);
  const TensorSpec &x = call.in[0], &targets = call.in[1], &weight = call.param[0];
  checks::rank(op, "x", x, 3);
  checks::tokens(op, "targets", targets);
  RWKV_CHECK(targets[0] == x[0] && targets[1] == x[1], ShapeError, "op ", op, ", targets: found ",
             to_string(targets), ", expected (", x[0], ", ", x[1], ") as in x ", to_string(x));
  checks::weight(op, "weight", weight, weight[0], x[2],
                 "stored (vocabulary, channels), channels = last dimension of x", x.dtype);
  const int64_t chunk = call.attr<LinearCrossEntropyAttrs>().chunk_tokens;
  RWKV_CHECK(chunk >= 0, ConfigError, "op ", op, ": found chunk_tokens ", chunk,
             ", expected 0 (keep the logits) or a number of tokens");
  const TensorSpec per_token({x[0], x[1]});
  call.out = {TensorSpec({}), per_token};
  call.saved = {per_token};
  const int64_t stride = cuda::logits_stride(weight[0]);
  if (chunk == 0)
    call.saved.push_back(TensorSpec({x[0], x[1], stride}, x.dtype));
  else
    call.workspace_bytes =
        static_cast<size_t>(std::min(chunk, x.rows()) * stride) * dtype_bytes(x.dtype);
}

double forward_flops(const ShapeCall& call) {
  return 2.0 * static_cast<double>(call.in[0].rows()) * static_cast<double>(call.param[0].numel());
}

/// Two products, and a third where the logits are computed again.
double backward_flops(const ShapeCall& call) {
  const bool kept = call.attr<LinearCrossEntropyAttrs>().chunk_tokens == 0;
  return (kept ? 2.0 : 3.0) * forward_flops(call);
}

}  // namespace

constinit const Op kLinearCrossEntropy = {
    .name = "linear_cross_entropy",
    .infer = infer,
    .backward_reads_in = 0b11,
    .backward_reads_out = 0,
    .forward = {cpu::linear_cross_entropy_forward, cuda::linear_cross_entropy_forward},
    .backward = {cpu::linear_cross_entropy_backward, cuda::linear_cross_entropy_backward},
    .forward_flops = forward_flops,
    .backward_flops = backward_flops,
    // Logits that were not kept are computed for both.
    .backward_splits =
        [](const void* attrs) {
          return static_cast<const LinearCrossEntropyAttrs*>(attrs)->chunk_tokens == 0;
        },
    .backward_uses_up_saved = true,
};

}  // namespace rwkv
