#pragma once
#include "kernels/ops/op.h"

namespace rwkv::cpu {

void last_token_forward(Context& ctx, const OpCall& call);
void last_token_backward(Context& ctx, const OpCall& call);

}  // namespace rwkv::cpu
