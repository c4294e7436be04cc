#include "kernels/core/timeline.h"

#include <algorithm>

#include "kernels/core/backend.h"
#include "kernels/core/error.h"
#include "kernels/core/trace.h"

namespace rwkv {

Timeline::Timeline(Context& ctx) : ctx_(ctx) {
  ctx.synchronize("begin of a timeline");
  origin_ = mark(ctx.stream());
}

Timeline::~Timeline() {
  const auto release = [](void* event) {
    if (event != nullptr) backend::cuda_event_release(event);
  };
  for (const Span& s : spans_) {
    release(s.begin.event);
    release(s.end.event);
  }
  for (void* e : free_events_) release(e);
  release(origin_.event);
}

Timeline::Mark Timeline::mark(Stream stream) {
  if (ctx_.device() == Device::kCpu) return {now_seconds(), nullptr};
  void* event = nullptr;
  if (free_events_.empty()) {
    event = backend::cuda_event_create();
  } else {
    event = free_events_.back();
    free_events_.pop_back();
  }
  if (ctx_.recording())
    backend::cuda_event_record_in_graph(event, stream);
  else
    backend::cuda_event_record(event, stream);
  return {0, event};
}

double Timeline::time(const Mark& m) const {
  if (m.event == nullptr) return m.seconds - origin_.seconds;
  return backend::cuda_event_seconds(origin_.event, m.event);
}

Timeline::Span* Timeline::open_span(int32_t track) {
  // A track has at most one, and it is among the latest.
  for (size_t i = spans_.size(); i-- > 0;)
    if (spans_[i].open && spans_[i].what.track == track) return &spans_[i];
  return nullptr;
}

void Timeline::enter(int32_t track, Stream stream, TimelineKind kind, std::string_view name,
                     double bytes) {
  if (const Span* s = open_span(track)) {
    if (s->what.kind == kind && s->what.name == name && s->what.bytes == bytes) return;
    leave(track, stream);
  }
  Span& s = spans_.emplace_back();
  s.what.name = name;
  s.what.kind = kind;
  s.what.track = track;
  s.what.bytes = bytes;
  s.recorded = ctx_.recording();
  s.begin = mark(stream);
}

void Timeline::leave_unless(int32_t track, Stream stream, TimelineKind kind,
                            std::string_view name) {
  const Span* s = open_span(track);
  if (s != nullptr && (s->what.kind != kind || s->what.name != name)) leave(track, stream);
}

void Timeline::leave(int32_t track, Stream stream) {
  Span* s = open_span(track);
  if (s == nullptr) return;
  s->end = mark(stream);
  s->open = false;
}

void Timeline::leave_lanes() {
  for (int l = 0; l < ctx_.lanes(); ++l) leave(l, ctx_.lane(l).stream());
}

void Timeline::collect() {
  for (const Span& s : spans_) {
    RWKV_ASSERT(!s.open, s.what.name, " did not end");
    TimelineInterval& i = intervals_.emplace_back(s.what);
    i.step = steps_;
    i.begin = time(s.begin);
    i.end = time(s.end);
  }
  ++steps_;
  std::erase_if(spans_, [&](const Span& s) {
    if (s.recorded) return false;
    for (void* e : {s.begin.event, s.end.event})
      if (e != nullptr) free_events_.push_back(e);
    return true;
  });
}

}  // namespace rwkv
