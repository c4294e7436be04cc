#include "kernels/core/context.h"

namespace rwkv {

Context::Context(Device device) : device_(device) {
  RWKV_CHECK(device == Device::kCpu, DeviceError, "device '", device_name(device),
             "' was asked for, but this build has CPU kernels only; use --device cpu");
}

void Context::reserve_workspace(size_t bytes) {
  if (bytes > workspace_.bytes()) workspace_ = Arena(device_, bytes, "workspace");
}

std::byte* Context::workspace(size_t bytes) {
  RWKV_ASSERT(bytes <= workspace_.bytes(), "workspace of ", bytes, " bytes wanted, ",
              workspace_.bytes(), " reserved");
  return workspace_.data();
}

}  // namespace rwkv
