#include "kernels/core/stream_event.h"

#include <utility>

#include "kernels/core/backend.h"

namespace rwkv {

StreamEvent::~StreamEvent() {
  if (event_ != nullptr) backend::cuda_event_release(event_);
}

StreamEvent::StreamEvent(StreamEvent&& o) noexcept : event_(std::exchange(o.event_, nullptr)) {}

StreamEvent& StreamEvent::operator=(StreamEvent&& o) noexcept {
  std::swap(event_, o.event_);
  return *this;
}

void StreamEvent::record(const Context& ctx) {
  if (event_ == nullptr) event_ = backend::cuda_event_create();
  backend::cuda_event_record(event_, ctx.stream());
}

void StreamEvent::wait(const Context& ctx) const {
  if (event_ != nullptr) backend::cuda_stream_wait(ctx.stream(), event_);
}

}  // namespace rwkv
