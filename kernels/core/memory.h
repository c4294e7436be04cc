#pragma once
/// Moving tensors, on and between devices.

#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace rwkv {

/// to = from, byte for byte; shapes and types must agree (else InternalError). Views may live on
/// either device; copies that leave the device wait for it, the others are queued on the context.
void copy(Context& ctx, const TensorView& to, const TensorView& from);
/// The same, but copies to a HostBuffer are queued too: read it after ctx.synchronize().
void copy_later(Context& ctx, const TensorView& to, const TensorView& from);
/// All bytes zero, queued.
void fill_zero(Context& ctx, const TensorView& view);

/// Zero-filled host memory for the traffic with a context's device: pinned on CUDA, so that copies
/// neither stage nor wait.
class HostBuffer {
 public:
  HostBuffer() = default;
  /// Throws DeviceError.
  HostBuffer(Device device, size_t bytes);
  ~HostBuffer();
  HostBuffer(HostBuffer&& o) noexcept;
  HostBuffer& operator=(HostBuffer&& o) noexcept;
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void release() noexcept;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_ = Device::kCpu;
};

}  // namespace rwkv
