#include "kernels/ops/embedding.h"

#include "kernels/cpu/kernels.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  constexpr std::string_view op = "embedding";
  checks::counts(call, op, 1, 1, 1, 1);
  const TensorSpec &tokens = call.in[0], &weight = call.param[0];
  checks::tokens(op, "tokens", tokens);
  checks::rank(op, "weight", weight, 2);
  call.out = {TensorSpec({tokens[0], tokens[1], weight[1]}, weight.dtype)};
  call.workspace_bytes = cuda::embedding_bytes(tokens.numel(), weight[1]);
}

}  // namespace

constinit const Op kEmbedding = {
    .name = "embedding",
    .infer = infer,
    .backward_reads_in = 0b1,
    .backward_reads_out = 0,
    .forward = {cpu::embedding_forward, cuda::embedding_forward},
    .backward = {cpu::embedding_backward, cuda::embedding_backward},
};

}  // namespace rwkv
