#pragma once
/// The CUDA kernels of the ops, for the declarations in kernels/ops (contracts: kernels/ops/*.h).
/// In builds without CUDA every entry is null, which the op table reports as a missing kernel.
///
/// Activations and matrices are f32 or bf16 (one type per call), vectors and statistics f32; all
/// sums and exponentials are in f32 or wider. Deterministic: sums are cut at bounds that depend on
/// the shapes only and added in a fixed order. Ids out of range cannot throw without a
/// synchronisation here: they make the loss or the embedded row NaN and get no gradient.

#include "kernels/ops/op.h"

namespace rwkv::cuda {

#if RWKV_HAVE_CUDA
#define RWKV_CUDA_KERNEL(name) void name(Context& ctx, const OpCall& call)
#else
#define RWKV_CUDA_KERNEL(name) inline constexpr KernelFn name = nullptr
#endif

RWKV_CUDA_KERNEL(embedding_forward);
RWKV_CUDA_KERNEL(embedding_backward);
RWKV_CUDA_KERNEL(layer_norm_forward);
RWKV_CUDA_KERNEL(layer_norm_backward);
RWKV_CUDA_KERNEL(token_shift_forward);
RWKV_CUDA_KERNEL(token_shift_backward);
RWKV_CUDA_KERNEL(linear_forward);
RWKV_CUDA_KERNEL(linear_backward);
RWKV_CUDA_KERNEL(low_rank_forward);
RWKV_CUDA_KERNEL(low_rank_backward);
RWKV_CUDA_KERNEL(add_forward);
RWKV_CUDA_KERNEL(add_backward);
RWKV_CUDA_KERNEL(squared_relu_forward);
RWKV_CUDA_KERNEL(squared_relu_backward);
RWKV_CUDA_KERNEL(gate_forward);
RWKV_CUDA_KERNEL(gate_backward);
RWKV_CUDA_KERNEL(feed_forward_forward);
RWKV_CUDA_KERNEL(feed_forward_backward);
RWKV_CUDA_KERNEL(key_prepare_forward);
RWKV_CUDA_KERNEL(key_prepare_backward);
RWKV_CUDA_KERNEL(value_residual_forward);
RWKV_CUDA_KERNEL(value_residual_backward);
RWKV_CUDA_KERNEL(wkv7_output_forward);
RWKV_CUDA_KERNEL(wkv7_output_backward);
RWKV_CUDA_KERNEL(linear_cross_entropy_forward);
RWKV_CUDA_KERNEL(linear_cross_entropy_backward);
RWKV_CUDA_KERNEL(last_token_forward);
RWKV_CUDA_KERNEL(last_token_backward);

#undef RWKV_CUDA_KERNEL

}  // namespace rwkv::cuda
