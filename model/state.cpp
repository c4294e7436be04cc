#include "model/state.h"

#include <cstring>

#include "kernels/core/memory.h"

namespace rwkv {

RnnState::RnnState(const Model& model, int64_t batch, std::string_view wkv)
    : specs_(model.state_specs(batch, DType::kF32, wkv)) {
  allocate(Device::kCpu);
}

RnnState::RnnState(Context& ctx, const Model& model, int64_t batch, DType activations,
                   std::string_view wkv)
    : ctx_(ctx.device() == Device::kCpu ? nullptr : &ctx),
      specs_(model.state_specs(batch, activations, wkv)) {
  allocate(ctx.device());
}

void RnnState::allocate(Device device) {
  size_t bytes = 0;
  for (const auto& s : specs_) bytes += align_up(s.spec.bytes());
  arena_ = Arena(device, bytes, "recurrent state");
  for (const auto& s : specs_) views_.push_back(arena_.take(s.spec, s.name));
  set_initial();
}

void RnnState::set_initial() {
  std::vector<float> values;
  for (size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].initial == 0) continue;
    RWKV_ASSERT(specs_[i].spec.dtype == DType::kF32, specs_[i].name);
    values.assign(static_cast<size_t>(specs_[i].spec.numel()), specs_[i].initial);
    const TensorView host(values.data(), specs_[i].spec);
    if (ctx_ != nullptr)
      copy(*ctx_, views_[i], host);  // memory that is not pinned has been read when it returns
    else
      std::memcpy(views_[i].data, values.data(), specs_[i].spec.bytes());
  }
}

TensorView RnnState::whole() const {
  return arena_.at(0, TensorSpec({static_cast<int64_t>(arena_.bytes())}, DType::kI8));
}

void RnnState::reset() {
  if (ctx_ != nullptr)
    fill_zero(*ctx_, whole());
  else
    std::memset(arena_.data(), 0, arena_.bytes());
  set_initial();
}

RnnState RnnState::clone() const {
  RnnState other;
  other.ctx_ = ctx_;
  other.specs_ = specs_;
  other.allocate(arena_.device());
  if (ctx_ != nullptr)
    copy(*ctx_, other.whole(), whole());
  else
    std::memcpy(other.arena_.data(), arena_.data(), arena_.bytes());
  return other;
}

}  // namespace rwkv
