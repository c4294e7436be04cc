#include "kernels/core/memory.h"

#include <cstring>

#include "kernels/core/backend.h"

namespace rwkv {

void copy(Context& ctx, const TensorView& to, const TensorView& from) {
  RWKV_ASSERT(to.spec == from.spec, to_string(to.spec), " from ", to_string(from.spec));
  const bool to_cuda = to.device == Device::kCuda, from_cuda = from.device == Device::kCuda;
  if (!to_cuda && !from_cuda) {
    std::memcpy(to.data, from.data, from.bytes());
    return;
  }
  using backend::CopyKind;
  const CopyKind kind =
      to_cuda ? (from_cuda ? CopyKind::kOnDevice : CopyKind::kToDevice) : CopyKind::kToHost;
  backend::cuda_copy(ctx.stream(), to.data, from.data, from.bytes(), kind);
  if (!to_cuda) ctx.synchronize("copy to the host");
}

void fill_zero(Context& ctx, const TensorView& view) {
  if (view.device == Device::kCuda)
    backend::cuda_fill_zero(ctx.stream(), view.data, view.bytes());
  else
    std::memset(view.data, 0, view.bytes());
}

}  // namespace rwkv
