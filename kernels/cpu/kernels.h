#pragma once
/// The f32 CPU kernels of the ops, for the declarations in kernels/ops. Contracts: kernels/ops/*.h.

#include "kernels/ops/op.h"

namespace rwkv::cpu {

void embedding_forward(Context& ctx, const OpCall& call);
void embedding_backward(Context& ctx, const OpCall& call);
void layer_norm_forward(Context& ctx, const OpCall& call);
void layer_norm_backward(Context& ctx, const OpCall& call);
void token_shift_forward(Context& ctx, const OpCall& call);
void token_shift_backward(Context& ctx, const OpCall& call);
void linear_forward(Context& ctx, const OpCall& call);
void linear_backward(Context& ctx, const OpCall& call);
void low_rank_forward(Context& ctx, const OpCall& call);
void low_rank_backward(Context& ctx, const OpCall& call);
void add_forward(Context& ctx, const OpCall& call);
void add_backward(Context& ctx, const OpCall& call);
void squared_relu_forward(Context& ctx, const OpCall& call);
void squared_relu_backward(Context& ctx, const OpCall& call);
void gate_forward(Context& ctx, const OpCall& call);
void gate_backward(Context& ctx, const OpCall& call);
void feed_forward_forward(Context& ctx, const OpCall& call);
void feed_forward_backward(Context& ctx, const OpCall& call);
void key_prepare_forward(Context& ctx, const OpCall& call);
void key_prepare_backward(Context& ctx, const OpCall& call);
void value_residual_forward(Context& ctx, const OpCall& call);
void value_residual_backward(Context& ctx, const OpCall& call);
void wkv7_output_forward(Context& ctx, const OpCall& call);
void wkv7_output_backward(Context& ctx, const OpCall& call);
void linear_cross_entropy_forward(Context& ctx, const OpCall& call);
void linear_cross_entropy_backward(Context& ctx, const OpCall& call);

}  // namespace rwkv::cpu
