#include "model/state.h"

#include <cstring>

namespace rwkv {

RnnState::RnnState(const Model& model, int64_t batch) : specs_(model.state_specs(batch)) {
  size_t bytes = 0;
  for (const auto& s : specs_) bytes += align_up(s.spec.bytes());
  arena_ = Arena(Device::kCpu, bytes, "recurrent state");
  for (const auto& s : specs_) views_.push_back(arena_.take(s.spec, s.name));
}

void RnnState::reset() {
  std::memset(arena_.data(), 0, arena_.bytes());
}

RnnState RnnState::clone() const {
  RnnState copy;
  copy.specs_ = specs_;
  copy.arena_ = Arena(arena_.device(), arena_.bytes(), arena_.purpose());
  for (const auto& s : specs_) copy.views_.push_back(copy.arena_.take(s.spec, s.name));
  std::memcpy(copy.arena_.data(), arena_.data(), arena_.bytes());
  return copy;
}

void RnnState::copy_to(Plan& plan) const {
  for (size_t i = 0; i < views_.size(); ++i) {
    const TensorView to = plan.input(specs_[i].name);
    RWKV_ASSERT(to.spec == specs_[i].spec, specs_[i].name);
    std::memcpy(to.data, views_[i].data, views_[i].bytes());
  }
}

void RnnState::copy_from(const Plan& plan) {
  for (size_t i = 0; i < views_.size(); ++i) {
    const TensorView from = plan.output(specs_[i].name);
    RWKV_ASSERT(from.spec == specs_[i].spec, specs_[i].name);
    std::memcpy(views_[i].data, from.data, views_[i].bytes());
  }
}

}  // namespace rwkv
