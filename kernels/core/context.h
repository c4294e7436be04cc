#pragma once
/// What every computing call is handed first: the device and its shared helpers.

#include <cstddef>

#include "kernels/core/arena.h"
#include "kernels/core/dtype.h"
#include "kernels/core/tensor.h"
#include "kernels/core/trace.h"

namespace rwkv {

/// One per rank. Not thread-safe: one thread drives a context (kernels fork their own threads).
class Context {
 public:
  /// Throws DeviceError if this build has no such device.
  explicit Context(Device device = Device::kCpu);

  Device device() const { return device_; }
  Tracer& tracer() { return tracer_; }

  /// Makes sure that `workspace` can serve `bytes`. Called while planning, never in a step.
  void reserve_workspace(size_t bytes);
  /// Scratch memory for the kernel that is running; the next kernel reuses it. Contents undefined.
  /// Throws InternalError if it was not reserved: an op states its need in `Op::workspace_bytes`.
  std::byte* workspace(size_t bytes);
  size_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  Device device_;
  Tracer tracer_;
  Arena workspace_;
};

}  // namespace rwkv
