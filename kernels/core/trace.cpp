#include "kernels/core/trace.h"

#include "kernels/core/backend.h"

namespace rwkv {

Tracer::~Tracer() {
  clear();
  for (void* e : free_events_) backend::cuda_event_release(e);
}

void Tracer::add(std::string_view name, double seconds, double flops) {
  auto it = rows_.find(name);
  if (it == rows_.end()) it = rows_.emplace(std::string(name), Row{}).first;
  it->second.seconds += seconds;
  it->second.calls += 1;
  it->second.flops += flops;
}

void Tracer::clear() {
  rows_.clear();
  for (const Span& s : pending_) {
    free_events_.push_back(s.begin);
    free_events_.push_back(s.end);
  }
  pending_.clear();
}

Tracer::Mark Tracer::mark() {
  if (stream_ == nullptr) return {now_seconds(), nullptr};
  void* event = nullptr;
  if (free_events_.empty()) {
    event = backend::cuda_event_create();
  } else {
    event = free_events_.back();
    free_events_.pop_back();
  }
  backend::cuda_event_record(event, stream_);
  return {0, event};
}

void Tracer::finish(std::string_view name, const Mark& begin, double flops) noexcept {
  try {
    const Mark end = mark();
    if (stream_ == nullptr)
      add(name, end.seconds - begin.seconds, flops);
    else
      pending_.push_back({std::string(name), flops, begin.event, end.event});
  } catch (...) {
    // Called by destructors: what is wrong with the device is reported by whoever uses it next.
    if (begin.event != nullptr) backend::cuda_event_release(begin.event);
  }
}

const std::map<std::string, Tracer::Row, std::less<>>& Tracer::rows() {
  for (const Span& s : pending_) {
    add(s.name, backend::cuda_event_seconds(s.begin, s.end), s.flops);
    free_events_.push_back(s.begin);
    free_events_.push_back(s.end);
  }
  pending_.clear();
  return rows_;
}

}  // namespace rwkv
