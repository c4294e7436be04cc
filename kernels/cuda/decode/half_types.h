#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace rwkv::cuda::decode {

/// Calls fn with a value of the type on the device, for f16 and bf16.
template <class Fn>
void by_half(DType type, const Fn& fn) {
  RWKV_ASSERT(type == DType::kF16 || type == DType::kBF16, "batch of ", dtype_name(type));
  if (type == DType::kF16)
    fn(__half());
  else
    fn(__nv_bfloat16());
}

}  // namespace rwkv::cuda::decode
