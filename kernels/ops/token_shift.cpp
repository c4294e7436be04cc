#include "kernels/ops/token_shift.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "token_shift";
  checks::counts(call, op, 1, 2, 1, 6);
  checks::attrs(op, call);
  const TensorSpec& h = call.in[0];
  checks::rank(op, "h", h, 3);
  for (size_t i = 0; i < call.param.size(); ++i)
    checks::shape(op, str("mix_", i), call.param[i], {1, 1, h[2]}, "one weight per channel of h");
  call.out.assign(call.param.size(), h);
  if (call.in.size() == 2) {
    checks::shape(op, "prev", call.in[1], {h[0], h[2]}, "the row before each sequence of h",
                  h.dtype);
    call.out.push_back(call.in[1]);
  }
  const auto mixes = static_cast<int64_t>(call.param.size());
  call.workspace_bytes = std::max(cpu::partial_bytes(h.rows(), mixes * h[2]),
                                  cuda::row_partial_bytes(h.rows(), h[2], mixes));
}

}  // namespace

constinit const Op kTokenShift = {
    .name = "token_shift",
    .infer = infer,
    .backward_reads_in = 0b11,
    .backward_reads_out = 0,
    .forward = {cpu::token_shift_forward, cuda::token_shift_forward},
    .backward = {cpu::token_shift_backward, cuda::token_shift_backward},
};

}  // namespace rwkv
