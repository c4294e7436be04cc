#pragma once
/// Moving tensors, on and between devices.

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace rwkv {

/// to = from, byte for byte; shapes and types must agree (else InternalError). Views may live on
/// either device; copies that leave the device wait for it, the others are queued on the context.
void copy(Context& ctx, const TensorView& to, const TensorView& from);
/// All bytes zero, queued.
void fill_zero(Context& ctx, const TensorView& view);

}  // namespace rwkv
