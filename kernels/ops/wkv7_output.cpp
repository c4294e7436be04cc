#include "kernels/ops/wkv7_output.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "wkv7_output";
  checks::counts(call, op, 5, 5, 3, 3);
  checks::attrs(op, call);
  const TensorSpec& y = call.in[0];
  checks::rank(op, "y", y, 3);
  constexpr std::string_view names[] = {"y", "r", "k", "v", "gate"};
  for (size_t i = 1; i < 5; ++i) checks::same(op, names[i], call.in[i], "y", y);
  const int64_t c = y[2], n = call.attr<Wkv7OutputAttrs>().head_size;
  const int64_t heads = checks::heads(op, c, n);
  checks::shape(op, "weight", call.param[0], {c}, "one value per channel of y");
  checks::shape(op, "bias", call.param[1], {c}, "one value per channel of y");
  checks::shape(op, "r_k", call.param[2], {heads, n}, "(heads, head size)");
  call.out = {y};
  call.saved.assign(2, TensorSpec({y[0], y[1], heads}));
  call.workspace_bytes = std::max(cpu::partial_bytes(y.rows(), 3 * c),
                                  cuda::row_partial_bytes(y.rows(), c, 3, cuda::kHeadBlocks));
}

}  // namespace

constinit const Op kWkv7Output = {
    .name = "wkv7_output",
    .infer = infer,
    .backward_reads_in = 0b11111,
    .backward_reads_out = 0,
    .forward = {cpu::wkv7_output_forward, cuda::wkv7_output_forward},
    .backward = {cpu::wkv7_output_backward, cuda::wkv7_output_backward},
};

}  // namespace rwkv
