#include "kernels/core/memory.h"

#include <cstring>
#include <new>
#include <utility>

#include "kernels/core/backend.h"

namespace rwkv {

void copy(Context& ctx, const TensorView& to, const TensorView& from) {
  copy_later(ctx, to, from);
  if (to.device != Device::kCuda && from.device == Device::kCuda)
    ctx.synchronize("copy to the host");
}

void copy_later(Context& ctx, const TensorView& to, const TensorView& from) {
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
}

HostBuffer::HostBuffer(Device device, size_t bytes) : bytes_(bytes), device_(device) {
  if (bytes == 0) return;
  data_ = static_cast<std::byte*>(device == Device::kCuda ? backend::cuda_allocate_host(bytes)
                                                          : ::operator new(bytes));
  std::memset(data_, 0, bytes);
}

void HostBuffer::release() noexcept {
  if (data_ == nullptr) return;
  if (device_ == Device::kCuda)
    backend::cuda_release_host(data_);
  else
    ::operator delete(data_);
}

HostBuffer::~HostBuffer() {
  release();
}

HostBuffer::HostBuffer(HostBuffer&& o) noexcept {
  *this = std::move(o);
}

HostBuffer& HostBuffer::operator=(HostBuffer&& o) noexcept {
  if (this == &o) return *this;
  release();
  data_ = std::exchange(o.data_, nullptr);
  bytes_ = std::exchange(o.bytes_, 0);
  device_ = o.device_;
  return *this;
}

void fill_zero(Context& ctx, const TensorView& view) {
  if (view.device == Device::kCuda)
    backend::cuda_fill_zero(ctx.stream(), view.data, view.bytes());
  else
    std::memset(view.data, 0, view.bytes());
}

}  // namespace rwkv
