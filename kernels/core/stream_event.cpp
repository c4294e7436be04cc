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
  record_on(ctx.stream());
}

void StreamEvent::wait(const Context& ctx) const {
  wait_on(ctx.stream());
}

void StreamEvent::record_on(Stream stream) {
  if (event_ == nullptr) event_ = backend::cuda_event_create();
  backend::cuda_event_record(event_, stream);
}

void StreamEvent::wait_on(Stream stream) const {
  if (event_ != nullptr) backend::cuda_stream_wait(stream, event_);
}

}  // namespace rwkv
