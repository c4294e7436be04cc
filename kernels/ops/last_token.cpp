#include "kernels/ops/last_token.h"

#include "kernels/cpu/last_token.h"
#include "kernels/cuda/kernels.h"
#include "kernels/ops/checks.h"

namespace rwkv {
namespace {

void infer(ShapeCall& call) {
  RWKV_CHECK(call.in.size() == 1 && call.param.empty(), ShapeError, "last_token: found ",
             call.in.size(), " inputs and ", call.param.size(), " parameters, expected 1 and 0");
  const TensorSpec& x = call.in[0];
  RWKV_CHECK(x.rank == 3 && x[1] >= 1, ShapeError, "last_token: x is ", to_string(x),
             ", expected (B, T, C) with T >= 1");
  checks::activation("last_token", "x", x);
  TensorSpec y({x[0], 1, x[2]}, x.dtype);
  call.out = {y};
}

}  // namespace

const Op kLastToken = {.name = "last_token",
                       .infer = infer,
                       .backward_reads_in = 0,
                       .backward_reads_out = 0,
                       .forward = {cpu::last_token_forward, cuda::last_token_forward},
                       .backward = {cpu::last_token_backward, cuda::last_token_backward}};

}  // namespace rwkv
