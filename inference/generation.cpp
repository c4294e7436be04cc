#include "inference/generation.h"

#include <chrono>

namespace rwkv {

std::string_view generation_end_name(GenerationEnd end) {
  switch (end) {
    case GenerationEnd::kLength:
      return "length";
    case GenerationEnd::kStop:
      return "stop";
    case GenerationEnd::kEnd:
      return "end of document";
    case GenerationEnd::kCancelled:
      return "cancelled";
    case GenerationEnd::kDeadline:
      return "deadline";
    case GenerationEnd::kError:
      return "error";
  }
  return "?";
}

std::optional<GenerationEvent> Generation::wait(double seconds) {
  std::unique_lock lock(mutex_);
  if (!arrived_.wait_for(lock, std::chrono::duration<double>(seconds),
                         [&] { return !events_.empty(); }))
    return std::nullopt;
  GenerationEvent event = std::move(events_.front());
  events_.pop_front();
  return event;
}

void Generation::push(GenerationEvent event) {
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  arrived_.notify_one();
}

}  // namespace rwkv
