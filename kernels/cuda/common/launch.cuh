#pragma once
/// Host side of the launches: choice of element type and pack, streams, gradients of a call.

#include <cuda_runtime.h>

#include <initializer_list>

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/common/pack.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/workspace.h"

namespace rwkv::cuda {

inline cudaStream_t stream_of(const Context& ctx) {
  return static_cast<cudaStream_t>(ctx.stream());
}

/// Calls fn(float()) or fn(BF16()). Throws DTypeError for other types.
template <class Fn>
void by_type(const char* op, const TensorView& like, const Fn& fn) {
  if (like.spec.dtype == DType::kF32)
    fn(float());
  else if (like.spec.dtype == DType::kBF16)
    fn(BF16());
  else
    throw DTypeError(
        str("op ", op, " on CUDA: found ", to_string(like.spec), ", expected f32 or bf16"));
}

/// 16-byte accesses are possible: `n` elements per row are whole packs, addresses are aligned.
template <class T>
bool packs(int64_t n, std::initializer_list<std::span<const TensorView>> operands) {
  if (n % kPack<T> != 0) return false;
  for (const auto& list : operands)
    for (const TensorView& v : list)
      if (reinterpret_cast<uintptr_t>(v.data) % 16 != 0) return false;
  return true;
}

template <class T>
Grad<T> grad_of(const TensorView& view, Accum mode) {
  return mode == Accum::kSkip ? Grad<T>{} : Grad<T>{view.as<T>(), mode};
}

}  // namespace rwkv::cuda
