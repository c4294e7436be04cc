#include "kernels/core/context.h"

#include "kernels/core/backend.h"

namespace rwkv {

Context::Context(Device device)
    : device_(device),
      cuda_(device == Device::kCuda ? backend::cuda_create() : nullptr),
      stream_(cuda_ ? backend::cuda_stream(*cuda_) : nullptr),
      tracer_(stream_) {}

Context::~Context() = default;

void Context::open_lanes(int count) {
  if (device_ == Device::kCpu) return;
  while (lanes() < count) {
    auto lane = std::make_unique<Context>(device_);
    lane->reserve_workspace(workspace_bytes());
    backend::cuda_share_gemms(*lane->cuda_, *cuda_);
    lanes_.push_back(std::move(lane));
  }
}

void Context::CudaDelete::operator()(CudaState* state) const {
  backend::cuda_destroy(state);
}

void Context::reserve_workspace(size_t bytes) {
  if (bytes > workspace_.bytes()) workspace_ = Arena(device_, bytes, "workspace");
  for (const auto& lane : lanes_) lane->reserve_workspace(bytes);
}

std::byte* Context::workspace(size_t bytes) {
  RWKV_ASSERT(bytes <= workspace_.bytes(), "workspace of ", bytes, " bytes wanted, ",
              workspace_.bytes(), " reserved");
  return workspace_.data();
}

void Context::synchronize(std::string_view why) {
  if (device_ == Device::kCpu) return;
  const TraceScope trace(tracer_, why);
  ++synchronizations_;
  backend::cuda_synchronize(stream_);
}

}  // namespace rwkv
