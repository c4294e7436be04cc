#include "kernels/ops/key_prepare.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "key_prepare";
  checks::counts(call, op, 2, 2, 2, 2);
  checks::attrs(op, call);
  const TensorSpec& k0 = call.in[0];
  checks::rank(op, "k0", k0, 3);
  checks::same(op, "iclr_logit", call.in[1], "k0", k0);
  checks::heads(op, k0[2], call.attr<KeyPrepareAttrs>().head_size);
  checks::shape(op, "k_k", call.param[0], {1, 1, k0[2]}, "one value per channel of k0");
  checks::shape(op, "k_a", call.param[1], {1, 1, k0[2]}, "one value per channel of k0");
  call.out = {k0, k0, k0};
  call.workspace_bytes = std::max(cpu::partial_bytes(k0.rows(), 2 * k0[2]),
                                  cuda::row_partial_bytes(k0.rows(), k0[2], 2, cuda::kHeadBlocks));
}

}  // namespace

constinit const Op kKeyPrepare = {
    .name = "key_prepare",
    .infer = infer,
    .backward_reads_in = 0b11,
    .backward_reads_out = 0,
    .forward = {cpu::key_prepare_forward, cuda::key_prepare_forward},
    .backward = {cpu::key_prepare_backward, cuda::key_prepare_backward},
};

}  // namespace rwkv
